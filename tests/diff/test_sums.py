"""Sums over pieces against NumPy over whole arrays in float64, in every dtype and at every edge."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jmerge.diff.pairs import is_number
from jmerge.diff.sums import BLOCK, ROW, SHORT, Gauge, Sums, add_up, index_of
from jmerge.dtypes import NUMPY

NUMBERS = [dtype for dtype in NUMPY if is_number(dtype)]
SIZES = (0, 1, 2, 100, ROW - 1, ROW, ROW + 1, BLOCK, BLOCK + 1, 3 * BLOCK + ROW + 7)


def draw(dtype: str, size: int, seed: int) -> np.ndarray:
    """Seeded values of a dtype: with zeros, both signs where there are any, and some in common with other seeds."""
    rng = np.random.default_rng([size, 7])
    values: np.ndarray = rng.standard_normal(size) * 20
    values += (rng.random(size) < 0.7) * np.random.default_rng(seed).standard_normal(size) * 8
    values[rng.random(size) < 0.1] = 0
    if dtype.startswith("U") or dtype in ("BOOL", "F8_E8M0"):
        values = np.abs(values) if dtype != "BOOL" else values > 0
    return np.asarray(values).astype(NUMPY[dtype])


def compare(a: np.ndarray, b: np.ndarray, piece: int = 0) -> Sums:
    """The sums of two arrays, in pieces of that many elements."""
    names = {dtype: name for name, dtype in NUMPY.items()}
    gauge, size = Gauge(), max(a.size, 1)
    flat = [np.ascontiguousarray(each).reshape(-1) for each in (a, b)]
    return add_up(
        gauge.compare(
            flat[0][i : i + (piece or size)].view(np.uint8),
            names[a.dtype],
            flat[1][i : i + (piece or size)].view(np.uint8),
            names[b.dtype],
            i,
        )
        for i in range(0, size, piece or size)
    )


def check(found: Sums, a: np.ndarray, b: np.ndarray) -> None:
    """Every number is NumPy's."""
    names = {dtype: name for name, dtype in NUMPY.items()}
    error = 1e-6 if {names[a.dtype], names[b.dtype]} <= set(SHORT) else 1e-12
    one, other = (each.astype(np.float64).reshape(-1) for each in (a, b))
    fine = np.isfinite(one) & np.isfinite(other)
    assert found.elements == a.size
    assert found.nonfinite_a == np.sum(~np.isfinite(one))
    assert found.nonfinite_b == np.sum(~np.isfinite(other))
    one, other = np.where(fine, one, 0), np.where(fine, other, 0)
    change = other - one
    for value, wanted in (
        (found.norm_a, np.linalg.norm(one)),
        (found.norm_b, np.linalg.norm(other)),
        (found.norm_change, np.linalg.norm(change)),
    ):
        assert value == pytest.approx(wanted, rel=error)
    assert found.changed == np.count_nonzero(change)
    signed = (one != 0) & (other != 0)
    assert found.signed == np.sum(signed)
    assert found.same_sign == np.sum(signed & (np.sign(one) == np.sign(other)))
    assert found.sign_agreement == (found.same_sign / found.signed if found.signed else None)
    if one.any() and other.any():
        wanted = one @ other / np.linalg.norm(one) / np.linalg.norm(other)
        assert found.cosine == pytest.approx(wanted, abs=error)
    else:
        assert found.cosine is None
    if change.any():
        assert found.largest is not None
        where = int(np.argmax(np.abs(change)))
        assert found.largest.change == change[where]
        assert found.largest == (where, one[where], other[where])
    else:
        assert found.largest is None and found.relative == 0


@pytest.mark.parametrize("dtype", NUMBERS)
@pytest.mark.parametrize("size", SIZES)
def test_every_dtype_and_size(dtype: str, size: int) -> None:
    a, b = draw(dtype, size, 1), draw(dtype, size, 2)
    found = compare(a, b)
    check(found, a, b)
    assert found.identical == (a.tobytes() == b.tobytes())
    check(compare(a, a), a, a)
    assert compare(a, a).identical


@pytest.mark.parametrize("dtype", NUMBERS)
def test_two_dtypes(dtype: str) -> None:
    a, b = draw(dtype, 5000, 1), draw("F32", 5000, 2)
    check(compare(a, b), a, b)
    check(compare(b, a), b, a)


@pytest.mark.parametrize("piece", [1, 77, ROW, BLOCK, BLOCK + 1, 50_000])
def test_pieces_tell_the_same(piece: int) -> None:
    """Up to the last bits of float64; counts and places to the digit."""
    size = 300 if piece == 1 else 3 * BLOCK + 5
    a, b = draw("F32", size, 1), draw("F32", size, 2)
    check(compare(a, b, piece), a, b)


@pytest.mark.parametrize(
    ("a", "b", "wanted"),
    [
        ([0, 0], [0, 0], {"relative": 0, "cosine": None, "sign_agreement": None, "changed": 0}),
        ([0, 0], [0, 1], {"relative": None, "cosine": None, "sign_agreement": None, "norm_b": 1}),
        ([3, 4], [0, 0], {"relative": 1, "cosine": None, "sign_agreement": None, "norm_a": 5}),
        ([3, 4], [3, 4], {"relative": 0, "cosine": 1, "sign_agreement": 1, "identical": True}),
        ([1], [-1], {"relative": 2, "cosine": -1, "sign_agreement": 0, "same_sign": 0}),
        ([0, 1], [-0.0, 1], {"relative": 0, "changed": 0, "identical": False, "cosine": 1}),
        ([], [], {"relative": 0, "cosine": None, "elements": 0, "identical": True}),
        ([1, 2], [2, 1], {"largest": (0, 1, 2), "cosine": pytest.approx(0.8)}),
        ([1e-300, 1], [1e-300, 1], {"cosine": 1}),
    ],
)
def test_edges(a: list[float], b: list[float], wanted: dict[str, Any]) -> None:
    found = compare(np.asarray(a, np.float64), np.asarray(b, np.float64))
    for key, value in wanted.items():
        assert getattr(found, key) == value, key


@pytest.mark.parametrize("dtype", ["F64", "F32", "F16", "BF16", "F8_E5M2"])
def test_nan_and_infinity_are_counted_and_left_out(dtype: str) -> None:
    a, b = draw(dtype, BLOCK + 50, 1), draw(dtype, BLOCK + 50, 2)
    a[3], a[BLOCK + 1], b[3], b[9] = np.nan, -np.inf, np.inf, np.nan
    found = compare(a, b)
    check(found, a, b)
    assert (found.nonfinite_a, found.nonfinite_b) == (2, 2)
    same = compare(a, a)
    assert same.identical and same.nonfinite_a == same.nonfinite_b == 2 and same.changed == 0


def test_what_float64_cannot_hold_is_none() -> None:
    huge = np.full(4, 1e300)
    found = compare(huge, -huge)
    assert found.nonfinite_a == 0 and found.changed == 4
    assert found.norm_a is None and found.relative is None and found.cosine is None
    assert found.sign_agreement == 0


def test_nearly_equal_arrays() -> None:
    """The norm of a small change is not what is left of large sums."""
    a = np.ones(100_000, np.float32)
    b = a.copy()
    b[7] += np.float32(2**-20)
    found = compare(a, b)
    assert found.norm_change == 2**-20 and found.changed == 1
    assert found.largest is not None and found.largest.element == 7
    assert found.relative == pytest.approx(2**-20 / math.sqrt(100_000), rel=1e-12)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.floats(width=32), st.floats(width=32)), max_size=40))
def test_any_numbers(pairs: list[tuple[float, float]]) -> None:
    a, b = (np.asarray([pair[i] for pair in pairs], np.float32) for i in range(2))
    check(compare(a, b), a, b)


@pytest.mark.parametrize("shape", [(), (1,), (5,), (3, 4), (2, 1, 7)])
def test_index_of(shape: tuple[int, ...]) -> None:
    for element in range(math.prod(shape)):
        assert tuple(index_of(element, shape)) == np.unravel_index(element, shape)


@pytest.mark.parametrize("scale", [1e-30, 1e-22, 1e-15, 1e15, 1e25, 1e35])
@pytest.mark.parametrize("which", ["both", "a", "b", "change"])
def test_squares_beyond_float32(scale: float, which: str) -> None:
    """Of bfloat16, whose values reach as far as those of float32."""
    rng = np.random.default_rng(0)
    a, b = (rng.standard_normal(BLOCK + 9) for _ in range(2))
    if which == "change":
        b = a + (b * scale if scale < 1 else 0)
        a, b = a * 1e-12, b * 1e-12
    else:
        a, b = a * (scale if which != "b" else 1), b * (scale if which != "a" else 1)
    dtype = NUMPY["BF16"]
    check(compare(a.astype(dtype), b.astype(dtype)), a.astype(dtype), b.astype(dtype))
