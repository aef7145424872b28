"""The arithmetic of a run: loaded pieces in, pieces of results out, with the statistics of the step in between."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jmerge.engine.kernel import (
    KernelKey,
    Piece,
    bracket_kernel,
    combine_kernel,
    kernel_key,
    magnitude_kernel,
    sums_kernel,
)
from jmerge.engine.reads import aligned_buffer
from jmerge.engine.schedule import Pass, Work
from jmerge.engine.select import SAMPLE_RUN, SAMPLE_STEP, Search
from jmerge.engine.slots import Loaded, Slot
from jmerge.methods.cuts import Cut, cut_by_partition, kept_count, make_cut
from jmerge.methods.positions import split_position
from jmerge.methods.reduce import BLOCK, add_blocks, padded_blocks
from jmerge.methods.spec import REGISTRY
from jmerge.plan.steps import COPY, Step

THREADS = 2  # for the host's part in the search for the cuts of several models
FEW = 1 << 17  # elements of a sample, or of candidates, that are looked at in one go


class Computer:
    """Computes the pieces of one step after another; what a step needs to remember ends with it."""

    def __init__(self, load: Callable[[Loaded], None], make_slot: Callable[[], Slot]) -> None:
        self._load = load  # reads a piece
        self._make_slot = make_slot
        self._spare: Slot | None = None  # for pieces that are read again
        self._step: Step | None = None
        self._pool = ThreadPoolExecutor(THREADS, "jmerge-select")
        self._skips: dict[tuple[int, ...], jax.Array] = {}

    def close(self) -> None:
        """End its threads."""
        self._pool.shutdown()

    def feed(self, loaded: Loaded) -> Piece | None:
        """The piece of the result made of `loaded`, or None when it was only looked at for statistics."""
        step = loaded.work.step
        if step is not self._step:
            self._begin(step)
        with jax.enable_x64(True) if self._key.compute == np.float64 else nullcontext():
            result = None
            for kind in loaded.turn.kinds:
                if kind == "select":
                    self._select(loaded)
                elif kind == "sums":
                    self._add_sums(loaded)
                else:
                    arguments = self._arguments(loaded)
                    if "sums" in self._reserved:
                        arguments["sums"] = self._sums
                    result = combine_kernel(self._key)(*self._inputs(loaded), arguments)
            return result

    def _inputs(self, loaded: Loaded, *positions: int) -> tuple[list[np.ndarray], jax.Array]:
        """The windows of these inputs of a piece, or of all that are read, and the skips, as kernels take them.

        They are handed over as they are: a jitted program takes aligned memory of the host without a copy on CPU,
        and in a tenth of the time that `jax.device_put` needs to do the same.
        """
        windows = [loaded.window(position) for position in positions or loaded.turn.inputs]
        skips = tuple(skip for _, skip in windows)
        if skips not in self._skips:
            self._skips[skips] = jax.device_put(np.asarray(skips, np.int32))
        return [array for array, _ in windows], self._skips[skips]

    def _begin(self, step: Step) -> None:
        self._step = step
        self._key: KernelKey = kernel_key(step)
        method = None if step.method == COPY else REGISTRY[step.method]
        self._reserved = method.reserved if method else frozenset()
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
            arguments["start"] = np.asarray(split_position(start), np.uint32)
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

    def _select(self, loaded: Loaded) -> None:
        """Feed a piece to the searches for the cuts; with the last piece, settle them."""
        step, selected = loaded.work.step, loaded.turn.selected
        if loaded.number == 0:
            self._searches = self._begin_searches(step, selected, loaded.slot.samples)
        self._feed(loaded, self._searches)
        if not loaded.last:
            return
        for position, search in self._searches.items():
            search.settle(self._bits_of)
            while search.cut is None:
                self._search_again(loaded.work, {position: search})
            self._cuts[position] = search.cut

    def _begin_searches(
        self, step: Step, selected: tuple[int, ...], samples: dict[int, np.ndarray]
    ) -> dict[int, Search]:
        models = [i for i in range(len(step.inputs)) if i != step.base]
        densities = REGISTRY[step.method].densities(step.numbers)
        shares = dict(zip(models, densities, strict=True))
        assert step.base is not None
        searches = {}
        for position in selected:
            count = kept_count(shares[position], step.spec.size)
            searches[position] = Search(count, step.spec.size, self._key.word)
            bits = self._bits_of(samples[step.base], samples[position])
            searches[position].take_sample(bits.reshape(-1, SAMPLE_RUN // SAMPLE_STEP))
        return searches

    def _feed(self, loaded: Loaded, searches: dict[int, Search]) -> None:
        base = loaded.work.step.base
        assert base is not None
        low = np.asarray([search.low for search in searches.values()], self._key.word)
        high = np.asarray([search.high for search in searches.values()], self._key.word)
        inputs = self._inputs(loaded, base, *searches)
        above, inside = bracket_kernel(self._key.compute)(*inputs, low, high)
        start, _ = loaded.work.pieces[loaded.number]

        def feed(number: int, position: int) -> None:
            def change_at(indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
                return loaded.values(base)[indices], loaded.values(position)[indices]

            count = int(np.count_nonzero(np.asarray(above[number])))  # padding is never above
            found = np.asarray(inside[number])[: loaded.elements]
            searches[position].add(loaded.number, count, found, change_at, start)

        list(self._pool.map(feed, range(len(searches)), searches))

    def _search_again(self, work: Work, searches: dict[int, Search]) -> None:
        """One more pass over the pieces, which are read here: it is rare."""
        if self._spare is None:
            self._spare = self._make_slot()
        ((position, search),) = searches.items()
        assert work.step.base is not None
        inputs = tuple(sorted((work.step.base, position)))
        for number in range(len(work.pieces)) if search.only is None else (search.only,):
            again = Loaded(work, Pass((), inputs, ()), number, self._spare)
            self._load(again)
            self._feed(again, searches)
        search.settle(self._bits_of)

    def _bits_of(self, base: np.ndarray, model: np.ndarray) -> np.ndarray:
        """Bits of the magnitudes of the changes of a few elements, by the program that all pieces go through."""
        kernel = magnitude_kernel(self._key.compute)
        bits = np.empty(base.size, self._key.word)
        for start in range(0, base.size, FEW):
            part = slice(start, start + FEW)
            padded = []
            for values in (base[part], model[part]):
                padded.append(aligned_buffer(FEW * values.itemsize).view(values.dtype))
                padded[-1][: values.size] = values
            bits[part] = np.asarray(kernel(*padded))[: bits[part].size]
        return bits

    def _add_sums(self, loaded: Loaded) -> None:
        """Gather the sums of the blocks; with the last piece, add them up."""
        blocks = -(-loaded.elements // BLOCK)
        pairs = sums_kernel(self._key)(*self._inputs(loaded), self._arguments(loaded))
        self._pairs.append(np.asarray(pairs)[:, :blocks])
        if loaded.last:
            self._sums = _add_up(np.concatenate(self._pairs, axis=1))


_tree = jax.jit(add_blocks)


def _add_up(pairs: np.ndarray) -> jax.Array:
    """The totals of all blocks, by the same compiled tree that the methods use on whole arrays."""
    blocks = pairs.shape[1]
    padded = np.zeros(
        (pairs.shape[0], padded_blocks(blocks), 2), pairs.dtype
    )  # few lengths, few programs
    padded[:, :blocks] = pairs
    totals: jax.Array = _tree(jnp.asarray(padded))
    return totals
