"""Counts in two words, and shares of them that are exact, plain and traced."""

from __future__ import annotations

import math
from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from jmerge.methods.breadcrumbs import band
from jmerge.methods.pcb import level_counts
from jmerge.methods.sce import sce
from jmerge.methods.spec import REGISTRY
from jmerge.methods.statistics import counts
from jmerge.methods.statistics.counts import Count, kept_count, share

WORD = 1 << 32
some_counts = st.one_of(
    st.integers(0, 100),
    st.integers(0, 2**63 - 1),
    st.integers(-2, 2).map(lambda more: WORD + more),
)
shares = st.one_of(
    st.floats(0, 1, width=32),
    st.floats(0, 2**-100, width=32),
    st.integers(0, 1000).map(lambda n: float(np.float32(n / 1000))),
)


def words(value: int) -> Count:
    """A count as a program gets it."""
    return Count(np.uint32(value >> 32), np.uint32(value & 0xFFFFFFFF))  # type: ignore[arg-type]


def plain(value: object) -> int:
    """A count as a number."""
    if isinstance(value, int):
        return value
    assert isinstance(value, Count) and value.high is not None
    return (int(value.high) << 32) + int(value.low)


def several(values: list[int]) -> Count:
    """Counts [n]."""
    halves = [[value >> 32 for value in values], [value & 0xFFFFFFFF for value in values]]
    return Count(*(jnp.asarray(np.asarray(half, np.uint32)) for half in halves))


@jax.jit
def arithmetic(a: Count, b: Count) -> list[object]:
    """All that two counts are put to."""
    return [
        counts.add(a, b),
        counts.subtract(a, b),
        counts.less(a, b),
        counts.less(b, a),
        counts.minimum(a, b),
        counts.maximum(a, b),
        counts.difference(a, b),
        counts.plus(a, b),
    ]


@given(st.integers(0, 2**31 - 1), st.integers(0, 2**31 - 1))
@settings(max_examples=50, deadline=None)
def test_arithmetic_in_one_word(one: int, other: int) -> None:
    """What two words give, where all is below 2^32."""
    a, b = max(one, other), min(one, other)
    found = arithmetic(*(counts.narrow(words(each)) for each in (a, b)))
    assert all(each.high is None for each in found[:2])
    plain_found = [counts.whole_number(each) if isinstance(each, Count) else each for each in found]
    assert plain_found == [a + b, a - b, False, b < a, b, a, a - b, a + b]


@given(some_counts, some_counts)
@settings(max_examples=100, deadline=None)
def test_arithmetic(one: int, other: int) -> None:
    """In two words as in one number, and plain numbers stay plain."""
    a, b = max(one, other), min(one, other)
    found = [
        each if not isinstance(each, Count) else plain(each)
        for each in arithmetic(words(a), words(b))
    ]
    assert found == [a + b, a - b, False, b < a, b, a, a - b, a + b]
    assert counts.minimum(a, b) == b and counts.maximum(a, b) == a
    assert counts.difference(a, b) == a - b and counts.plus(a, b) == a + b


@pytest.mark.parametrize("factor", [0, 1, 3, 28672, 2**16, 2**31 + 5, 8192 * 28672, 2**32 + 7])
def test_times(factor: int) -> None:
    for number in (0, 1, 79, 65535, 65536, 2**31 + 3):
        if number * factor < 2**64:
            assert plain(counts.times(jnp.uint32(number), factor)) == number * factor


# around the lengths of which totals and ranks are found part by part
@pytest.mark.parametrize("length", [1, 2, 255, 256, 257, 70000, 2**17 + 1])
def test_totals_and_ranks(length: int) -> None:
    """Sums beyond 32 bits, and which of the counts the rank-th lies in."""
    rng = np.random.default_rng(length)
    values = [int(value) for value in rng.integers(0, 2**45, length)]
    values[length // 2] = 0
    running = np.cumsum(np.asarray(values, object)).tolist()
    assert plain(jax.jit(counts.total)(several(values))) == running[-1]
    reach = jax.jit(counts.reach)
    for rank in {1, running[-1] // 3, running[length // 2], running[length // 2] + 1, running[-1]}:
        if not 0 < rank <= running[-1]:
            continue
        place, before = reach(several(values), words(rank))
        wanted = next(i for i, until in enumerate(running) if until >= rank)
        assert int(place) == wanted
        assert plain(before) == running[wanted] - values[wanted]
    place, _ = reach(several(values), words(running[-1] + 5))
    assert 0 <= int(place) < length
    few = np.asarray(rng.integers(0, 2**14, length), np.uint32)
    running = np.cumsum(few)
    for rank in {1, running[-1] // 3 + 1, running[-1]}:
        place, before = reach(Count(None, jnp.asarray(few)), Count(None, jnp.uint32(rank)))
        wanted = int(np.searchsorted(running, rank))
        assert before.high is None
        assert (int(place), int(before.low)) == (wanted, running[wanted] - few[wanted])


def test_ranks_of_several_rows() -> None:
    values = np.asarray([[3, 0, 4], [0, 0, 1]], np.uint32)
    rows = Count(jnp.zeros((2, 3), jnp.uint32), jnp.asarray(values))
    rank = Count(jnp.zeros(2, jnp.uint32), jnp.asarray([4, 1], jnp.uint32))
    place, before = counts.reach(rows, rank)
    assert place.tolist() == [2, 2] and before.low.tolist() == [3, 0]


# Shares

share_of = jax.jit(share, static_argnames="up")
kept_of = {
    size: jax.jit(lambda density, size=size: counts.as_count(kept_count(density, size)))
    for size in (0, 1, 10, 100, 2**31 + 3, 80 * 8192 * 28672)
}


@given(shares, some_counts)
@example(float(np.float32(0.29)), 100)
@example(1.0, 2**63 - 1)
@example(1e-45, 2**63 - 1)  # the least float there is
@example(1.1754943508222875e-38, 2**40)
@example(0.5, 2**33 + 1)
@settings(max_examples=200, deadline=None)
def test_shares_are_exact_for_what_a_float32_stands_for(fraction: float, whole: int) -> None:
    """Plain and traced, of plain and of traced counts, rounded down and up."""
    exact = Fraction(fraction) * whole
    for up, wanted in ((False, math.floor(exact)), (True, math.ceil(exact))):
        assert share(fraction, whole, up=up) == wanted
        assert plain(share_of(jnp.float32(fraction), words(whole), up=up)) == wanted


@given(shares, st.integers(0, 2**24))
@settings(max_examples=50, deadline=None)
def test_shares_of_a_count_that_is_a_float(fraction: float, whole: int) -> None:
    """As the total of a statistic is; negative shares are none."""
    wanted = math.floor(Fraction(fraction) * whole)
    assert plain(share_of(jnp.float32(fraction), jnp.float32(whole))) == wanted
    assert plain(share(fraction, jnp.float32(whole))) == wanted
    assert plain(share_of(jnp.float32(-fraction), jnp.float32(whole))) == 0
    assert plain(share(-fraction, whole)) == 0


@pytest.mark.parametrize("fraction", [0.29, 0.3, 0.1, 1 - 1e-4, 1e-12, 0.5])
def test_shares_of_a_traced_count_are_those_of_a_plain_one(fraction: float) -> None:
    """The number of a recipe counts as it does there, float64 or not."""
    own = jax.jit(lambda whole: share(fraction, whole))
    for whole in (0, 1, 10, 100, 2**31 + 3, 2**40 + 7):
        assert plain(own(words(whole))) == share(fraction, whole) == int(fraction * whole)


@pytest.mark.parametrize(
    ("density", "size", "count"),
    [
        (0.29, 100, 28),  # 0.29 * 100 is 28.999... in float64, and MergeKit truncates
        (0.5, 7, 3),
        (0.01, 10, 1),  # at least one of a positive share
        (0.0, 10, 0),
        (-1.0, 10, 0),
        (1.0, 10, 10),
        (2.0, 10, 10),
        (0.5, 0, 0),
        (1e-12, 3 * 2**40, 3),
        (0.3, 2**31 + 3, 644245095),  # float32 gives 644245120
    ],
)
def test_counts(density: float, size: int, count: int) -> None:
    """Counts are integers from float64 on the host, however large the tensor; so they are of a traced float64."""
    assert kept_count(density, size) == count
    with jax.enable_x64(True):
        traced = jax.jit(lambda density: counts.as_count(kept_count(density, size)))
        assert plain(traced(jnp.float64(density))) == count


@given(st.one_of(shares, st.floats(-1, 2, width=32)))
@settings(max_examples=60, deadline=None)
def test_a_traced_density_keeps_what_a_plain_one_keeps(density: float) -> None:
    """To the element, for the float32 that it is."""
    for size, traced in kept_of.items():
        assert plain(traced(jnp.float32(density))) == kept_count(density, size)


def test_densities_under_vmap() -> None:
    densities = np.linspace(0, 1, 64, dtype=np.float32)
    size = 80 * 8192 * 28672
    found = jax.jit(jax.vmap(lambda density: counts.as_count(kept_count(density, size))))(
        jnp.asarray(densities)
    )
    each = [plain(Count(found.high[i], found.low[i])) for i in range(64)]
    assert each == [kept_count(float(density), size) for density in densities]


# What methods make of them


@pytest.mark.parametrize("size", [0, 1, 7, 1000, 2**33 + 5])
def test_bands_are_the_same_traced(size: int) -> None:
    """Outliers and what is kept below them."""
    traced = jax.jit(
        lambda density, gamma: [counts.as_count(each) for each in band(density, gamma, size)]
    )
    for density in (0.0, 0.25, 0.3, 0.9, 1.0):
        for gamma in (0.0, 0.01, 0.5, 1.0):
            most, outliers = (float(np.float32(each)) for each in (density, gamma))
            found = [plain(each) for each in traced(jnp.float32(most), jnp.float32(outliers))]
            assert found == list(band(most, outliers, size))


def test_levels_are_the_same_traced() -> None:
    """How many compete: of a float32 without rounding 1 - rho."""
    for size in (1, 2, 1000, 2**33 + 5):
        traced = jax.jit(
            lambda rho, size=size: counts.as_count(
                level_counts({"rho": rho, "weight": (1.0,)}, size, {})[0][0]
            )
        )
        for rho in (0.0, 0.0625, 0.1, 0.5, 1.0):
            exact = Fraction(float(np.float32(rho)))
            wanted = size - math.floor((1 - exact) * (size - 1))
            assert plain(traced(jnp.float32(rho))) == wanted


@pytest.mark.parametrize("topk", [0.0, 0.3, 0.5])
def test_sce_selects_a_share_of_what_varies(topk: float) -> None:
    """Not of all elements, which no law tells apart: what is drawn for them varies everywhere."""
    counts_of = REGISTRY["sce"].statistics[1].counts  # type: ignore[attr-defined]
    assert counts_of({"select_topk": topk}, 50, {"varied": np.asarray([20.0])}) == [
        [int(topk * 20)]
    ]


def test_a_traced_share_of_one_selects_all() -> None:
    """SCE without a selection, though whether there is one is known late."""
    assert REGISTRY["sce"].function is sce
    chosen = REGISTRY["sce"].statistics[1]
    traced = jax.jit(
        lambda topk: counts.stack_counts(
            chosen.counts({"select_topk": topk}, 50, {"varied": jnp.asarray([20.0])})[0]  # type: ignore[attr-defined]
        )
    )
    assert [traced(jnp.float32(topk)).low.tolist() for topk in (0.5, 1.0)] == [[10], [50]]
