"""How far two arrays are apart: sums over their elements that add up over pieces, tensors, layers and parts.

Elements are looked at in blocks that stay in the processor's cache. Those of floats of up to 16 bits are read as
float32 and summed in rows of a few thousand, with an error of about 1e-7; where their squares would leave its range, and
of all other dtypes, as float64, which holds everything but large integers exactly. A piece is added up from its first
block to its last in float64, and pieces by `math.fsum`, so that the result does not depend on who computes which piece.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np

from jmerge.dtypes import NUMPY

BLOCK = 1 << 15  # elements that are looked at together
ROW = 8192  # of them that NumPy's BLAS adds up at once: so few that it does so in one thread
GLANCE = 64  # elements that mostly tell whether a block changed
SHORT = ("BF16", "F16", "F8_E4M3", "F8_E5M2", "F8_E4M3FNUZ", "F8_E5M2FNUZ")
# Between these a sum of squares in float32 lacks nothing that it should have.
LEAST, MOST = 1e-26, 1e36


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
        one, other = self.norm_a, self.norm_b
        found = _ratio(_ratio(self.ab, one), other)
        if found is None or one is None or other is None or not math.isfinite(self.dd):
            return None
        if self.dd < self.aa / 100:  # the cosine theorem keeps the digits of what is nearly 1
            found = 1 - (self.dd - (one - other) ** 2) / one / other / 2
        return max(-1.0, min(found, 1.0))

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
        self._short, self._long = (
            np.empty((3, BLOCK), dtype) for dtype in (np.float32, np.float64)
        )
        self._masks = np.empty((4, BLOCK), np.bool_)

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
        short = dtype_a in SHORT and dtype_b in SHORT
        found = []
        with np.errstate(all="ignore"):  # what overflows is looked at again
            for start in range(0, a.size, BLOCK):
                one, other = a[start : start + BLOCK], b[start : start + BLOCK]
                same = dtype_a == dtype_b and _same_bytes(one, other)
                sums = self._block(self._short, one, other, same) if short else None
                sums = sums or self._block(self._long, one, other, same)
                assert sums is not None
                if sums.largest is not None:
                    at = first + start + sums.largest.element
                    sums = sums._replace(largest=sums.largest._replace(element=at))
                found.append(sums)
        return add_up(found)

    def _block(
        self, memory: np.ndarray, one: np.ndarray, other: np.ndarray, same: bool
    ) -> Sums | None:
        """The sums of a block in the dtype of `memory`; None where float32 does not hold them."""
        size, exact = one.size, memory is self._long
        a, b, change = memory[:, :size]
        mask = self._masks[0, :size]
        np.copyto(a, one, casting="unsafe")
        aa = _dot(a, a)
        if same and (math.isfinite(aa) if exact else LEAST < aa < MOST):
            signed = _count(np.not_equal(a, 0, out=mask))
            return Sums(size, 0, 0, aa, aa, aa, 0.0, 0, signed, signed)
        np.copyto(b, other, casting="unsafe")
        bb = _dot(b, b)
        if not exact and not (LEAST < aa < MOST and LEAST < bb < MOST):
            return None
        broken_a = broken_b = 0
        if not (math.isfinite(aa) and math.isfinite(bb)):
            fine_a, fine_b = np.isfinite(a), np.isfinite(b)
            broken_a, broken_b = size - _count(fine_a), size - _count(fine_b)
            a[~(fine_a & fine_b)] = 0
            b[~(fine_a & fine_b)] = 0
            aa, bb = _dot(a, a), _dot(b, b)
        np.subtract(b, a, out=change)
        changed = _count(np.not_equal(change, 0, out=mask))
        ab, dd = _dot(a, b), _dot(change, change)
        if not exact and changed and dd <= LEAST:
            return None
        largest = _largest(a, b, change) if changed else None
        signs = self._signs(a, b)
        return Sums(size, broken_a, broken_b, aa, bb, ab, dd, changed, *signs, same, largest)

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


def _dot(one: np.ndarray, other: np.ndarray) -> float:
    """The sum of the products, row by row."""
    whole = one.size - one.size % ROW
    rows = np.vecdot(one[:whole].reshape(-1, ROW), other[:whole].reshape(-1, ROW))
    return float(rows.sum(dtype=np.float64)) + float(np.dot(one[whole:], other[whole:]))


def _largest(a: np.ndarray, b: np.ndarray, change: np.ndarray) -> Largest:
    low, high = int(change.argmin()), int(change.argmax())
    least, most = -float(change[low]), float(change[high])
    where = min(low, high) if least == most else low if least > most else high
    return Largest(where, float(a[where]), float(b[where]))


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
