"""`load`: a model folder to arrays on devices, each of which gets no more than its part."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from fnmatch import fnmatchcase
from typing import Any

import jax
import numpy as np

from jmerge.ckpt.open import Checkpoint, open_checkpoint
from jmerge.dtypes import NUMPY, TensorSpec
from jmerge.errors import PlanError, Problem, raise_all, wrong_type
from jmerge.names import did_you_mean
from jmerge.plan.problems import patterns_of

Sharding = jax.sharding.Sharding


Shardings = (
    Sharding | Callable[[str, jax.ShapeDtypeStruct], Sharding] | Mapping[str, Sharding] | None
)


def load(
    place: str | os.PathLike[str] | Checkpoint, *, shardings: Shardings = None
) -> dict[str, jax.Array]:
    """Load the tensors of a model as arrays on devices. Each device reads only the part that it holds.

    Args:
      place: a local folder, `org/name@revision` on the Hub, a URL, or an opened checkpoint.
      shardings: where the tensors go: one sharding for all; a function from a tensor's name and its
        `jax.ShapeDtypeStruct` to a sharding; or a dict from name patterns (`*`, `?`, `[ab]`) to shardings, where the first
        match counts. None: everything on JAX's first device.

    Returns:
      A dict from name to array, in file order, with the shapes and dtypes of the files. 64-bit dtypes are kept, whatever
      `jax_enable_x64` says. Dtypes below one byte (F4, F6) come as packed bytes, flat.

    Raises:
      PlanError: a tensor matches no pattern, a pattern matches no tensor, or a shape cannot be split by its sharding.
      CheckpointError, RunError: the model cannot be read or reached.
      TypeError: an argument has the wrong type.
    """
    checkpoint = place if isinstance(place, Checkpoint) else _open(place)
    structs = {name: _struct(entry.spec) for name, entry in checkpoint.index.items()}
    chosen = _chosen(shardings, structs)
    _check(chosen, structs)
    return {name: _array(checkpoint, name, structs[name], chosen[name]) for name in structs}


def _open(place: Any) -> Checkpoint:
    if not isinstance(place, str | os.PathLike):
        raise wrong_type("place", "a path, a URL or an opened checkpoint", place)
    return open_checkpoint(place)


def _struct(spec: TensorSpec) -> jax.ShapeDtypeStruct:
    """The array that is made of a tensor."""
    if spec.dtype not in NUMPY:
        return jax.ShapeDtypeStruct((spec.nbytes,), np.uint8)
    return jax.ShapeDtypeStruct(spec.shape, NUMPY[spec.dtype])


def _chosen(
    shardings: Shardings, structs: Mapping[str, jax.ShapeDtypeStruct]
) -> dict[str, Sharding]:
    """The sharding of every tensor."""
    if shardings is None:
        shardings = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    if isinstance(shardings, Sharding):
        return dict.fromkeys(structs, shardings)
    if isinstance(shardings, Mapping):
        found = _matched(shardings, structs)
    elif callable(shardings):
        found = {name: shardings(name, struct) for name, struct in structs.items()}
    else:
        raise wrong_type("shardings", "a sharding, a function or a dict by pattern", shardings)
    for name, each in found.items():
        if not isinstance(each, Sharding):
            raise wrong_type(f"shardings of '{name}'", "a jax.sharding.Sharding", each)
    return found


def _matched(
    patterns: Mapping[str, Sharding], structs: Mapping[str, jax.ShapeDtypeStruct]
) -> dict[str, Sharding]:
    found: dict[str, Sharding] = {}
    problems: list[str] = []
    idle = dict.fromkeys(patterns)
    for name in structs:
        fits = [pattern for pattern in patterns if fnmatchcase(name, pattern)]
        for pattern in fits:
            idle.pop(pattern, None)
        if fits:
            found[name] = patterns[fits[0]]
    left = [name for name in structs if name not in found]
    if left:
        shown = patterns_of(left, found)
        problems.append(
            f"no pattern matches {', '.join(shown)}; add '*' as the last pattern for the rest"
        )
    problems += [f"'{each}' matches no tensor{did_you_mean(each, structs)}" for each in idle]
    raise_all(PlanError, [Problem(problem, "shardings", code="JM411") for problem in problems])
    return found


def _check(shardings: Mapping[str, Sharding], structs: Mapping[str, jax.ShapeDtypeStruct]) -> None:
    """PlanError for each tensor that its sharding cannot cut."""
    problems = []
    for name, struct in structs.items():
        spec = getattr(shardings[name], "spec", shardings[name])
        if isinstance(spec, jax.sharding.PartitionSpec) and len(spec) > len(struct.shape):
            message = f"{list(struct.shape)} cannot be split by {spec}, which has {len(spec)} axes"
            problems.append(Problem(message, name, code="JM411"))
            continue
        try:
            shardings[name].shard_shape(struct.shape)
        except ValueError as error:
            reason = str(error).partition("\n")[0]
            problems.append(
                Problem(
                    f"{list(struct.shape)} cannot be split by {spec}: {reason}", name, code="JM411"
                )
            )
    raise_all(PlanError, problems)


def _array(
    checkpoint: Checkpoint, name: str, struct: jax.ShapeDtypeStruct, sharding: Sharding
) -> jax.Array:
    """One tensor on its devices."""
    reader = _Reader(checkpoint, name, struct)
    with jax.enable_x64(True):  # so that 64-bit dtypes stay; for this thread and call alone
        return jax.make_array_from_callback(struct.shape, sharding, reader.part)


class _Reader:
    """The parts of one tensor. Of a remote one the rows that a part lies in are fetched, and kept for the next part."""

    def __init__(self, checkpoint: Checkpoint, name: str, struct: jax.ShapeDtypeStruct) -> None:
        self._checkpoint = checkpoint
        self._name = name
        self._struct = struct
        self._rows: tuple[int, int] | None = None
        self._fetched = np.empty(0, np.uint8)

    def part(self, index: tuple[slice, ...] | None) -> np.ndarray:
        """A part of the tensor, in memory of its own."""
        shape = self._struct.shape
        if not shape or index is None:
            return self._read(0, 1).reshape(()).copy()
        start, stop, _ = index[0].indices(shape[0])
        rows = self._read(start, stop)[(slice(None), *index[1:])]
        return np.array(rows, order="C")

    def _read(self, start: int, stop: int) -> np.ndarray:
        """Rows [start, stop): views of a mapped file, or fetched."""
        if self._rows != (start, stop):
            inner = self._struct.shape[1:]
            row = int(np.prod(inner, dtype=np.int64)) * self._struct.dtype.itemsize
            raw = self._checkpoint.raw(self._name, start * row, stop * row)
            self._rows = start, stop
            self._fetched = raw.view(self._struct.dtype).reshape(stop - start, *inner)
        return self._fetched
