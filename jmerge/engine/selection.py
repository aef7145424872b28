"""The searches for the cuts of one step's models: kernels find what each search wants to know of a piece."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Executor

import numpy as np

from jmerge.engine.kernel import ABOVE, INSIDE, KernelKey, bracket_kernel, magnitude_kernel
from jmerge.engine.reads import aligned_buffer
from jmerge.engine.schedule import Pass
from jmerge.engine.select import SAMPLE_RUN, SAMPLE_STEP, Search
from jmerge.engine.slots import Loaded
from jmerge.methods.cuts import kept_count
from jmerge.methods.spec import REGISTRY

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
        models = [i for i in range(len(step.inputs)) if i != step.base]
        densities = REGISTRY[step.method].densities(step.numbers)
        shares = dict(zip(models, densities, strict=True))
        self._searches: dict[int, Search] = {}
        for position in first.turn.selected:
            search = Search(kept_count(shares[position], step.spec.size), step.spec.size, key.word)
            samples = first.slot.samples
            bits = self._bits_of(samples[step.base], samples[position])
            search.take_sample(bits.reshape(-1, SAMPLE_RUN // SAMPLE_STEP))
            self._searches[position] = search

    def feed(self, loaded: Loaded) -> Callable[[], None]:
        """Start looking at a piece; calling the result ends it."""
        return self._look(loaded, self._searches)

    def settle(self, read: Again) -> dict[int, tuple[int, int]]:
        """The cut of each selected input (bits of the bound, last position), when every piece has been looked at.

        read: for pieces that have to be looked at again, which is rare.
        """
        list(self._pool.map(self._settle, self._searches.values()))
        cuts = {}
        for position, search in self._searches.items():
            turn = Pass("select", tuple(sorted((self._base, position))), ())
            while search.cut is None:
                for number in search.wanted(len(self._pieces)):
                    with self._key.precision():
                        self._look(read(turn, number), {position: search})()
                self._settle(search)
            cuts[position] = search.cut
        return cuts

    def _settle(self, search: Search) -> None:
        with self._key.precision():
            search.settle(self._bits_of)

    def _look(self, loaded: Loaded, searches: dict[int, Search]) -> Callable[[], None]:
        low = np.asarray([search.low for search in searches.values()], self._key.word)
        high = np.asarray([search.high for search in searches.values()], self._key.word)
        inputs = loaded.windows(self._base, *searches)
        places = bracket_kernel(self._key.compute)(*inputs, low, high)
        start, _ = loaded.work.pieces[loaded.number]

        def tell(number: int, position: int) -> None:
            def change_at(indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
                return loaded.values(self._base)[indices], loaded.values(position)[indices]

            place = np.asarray(places[number])[: loaded.elements]
            above = int(np.count_nonzero(place == ABOVE))
            searches[position].add(loaded.number, above, place == INSIDE, change_at, start)

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
