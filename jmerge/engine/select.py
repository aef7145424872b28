"""Finding the cuts of a tensor's models while its pieces stream by: exact, without holding or sorting the tensor.

A sample brackets the magnitude at which each cut lies. One pass over the pieces then counts the elements above the
bracket and collects those inside it, and a partial sort of the few collected gives the cut. Should the sample have
misled, or more lie inside than may be kept in memory, the pass is repeated with a better bracket; the range in which
the cut can lie shrinks with every pass, so this ends. What the sample holds changes the time, never the cut.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from jmerge.methods.cuts import cut_by_partition

SAMPLE_RUN = 1 << 15  # elements that are read together; a read costs about as much as copying these
SAMPLE_STEP = 16  # of which one in so many is looked at: neighbours are alike
SAMPLE_RUNS = (16, 1024)  # fewest and most reads of a tensor
SMALL = 1 << 18  # elements of a tensor that needs no sample
SPREAD = 3.0  # half width of the first bracket in standard deviations
MOST_COLLECTED = 1 << 21  # candidates of one model held in memory


def sample_starts(size: int, most: int = MOST_COLLECTED) -> np.ndarray:
    """First elements of the runs to sample of a tensor: one at a random place in each of as many equal parts.

    most: candidates that the search may hold; the sample has no more elements than that, but for the fewest runs.
    """
    fewest, largest = SAMPLE_RUNS
    largest = max(fewest, min(largest, most * SAMPLE_STEP // SAMPLE_RUN))
    runs = 0 if size <= SMALL else min(max(size >> 18, fewest), largest)
    parts = np.linspace(0, size - SAMPLE_RUN, runs + 1)
    places = np.random.default_rng(0).random(runs)
    return (parts[:-1] + places * np.diff(parts)).astype(np.int64)


Change = tuple[np.ndarray, np.ndarray]  # elements of a base and of a model


class Seen:
    """What one pass has seen."""

    def __init__(self) -> None:
        self.above = 0
        self.inside: list[tuple[int, int]] = []  # piece, number
        self.collected = 0
        self.found: list[np.ndarray] = []  # positions of those inside
        self.changes: list[Change] = []  # what their magnitudes follow from
        self.full = False  # there are too many to collect


class Search:
    """The search for the cut that keeps the `count` largest of `size` magnitudes, 0 < count < size, ties by position.

    Magnitudes are given by their bits (unsigned, top bit zero), which order them. Feed it the pieces of a tensor in
    order, call `settle`, and repeat over `pieces` until `cut` is there. most: candidates that it holds.
    """

    def __init__(
        self, count: int, size: int, bits: np.dtype[Any], most: int = MOST_COLLECTED
    ) -> None:
        self.count = count
        self.most = most
        self.size = size
        self.floor, self.ceiling = 0, int(np.iinfo(bits).max) >> 1  # the cut's bound is in between
        self.low, self.high = self.floor, self.ceiling  # the bracket of this pass, both inside
        self.only: int | None = None  # the one piece to look at, when the bound is known
        self.cut: tuple[int, int] | None = None  # bits of the bound, last position
        self._sample = np.empty((0, 1), bits)
        self._spread = SPREAD
        self._seen = Seen()
        self._rank = 0  # of the cut in the only piece

    def take_sample(self, sample: np.ndarray) -> None:
        """Choose the bracket by the bits of a sample [runs, elements]."""
        self._sample = sample
        self._guess()

    def add(
        self,
        piece: int,
        above: int,
        inside: np.ndarray,
        change_at: Callable[[np.ndarray], Change],
        start: int,
    ) -> None:
        """Take in a piece: how many lie above the bracket, which inside it, and what is at given indices of it."""
        if self.only is not None:
            self._seen.found = [start + indices_of(inside)]
            return
        seen = self._seen
        seen.above += above
        number = int(np.count_nonzero(inside))
        seen.inside.append((piece, number))
        seen.collected += number
        if self.low == self.high or seen.collected > self.most:
            seen.full = True
            seen.found, seen.changes = [], []
        if number and not seen.full:
            indices = indices_of(inside)
            seen.changes.append(change_at(indices))
            seen.found.append(start + indices)

    def wanted(self, pieces: int) -> Sequence[int]:
        """Which of this many pieces the next pass has to look at."""
        return range(pieces) if self.only is None else (self.only,)

    def settle(self, bits_of: Callable[[np.ndarray, np.ndarray], np.ndarray]) -> None:
        """End a pass: find the cut, or choose the next bracket; `bits_of` a base and a model are those of a change."""
        if self.only is not None:
            self.cut = self.low, int(self._seen.found[0][self._rank - 1])
            return
        seen = self._seen
        rank = self.count - seen.above  # of the cut among what lies inside
        inside = sum(number for _, number in seen.inside)
        if rank < 1:
            self.floor = self.high + 1
        elif rank > inside:
            self.ceiling = self.low - 1
        elif not seen.full:
            base, model = (np.concatenate(part) for part in zip(*seen.changes, strict=True))
            bound, last = cut_by_partition(bits_of(base, model), rank)
            self.cut = bound, int(np.concatenate(seen.found)[last])
            return
        elif self.low == self.high:  # the bound is known, and so many are equal to it
            for piece, number in seen.inside:
                if rank <= number:
                    self.only, self._rank = piece, rank
                    break
                rank -= number
            return
        else:
            self.floor, self.ceiling = self.low, self.high
            self._split()
            return
        self._spread *= 4
        self._guess()

    def _guess(self) -> None:
        """A bracket around where the sample says that the cut lies."""
        runs, length = self._sample.shape
        ordered = np.sort(self._sample, axis=None)[::-1]
        share = self.count / self.size
        low, high = self.floor, self.ceiling
        if runs > 1:
            middle = ordered[min(int(share * ordered.size), ordered.size - 1)]
            by_run = np.mean(self._sample > middle, axis=1)  # neighbours are alike
            # Every part of the tensor has its run, so what parts differ in is no chance: only what a run differs in
            # from its part, which is like the one beside it.
            chance = np.sqrt(np.mean(np.diff(by_run) ** 2) / 2)
            deviation = max(float(chance), 1 / length) / np.sqrt(runs)
            first = int((share - self._spread * deviation) * ordered.size) - 1
            last = int((share + self._spread * deviation) * ordered.size) + 1
            high = int(ordered[first]) if first >= 0 else high
            low = int(ordered[last]) if last < ordered.size else low
        self.low = min(max(low, self.floor), self.ceiling)
        self.high = max(min(high, self.ceiling), self.floor)
        self._seen = Seen()

    def _split(self) -> None:
        """A bracket of one number, near the middle of what lies between floor and ceiling, by sample or by value."""
        known = self._sample[(self._sample >= self.floor) & (self._sample <= self.ceiling)]
        middle = (self.floor + self.ceiling) // 2
        if known.size > 2:
            middle = int(np.partition(known, known.size // 2)[known.size // 2])
        self.low = self.high = middle
        self._seen = Seen()


def indices_of(mask: np.ndarray) -> np.ndarray:
    """Where a mask is true (int64), which is fast where that is rare."""
    whole = mask.size & ~7
    words = mask[:whole].view(np.uint64)
    hit = np.flatnonzero(words != 0)
    within = np.flatnonzero(words[hit].view(np.bool_))
    found = hit[within >> 3] * 8 + (within & 7)
    return np.concatenate([found, whole + np.flatnonzero(mask[whole:])])
