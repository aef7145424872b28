"""Finding thresholds on a CPU while the pieces of a tensor stream by: exact, without holding or sorting the tensor.

A sample brackets the key at which a threshold lies. One pass over the pieces then counts the elements above the
bracket and collects those inside it, and a partial sort of the few collected gives it. Should the sample have misled,
or more lie inside than may be kept in memory, the pass is repeated with a better bracket; the range in which the
threshold can lie shrinks with every pass, so this ends. What the sample holds changes the time, never the threshold.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from jmerge.methods.statistics.fold import Statistic
from jmerge.methods.statistics.thresholds import by_sorting
from jmerge.methods.statistics.topk import TopK

SAMPLE_RUN = 1 << 15  # elements that are read together; a read costs about as much as copying these
SAMPLE_STEP = 16  # of which one in so many is looked at: neighbours are alike
SAMPLE_RUNS = (16, 1024)  # fewest and most reads of a tensor
SMALL = 1 << 18  # elements of a tensor that needs no sample
SPREAD = 3.0  # half width of the first bracket in standard deviations
MOST_COLLECTED = 1 << 21  # candidates of one threshold held in memory


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


def is_searched(statistic: Statistic, view: tuple[int, ...], platform: str) -> bool:
    """Whether a statistic of a tensor that is seen like this is found by a search: its keys can be partly sorted on
    the host, which is fastest on CPU, and any of them follows from its element alone, so that a sample tells."""
    own = statistic.scope == "tensor" and view == (-1,)
    return own and platform == "cpu" and isinstance(statistic, TopK)


class Seen:
    """What one pass has seen."""

    def __init__(self) -> None:
        self.above = 0
        self.inside: list[tuple[int, int]] = []  # piece, number
        self.collected = 0
        self.keys: list[np.ndarray] = []  # those inside
        self.places: list[np.ndarray] = []  # their positions
        self.full = False  # there are too many to collect


class Search:
    """The search for the threshold of the `count` largest of `size` keys of an unsigned dtype, 0 < count, ties by
    position.

    Feed it the pieces of a tensor in order, call `settle`, and repeat over those that it `wants` until `cut` is there. most: keys
    that it holds.
    """

    def __init__(
        self, count: int, size: int, word: np.dtype[Any], most: int = MOST_COLLECTED
    ) -> None:
        self.count = count
        self.most = most
        self.size = size
        self.floor, self.ceiling = 0, int(np.iinfo(word).max)  # the threshold is in between
        self.low, self.high = self.floor, self.ceiling  # the bracket of this pass, both inside
        self.only: int | None = None  # the one piece to look at, when the key is known
        self.cut: tuple[int, int] | None = None  # key, last position
        self._sample = np.empty((0, 1), word)
        self._spread = SPREAD
        self._seen = Seen()
        self._rank = 0  # of the last that is kept in the only piece

    def take_sample(self, sample: np.ndarray) -> None:
        """Choose the bracket by the keys of a sample [runs, elements]."""
        self._sample = sample
        self._guess()

    def count_in(self, piece: int, above: int, inside: int) -> bool:
        """Take in how many of a piece lie above the bracket and inside it; whether those inside have to be given."""
        if self.only is not None:
            return True
        seen = self._seen
        seen.above += above
        seen.inside.append((piece, inside))
        seen.collected += inside
        if self.low == self.high or seen.collected > self.most:
            seen.full = True
            seen.keys, seen.places = [], []
        return inside > 0 and not seen.full

    def collect(self, keys: np.ndarray, places: np.ndarray) -> None:
        """Take in those among some keys of a piece that lie inside the bracket; places: their positions."""
        inside = (keys >= self.low) & (keys <= self.high)
        self._seen.keys.append(keys[inside])
        self._seen.places.append(places[inside])

    def wants(self, piece: int) -> bool:
        """Whether this pass has to look at a piece."""
        return self.only in (None, piece)

    def settle(self) -> None:
        """End a pass: find the threshold, or choose the next bracket."""
        seen = self._seen
        if self.only is not None:
            self.cut = self.low, int(seen.places[0][self._rank - 1])
            return
        rank = self.count - seen.above  # of the last that is kept among what lies inside
        inside = sum(number for _, number in seen.inside)
        if rank < 1:
            self.floor = self.high + 1
        elif rank > inside:
            self.ceiling = self.low - 1
        elif not seen.full:
            key, last = by_sorting(np.concatenate(seen.keys), rank)
            self.cut = key, int(np.concatenate(seen.places)[last])
            return
        elif self.low == self.high:  # the key is known, and so many are equal to it
            self._seen = Seen()
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
