"""`open_checkpoint`: a model folder as a lazy mapping from tensor name to array.

Opening reads headers and JSON only. `checkpoint["name"]` is a read-only, memory-mapped numpy view made on demand;
the merge engine does not use it but streams the byte ranges in `checkpoint.index`.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jmerge.ckpt.dtypes import TensorSpec, view
from jmerge.ckpt.safetensors import Header, read_header
from jmerge.errors import CheckpointError, Fault
from jmerge.names import nearest

INDEX_SUFFIX = ".safetensors.index.json"
STEMS = ("model", "consolidated", "diffusion_pytorch_model")  # the first that exists wins
MAX_JSON_BYTES = 256_000_000


class TensorFile(NamedTuple):
    """One weight file of a checkpoint and what identifies it."""

    name: str  # inside the folder
    size: int  # bytes
    sha256: str  # of its header


class Entry(NamedTuple):
    """Where a named tensor lies."""

    spec: TensorSpec
    file: str  # name inside the folder
    start: int  # bytes from the beginning of the file


class Checkpoint(Mapping[str, np.ndarray]):
    """A folder of safetensors weights with its `config.json`; iterates over tensor names in file order.

    Attributes:
      path: the folder.
      files: its weight files in the order they are read.
      index: name -> `Entry`, in file order.
      config: the parsed config.json; empty when there is none.
    """

    def __init__(self, path: Path, headers: dict[str, Header], config: dict[str, Any]) -> None:
        self.path = path
        self.config = config
        self.files = tuple(
            TensorFile(name, head.size, head.sha256) for name, head in headers.items()
        )
        self.index: dict[str, Entry] = {}
        for file, head in headers.items():
            for name, extent in head.extents.items():
                if name in self.index:
                    raise CheckpointError(
                        Fault(
                            f"is in both {self.index[name].file} and {file}; delete the stale file",
                            name,
                            str(path),
                        )
                    )
                self.index[name] = Entry(extent.spec, file, extent.start)

    def __getitem__(self, name: str) -> np.ndarray:
        """The tensor as a read-only memory-mapped view (packed sub-byte dtypes: its bytes)."""
        if name not in self.index:
            best = nearest(name, self.index)
            raise KeyError(
                f"{name!r} is not in {self.path}" + (f"; did you mean {best!r}?" if best else "")
            )
        entry = self.index[name]
        raw = self._maps[entry.file][entry.start : entry.start + entry.spec.nbytes]
        return view(raw, entry.spec)

    def __iter__(self) -> Iterator[str]:
        return iter(self.index)

    def __len__(self) -> int:
        return len(self.index)

    def __repr__(self) -> str:
        total = sum(entry.spec.nbytes for entry in self.index.values())
        return f"<Checkpoint {str(self.path)!r}: {len(self)} tensors, {total:,} bytes, {len(self.files)} files>"

    @cached_property
    def _maps(self) -> dict[str, np.ndarray]:
        # as a plain ndarray: slicing np.memmap objects costs microseconds each and keeps the subclass
        return {
            file.name: np.asarray(np.memmap(self.path / file.name, np.uint8, "r"))
            if file.size
            else np.empty(0, np.uint8)
            for file in self.files
        }


def open_checkpoint(path: str | Path) -> Checkpoint:
    """A lazy reader of the model folder `path`; no tensor data is read.

    Looks for `model.safetensors.index.json` (used only when every file it names is there), `model.safetensors`,
    then a complete set of `model-00001-of-000NN.safetensors`; likewise for `consolidated` and
    `diffusion_pytorch_model`.

    Raises:
      CheckpointError: no folder, no safetensors weights, or damaged headers, index or config.
    """
    folder = Path(os.path.expanduser(path))
    if not os.path.isdir(folder):
        raise CheckpointError(Fault("is not a folder", file=str(path)))
    names = _weight_files(folder)
    headers = {name: read_header(folder / name) for name in names}
    checkpoint = Checkpoint(folder, headers, read_json_file(folder / "config.json", missing={}))
    for name, file in _weight_map(folder, names).items():
        if name not in checkpoint.index or checkpoint.index[name].file != file:
            raise CheckpointError(
                Fault(f"the index says it is in {file}, but it is not", name, str(folder))
            )
    return checkpoint


def read_json_file(path: Path, missing: dict[str, Any] | None = None) -> dict[str, Any]:
    """The JSON object in `path`, or `missing` when there is no such file; CheckpointError when it is not one."""
    if missing is not None and not path.exists():
        return missing
    try:
        if path.stat().st_size > MAX_JSON_BYTES:
            raise CheckpointError(Fault(f"is larger than {MAX_JSON_BYTES:,} bytes", file=str(path)))
        value = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise CheckpointError(
            Fault(f"cannot be read: {error.strerror or error}", file=str(path))
        ) from error
    except (ValueError, RecursionError) as error:
        raise CheckpointError(Fault(f"is not valid JSON: {error}", file=str(path))) from error
    if not isinstance(value, dict):
        raise CheckpointError(Fault("is not a JSON object", file=str(path)))
    return value


def _weight_files(folder: Path) -> list[str]:
    """The weight files of a folder, in name order."""
    missing: list[str] = []
    for stem in STEMS:
        indexed = sorted(set(_weight_map(folder, None, stem).values()))
        absent = [name for name in indexed if not (folder / name).is_file()]
        if indexed and not absent:
            return indexed
        if (folder / f"{stem}.safetensors").is_file():
            return [f"{stem}.safetensors"]
        if absent:
            missing += absent
            continue
        pattern = re.compile(rf"{re.escape(stem)}-(\d+)-of-(\d+)\.safetensors")
        sets: dict[int, list[str]] = {}
        for name in sorted(entry.name for entry in folder.iterdir()):
            if found := pattern.fullmatch(name):
                sets.setdefault(int(found[2]), []).append(name)
        for count, parts in sets.items():
            if len(parts) == count:
                return parts
            missing.append(f"{count - len(parts)} of {count} parts of {stem}")
    if missing:
        raise CheckpointError(
            Fault(f"weight files are missing: {', '.join(missing[:3])}", file=str(folder))
        )
    if any(folder.glob("*.bin")) or any(folder.glob("*.pt")) or any(folder.glob("*.pth")):
        raise CheckpointError(
            Fault(
                "has only pickled weights (.bin); convert them to safetensors first",
                file=str(folder),
            )
        )
    raise CheckpointError(
        Fault("holds no model.safetensors and no model.safetensors.index.json", file=str(folder))
    )


def _weight_map(folder: Path, names: list[str] | None, stem: str | None = None) -> dict[str, str]:
    """The checked weight map of an index file; empty when there is none, or it does not name exactly `names`."""
    stems = (stem,) if stem else STEMS
    for each in stems:
        path = folder / (each + INDEX_SUFFIX)
        if not path.is_file():
            continue
        entries = read_json_file(path).get("weight_map")
        if not isinstance(entries, dict) or not all(
            isinstance(file, str) for file in entries.values()
        ):
            raise CheckpointError(Fault("has no valid 'weight_map'", file=str(path)))
        for tensor, file in entries.items():
            if file != Path(file).name or file in ("", ".", "..") or "\\" in file:
                raise CheckpointError(
                    Fault(f"names a file outside the folder: {file!r}", tensor, str(path))
                )
        if names is None or set(entries.values()) == set(names):
            return entries
    return {}
