"""The searches for the cuts of one step's models: kernels find what each search wants to know of a piece."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Executor

import numpy as np

from jmerge.engine.kernel import ABOVE, INSIDE, KernelKey, bracket_kernel, magnitude_kernel
from jmerge.engine.reads import aligned_buffer
from jmerge.engine.schedule import Cutting, Pass
from jmerge.engine.select import SAMPLE_RUN, SAMPLE_STEP, Search
from jmerge.engine.slots import Loaded

FEW = 1 << 17  # elements of a sample, or of candidates, that are looked at in one go

Again = Callable[
    [Pass, int], Loaded
]  # a piece of the step's inputs, which the next call overwrites


class Selection:
    """Finds the cuts of the selected inputs of a step; begins with its first piece."""

    def __init__(self, key: KernelKey, first: Loaded, pool: Executor) -> None:
        self._key = key
        self._pool = pool
        step = first.work.step
        assert step.base is not None
        self._base = step.base
        self._pieces = first.work.pieces
        self._searches: dict[Cutting, Search] = {}
        samples = first.slot.samples
        sampled: dict[int, np.ndarray] = {}  # bits of the changes
        for cutting in first.turn.selected:
            position = cutting.position
            if position not in sampled:
                sampled[position] = self._bits_of(samples[step.base], samples[position])
            search = Search(cutting.number, step.spec.size, key.word)
            search.take_sample(sampled[position].reshape(-1, SAMPLE_RUN // SAMPLE_STEP))
            self._searches[cutting] = search

    def feed(self, loaded: Loaded) -> Callable[[], None]:
        """Start looking at a piece; calling the result ends it."""
        return self._look(loaded, self._searches)

    def settle(self, read: Again) -> dict[Cutting, tuple[int, int]]:
        """Every cut (bits of the bound, last position), when all pieces have been looked at.

        read: for pieces that have to be looked at again, which is rare.
        """
        list(self._pool.map(self._settle, self._searches.values()))
        cuts = {}
        for cutting, search in self._searches.items():
            turn = Pass("select", tuple(sorted((self._base, cutting.position))), ())
            while search.cut is None:
                for number in search.wanted(len(self._pieces)):
                    with self._key.precision():
                        self._look(read(turn, number), {cutting: search})()
                self._settle(search)
            cuts[cutting] = search.cut
        return cuts

    def _settle(self, search: Search) -> None:
        with self._key.precision():
            search.settle(self._bits_of)

    def _look(self, loaded: Loaded, searches: dict[Cutting, Search]) -> Callable[[], None]:
        low = np.asarray([search.low for search in searches.values()], self._key.word)
        high = np.asarray([search.high for search in searches.values()], self._key.word)
        inputs = loaded.windows(self._base, *(cutting.position for cutting in searches))
        places = bracket_kernel(self._key.compute)(*inputs, low, high)
        start, _ = loaded.work.pieces[loaded.number]

        def tell(number: int, cutting: Cutting) -> None:
            def change_at(indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
                models = loaded.values(cutting.position)
                return loaded.values(self._base)[indices], models[indices]

            place = np.asarray(places[number])[: loaded.elements]
            above = int(np.count_nonzero(place == ABOVE))
            searches[cutting].add(loaded.number, above, place == INSIDE, change_at, start)

        def finish() -> None:
            for _ in self._pool.map(tell, range(len(searches)), searches):
                pass

        return finish

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
