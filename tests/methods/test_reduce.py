"""Sums that are right to rounding and the same bits however a tensor is cut."""

from __future__ import annotations

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jmerge.methods.reduce import BLOCK, PLAIN, add_blocks, block_pairs, padded_blocks, total
from jmerge.testing.close import assert_close, assert_same_bytes

SIZES = (0, 1, 5, BLOCK, BLOCK + 1, 7 * BLOCK + 11, 64 * BLOCK + 1)


def scattered(size: int) -> np.ndarray:
    """Random signs and magnitudes from 1e-8 to 1e8, with the integer part of the logarithm random too."""
    rng = np.random.default_rng(size)
    return rng.standard_normal(size) * 10.0 ** rng.integers(-8, 9, size)


def hidden(size: int) -> np.ndarray:
    """Many small numbers between 1e8 and its opposite: all that is left of the sum is what one float loses."""
    values = np.random.default_rng(size).uniform(0.5, 1, size)
    if size > 2 * BLOCK:
        values[:BLOCK], values[-BLOCK:] = 0, 0
        values[0], values[-1] = 1e8, -1e8
    return values


HARD: dict[str, Callable[[int], np.ndarray]] = {
    "positive": lambda size: np.random.default_rng(size).uniform(0, 1, size),
    "squares": lambda size: np.random.default_rng(size).standard_normal(size) ** 2,
    "random signs": lambda size: np.random.default_rng(size).standard_normal(size),
    "scattered": scattered,
    "hidden": hidden,
    "one large": lambda size: np.concatenate([[1e8], np.full(size, 1e-3)])[:size],
    "alternating": lambda size: np.where(np.arange(size) % 2, -1.0, 1.0) * (1 + np.arange(size)),
}
sizes = pytest.mark.parametrize("size", SIZES)
dtypes = pytest.mark.parametrize("dtype", [np.float32, np.float64])
jitted = jax.jit(total)


def added(values: np.ndarray, sum_up: Callable[..., jax.Array] = jitted) -> np.ndarray:
    """The total of one array, in its own dtype."""
    with jax.enable_x64(values.dtype == np.float64):
        return np.asarray(sum_up([jnp.asarray(values)]))[0]


def exactly(values: np.ndarray) -> float:
    """The float64 nearest to the sum."""
    return math.fsum(values.astype(np.float64))


@sizes
@dtypes
def test_error_is_that_of_adding_the_numbers_of_the_plain_part(size: int, dtype: type) -> None:
    """Only the plain part, a tree six levels deep, rounds: half a unit a level of what it adds. The pairs do not."""
    half_unit = float(np.finfo(dtype).eps) / 2
    for name, values in HARD.items():
        terms: np.ndarray = values(size).astype(dtype)
        allowed = math.log2(PLAIN) * exactly(np.abs(terms)) + 3 * abs(exactly(terms))
        assert abs(float(added(terms)) - exactly(terms)) <= 1.01 * half_unit * allowed, name


@sizes
@dtypes
@pytest.mark.parametrize("name", ["positive", "squares", "hidden"])
def test_to_rounding_where_nothing_cancels_within_a_block(
    name: str, size: int, dtype: type
) -> None:
    """Sums of squares, and sums of which most cancels between blocks, are right to rounding."""
    terms: np.ndarray = HARD[name](size).astype(dtype)
    assert_close(added(terms), np.asarray(exactly(terms)), ulp=4)


def test_the_hidden_sum_is_hard() -> None:
    """numpy's float32 sum, itself pairwise, loses what `total` keeps: the test above can fail."""
    terms: np.ndarray = hidden(64 * BLOCK + 1).astype(np.float32)
    lost = abs(float(terms.sum()) - exactly(terms))
    assert lost > 1000 * abs(float(added(terms)) - exactly(terms))


@pytest.mark.parametrize("size", [0, 5, BLOCK + 1, 7 * BLOCK + 11])
@dtypes
def test_jit_and_eager_give_the_same_bits(size: int, dtype: type) -> None:
    for values in HARD.values():
        terms: np.ndarray = values(size).astype(dtype)
        assert_same_bytes(added(terms, total), added(terms))


@dtypes
def test_cut_anywhere_between_blocks_the_same_bits(dtype: type) -> None:
    """Pieces of whole blocks, each summed alone, give what the whole gives."""
    blocks = 13
    pairs_of, total_of = jax.jit(block_pairs), jax.jit(add_blocks)
    for values in HARD.values():
        terms: np.ndarray = np.stack([values(blocks * BLOCK), values(blocks * BLOCK)[::-1]]).astype(
            dtype
        )
        with jax.enable_x64(dtype == np.float64):
            whole = np.asarray(jitted(list(jnp.asarray(terms))))
            for borders in ([], [1], [12], [4, 8], [1, 2, 3, 4, 5], range(1, 13)):
                pieces = np.split(terms, [border * BLOCK for border in borders], axis=1)
                pairs = [np.asarray(pairs_of(list(jnp.asarray(piece)))) for piece in pieces]
                joined = jnp.asarray(np.concatenate(pairs, axis=1))
                assert_same_bytes(np.asarray(total_of(joined)), whole)


def test_padding_of_pairs_and_terms_adds_nothing() -> None:
    """The engine pads the last piece to a kernel's length and the blocks to a power of two."""
    pairs_of, total_of = jax.jit(block_pairs), jax.jit(add_blocks)
    for name, values in HARD.items():
        terms: np.ndarray = values(5 * BLOCK + 3).astype(np.float32)
        padded = np.zeros(8 * BLOCK, np.float32)
        padded[: terms.size] = terms
        pairs = pairs_of([jnp.asarray(padded)])
        for blocks in (6, 7, 8):
            found = np.asarray(total_of(pairs[:, :blocks]))[0]
            assert found == added(terms), (name, blocks)


@pytest.mark.parametrize("shape", [(), (1,), (0,), (0, 3), (3, 5), (2, 64, 129)])
@dtypes
def test_any_shape_is_its_flat_order(shape: tuple[int, ...], dtype: type) -> None:
    """Scalars and empty tensors too; the terms of one call are added each on its own."""
    terms: np.ndarray = np.asarray(np.random.default_rng(0).standard_normal(shape)).astype(dtype)
    with jax.enable_x64(dtype == np.float64):
        found = np.asarray(jitted([jnp.asarray(terms), jnp.asarray(-2 * terms)]))
    assert found.shape == (2,) and found.dtype == dtype
    assert_same_bytes(found[0], added(terms.reshape(-1)))
    assert found[1] == -2 * found[0]
    if terms.size < 2:
        assert found[0] == terms.sum()


def test_padded_blocks_is_the_next_power_of_two() -> None:
    found = [padded_blocks(blocks) for blocks in (0, 1, 2, 3, 4, 5, 8, 9, 1000)]
    assert found == [1, 1, 2, 4, 4, 8, 8, 16, 1024]
