"""Laws of statistics as folds: any split, any grouping of devices, and many at a time under `vmap` give the same value."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jmerge.methods.reduce import BLOCK
from jmerge.methods.statistics.fold import Again, Extent, Place, Statistic, take
from jmerge.methods.statistics.sums import BlockSum
from jmerge.methods.statistics.topk import TopK, by_partition, magnitude_keys

SIZES = (3 * BLOCK + 5, 70, 2 * BLOCK)


def square_terms(values: jax.Array) -> list[jax.Array]:
    return [values * values, jnp.abs(values)]


def key_terms(values: jax.Array) -> list[jax.Array]:
    return [magnitude_keys(values), magnitude_keys(values * values)]


FOLDS: dict[str, Statistic] = {
    "sums": BlockSum(keyword="sums", terms=square_terms),
    "thresholds": TopK(
        keyword="kept",
        terms=key_terms,
        counts=lambda hyperparameters, size, found: [[size // 3, size], [0, 1, size // 7]],
    ),
}


def drawn(sizes: Sequence[int], seed: int = 0) -> list[jax.Array]:
    """Tensors of numbers of which many are equal."""
    rng = np.random.default_rng(seed)
    return [jnp.asarray(rng.standard_normal(size).round(1), jnp.float32) for size in sizes]


def in_pieces(
    fold: Statistic, tensors: Sequence[jax.Array], piece: int, devices: int = 1
) -> tuple[Any, int]:
    """A statistic of tensors in padded pieces that go round among devices, and how often it looked at a piece."""
    sizes = tuple(tensor.size for tensor in tensors)
    places: list[tuple[jax.Array, Place]] = []
    ends: list[int] = []
    for number, tensor in enumerate(tensors):
        for start in range(0, tensor.size, piece):
            part = tensor[start : start + piece]
            first = sum(sizes[:number]) + start
            where = np.asarray([0, first], np.uint32)
            words = np.uint32([len(places), number, start // BLOCK, part.size])
            place = Place(words[0], words[1], words[2], where, words[3])
            places.append((jnp.pad(part, (0, piece - part.size)), place))
        ends.append(len(places))
    terms = len(fold.terms(tensors[0]))
    began = fold.init(Extent(sizes, terms, np.dtype(np.float32), len(places)), {}, {})
    update = jax.jit(lambda state, part, place: fold.update(state, fold.terms(part), place))
    only, looks = None, 0
    for number in range(fold.passes(np.dtype(np.float32))):
        several = devices if only is None else 1  # the last pass goes in order
        states = [began] * several
        for i, (part, place) in enumerate(places):
            if only is None or i // began.pieces in only:
                states[i % several] = update(states[i % several], part, place)
                looks += 1
            if i + 1 in ends:
                closed = fold.close(fold.join(states), place.tensor)
                states = [closed, *[began] * (several - 1)]
        value = fold.finish(states[0], number)
        if not isinstance(value, Again):
            return value, looks
        began, only = value.state, value.only
        only = None if only is None else np.asarray(only).tolist()
        assert (only is None) == (number + 1 < fold.rounds(np.dtype(np.float32)))
    raise AssertionError("it does not end")


def whole(fold: Statistic, tensors: Sequence[jax.Array]) -> Any:
    return take(fold, [fold.terms(tensor) for tensor in tensors], {}, {}, np.dtype(np.float32))


@pytest.mark.parametrize("name", FOLDS)
@pytest.mark.parametrize("devices", [1, 3])
@pytest.mark.parametrize("piece", [BLOCK, 4 * BLOCK])
def test_any_split_on_any_devices(name: str, devices: int, piece: int) -> None:
    """Signs of lost bits too, after a tensor whose terms are negative in part."""
    tensors = drawn(SIZES)
    found, looks = in_pieces(FOLDS[name], tensors, piece, devices)
    jax.tree.map(np.testing.assert_array_equal, found, whole(FOLDS[name], tensors))
    pieces = sum(-(-size // piece) for size in SIZES)
    rounds = FOLDS[name].rounds(np.dtype(np.float32))
    assert rounds * pieces <= looks <= FOLDS[name].passes(np.dtype(np.float32)) * pieces


@pytest.mark.parametrize("name", FOLDS)
def test_many_at_a_time(name: str) -> None:
    rows = jnp.stack([drawn([BLOCK], seed)[0] for seed in range(4)])
    together = jax.jit(jax.vmap(lambda row: whole(FOLDS[name], [row])))(rows)
    for i, row in enumerate(rows):
        alone = whole(FOLDS[name], [row])
        jax.tree.map(lambda a, b, i=i: np.testing.assert_array_equal(a[i], b), together, alone)


def test_a_tensor_that_is_no_number_spoils_no_other() -> None:
    """What is left of its blocks is nothing of the tensor after it, which is shorter."""
    good = drawn((BLOCK, 70))
    bad = [jnp.full(3 * BLOCK, jnp.nan), *good]
    place, fold = np.uint32, FOLDS["sums"]
    sizes = tuple(each.size for each in bad)
    state = fold.init(Extent(sizes, 2, np.dtype(np.float32), 3), {}, {})
    for number, tensor in enumerate(bad):
        padded = jnp.pad(tensor, (0, 3 * BLOCK - tensor.size))
        where = Place(
            place(number), place(number), place(0), np.zeros(2, np.uint32), place(tensor.size)
        )
        state = fold.close(fold.update(state, fold.terms(padded), where), number)
    assert not np.isfinite(np.asarray(state.totals)[:, 0]).any()
    assert np.isfinite(np.asarray(state.totals)[:, 1:]).all()


def test_thresholds_are_those_of_a_sort() -> None:
    (values,) = drawn([SIZES[0]])
    found, _ = in_pieces(FOLDS["thresholds"], [values], BLOCK)
    size = values.size
    first, second = (np.asarray(term) for term in key_terms(values))
    wanted = [(first, size // 3), (first, size), (second, 0), (second, 1), (second, size // 7)]
    for i, (keys, count) in enumerate(wanted):
        bits, last = by_partition(keys, count)
        assert int(found.bits[i]) == bits
        kept = (keys > bits) | ((keys == bits) & (np.arange(size) <= int(found.last_low[i])))
        assert kept.sum() == count and int(found.last_high[i]) == 0
        assert count in (0, size) or int(found.last_low[i]) == last or (keys == bits).sum() == 1


def test_what_keeps_all_or_nothing_needs_no_look() -> None:
    fold = TopK(keyword="kept", terms=key_terms, counts=lambda numbers, size, found: numbers["n"])
    extent = Extent((100,), 0, np.dtype(np.float32))
    known = fold.known(extent, {"n": [[0, 100], [170]]}, {})
    assert known is not None and known.last_low.tolist() == [0, 100, 100]
    assert known.bits.tolist() == [2**32 - 1, 0, 0]
    assert fold.known(extent, {"n": [[0, 1]]}, {}) is None
    bits = TopK(keyword="b", terms=key_terms, counts=fold.counts, uses_bits=True)
    assert bits.known(extent, {"n": [[100]]}, {}) is None
    later = TopK(keyword="l", terms=key_terms, counts=lambda numbers, size, found: found["x"])
    assert later.known(extent, {}, {}) is None
