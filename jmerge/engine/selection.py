"""The searches for the thresholds of one tensor: kernels find what each wants to know of a piece."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from functools import reduce
from typing import Any

import numpy as np

from jmerge.ckpt.safetensors import ALIGNMENT
from jmerge.engine.kernel import (
    ABOVE,
    CHOSEN,
    IN_A_BYTE,
    INSIDE,
    bracket_kernel,
    chosen_kernel,
    keys_kernel,
)
from jmerge.engine.local import aligned_buffer
from jmerge.engine.select import Search
from jmerge.engine.slots import Loaded
from jmerge.engine.task import Task
from jmerge.methods.statistics.thresholds import Threshold, make_threshold
from jmerge.methods.statistics.topk import TopK

FEW = 1 << 17  # elements of a sample that are looked at in one go


class Selection:
    """Finds the thresholds of a statistic of a tensor, see `select`.

    samples: of the inputs [runs, elements].
    """

    def __init__(self, task: Task, number: int, samples: Sequence[np.ndarray]) -> None:
        self._task = task
        self._number = number
        statistic = task.statistics[number]
        assert isinstance(statistic, TopK)
        size, word = task.work.step.spec.size, task.key.word
        rows = task.counts(number)
        self._of_term = tuple(term for term, row in enumerate(rows) for _ in row)
        # of thresholds that are not searched: above all keys, or at their end
        self._cuts = [
            (int(np.iinfo(word).max), 0) if count <= 0 else (0, size)
            for row in rows
            for count in row
        ]
        keys = self._keys_of(samples)
        self._searches: dict[int, Search] = {}
        for i, count in enumerate(count for row in rows for count in row):
            if 0 < count and (count < size or statistic.uses_bits):
                search = Search(min(count, size), size, word, task.work.candidates)
                search.take_sample(keys[self._of_term[i]].reshape(samples[0].shape))
                self._searches[i] = search

    def feed(self, loaded: Loaded) -> Callable[[], None]:
        """Start looking at a piece; calling the result ends it."""
        word = self._task.key.word
        low = np.full(len(self._of_term), np.iinfo(word).max, word)
        high = low.copy()
        for i, search in self._searches.items():
            low[i], high[i] = search.low, search.high
        inputs = *loaded.windows(), self._task.arguments(loaded.number, self._number)
        kernel = bracket_kernel(self._task.key, self._number, self._of_term)
        places = kernel(low, high, *inputs)
        return lambda: self._end(loaded, [np.asarray(each) for each in places], inputs)

    def settle(self, read: Callable[[int], Loaded], pool: Executor) -> Threshold:
        """The thresholds, when all pieces have been looked at.

        read: gives a piece of the tensor again, which the next call overwrites; it is rare that one is needed.
        """
        while True:
            list(pool.map(Search.settle, self._searches.values()))
            for i, search in list(self._searches.items()):
                if search.cut is not None:
                    self._cuts[i] = search.cut
                    del self._searches[i]
            if not self._searches:
                bits, last = zip(*self._cuts, strict=True)
                return make_threshold(bits, last, self._task.key.word)
            for number in range(len(self._task.work.pieces)):
                if any(search.wants(number) for search in self._searches.values()):
                    self.feed(read(number))()

    def _end(self, loaded: Loaded, places: Sequence[np.ndarray], inputs: Sequence[Any]) -> None:
        """Tell the searches what was seen of a piece, and give them the keys that lie inside."""
        places = [each[: loaded.elements] for each in places]
        given, wanted = [], [0] * len(places)  # bits of each byte
        for i, search in self._searches.items():
            if not search.wants(loaded.number):
                continue
            byte, shift = i // IN_A_BYTE, 2 * (i % IN_A_BYTE)
            bits = (np.uint8(bit << shift) for bit in (ABOVE, INSIDE))
            above, inside = (int(np.count_nonzero(places[byte] & bit)) for bit in bits)
            if search.count_in(loaded.number, above, inside):
                wanted[byte] |= INSIDE << shift
                given.append(i)
        if not given:
            return
        hit = [place & np.uint8(bits) for place, bits in zip(places, wanted, strict=True) if bits]
        indices = np.flatnonzero(reduce(np.bitwise_or, hit).astype(np.bool_))
        kernel, found = chosen_kernel(self._task.key, self._number), []
        for first in range(0, indices.size, CHOSEN):
            few = indices[first : first + CHOSEN]
            padded = np.zeros(CHOSEN, np.int32)
            padded[: few.size] = few
            found.append([np.asarray(term)[: few.size] for term in kernel(padded, *inputs)])
        keys = [np.concatenate(parts) for parts in zip(*found, strict=True)]
        start, _ = loaded.work.pieces[loaded.number]
        for i in given:
            self._searches[i].collect(keys[self._of_term[i]], start + indices)

    def _keys_of(self, samples: Sequence[np.ndarray]) -> list[np.ndarray]:
        """The keys of a few elements, for each term."""
        kernel = keys_kernel(self._task.key, self._number)
        arguments = self._task.arguments(0, self._number)
        skips = np.zeros(len(samples), np.int32)
        found: list[list[np.ndarray]] = []
        for start in range(0, max(samples[0].size, 1), FEW):
            windows = []
            for sample in samples:
                part = sample.reshape(-1)[start : start + FEW]
                window = aligned_buffer(FEW * part.itemsize + ALIGNMENT).view(part.dtype)
                window[: part.size] = part
                windows.append(window)
            keys = kernel(windows, skips, arguments)
            found.append([np.asarray(each)[: part.size] for each in keys])
        return [np.concatenate(parts) for parts in zip(*found, strict=True)]
