"""The searches for the cuts of one step's models: kernels find what each search wants to know of a piece."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Executor
from functools import partial

import numpy as np

from jmerge.engine.kernel import ABOVE, INSIDE, KernelKey, bracket_kernel, magnitude_kernel
from jmerge.engine.reads import aligned_buffer
from jmerge.engine.schedule import Cutting, Pass
from jmerge.engine.select import Search
from jmerge.engine.slots import Loaded

FEW = 1 << 17  # elements of a sample, or of candidates, that are looked at in one go

# A piece of the step's inputs, which the next call overwrites.
Again = Callable[[Pass, int], Loaded]


class Selection:
    """Finds the cuts of the selected inputs of a step; begins with its first piece.

    factors: by which the changes of each model are multiplied first.
    """

    def __init__(self, key: KernelKey, first: Loaded, factors: np.ndarray, pool: Executor) -> None:
        self._key = key
        self._pool = pool
        step = first.work.step
        assert step.base is not None
        self._base = step.base
        self._factors = dict(zip(step.model_positions, factors, strict=True))
        self._pieces = first.work.pieces
        self._searches: dict[Cutting, Search] = {}
        samples = first.slot.samples
        sampled: dict[int, np.ndarray] = {}  # bits of the changes
        for cutting in first.turn.what.selected:
            position = cutting.position
            if position not in sampled:
                base, model = samples[step.base], samples[position]
                flat = self._bits_of(position, base.reshape(-1), model.reshape(-1))
                sampled[position] = flat.reshape(model.shape)
            search = Search(cutting.number, step.spec.size, key.word, first.work.candidates)
            search.take_sample(sampled[position])
            self._searches[cutting] = search

    def feed(self, loaded: Loaded) -> Callable[[], None]:
        """Start looking at a piece; calling the result ends it."""
        return self._look(loaded, self._searches)

    def settle(self, read: Again) -> dict[Cutting, tuple[int, int]]:
        """Every cut (bits of the bound, last position), when all pieces have been looked at.

        read: for pieces that have to be looked at again, which is rare.
        """
        list(self._pool.map(self._settle, self._searches, self._searches.values()))
        cuts = {}
        for cutting, search in self._searches.items():
            what = Pass("changes", tuple(sorted((self._base, cutting.position))))
            while search.cut is None:
                for number in search.wanted(len(self._pieces)):
                    with self._key.precision():
                        self._look(read(what, number), {cutting: search})()
                self._settle(cutting, search)
            cuts[cutting] = search.cut
        return cuts

    def _settle(self, cutting: Cutting, search: Search) -> None:
        with self._key.precision():
            search.settle(partial(self._bits_of, cutting.position))

    def _look(self, loaded: Loaded, searches: dict[Cutting, Search]) -> Callable[[], None]:
        low = np.asarray([search.low for search in searches.values()], self._key.word)
        high = np.asarray([search.high for search in searches.values()], self._key.word)
        positions = [cutting.position for cutting in searches]
        factors = np.asarray([self._factors[position] for position in positions])
        inputs = loaded.windows(self._base, *positions)
        places = bracket_kernel()(*inputs, factors, low, high)
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

    def _bits_of(self, position: int, base: np.ndarray, model: np.ndarray) -> np.ndarray:
        """Bits of the magnitudes of the changes of a few elements, by the arithmetic that all pieces go through."""
        kernel, factor = magnitude_kernel(), self._factors[position]
        bits = np.empty(base.size, self._key.word)
        for start in range(0, base.size, FEW):
            part = slice(start, start + FEW)
            padded = []
            for values in (base[part], model[part]):
                padded.append(aligned_buffer(FEW * values.itemsize).view(values.dtype))
                padded[-1][: values.size] = values
            bits[part] = np.asarray(kernel(*padded, factor))[: bits[part].size]
        return bits
