"""How far two arrays are apart: sums over their elements that add up over pieces, tensors, layers and parts.

Elements are read as float64, which holds every dtype but large integers exactly, in blocks that stay in the
processor's cache. A piece is added up from its first block to its last, and pieces by `math.fsum`, so that the result
does not depend on who computes which piece.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np

from jmerge.ckpt.dtypes import NUMPY

BLOCK = (
    1 << 15
)  # elements, looked at together: they stay in the cache, and a call of NumPy costs little beside them
ROW = 8192  # of them that NumPy's BLAS adds up at once: so few that it does so in one thread
GLANCE = 64  # elements that mostly tell whether a block changed


class Largest(NamedTuple):
    """The element that changed most: the first of those that did."""

    element: int  # its flat index
    a: float
    b: float

    @property
    def change(self) -> float:
        """From A to B."""
        return self.b - self.a


class Sums(NamedTuple):
    """What is known of A and B = A + change; all numbers are of the elements that are finite in both."""

    elements: int = 0  # all
    nonfinite_a: int = 0  # NaN or infinite
    nonfinite_b: int = 0
    aa: float = 0.0  # the sum of the squares of A
    bb: float = 0.0
    ab: float = 0.0  # of the products
    dd: float = 0.0  # of the squares of the change
    changed: int = 0  # elements that differ
    signed: int = 0  # elements that are zero in neither
    same_sign: int = 0  # of these, those with one sign in both
    identical: bool = True  # every byte
    largest: Largest | None = None  # None where nothing changed

    @property
    def norm_a(self) -> float | None:
        """The root of the sum of squares; None when float64 cannot hold that sum."""
        return _root(self.aa)

    @property
    def norm_b(self) -> float | None:
        """That of B."""
        return _root(self.bb)

    @property
    def norm_change(self) -> float | None:
        """That of B - A."""
        return _root(self.dd)

    @property
    def relative(self) -> float | None:
        """The norm of the change over that of A: 0 when nothing changed, None when A is zero and B is not."""
        return _ratio(self.norm_change, self.norm_a) if self.changed else 0.0

    @property
    def cosine(self) -> float | None:
        """Of the angle between A and B; None when one of them is zero."""
        if not self.changed and self.aa > 0:
            return 1.0
        found = _ratio(_ratio(self.ab, self.norm_a), self.norm_b)
        return None if found is None else max(-1.0, min(found, 1.0))

    @property
    def sign_agreement(self) -> float | None:
        """The share of elements with one sign in both, of those that are zero in neither; None when there are none."""
        return _ratio(self.same_sign, self.signed)


def add_up(parts: Iterable[Sums]) -> Sums:
    """The sums over several pieces of a tensor, or over several tensors."""
    parts = list(parts)
    best: Largest | None = None
    for part in parts:
        if part.largest is not None and (
            best is None or abs(part.largest.change) > abs(best.change)
        ):
            best = part.largest
    return Sums(
        elements=sum(part.elements for part in parts),
        nonfinite_a=sum(part.nonfinite_a for part in parts),
        nonfinite_b=sum(part.nonfinite_b for part in parts),
        aa=_total(part.aa for part in parts),
        bb=_total(part.bb for part in parts),
        ab=_total(part.ab for part in parts),
        dd=_total(part.dd for part in parts),
        changed=sum(part.changed for part in parts),
        signed=sum(part.signed for part in parts),
        same_sign=sum(part.same_sign for part in parts),
        identical=all(part.identical for part in parts),
        largest=best,
    )


class Gauge:
    """Compares pieces, in memory of its own; one for each thread."""

    def __init__(self) -> None:
        self._a, self._b, self._change = (np.empty(BLOCK) for _ in range(3))
        self._masks = [np.empty(BLOCK, np.bool_) for _ in range(4)]

    def compare(
        self, raw_a: np.ndarray, dtype_a: str, raw_b: np.ndarray, dtype_b: str, first: int = 0
    ) -> Sums:
        """The sums of two pieces of equally many elements, which begin at element `first` of their tensors.

        Args:
          raw_a, raw_b: bytes of the elements.
          dtype_a, dtype_b: their safetensors dtypes, of real numbers.
          first: what is added to the index of the largest change.
        """
        a, b = raw_a.view(NUMPY[dtype_a]), raw_b.view(NUMPY[dtype_b])
        found = []
        with np.errstate(all="ignore"):  # what overflows is looked at again
            for start in range(0, a.size, BLOCK):
                stop = min(start + BLOCK, a.size)
                same = dtype_a == dtype_b and _same_bytes(a[start:stop], b[start:stop])
                found.append(self._block(a[start:stop], b[start:stop], same, first + start))
        return add_up(found)

    def _block(self, one: np.ndarray, other: np.ndarray, same: bool, first: int) -> Sums:
        size = one.size
        a, b, change = self._a[:size], self._b[:size], self._change[:size]
        mask = self._masks[0][:size]
        np.copyto(a, one, casting="unsafe")
        aa = _dot(self._a, self._a, size)
        if same and math.isfinite(aa):
            signed = _count(np.not_equal(a, 0, out=mask))
            return Sums(size, 0, 0, aa, aa, aa, 0.0, 0, signed, signed)
        np.copyto(b, other, casting="unsafe")
        bb = _dot(self._b, self._b, size)
        broken_a = broken_b = 0
        if not (math.isfinite(aa) and math.isfinite(bb)):
            fine_a, fine_b = np.isfinite(a), np.isfinite(b)
            broken_a, broken_b = size - _count(fine_a), size - _count(fine_b)
            a[~(fine_a & fine_b)] = 0
            b[~(fine_a & fine_b)] = 0
            aa, bb = _dot(self._a, self._a, size), _dot(self._b, self._b, size)
        np.subtract(b, a, out=change)
        changed = _count(np.not_equal(change, 0, out=mask))
        ab, dd = _dot(self._a, self._b, size), _dot(self._change, self._change, size)
        largest = self._largest(size, first) if changed else None
        signs = self._signs(a, b)
        return Sums(
            size,
            broken_a,
            broken_b,
            aa,
            bb,
            ab,
            dd,
            changed,
            *signs,
            identical=same,
            largest=largest,
        )

    def _largest(self, size: int, first: int) -> Largest:
        change = self._change[:size]
        low, high = int(change.argmin()), int(change.argmax())
        least, most = -float(change[low]), float(change[high])
        where = min(low, high) if least == most else low if least > most else high
        return Largest(first + where, float(self._a[where]), float(self._b[where]))

    def _signs(self, a: np.ndarray, b: np.ndarray) -> tuple[int, int]:
        """How many elements are zero in neither, and how many of them have one sign in both."""
        up_a, up_b, down_a, down_b = (mask[: a.size] for mask in self._masks)
        np.greater(a, 0, out=up_a)
        np.greater(b, 0, out=up_b)
        np.less(a, 0, out=down_a)
        np.less(b, 0, out=down_b)
        same = _count(up_a & up_b) + _count(down_a & down_b)
        up_a |= down_a
        up_b |= down_b
        up_a &= up_b
        return _count(up_a), same


def index_of(element: int, shape: tuple[int, ...]) -> list[int]:
    """The place of a flat index in a tensor of this shape."""
    place = []
    for length in reversed(shape):
        element, rest = divmod(element, length)
        place.append(rest)
    return place[::-1]


def _dot(one: np.ndarray, other: np.ndarray, size: int) -> float:
    """The sum of the products of the first elements, row by row."""
    whole = size - size % ROW
    rows = np.vecdot(one[:whole].reshape(-1, ROW), other[:whole].reshape(-1, ROW))
    return float(rows.sum()) + float(np.dot(one[whole:size], other[whole:size]))


def _same_bytes(a: np.ndarray, b: np.ndarray) -> bool:
    width = np.dtype(f"u{a.itemsize}")
    a, b = a.view(width), b.view(width)
    return np.array_equal(a[:GLANCE], b[:GLANCE]) and np.array_equal(a, b)


def _count(mask: np.ndarray) -> int:
    return int(np.count_nonzero(mask))


def _total(numbers: Iterable[float]) -> float:
    try:
        return math.fsum(numbers)
    except (OverflowError, ValueError):  # beyond float64
        return math.inf


def _root(number: float) -> float | None:
    return math.sqrt(number) if math.isfinite(number) else None


def _ratio(one: float | None, other: float | None) -> float | None:
    return None if one is None or other is None or other == 0 else one / other
