"""Thresholds: exactly the k largest elements, ties to the lower index, by any way and for any cutting into pieces."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from folding import Cut, copied, in_pieces, update_of, whole_of
from hypothesis import given, settings
from hypothesis import strategies as st

from jmerge.methods.positions import flat_positions, split_position
from jmerge.methods.statistics import thresholds, topk
from jmerge.methods.statistics.counts import Count, narrow, stack_counts, whole_number
from jmerge.methods.statistics.fold import NONE, Again, Extent, Place, take
from jmerge.methods.statistics.thresholds import (
    Threshold,
    by_sorting,
    is_kept,
    make_threshold,
    ordered_keys,
    ordered_values,
)
from jmerge.methods.statistics.topk import TopK, nth_true

Found = tuple[list[int], list[int]]  # smallest keys that are kept, and last positions
U32 = np.dtype(np.uint32)
ONE = int(np.float32(1).view(np.uint32))
# an eager call compiles every operation for every shape
kept_by = jax.jit(lambda keys, bits, high, low: is_kept(keys, Threshold(bits, high, low)))
kept_from = jax.jit(
    lambda keys, start, bits, high, low: is_kept(keys, Threshold(bits, high, low), start)
)


@pytest.fixture(autouse=True, scope="module")
def programs() -> Iterator[None]:
    """What is compiled for other digits than the platform's is forgotten in the end."""
    yield
    for cached in (update_of, whole_of):
        cached.cache_clear()


def given_counts(hyperparameters: Any, size: int, found: object) -> Any:
    """Counts for a program that takes them as arguments."""
    return hyperparameters["counts"]


def look(*keys: Any, **_: Any) -> Any:
    """The terms are given."""
    return keys


SEARCH = TopK(keyword="keep", terms=look, counts=given_counts)


def words(count: int) -> Count:
    """A count that a program takes as an argument."""
    return Count(np.uint32(count >> 32), np.uint32(count & 0xFFFFFFFF))  # type: ignore[arg-type]


def numbers(*rows: list[int]) -> dict[str, Any]:
    """The hyperparameters of so many of each term."""
    return {"counts": [[words(count) for count in row] for row in rows]}


def plain(threshold: Threshold) -> Found:
    """A threshold in plain numbers."""
    bits, high, low = (np.asarray(part).astype(object) for part in threshold)
    return bits.tolist(), ((high * 2**32) + low).tolist()


def whole(leaves: int, digit: int, keys: np.ndarray, counts: list[int]) -> Found:
    """The thresholds of arrays in one program, by digits of so many bits."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(topk, "DIGITS", {"cpu": digit})
        shaped = keys.reshape(2, -1) if keys.size % 2 == 0 and leaves == 1 else keys
        parts = np.array_split(shaped, leaves) if leaves > 1 else [shaped]
        program = whole_of(SEARCH, keys.dtype, digit)
        return plain(program([[jnp.asarray(part)] for part in parts], numbers(counts)))


def partitioned(keys: np.ndarray, counts: list[int]) -> Found:
    """The thresholds by partial sorts."""
    bits, last = zip(*(by_sorting(keys, count) for count in counts), strict=True)
    return list(bits), list(last)


def cut(keys: np.ndarray, counts: list[int], **how: Any) -> Found:
    """The thresholds of pieces on two devices, in any order where it does not matter."""
    pieces = Cut(max(-(-keys.size // 23), 3), devices=2, seed=keys.size, **how)
    return plain(in_pieces(SEARCH, [[keys]], numbers(counts), keys.dtype, pieces))


WAYS: dict[str, Callable[[np.ndarray, list[int]], Found]] = {
    "partition": partitioned,
    "16 bits": partial(whole, 1, 16),
    "11 bits": partial(whole, 1, 11),
    "leaves": partial(whole, 3, 16),
    "pieces": cut,
}
KINDS: dict[str, Callable[[np.random.Generator, int], np.ndarray]] = {
    "normal": lambda rng, n: rng.standard_normal(n),
    "few values": lambda rng, n: rng.integers(-3, 4, n) / 2,
    "zeros": lambda rng, n: np.zeros(n),
    "tiny": lambda rng, n: rng.standard_normal(n) * 1e-37,
    "huge": lambda rng, n: rng.standard_normal(n) * 1e37,
}


def bits_of(magnitude: np.ndarray) -> np.ndarray:
    """The bits of floats."""
    return magnitude.view(f"u{magnitude.dtype.itemsize}")


def reference(magnitude: np.ndarray, count: int) -> np.ndarray:
    """What is kept, by a full stable sort in float64."""
    order = np.lexsort((np.arange(magnitude.size), -magnitude.astype(np.float64)))
    kept = np.zeros(magnitude.size, bool)
    kept[order[:count]] = True
    return kept


def kept(keys: np.ndarray, found: Found, start: int = 0) -> list[list[bool]]:
    """What each of the thresholds keeps, in the words of `Threshold`; start: the position of the first of the keys."""
    places = start + np.arange(keys.size, dtype=np.uint64)
    return [
        ((keys > bits) | ((keys == bits) & (places <= last))).reshape(-1).tolist()
        for bits, last in zip(*found, strict=True)
    ]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("size", [1, 2, 7, 1000, 70000])
def test_keeps_the_largest(way: str, size: int) -> None:
    """Every count from none to all keeps what the stable sort keeps, of magnitudes of all kinds."""
    for kind, make in KINDS.items():
        magnitude = np.abs(make(np.random.default_rng(size), size).astype(np.float32))
        keys = bits_of(magnitude)
        for count in sorted({0, 1, size // 3, size // 2, size - 1, size}):
            threshold = make_threshold(*WAYS[way](keys, [count]), keys.dtype)
            own = (jnp.asarray(part[0]) for part in threshold)
            found = np.asarray(kept_by(jnp.asarray(keys), *own))
            np.testing.assert_array_equal(found, reference(magnitude, count), f"{kind}, {count}")


def test_large_arrays_are_counted_before_they_are_sorted(monkeypatch: pytest.MonkeyPatch) -> None:
    """What sorting alone finds, of keys of all kinds and of two widths."""
    rng = np.random.default_rng(8)
    for kind, make in KINDS.items():
        for dtype in (np.float32, np.float64):
            keys = bits_of(np.abs(make(rng, 3000).astype(dtype)))
            counts = [1, 7, 1000, 2999, 3000]
            monkeypatch.setattr(thresholds, "FEW", 1 << 20)
            wanted = partitioned(keys, counts)
            monkeypatch.setattr(thresholds, "FEW", 10)
            monkeypatch.setattr(thresholds, "PART", 700)
            assert partitioned(keys, counts) == wanted, (kind, dtype)


@given(
    st.lists(st.floats(0, 4, width=16), min_size=40, max_size=40),
    st.integers(0, 41),
)
@settings(max_examples=150, deadline=None)
def test_all_ways_agree(values: list[float], count: int) -> None:
    """On anything, with as many ties as there may be; by counting in any way they find the same numbers."""
    magnitude = np.asarray(values, np.float32)
    keys = bits_of(magnitude)
    found = {name: way(keys, [count]) for name, way in WAYS.items()}
    for name, each in found.items():
        assert kept(keys, each) == [reference(magnitude, count).tolist()], name
    del found["partition"]
    assert all(each == found["pieces"] for each in found.values()), found


def test_float64_keeps_its_bits() -> None:
    """Differences below float32 decide in a float64 tensor."""
    with jax.enable_x64(True):
        magnitude = 1 + np.arange(40) * 1e-12
        keys = bits_of(magnitude)
        for name, way in WAYS.items():
            assert kept(keys, way(keys, [3])) == [[False] * 37 + [True] * 3], name


def test_several_selections_of_several_terms() -> None:
    """Selection by selection, for keys that use every bit, of tensors one after the other."""
    rng = np.random.default_rng(3)
    terms = [rng.integers(0, 2**32, 5000, np.uint32), rng.integers(0, 9, 5000, np.uint32)]
    counts = [[1, 2500, 5000], [700]]

    def check(found: Found) -> None:
        of_term = [term for term, row in zip(terms, counts, strict=True) for _ in row]
        for i, term in enumerate(of_term):
            own = ([found[0][i]], [found[1][i]])
            assert kept(term, own) == kept(term, partitioned(term, [sum(counts, [])[i]]))

    leaves = [[jnp.asarray(term[i:j]) for term in terms] for i, j in ((0, 4000), (4000, 5000))]
    check(plain(whole_of(SEARCH, U32)(leaves, numbers(*counts))))
    tensors = [[term[i:j] for term in terms] for i, j in ((0, 4000), (4000, 5000))]
    for length in (300, 5000):
        found = in_pieces(SEARCH, tensors, numbers(*counts), U32, Cut(length, 3, seed=1))
        check(plain(found))


def test_vmap_is_one_after_the_other() -> None:
    """Over tensors, over counts, and over both: one program finds what a loop does."""
    rng = np.random.default_rng(4)
    keys = rng.integers(0, 5, (3, 50), np.uint32)
    counts = np.asarray([[0, 7], [1, 50], [25, 26]], np.uint32)

    def find(keys: jax.Array, counts: jax.Array) -> Threshold:
        selections = [Count(jnp.zeros_like(count), count) for count in counts]
        found: Threshold = topk_of(keys, selections)
        return found

    once = jax.jit(topk_of)
    for axes in ((0, 0), (0, None), (None, 0)):
        given = [
            jnp.asarray(array if axis == 0 else array[0])
            for array, axis in zip((keys, counts), axes, strict=True)
        ]
        found = jax.jit(jax.vmap(find, in_axes=axes))(*given)
        for i in range(3):
            own = [i if axis == 0 else 0 for axis in axes]
            alone = once(jnp.asarray(keys[own[0]]), [words(int(n)) for n in counts[own[1]]])
            mapped = plain(Threshold(*(part[i] for part in found)))
            assert mapped == plain(alone)
            wanted = partitioned(keys[own[0]], counts[own[1]].tolist())
            assert kept(keys[own[0]], mapped) == kept(keys[own[0]], wanted)


def topk_of(keys: jax.Array, counts: list[Count]) -> Any:
    """The thresholds of one array."""
    return take(SEARCH, [[keys]], {"counts": [counts]}, {}, U32)


# Pieces and positions


def test_pieces_agree_with_the_whole() -> None:
    """Any piece decides its elements alone, given its position."""
    values = (np.random.default_rng(1).integers(0, 5, 5000) / 4).astype(np.float32)
    keys = bits_of(values)
    threshold = make_threshold(*partitioned(keys, [1700]), U32)
    own = [jnp.asarray(part[0]) for part in threshold]
    wanted = reference(values, 1700)
    for length in (1, 17, 4096):
        for start in range(0, 5000, 4096 if length == 1 else length):
            piece = jnp.asarray(keys[start : start + length])
            at = jnp.asarray(split_position(start), jnp.uint32)
            found = np.asarray(kept_from(piece, at, *own))
            np.testing.assert_array_equal(found, wanted[start : start + length])


@pytest.mark.parametrize("offset", [2**31 - 2, 2**32 - 2, 5 * 2**33 + 7])
def test_positions_beyond_31_bits(offset: int) -> None:
    """A tie at a far position is kept up to exactly that position."""
    piece = jnp.full(6, ONE, jnp.uint32)
    start = jnp.asarray(split_position(offset), jnp.uint32)
    for last in range(-1, 6):
        threshold = make_threshold([ONE], [offset + last], U32)
        found = np.asarray(kept_from(piece, start, *(jnp.asarray(part[0]) for part in threshold)))
        np.testing.assert_array_equal(found, np.arange(6) <= last)
    high, low = flat_positions((2, 3), start)
    found = (np.asarray(high).astype(np.uint64) << np.uint64(32)) + np.asarray(low)
    np.testing.assert_array_equal(found.ravel(), offset + np.arange(6, dtype=np.uint64))


@pytest.mark.parametrize("offset", [2**31 - 20, 2**32 - 20, 5 * 2**33 + 7])
def test_thresholds_beyond_31_bits(offset: int) -> None:
    """The last tie that is kept is found where it lies, in whichever piece, before and after the words' border."""
    keys = np.random.default_rng(2).integers(0, 2, 40, np.uint32)
    counts = [1, int(keys.sum()), 25, 40]
    wanted = kept(keys, partitioned(keys, counts))
    for length in (3, 64):
        how = Cut(length, devices=2, start=offset, seed=5)
        found = plain(in_pieces(SEARCH, [[keys]], numbers(counts), U32, how))
        assert kept(keys, found, offset) == wanted


def test_what_keeps_all_or_nothing_needs_no_look() -> None:
    fold = TopK(keyword="kept", terms=look, counts=given_counts)
    extent = Extent((100,), 0, np.dtype(np.float32))
    found = fold.known(extent, {"counts": [[0, 100], [170]]}, {})
    assert found is not None and plain(found) == ([2**32 - 1, 0, 0], [0, 100, 100])
    assert fold.known(extent, {"counts": [[0, 1]]}, {}) is None
    bits = TopK(keyword="bits", terms=look, counts=given_counts, uses_bits=True)
    assert bits.known(extent, {"counts": [[100]]}, {}) is None
    later = TopK(keyword="later", terms=look, counts=lambda numbers, size, found: found["x"])
    assert later.known(extent, {}, {}) is None


def test_more_than_32_bits_of_elements() -> None:
    """Counters carry: of 5 2^31 equal keys, of which every device saw as many as a piece has, all are counted."""
    many, few = np.full(5, 7, np.uint32), np.asarray([3, 1, 3, 3, 2], np.uint32)
    times = 5 * 2**31
    extent = Extent((times + 5,), 1, U32, 2)
    hyperparameters = numbers([times, times + 1, times + 3, times + 4])

    def fed(state: Any, keys: np.ndarray, number: int, last: bool = False) -> Any:
        start = np.asarray(split_position(number * times), np.uint32)
        place = Place(np.uint32(number), np.uint32(0), np.uint32(0), start)
        return update_of(SEARCH, last)(copied(state), [jnp.asarray(keys)], place)

    state = SEARCH.init(extent, hyperparameters, {})
    for _ in range(SEARCH.passes(U32) - 1):
        doubled = fed(state, many, 0)
        for _ in range(31):
            doubled = SEARCH.join([doubled, doubled])
        value = SEARCH.finish(SEARCH.join([doubled, fed(state, few, 1)]), last=False)
        assert isinstance(value, Again)
        state = value.state
    # all of the large keys are kept; of the threes one, and all three
    assert isinstance(value, Again)
    assert np.asarray(value.only).tolist() == [NONE, 1, NONE, NONE]
    found = SEARCH.finish(fed(state, few, 1, last=True))
    assert isinstance(found, Threshold)
    assert plain(found) == ([7, 3, 3, 2], [times + 5, times, times + 5, times + 5])


@pytest.mark.parametrize("shape", [(), (1,), (70000,), (3, 4, 5), (1, 9000)])
def test_nth_true(shape: tuple[int, ...]) -> None:
    """The position of every true element, by its rank."""
    mask = np.asarray(np.random.default_rng(6).random(shape) < 0.3)
    mask[(-1,) * len(shape)] = True
    places = np.flatnonzero(mask)
    find = jax.jit(nth_true)
    for rank in {1, 2, places.size // 2, places.size} - {0}:
        if rank <= places.size:
            wanted = [int(places[rank - 1]), places.size]
            wide = stack_counts([rank])
            for given in (wide, narrow(wide)):
                found = find([jnp.asarray(mask)], given)
                alone = [jax.tree.map(lambda word: word[0], each) for each in found]
                assert [whole_number(each) for each in alone] == wanted


@pytest.mark.parametrize("shape", [(40,), (40, 1, 3), (2, 9), (1, 50)])
def test_arrays_beyond_a_counter_are_counted_in_parts(
    shape: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With counters of fewer bits: no part has as many keys as they count."""
    monkeypatch.setattr(topk, "MOST", 16)
    keys = np.random.default_rng(7).integers(0, 5, shape, np.uint32)
    counts = [1, keys.size // 2, keys.size]
    program = whole_of(SEARCH, U32, "parts")
    found = plain(program([[jnp.asarray(keys)]], numbers(counts)))
    flat = keys.reshape(-1)
    assert kept(flat, found) == kept(flat, partitioned(flat, counts))


@pytest.mark.parametrize("shape", [(80, 8192, 28672), (1 << 33,), (3, 1 << 32)])
def test_arrays_of_any_size_have_a_threshold(shape: tuple[int, ...]) -> None:
    """Its program can be made, with nothing beyond what JAX counts in 32 bits."""
    keys = jax.ShapeDtypeStruct(shape, jnp.uint32)
    found = jax.eval_shape(whole_of(SEARCH, U32), [[keys]], numbers([5]))
    assert [(part.shape, part.dtype) for part in found] == [((1,), U32)] * 3


# Keys


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
