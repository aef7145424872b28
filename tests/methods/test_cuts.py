"""Cuts: exactly the k largest elements, ties to the lower index, by either way and for any cutting into pieces."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jmerge.engine.radix import Radix
from jmerge.methods.cuts import (
    Cut,
    cut_by_counting,
    cut_by_partition,
    cut_terms,
    find_cut,
    is_kept,
    kept_count,
    make_cut,
    ordered_keys,
    ordered_values,
)

from jmerge.methods.positions import flat_positions, split_position

ONE = int(np.float32(1).view(np.uint32))
kept_by = jax.jit(is_kept)  # an eager call compiles every operation for every shape


def reference(magnitude: np.ndarray, count: int) -> np.ndarray:
    """What is kept, by a full stable sort in float64."""
    order = np.lexsort((np.arange(magnitude.size), -magnitude.astype(np.float64)))
    kept = np.zeros(magnitude.size, bool)
    kept[order[:count]] = True
    return kept


def by_partition(magnitude: np.ndarray, count: int) -> Cut:
    """The cut of one model by partial sort."""
    bound, last = cut_by_partition(magnitude, count)
    return Cut(*map(jnp.asarray, make_cut([bound], [last], bits_of(magnitude).dtype)))


def by_counting(magnitude: np.ndarray, count: int) -> Cut:
    """The cut of one model by counting passes, compiled."""
    keys = [jnp.asarray(bits_of(magnitude))[None]]
    return jax.jit(cut_by_counting)(keys, jnp.asarray([count], jnp.uint32))


def by_counting_parts(magnitude: np.ndarray, count: int) -> Cut:
    """The same of tensors that count as one after the other."""
    parts = [jnp.asarray(bits_of(part))[None] for part in np.array_split(magnitude, 3)]
    return jax.jit(cut_by_counting)(parts, jnp.asarray([count], jnp.uint32))


def by_digits(magnitude: np.ndarray, count: int) -> Cut:
    """The cut of one model by rounds over pieces, as the engine finds it for keys of all kinds."""
    keys = bits_of(magnitude)
    radix = Radix([[count]], keys.size, keys.dtype)
    starts = range(0, keys.size, 1000)
    while not radix.done:
        for start in starts:
            radix.add([keys[start : start + 1000]])
        radix.end_round()
    bounds, last = zip(
        *radix.cuts(lambda term: [(start, keys[start : start + 1000]) for start in starts]),
        strict=True,
    )
    return Cut(*map(jnp.asarray, make_cut(bounds, last, keys.dtype)))


def bits_of(magnitude: np.ndarray) -> np.ndarray:
    """The bits of floats."""
    return magnitude.view(f"u{magnitude.dtype.itemsize}")


WAYS = {
    "partition": by_partition,
    "counting": by_counting,
    "counting parts": by_counting_parts,
    "digits": by_digits,
}
KINDS = {
    "normal": lambda rng, n: rng.standard_normal(n),
    "few values": lambda rng, n: rng.integers(-3, 4, n) / 2,
    "zeros": lambda rng, n: np.zeros(n),
    "tiny": lambda rng, n: rng.standard_normal(n) * 1e-37,
    "huge": lambda rng, n: rng.standard_normal(n) * 1e37,
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", [1, 2, 7, 1000, 70000])
def test_keeps_the_largest(way: str, kind: str, size: int) -> None:
    """Every count from none to all keeps what the stable sort keeps."""
    values = KINDS[kind](np.random.default_rng(size), size).astype(np.float32)
    for count in sorted({0, 1, size // 3, size // 2, size - 1, size}):
        cut = WAYS[way](np.abs(values), count)
        kept = np.asarray(kept_by(jnp.asarray(values)[None], cut))[0]
        np.testing.assert_array_equal(kept, reference(np.abs(values), count))


@given(
    st.lists(st.floats(0, 4, width=16), min_size=40, max_size=40),
    st.integers(0, 40),
)
@settings(max_examples=150, deadline=None)
def test_all_ways_agree(values: list[float], count: int) -> None:
    """On anything, with as many ties as there may be."""
    magnitude = np.asarray(values, np.float32)
    wanted = reference(magnitude, count)
    for way in WAYS.values():
        cut = way(magnitude, min(count, magnitude.size))
        np.testing.assert_array_equal(
            np.asarray(kept_by(jnp.asarray(magnitude)[None], cut))[0], wanted
        )


def test_float64_keeps_its_bits() -> None:
    """Differences below float32 decide in a float64 tensor."""
    with jax.enable_x64(True):
        magnitude = 1 + np.arange(8) * 1e-12
        for way in WAYS.values():
            kept = kept_by(jnp.asarray(magnitude)[None], way(magnitude, 3))
            np.testing.assert_array_equal(np.asarray(kept)[0], [False] * 5 + [True] * 3)


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
    """Counts are integers from float64 on the host, however large the tensor."""
    assert kept_count(density, size) == count


def test_pieces_agree_with_the_whole() -> None:
    """Any piece decides its elements alone, given its position."""
    values = (np.random.default_rng(1).integers(0, 5, 5000) / 4).astype(np.float32)
    cut = by_partition(values, 1700)
    whole = np.asarray(kept_by(jnp.asarray(values)[None], cut))[0]
    for length in (1, 17, 4096):
        for start in range(0, 5000, 4096 if length == 1 else length):
            piece = jnp.asarray(values[start : start + length])[None]
            at = jnp.asarray(split_position(start), jnp.uint32)
            kept = np.asarray(kept_by(piece, cut, at))[0]
            np.testing.assert_array_equal(kept, whole[start : start + length])


@pytest.mark.parametrize("offset", [2**31 - 2, 2**32 - 2, 5 * 2**33 + 7])
def test_positions_beyond_31_bits(offset: int) -> None:
    """A tie at a far position is kept up to exactly that position."""
    piece = jnp.ones((1, 6), jnp.float32)
    start = jnp.asarray(split_position(offset), jnp.uint32)
    for last in range(-1, 6):
        cut = Cut(*map(jnp.asarray, make_cut([ONE], [offset + last], np.dtype(np.uint32))))
        kept = np.asarray(kept_by(piece, cut, start))[0]
        np.testing.assert_array_equal(kept, np.arange(6) <= last)
    high, low = flat_positions((2, 3), start)
    found = (np.asarray(high).astype(np.uint64) << np.uint64(32)) + np.asarray(low)
    np.testing.assert_array_equal(found.ravel(), offset + np.arange(6, dtype=np.uint64))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_ordered_keys_have_the_order_of_their_values(dtype: type) -> None:
    limits = np.finfo(dtype)
    values = [-np.inf, limits.min, -2.0, -1.0, -limits.tiny, -0.0, 0.0, limits.tiny, 1.5, np.inf]
    with jax.enable_x64(dtype is np.float64):
        keys = ordered_keys(jnp.asarray(np.array(values, dtype)))
        back = np.asarray(ordered_values(keys))
    assert keys[5] == keys[6]
    assert (np.diff(np.asarray(keys).astype(object)) >= 0).all()
    np.testing.assert_array_equal(back, np.array(values, dtype))


def test_several_cuts_of_several_terms() -> None:
    """The engine's digits give what counting gives, cut by cut, for keys that use every bit."""
    rng = np.random.default_rng(3)
    terms = [rng.integers(0, 2**32, 5000, np.uint32), rng.integers(0, 9, 5000, np.uint32)]
    counts = [[1, 2500, 5000], [700]]
    radix = Radix(counts, 5000, np.dtype(np.uint32))
    while not radix.done:
        radix.add(terms)
        radix.end_round()
    found = radix.cuts(lambda term: [(0, terms[term])])
    cut = cut_terms([[jnp.asarray(term) for term in terms]], counts)
    assert [bound for bound, _ in found] == np.asarray(cut.bound).tolist()
    assert [last for _, last in found] == np.asarray(cut.last_low).tolist()


def test_densities_are_concrete() -> None:
    """By hand, shares become a cut; a cut stays itself."""
    delta = jnp.asarray([[1.0, -3.0, 2.0, 0.5], [0.0, 0.0, 0.0, 0.0]], jnp.float32)
    cut = find_cut(delta, [0.5, 0.25])
    np.testing.assert_array_equal(
        np.asarray(kept_by(delta, cut)),
        [[False, True, True, False], [True, False, False, False]],
    )
    assert find_cut(delta, cut) is cut
