"""Cuts of keys that stream by: exact, in as many rounds as the keys have 16-bit digits, with no sample and no sort.

Each round counts the next digit of the keys whose higher digits are those of the bound, so after the last one the
bound is known, and with it how many keys are equal to it. Only when some of those are kept and others not are pieces
looked at once more, for the position of the last that is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

DIGIT = 16  # bits
FEW = 1 << 20  # keys that are counted at a time, so that they stay in the cache


class _Wanted:
    """One of the cuts: of which keys, how many it keeps, and what is known of its bound."""

    def __init__(self, term: int, count: int) -> None:
        self.term = term
        self.count = count
        self.bound = 0  # the digits so far
        self.above = 0  # keys above every one that begins with them
        self.equal = 0  # keys that begin with them


class Radix:
    """Finds a cut for each of `counts` (for each term the numbers to keep) of `size` keys of an unsigned dtype.

    Feed it all pieces of the terms, `end_round` after each round, until `rounds` are done; then ask `cuts`.
    """

    def __init__(self, counts: Sequence[Sequence[int]], size: int, dtype: np.dtype[Any]) -> None:
        self.size = size
        self.bits = 8 * dtype.itemsize
        self.rounds = self.bits // DIGIT
        self._round = 0
        self._wanted = [_Wanted(term, count) for term, row in enumerate(counts) for count in row]
        self._clear()

    @property
    def done(self) -> bool:
        """Whether all rounds are."""
        return self._round == self.rounds

    def add(self, terms: Sequence[np.ndarray]) -> None:
        """Take in a piece of every term."""
        shift = self.bits - DIGIT * (self._round + 1)
        for (term, prefix), histogram in self._histograms.items():
            for start in range(0, terms[term].size, FEW):
                keys = terms[term][start : start + FEW]
                if self._round > 0:
                    keys = keys[keys >> (shift + DIGIT) == prefix]
                digits = (keys >> shift).astype(np.uint16)
                histogram += np.bincount(digits, minlength=1 << DIGIT)

    def end_round(self) -> None:
        """Fix a digit of every bound."""
        for wanted in self._wanted:
            histogram = self._histograms[wanted.term, wanted.bound]
            from_above = np.cumsum(histogram[::-1])
            rank = min(max(wanted.count, 1), self.size) - wanted.above
            place = int(np.searchsorted(from_above, rank))
            digit = (1 << DIGIT) - 1 - place
            wanted.above += int(from_above[place] - histogram[digit])
            wanted.equal = int(histogram[digit])
            wanted.bound = wanted.bound << DIGIT | digit
        self._round += 1
        self._clear()

    def cuts(
        self, pieces: Callable[[int], Iterable[tuple[int, np.ndarray]]]
    ) -> list[tuple[int, int]]:
        """The bound of every cut and the last position kept among keys equal to it.

        pieces: for the rare case that they are needed, all pieces of a term with their positions, in order.
        """
        found = []
        for wanted in self._wanted:
            if wanted.count <= 0:
                found.append((2**self.bits - 1, 0))
            elif wanted.count >= wanted.above + wanted.equal:
                found.append((wanted.bound, self.size))
            else:
                found.append((wanted.bound, _nth(pieces(wanted.term), wanted)))
        return found

    def _clear(self) -> None:
        which = dict.fromkeys((wanted.term, wanted.bound) for wanted in self._wanted)
        self._histograms = {each: np.zeros(1 << DIGIT, np.int64) for each in which}


def _nth(pieces: Iterable[tuple[int, np.ndarray]], wanted: _Wanted) -> int:
    """The position of the last key equal to the bound that is kept."""
    rank = wanted.count - wanted.above
    for start, keys in pieces:
        equal = np.flatnonzero(keys == wanted.bound)
        if rank <= equal.size:
            return start + int(equal[rank - 1])
        rank -= equal.size
    raise AssertionError("fewer keys are equal to the bound than were counted")
