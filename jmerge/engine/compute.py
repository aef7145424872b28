"""The arithmetic of a run: loaded pieces in, pieces of results out, with the statistics of the step in between."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jmerge.ckpt.dtypes import NUMPY
from jmerge.engine.kernel import (
    KernelKey,
    Piece,
    combine_kernel,
    kernel_key,
    magnitude_kernel,
    sums_kernel,
)
from jmerge.engine.schedule import padded_length
from jmerge.engine.slots import Loaded
from jmerge.methods.cuts import Cut, cut_by_counting, cut_by_partition, kept_count, make_cut
from jmerge.methods.positions import split_position
from jmerge.methods.reduce import BLOCK, add_blocks, padded_blocks
from jmerge.methods.spec import REGISTRY
from jmerge.plan.steps import COPY, Step

THREADS = 2  # for the partial sorts of one tensor's models


class Scratch:
    """Large host arrays that are used again: fresh ones cost a page fault every 4 kB."""

    def __init__(self) -> None:
        self._free: list[np.ndarray] = []

    def take(self, size: int, dtype: np.dtype[Any]) -> np.ndarray:
        """An array of `size` elements with anything in it."""
        nbytes = size * dtype.itemsize
        fitting = [i for i, raw in enumerate(self._free) if raw.size >= nbytes]
        best = min(fitting, key=lambda i: self._free[i].size, default=None)
        if best is not None:
            raw = self._free.pop(best)
        else:
            if self._free:  # too small: let it go, so that no more are kept than are used at once
                self._free.pop()
            raw = np.empty(nbytes, np.uint8)
        return raw[:nbytes].view(dtype)

    def give(self, array: np.ndarray) -> None:
        """Take an array back."""
        raw = array
        while isinstance(raw.base, np.ndarray):
            raw = raw.base
        self._free.append(raw)


class Computer:
    """Computes the pieces of one step after another; what a step needs to remember ends with it."""

    def __init__(self) -> None:
        self._step: Step | None = None
        self._pool = ThreadPoolExecutor(THREADS, "jmerge-sort")
        self._scratch = Scratch()

    def close(self) -> None:
        """End its threads."""
        self._pool.shutdown()

    def feed(self, loaded: Loaded) -> Piece | None:
        """The piece of the result made of `loaded`, or None when it was only looked at for statistics."""
        step = loaded.work.step
        if step is not self._step:
            self._begin(step)
        with jax.enable_x64(True) if self._key.compute == np.float64 else nullcontext():
            inputs = _place(loaded)
            result = None
            for kind in loaded.turn.kinds:
                if kind == "magnitudes":
                    self._add_magnitudes(loaded, inputs)
                elif kind == "sums":
                    self._add_sums(loaded, inputs)
                else:
                    arguments = self._arguments(loaded)
                    if "sums" in self._reserved:
                        arguments["sums"] = self._sums
                    result = combine_kernel(self._key)(list(inputs.values()), arguments)
            return result

    def _begin(self, step: Step) -> None:
        self._step = step
        self._key: KernelKey = kernel_key(step)
        method = None if step.method == COPY else REGISTRY[step.method]
        self._reserved = method.reserved if method else frozenset()
        self._magnitudes: dict[int, np.ndarray] = {}  # input -> elements
        self._cuts: dict[int, tuple[int, int]] = {}  # input -> bits of the bound, last position
        self._pairs: list[np.ndarray] = []
        self._sums: jax.Array | None = None
        self._numbers: dict[str, Any] | None = None

    # Arguments

    def _arguments(self, loaded: Loaded) -> dict[str, Any]:
        """The keyword arguments of the method for a piece, but for the sums."""
        if self._numbers is None:
            self._numbers = jax.device_put(self._make_numbers(loaded.work.step))
        arguments = dict(self._numbers)
        if "start" in self._reserved:
            start, _ = loaded.work.pieces[loaded.number]
            arguments["start"] = jax.device_put(np.asarray(split_position(start), np.uint32))
        return arguments

    def _make_numbers(self, step: Step) -> dict[str, Any]:
        numbers: dict[str, Any] = {}
        for name, value in step.numbers.items():
            if value is None or isinstance(value, bool):
                continue
            if REGISTRY[step.method].parameters[name].density:
                numbers[name] = self._make_cut(step, value)
            else:
                numbers[name] = np.asarray(value, self._key.compute)
        if "keys" in self._reserved:
            numbers["keys"] = np.asarray(step.keys, np.uint32).reshape(-1, 2)
        return numbers

    def _make_cut(self, step: Step, densities: tuple[float, ...]) -> Cut:
        none = np.empty(0, self._key.compute)
        everything, nothing = (0, step.spec.size), cut_by_partition(none, 0)
        models = [i for i in range(len(step.inputs)) if i != step.base]
        cuts = []
        for position, density in zip(models, densities, strict=True):
            trivial = everything if kept_count(density, step.spec.size) else nothing
            cuts.append(self._cuts.get(position, trivial))
        bounds, last = zip(*cuts, strict=True)
        return make_cut(bounds, last, self._key.compute)

    # Statistics

    def _add_magnitudes(self, loaded: Loaded, inputs: dict[int, jax.Array]) -> None:
        """Gather the magnitudes of the changes; with the last piece, find the cuts."""
        step, measured = loaded.work.step, loaded.turn.measured
        start, stop = loaded.work.pieces[loaded.number]
        assert step.base is not None
        kernel = magnitude_kernel(self._key.compute)
        for position in measured:
            if loaded.number == 0:
                self._magnitudes[position] = self._scratch.take(step.spec.size, self._key.compute)
            magnitude = np.asarray(kernel(inputs[step.base], inputs[position]))
            self._magnitudes[position][start:stop] = magnitude[: loaded.elements]
        if loaded.last:
            models = [i for i in range(len(step.inputs)) if i != step.base]
            densities = REGISTRY[step.method].densities(step.numbers)
            shares = dict(zip(models, densities, strict=True))
            counts = [kept_count(shares[position], step.spec.size) for position in measured]
            gathered = [self._magnitudes.pop(position) for position in measured]
            scratch = [self._scratch.take(step.spec.size, self._key.compute) for _ in measured]
            found = self._pool.map(find_cut, gathered, counts, scratch)
            self._cuts |= dict(zip(measured, found, strict=True))
            for array in (*gathered, *scratch):
                self._scratch.give(array)

    def _add_sums(self, loaded: Loaded, inputs: dict[int, jax.Array]) -> None:
        """Gather the sums of the blocks; with the last piece, add them up."""
        blocks = -(-loaded.elements // BLOCK)
        pairs = sums_kernel(self._key)(list(inputs.values()), self._arguments(loaded))
        self._pairs.append(np.asarray(pairs)[:, :blocks])
        if loaded.last:
            self._sums = _add_up(np.concatenate(self._pairs, axis=1))


def find_cut(magnitude: np.ndarray, count: int, scratch: np.ndarray) -> tuple[int, int]:
    """Bits of the bound and last position that keep the `count` largest, in the way that is fast on this platform."""
    if jax.default_backend() == "cpu":
        return cut_by_partition(magnitude, count, scratch)
    cut = _counting(jax.device_put(magnitude[None]), jax.device_put(np.asarray([count], np.uint32)))
    return int(np.asarray(cut.bound)[0]), int(np.asarray(cut.last_low)[0])


_counting = jax.jit(cut_by_counting)
_tree = jax.jit(add_blocks)


def _place(loaded: Loaded) -> dict[int, jax.Array]:
    """The inputs of a piece as device arrays; on CPU they are the slot's memory itself."""
    length = padded_length(loaded.elements)
    arrays = {}
    for position in loaded.turn.inputs:
        dtype = NUMPY[loaded.work.step.inputs[position].spec.dtype]
        raw = loaded.slot.buffers[position][: length * dtype.itemsize]
        arrays[position] = jax.device_put(raw.view(dtype))
    return arrays


def _add_up(pairs: np.ndarray) -> jax.Array:
    """The totals of all blocks, by the same compiled tree that the methods use on whole arrays."""
    blocks = pairs.shape[1]
    padded = np.zeros(
        (pairs.shape[0], padded_blocks(blocks), 2), pairs.dtype
    )  # few lengths, few programs
    padded[:, :blocks] = pairs
    totals: jax.Array = _tree(jnp.asarray(padded))
    return totals
