"""Laws of statistics: the same bytes in any pieces, on any devices, compiled or not."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from folding import Cut, copied, finish_of, in_pieces, padded, update_of, whole_of

from jmerge.methods.reduce import BLOCK
from jmerge.methods.statistics.fold import Again, Extent, Place, Statistic, take
from jmerge.methods.statistics.rows import Masks, SortedRows, largest_of_rows
from jmerge.methods.statistics.sums import BlockSum, padded_length
from jmerge.methods.statistics.topk import TopK
from jmerge.testing.close import assert_same_bytes

Tensors = list[list[np.ndarray]]  # the terms of each
SIZES = (5 * BLOCK + 3, 2 * BLOCK, 17)  # of tensors one after the other
F32 = np.dtype(np.float32)


def look(*terms: Any, **_: Any) -> Any:
    """The terms are given."""
    return terms


class Kind(NamedTuple):
    """A statistic, and what it is taken of."""

    statistic: Statistic
    draw: Callable[[tuple[int, ...]], Tensors]  # terms of tensors of these lengths
    cut: Cut  # the least pieces it can be taken in
    passes: int

    def fold(self, tensors: Tensors, **how: Any) -> Any:
        """The value of pieces."""
        return in_pieces(self.statistic, tensors, {}, F32, self.cut._replace(**how))

    def whole(self, tensors: Tensors) -> Any:
        """The value of whole arrays, in one program."""
        leaves = [[jnp.asarray(each) for each in terms] for terms in tensors]
        return whole_of(self.statistic, F32)(leaves, {})


def floats(sizes: tuple[int, ...]) -> Tensors:
    """Two terms whose totals are hard to round: large ones that cancel, and squares, negative in every other tensor."""
    rng = np.random.default_rng(1)
    values = [rng.standard_normal(size) * 10.0 ** rng.integers(-6, 7, size) for size in sizes]
    return [
        [v.astype(np.float32), ((-1) ** i * v * v).astype(np.float32)]
        for i, v in enumerate(values, 1)
    ]


def keys(sizes: tuple[int, ...]) -> Tensors:
    """Two terms of keys, one of them full of ties."""
    rng = np.random.default_rng(2)
    return [
        [rng.integers(0, 2**32, size, np.uint32), rng.integers(0, 3, size, np.uint32)]
        for size in sizes
    ]


def shares(hyperparameters: object, size: int, found: object) -> list[list[int]]:
    """A third of the first term's keys, half and all of the second's."""
    return [[size // 3], [size // 2, size]]


SUMS = BlockSum(keyword="sums", terms=look)
KINDS = {
    "sums": Kind(SUMS, floats, Cut(BLOCK), 1),
    "sums of rows": Kind(SUMS, floats, Cut(1000, row=3), 1),
    "thresholds": Kind(TopK(keyword="keep", terms=look, counts=shares), keys, Cut(1500), 3),
}
kinds = pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)


def assert_same(found: Any, wanted: Any) -> None:
    """The same arrays, byte for byte."""
    assert jax.tree.structure(found) == jax.tree.structure(wanted)  # type: ignore[operator]
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
        assert_same_bytes(np.asarray(one), np.asarray(other))


@kinds
@pytest.mark.parametrize("sizes", [SIZES, SIZES[:1], SIZES[2:], (1,)], ids=str)
def test_any_pieces_give_the_bytes_of_the_whole(kind: Kind, sizes: tuple[int, ...]) -> None:
    """In order or not, on one device or on several; what pads them means nothing."""
    tensors = kind.draw(sizes)
    wanted = kind.whole(tensors)
    for longer in (1, 2, 7):
        for devices, seed in ((1, None), (2, None), (3, 5)):
            length = longer * kind.cut.length
            assert_same(kind.fold(tensors, length=length, devices=devices, seed=seed), wanted)


def begun(kind: Kind) -> tuple[Any, Callable[..., Any]]:
    """A state, and how it is fed the number of a piece, of seven of a tensor."""
    length = kind.cut.length
    (terms,) = kind.draw((7 * length - 1,))
    size = (7 * length - 1) * max(kind.cut.row, 1)
    rows = 7 * length - 1 if kind.cut.row else 0
    state = kind.statistic.init(Extent((size,), 2, F32, 7, rows), {}, {})

    def fed(state: Any, number: int, update: Callable[..., Any] = kind.statistic.update) -> Any:
        first = number * length
        block = first if kind.cut.row else first // BLOCK
        start = np.asarray([0, first], np.uint32)
        places = (number, 0, block, start, min(length, 7 * length - 1 - first))
        place = Place(*(np.asarray(each, np.uint32) for each in places))
        own = [jnp.asarray(padded(each[first : first + length], length)) for each in terms]
        return update(state, own, place)

    return state, fed


@kinds
def test_states_are_joined_in_any_grouping(kind: Kind) -> None:
    """To the bytes of the state that saw all, whoever saw what."""
    state, fed = begun(kind)
    update, join = update_of(kind.statistic, kind.passes == 1), jax.jit(kind.statistic.join)

    def seen(*numbers: int) -> Any:
        found = copied(state)
        for number in numbers:
            found = fed(found, number, update)
        return found

    a, b, c, none = seen(0, 5), seen(3), seen(6, 1, 2, 4), seen()
    every = seen(*range(7))
    for joined in (
        join([a, b, c]),
        join([c, a, b]),
        join([join([a, b]), c]),
        join([a, join([c, b])]),
        join([none, a, b, none, c]),
        join([every]),
    ):
        assert_same(joined, every)


@kinds
def test_passes_are_what_finish_needs(kind: Kind) -> None:
    """It asks for one more pass until the last, whatever it has seen, and programs of one form take all of them."""
    state, fed = begun(kind)
    passes = kind.statistic.passes(F32)
    assert passes == kind.passes
    for number in range(passes):
        last = number == passes - 1
        update = partial(kind.statistic.update, last=last)
        fed_state = jax.eval_shape(partial(fed, number=2, update=update), state)
        assert_form(fed_state, state)
        value = jax.eval_shape(partial(kind.statistic.finish, last=last), fed_state)
        found = finish_of(kind.statistic, last)(
            fed(copied(state), 2, update_of(kind.statistic, last))
        )
        assert_form(found, value)
        assert isinstance(value, Again) == (not last)
        if isinstance(value, Again):
            assert_form(found.state, state)
            assert (value.only is not None) == kind.statistic.narrows
            state = found.state


def assert_form(found: Any, wanted: Any) -> None:
    """The same tree of arrays of the same shapes and dtypes."""
    assert jax.tree.structure(found) == jax.tree.structure(wanted)  # type: ignore[operator]
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
        assert (one.shape, one.dtype) == (other.shape, other.dtype)


@kinds
def test_the_state_is_donated(kind: Kind) -> None:
    """All memory of the state before an update is that of the state after it."""
    state, fed = begun(kind)
    for number in range(kind.passes):
        before, last = copied(state), number == kind.passes - 1
        update = jax.jit(partial(kind.statistic.update, last=last), donate_argnums=0)
        lowered = fed(before, 0, update.lower)
        size = sum(each.nbytes for each in jax.tree.leaves(before))
        large = max(each.nbytes for each in jax.tree.leaves(before))
        memory = lowered.compile().memory_analysis()
        after = fed(before, 0, update)
        if memory is not None and memory.alias_size_in_bytes:
            assert large <= memory.alias_size_in_bytes <= size
        assert all(each.is_deleted() for each in jax.tree.leaves(before) if each.nbytes == large)
        value = kind.statistic.finish(after, last=last)
        if isinstance(value, Again):
            state = value.state


@kinds
def test_compiled_eager_and_mapped_are_the_same_bytes(kind: Kind) -> None:
    """And so is each of several tensors under `vmap`."""
    tensors = [kind.draw((size,))[0] for size in (300, 300, 300)]
    tensors[1] = [each[::-1].copy() for each in tensors[1]]
    find = partial(take, kind.statistic, hyperparameters={}, found={}, dtype=F32)
    compiled = jax.jit(lambda terms: find([terms]))
    stacked = [jnp.stack([terms[i] for terms in tensors]) for i in range(2)]
    mapped = jax.jit(jax.vmap(lambda terms: find([terms])))(stacked)
    for i, terms in enumerate(tensors):
        own = [jnp.asarray(each) for each in terms]
        assert_same(jax.tree.map(lambda each, i=i: each[i], mapped), compiled(own))
    assert_same(find([own]), compiled(own))


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_has_statistics_too(kind: str) -> None:
    """No models, and tensors without elements; one of them among others changes nothing."""
    own = KINDS[kind]
    empty = own.whole([[each[:0] for each in own.draw((3,))[0]]])
    assert [len(each) for each in jax.tree.leaves(empty)] == [2 if "sums" in kind else 3] * len(
        jax.tree.leaves(empty)
    )
    if kind == "thresholds":
        assert np.asarray(empty.bits).tolist() == [2**32 - 1] * 3
        nobody: Statistic = TopK(keyword="keep", terms=look, counts=lambda *_: [])
    else:
        assert np.asarray(empty).tolist() == [0, 0]
        nobody = BlockSum(keyword="sums", terms=look)
    none = take(nobody, [[]], {}, {}, F32, sizes=[7])
    assert all(len(each) == 0 for each in jax.tree.leaves(none))
    first, second = own.draw((40, 7))
    between = [first, [each[:0] for each in first], second]
    assert_same(own.whole(between), own.whole([first, second]))


def test_a_tensor_that_is_no_number_spoils_no_other() -> None:
    """What is left of its blocks is nothing of the tensor after it, which is shorter."""
    first, *others = floats((3 * BLOCK, BLOCK, 70))
    spoilt = [np.full_like(each, np.nan) for each in first]
    found = []
    for terms in (first, spoilt):
        tensors = [terms, *others]
        extent = Extent(tuple(len(each[0]) for each in tensors), 2, F32, 3)
        state = copied(SUMS.init(extent, {}, {}))
        for number, own in enumerate(tensors):
            words = np.asarray([number, number, 0, len(own[0])], np.uint32)
            place = Place(words[0], words[1], words[2], np.zeros(2, np.uint32), words[3])
            padded_terms = [jnp.asarray(padded(each, 3 * BLOCK)) for each in own]
            state = SUMS.close(update_of(SUMS, True)(state, padded_terms, place), number)
        found.append(np.asarray(state.totals))
    assert not np.isfinite(found[1][:, 0]).any()
    assert_same_bytes(found[1][:, 1:], found[0][:, 1:])


def test_float64_sums_in_pieces() -> None:
    """The bytes of the whole, with what float32 loses."""
    with jax.enable_x64(True):
        values = [1 + np.arange(3 * BLOCK + 5) * 1e-12]
        statistic, dtype = BlockSum(keyword="sums", terms=look), np.dtype(np.float64)
        wanted = whole_of(statistic, dtype)([[jnp.asarray(each) for each in values]], {})
        found = in_pieces(statistic, [values], {}, dtype, Cut(BLOCK, devices=2))
        assert_same(found, wanted)
        exact = np.sum(values[0].astype(np.longdouble))
        assert abs(float(found[0]) - exact) <= 1e-15 * exact


@pytest.mark.parametrize("shape", [(80, 8192, 28672), (1 << 33,), (3, 1 << 32)], ids=str)
def test_sums_of_any_size(shape: tuple[int, ...]) -> None:
    """Beyond 2^32 elements their program can be made."""
    statistic = BlockSum(keyword="sums", terms=look)
    leaves = [[jax.ShapeDtypeStruct(shape, np.float32)] * 2]
    found = jax.eval_shape(
        partial(take, statistic, hyperparameters={}, found={}, dtype=F32), leaves
    )
    assert (found.shape, found.dtype) == ((2,), F32)


def test_buffers_of_blocks_come_in_few_lengths() -> None:
    """So that few programs are needed; the longest are no more than twice what there is."""
    found = [padded_length(blocks) for blocks in (0, 1, 2, 32, 33, 1024, 32768, 32769, 10**6)]
    assert found == [32, 32, 32, 32, 1024, 1024, 32768, 65536, 1 << 20]


# Rows

ROWS = SortedRows(keyword="ordered", terms=look)


@pytest.mark.parametrize("shape", [(1, 9), (6, 50), (4, 1), (5, 3, 7), (3, 0)], ids=str)
def test_rows_are_sorted_wherever_they_are_cut(shape: tuple[int, ...]) -> None:
    """Along axis 1, on the host and on the device; a row lies in one piece."""
    term = np.random.default_rng(3).integers(0, 4, shape, np.uint32)
    wanted = np.sort(term, axis=1)
    assert_same(whole_of(ROWS, F32)([[jnp.asarray(term)]], {}), [wanted])
    assert_same(ROWS.on_host([term]), [wanted])
    for length in (1, 2, 4):
        found = [
            in_pieces(ROWS, [[term[i : i + length]]], {}, F32, Cut(length))[0]
            for i in range(0, shape[0], length)
        ]
        counts = [min(length, shape[0] - i) for i in range(0, shape[0], length)]
        pieces = [np.asarray(each)[:n] for each, n in zip(found, counts, strict=True)]
        assert_same_bytes(np.concatenate(pieces), wanted)
    assert ROWS.passes(F32) == 1 and ROWS.scope == "piece"


def test_masks_are_the_terms_of_a_piece() -> None:
    masks, term = Masks(keyword="masks", terms=look), np.asarray([[True, False, True]])
    assert_same(whole_of(masks, F32)([[jnp.asarray(term)]], {}), [term])
    assert_same(masks.on_host([term]), [term])


@pytest.mark.parametrize("shape", [(1,), (17,), (6, 8), (2, 3, 16), (4, 0)], ids=str)
def test_the_largest_of_rows_are_those_of_a_stable_sort(shape: tuple[int, ...]) -> None:
    term = np.random.default_rng(4).integers(0, 4, shape, np.uint32)
    find = jax.jit(largest_of_rows)
    order = np.argsort(-term.astype(np.int64), axis=-1, kind="stable")
    rank = np.argsort(order, axis=-1)
    for count in {0, 1, shape[-1] // 2, shape[-1]}:
        found = np.asarray(find(jnp.asarray(term), jnp.uint32(count)))
        np.testing.assert_array_equal(found, rank < count)
