"""`open_checkpoint`: a model folder, or arrays, as a lazy mapping from tensor name to array.

Opening reads headers and JSON only. `checkpoint["name"]` is a NumPy view made on demand: memory-mapped, or of a remote
folder fetched; the merge engine does not use it but streams the byte ranges in `checkpoint.index`.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jmerge.ckpt.copies import Entry, Part, place_tensors
from jmerge.ckpt.find import find_source
from jmerge.ckpt.memory import MemorySource, named_arrays
from jmerge.ckpt.safetensors import Header, header_of
from jmerge.ckpt.sentence import Module, main_module, read_modules
from jmerge.ckpt.source import LocalSource, Source, inside
from jmerge.ckpt.weights import check_arrived, find_weights, read_json_file
from jmerge.dtypes import view
from jmerge.errors import wrong_type
from jmerge.names import nearest
from jmerge.recipe.refs import ModelRef


class TensorFile(NamedTuple):
    """One weight file of a checkpoint and what identifies it."""

    name: str  # inside the folder
    size: int  # bytes
    sha256: str  # of its header


class Checkpoint(Mapping[str, np.ndarray]):
    """A model of safetensors files with its `config.json`: a lazy mapping from tensor name to NumPy array, in file order.

    Attributes:
      source: the files of the model.
      path: the folder, or the URL of a remote model, with its commit if it has one.
      files: the weight files, in the order they are read.
      index: tensor name -> `Entry`, in file order.
      config: the parsed config.json; empty if the file does not exist.
      generation: the parsed generation_config.json; empty if the file does not exist.
      modules: the modules of a Sentence Transformers model; empty for any other model.
      notes: messages on files and copies of tensors that were ignored.
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
        """The folder, inside the model's, that contains config.json; usually empty, which means the model's own."""
        main = main_module(self.modules)
        return "" if main is None else main.folder

    @property
    def main_source(self) -> Source:
        """The files beside config.json."""
        return inside(self.source, self.home)

    @property
    def folders(self) -> tuple[str, ...]:
        """The folders, inside the model's, whose names tensor names start with."""
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
        """The bytes [start, stop) of a tensor, in the layout of `checkpoint[name]`."""
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


def open_checkpoint(
    place: str | os.PathLike[str] | ModelRef | Source | Mapping[str, Any] | object,
    *,
    config: Mapping[str, Any] | None = None,
    like: Checkpoint | None = None,
) -> Checkpoint:
    """Open a model as a lazy mapping from tensor name to NumPy array.

    Reads headers and small files only. Weights are read when a tensor is asked for, or when two files contain the same
    tensor and no index says which of them is right. For a Sentence Transformers model, all modules with weights are
    opened.

    Args:
      place: a local folder, `org/name` or `hf://org/name` on the Hub (both with an optional `@revision`), the URL of a
        folder (`https://`, `s3://`, `gs://`), or a model reference of a recipe. Or a mapping from name to NumPy or JAX
        array, which may be nested: keys are joined with dots. Arrays are not copied: do not change them while the
        checkpoint is in use.
      config: for arrays: the content of config.json.
      like: for arrays: a checkpoint whose config and other files (tokenizer, generation config) belong to the arrays.

    Returns:
      The checkpoint.

    Raises:
      CheckpointError: there is no such folder, it has no safetensors weights, a header, index or config is damaged, or a
        value is not an array of a dtype that safetensors supports.
      RunError: a remote model cannot be reached.
      TypeError: `place` has another type, or `config` or `like` is given for a folder.
    """
    if isinstance(place, Checkpoint):
        return place
    if isinstance(place, Mapping):
        return open_checkpoint(_source_of_arrays(place, config, like))
    if config is not None or like is not None:
        name = "config" if like is None else "like"
        raise TypeError(f"{name} is only for a mapping of arrays; a folder has its own")
    if isinstance(place, ModelRef):
        source = find_source(place.path, place.revision)
    elif isinstance(place, Source):
        source = place
    elif isinstance(place, str | os.PathLike):
        source = find_source(os.fspath(place))
    else:
        raise wrong_type("place", "a path, a URL or a mapping of arrays", place)
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


def _source_of_arrays(
    arrays: Mapping[str, Any], config: Mapping[str, Any] | None, like: Checkpoint | None
) -> MemorySource:
    tensors = named_arrays(arrays)
    if like is None:
        return MemorySource(tensors, config)
    hidden = frozenset(file.name for file in like.files)
    return MemorySource(tensors, config, like.source, hidden, like.folders, like.home)


def _part(module: Module, main: bool) -> Part:
    """The weights of a module; the names of tensors of all but the main one begin with its folder."""
    where = {name: module.prefix + file for name, file in module.weights.where.items()}
    return Part("" if main else module.prefix, module.files, where, module.weights.indexed)
