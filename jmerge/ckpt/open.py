"""`open_checkpoint`: a model folder as a lazy mapping from tensor name to array.

Opening reads headers and JSON only. `checkpoint["name"]` is a read-only numpy view made on demand: memory-mapped, or
of a remote folder fetched;
the merge engine does not use it but streams the byte ranges in `checkpoint.index`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jmerge.ckpt.arrived import check_arrived
from jmerge.ckpt.copies import Entry, Part, place_tensors
from jmerge.ckpt.dtypes import view
from jmerge.ckpt.find import find_source
from jmerge.ckpt.inside import inside
from jmerge.ckpt.safetensors import Header, header_of
from jmerge.ckpt.sentence import Module, main_module, read_modules
from jmerge.ckpt.source import LocalSource, Source
from jmerge.ckpt.weights import find_weights, read_json_file
from jmerge.names import nearest
from jmerge.recipe.refs import ModelRef


class TensorFile(NamedTuple):
    """One weight file of a checkpoint and what identifies it."""

    name: str  # inside the folder
    size: int  # bytes
    sha256: str  # of its header


class Checkpoint(Mapping[str, np.ndarray]):
    """A folder of safetensors weights with its `config.json`; iterates over tensor names in file order.

    Attributes:
      source: the files of the folder.
      path: the folder; of a remote one its URL, with the commit where there are commits.
      files: its weight files in the order they are read.
      index: name -> `Entry`, in file order.
      config: the parsed config.json; empty when there is none.
      generation: the parsed generation_config.json; empty when there is none.
      modules: of a Sentence Transformers model, whose config is the transformer's; else empty.
      notes: what the choice of files and tensors passed over, for a user to know.
    """

    def __init__(
        self,
        source: Source,
        headers: Mapping[str, Header],
        index: Mapping[str, Entry],
        config: dict[str, Any],
        generation: dict[str, Any],
        modules: tuple[Module, ...] = (),
        notes: tuple[str, ...] = (),
    ) -> None:
        self.source = source
        self.path = Path(source.label) if isinstance(source, LocalSource) else source.label
        self.config = config
        self.generation = generation
        self.modules = modules
        self.notes = notes
        self.index = dict(index)
        self.files = tuple(
            TensorFile(name, head.size, head.sha256) for name, head in headers.items()
        )
        self._maps: dict[Path, np.ndarray] = {}

    @property
    def home(self) -> str:
        """The folder inside its own in which config.json and the tensors without a folder lie; mostly empty."""
        main = main_module(self.modules)
        return "" if main is None else main.folder

    @property
    def main_source(self) -> Source:
        """The files beside config.json."""
        return inside(self.source, self.home)

    @property
    def folders(self) -> tuple[str, ...]:
        """The folders inside its own that names of tensors begin with."""
        main = main_module(self.modules)
        return tuple(m.folder for m in self.modules if m.files and m is not main)

    def __getitem__(self, name: str) -> np.ndarray:
        """The tensor as a read-only memory-mapped view (packed sub-byte dtypes: its bytes); a remote one is fetched."""
        if name not in self.index:
            best = nearest(name, self.index)
            raise KeyError(
                f"{name!r} is not in {self.path}" + (f"; did you mean {best!r}?" if best else "")
            )
        spec = self.index[name].spec
        return view(self.raw(name, 0, spec.nbytes), spec)

    def raw(self, name: str, start: int, stop: int) -> np.ndarray:
        """Bytes [start, stop) of a tensor, as `checkpoint[name]` gives them."""
        entry = self.index[name]
        path = self.source.path(entry.file)
        if path is not None:
            return self._map(path)[entry.start + start : entry.start + stop]
        data = np.empty(stop - start, np.uint8)
        self.source.read_into(entry.file, entry.start + start, data)
        data.flags.writeable = False
        return data

    def __iter__(self) -> Iterator[str]:
        return iter(self.index)

    def __len__(self) -> int:
        return len(self.index)

    def __repr__(self) -> str:
        total = sum(entry.spec.nbytes for entry in self.index.values())
        return f"<Checkpoint {str(self.path)!r}: {len(self)} tensors, {total:,} bytes, {len(self.files)} files>"

    def _map(self, path: Path) -> np.ndarray:
        if path not in self._maps:
            # as a plain ndarray: slicing np.memmap objects costs microseconds each and keeps the subclass
            empty = path.stat().st_size == 0
            self._maps[path] = (
                np.empty(0, np.uint8) if empty else np.asarray(np.memmap(path, np.uint8, "r"))
            )
        return self._maps[path]


def open_checkpoint(path: str | Path | ModelRef | Source) -> Checkpoint:
    """A lazy reader of the model folder `path`; no tensor data is read, unless two files hold one
    tensor and no index says which counts.

    Of a Sentence Transformers model all modules with weights are read, see `ckpt.sentence`. Which files of a folder
    are its weights, `ckpt.weights.find_weights` says.

    Args:
      path: a local folder, `org/name` or `hf://org/name` on the Hub, either with `@revision`, the URL of a folder
        (`https://`, `s3://`, `gs://`), a reference of a recipe, or files that were found already.

    Raises:
      CheckpointError: no folder, no safetensors weights, or damaged headers, index or config.
      RunError: a remote folder cannot be reached.
    """
    if isinstance(path, ModelRef):
        source = find_source(path.path, path.revision)
    else:
        source = path if isinstance(path, Source) else find_source(path)
    modules = read_modules(source)
    main = main_module(modules)
    if main is None:
        main = Module("", "", find_weights(source), {})
    weighted = modules if main in modules else (main,)
    names = [name for module in weighted for name in module.files]
    check_arrived(source, names)
    headers = dict(zip(names, source.map(lambda name: header_of(source, name), names), strict=True))
    config, generation = (
        read_json_file(source, main.prefix + name, missing={})
        for name in ("config.json", "generation_config.json")
    )
    parts = [_part(module, module is main) for module in weighted if module.files]
    index, copies = place_tensors(source, headers, parts)
    notes = [
        f"{m.prefix}: {note}" if m.folder else note for m in weighted for note in m.weights.notes
    ]
    return Checkpoint(source, headers, index, config, generation, modules, (*notes, *copies))


def _part(module: Module, main: bool) -> Part:
    """The weights of a module; the names of tensors of all but the main one begin with its folder."""
    where = {name: module.prefix + file for name, file in module.weights.where.items()}
    return Part("" if main else module.prefix, module.files, where, module.weights.indexed)
