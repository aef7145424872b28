"""A model that lies in no folder: arrays by name, seen as the files that would hold them."""

from __future__ import annotations

import bisect
import contextlib
import hashlib
import json
import sys
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from jmerge.ckpt.shards import OutFile, plan_files
from jmerge.ckpt.source import Source
from jmerge.ckpt.weights import INDEX_SUFFIX
from jmerge.dtypes import SAFETENSORS, TensorSpec
from jmerge.errors import CheckpointError, Problem, raise_all

CACHED = 4  # arrays that are held as bytes of this machine's memory, for those that lie elsewhere


class MemorySource(Source):
    """The files that a mapping of arrays would be saved as.

    Arrays are those of NumPy or JAX, on any device; they are read when they are asked for, and must not change.
    """

    def __init__(
        self,
        tensors: Mapping[str, Any],
        config: Mapping[str, Any] | None = None,
        beside: Source | None = None,
        hidden: frozenset[str] = frozenset(),
        folders: tuple[str, ...] = (),
        home: str = "",
        label: str = "memory://1",
    ) -> None:
        """A source of these arrays.

        Args:
          tensors: by name, from `named_arrays`.
          config: what config.json says; None: there is none, or that of `beside`.
          beside: where all other files are.
          hidden: its weight files, which are not those of this model.
          folders: in which tensors lie whose names begin with them, as those of Sentence Transformers do.
          home: the folder in which the others lie.
          label: what errors and plans call it.

        Raises:
          CheckpointError: an array has a dtype that safetensors does not know; one line for each.
        """
        self.label = label
        self._tensors = tensors
        self._beside = beside
        self._hidden = hidden
        self._files = {file.name: file for file in _files(_specs(tensors, label), folders, home)}
        # of each file, its tensors and where they begin, for every read
        self._places = {
            name: (list(file.starts), list(file.starts.values()))
            for name, file in self._files.items()
        }
        self._small: dict[str, bytes] = {}
        if config is not None:
            name = f"{home}/config.json" if home else "config.json"
            self._small[name] = json.dumps(config).encode()
        self._cache: dict[str, np.ndarray] = {}
        self._lock = threading.Lock()

    def names(self, folder: str = "") -> list[str]:
        start = f"{folder}/" if folder else ""
        own = [name for name in (*self._files, *self._small) if name.startswith(start)]
        found = {name.removeprefix(start) for name in own}
        if self._beside is not None:
            others = self._beside.names(folder)
            found.update(name for name in others if not self._hides(start + name))
        return sorted(name for name in found if "/" not in name)

    def folders(self, folder: str = "") -> list[str]:
        return [] if self._beside is None else self._beside.folders(folder)

    def size(self, name: str) -> int | None:
        if name in self._small:
            return len(self._small[name])
        if name in self._files:
            return self._files[name].size
        return None if self._beside is None or self._hides(name) else self._beside.size(name)

    def path(self, name: str) -> Path | None:
        own = name in self._files or name in self._small
        return None if own or self._beside is None else self._beside.path(name)

    def read_into(self, name: str, start: int, buffer: np.ndarray) -> None:
        if name in self._small:
            buffer[:] = np.frombuffer(self._small[name], np.uint8)[start : start + buffer.size]
        elif name in self._files:
            for at, piece in self._pieces(self._files[name], start, start + buffer.size):
                buffer[at - start : at - start + piece.size] = piece
        elif self._beside is None:
            raise self.broken(name, "cannot be read: no such file", code="JM112")
        else:
            self._beside.read_into(name, start, buffer)

    def digest(self) -> str:
        """What tells these arrays from others: a hash of all their bytes."""
        found = hashlib.sha256()
        for name in self._tensors:
            found.update(f"{name}\0".encode())
            found.update(self._bytes(name).data)
        return found.hexdigest()

    def named(self, label: str) -> MemorySource:
        """The same arrays under another label."""
        other = object.__new__(MemorySource)
        other.__dict__.update(self.__dict__, label=label)
        return other

    def _hides(self, name: str) -> bool:
        """Whether a file of the other source is not one of this model."""
        return name in self._hidden or name.endswith(INDEX_SUFFIX)

    def _pieces(self, file: OutFile, start: int, stop: int) -> Iterator[tuple[int, np.ndarray]]:
        """The bytes [start, stop) of a file in pieces, and where each begins."""
        if start < len(file.header):
            yield start, np.frombuffer(file.header, np.uint8)[start : min(stop, len(file.header))]
        names, starts = self._places[file.name]
        first = max(bisect.bisect_right(starts, start) - 1, 0)
        for number in range(first, len(names)):
            name, begin = names[number], starts[number]
            if begin >= stop:
                return
            data = self._bytes(name)
            low, high = max(start - begin, 0), min(stop - begin, data.size)
            if low < high:
                yield begin + low, data[low:high]

    def _bytes(self, name: str) -> np.ndarray:
        """A tensor as flat bytes; what is no view of the array itself is held until others are asked for."""
        with self._lock:
            found = self._cache.pop(name, None)
            if found is None:
                found = (
                    np.ascontiguousarray(to_host(self._tensors[name])).reshape(-1).view(np.uint8)
                )
            self._cache[name] = found
            while len(self._cache) > CACHED:
                del self._cache[next(iter(self._cache))]
            return found


def named_arrays(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """The arrays of a mapping by name, those of inner mappings by names joined with dots.

    Raises:
      CheckpointError: something in it is no array, or two have one name; one line for each.
    """
    problems: list[Problem] = []
    found: dict[str, Any] = {}
    for name, value in _walk(tree, prefix):
        if not (hasattr(value, "shape") and hasattr(value, "dtype")):
            message = f"expected a NumPy or JAX array, found a value of type {type(value).__name__}"
            problems.append(Problem(message, name, code="JM125"))
        elif name in found:
            problems.append(Problem("is the name of two arrays", name, code="JM125"))
        else:
            found[name] = value
    raise_all(CheckpointError, problems)
    return found


def to_host(array: Any) -> np.ndarray:
    """The array in this machine's memory; no copy where it is there, and no copy that the array of JAX goes on to hold."""
    jax = sys.modules.get("jax")  # loaded, if the array is one of JAX's
    if jax is not None and isinstance(array, jax.Array):
        if any(device.platform != "cpu" for device in array.devices()) or len(array.devices()) > 1:
            with contextlib.suppress(RuntimeError):  # where JAX was told to leave the CPU alone
                array = jax.device_put(array, jax.local_devices(backend="cpu")[0])
    return np.asarray(array)


def spec_of(array: Any) -> TensorSpec | None:
    """What an array is; None when safetensors has no such dtype."""
    try:
        dtype = SAFETENSORS.get(np.dtype(array.dtype))
    except TypeError:  # of another library, or a random key of JAX
        return None
    return None if dtype is None else TensorSpec(dtype, tuple(array.shape))


def _walk(tree: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, Any]]:
    for key, value in tree.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping):
            yield from _walk(value, f"{name}.")
        else:
            yield name, value


def _specs(tensors: Mapping[str, Any], label: str) -> dict[str, TensorSpec]:
    specs = {name: spec_of(array) for name, array in tensors.items()}
    raise_all(
        CheckpointError,
        [
            Problem(f"safetensors has no dtype {tensors[name].dtype}", name, label, code="JM125")
            for name, spec in specs.items()
            if spec is None
        ],
    )
    return {name: spec for name, spec in specs.items() if spec is not None}


def _files(
    specs: Mapping[str, TensorSpec], folders: tuple[str, ...], home: str
) -> Iterator[OutFile]:
    """A weight file for each folder."""
    groups: dict[str, dict[str, TensorSpec]] = {home: {}}
    for name, spec in specs.items():
        folder = next((each for each in folders if name.startswith(f"{each}/")), home)
        groups.setdefault(folder, {})[name] = spec
    for folder, group in groups.items():
        yield from plan_files(group, 0, folder)
