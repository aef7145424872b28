"""Flat positions of elements as pairs of 32-bit words, so that tensors beyond 2^32 elements work without 64-bit
arithmetic, which JAX has switched off by default."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np

WORD = 1 << 32


def flat_positions(shape: tuple[int, ...], start: jax.Array | None) -> tuple[jax.Array, jax.Array]:
    """High and low words (uint32 [*shape]) of the row-major position of every element of a piece.

    start: uint32 [2], high and low word of the position of the piece's first element in its tensor; None: zero.
    """
    high, low = _places(shape)
    if start is None:
        return jnp.zeros_like(low) if high is None else high, low
    moved = low + start[1]
    carried = start[0] + (moved < low).astype(jnp.uint32)
    return carried if high is None else high + carried, moved


def positions_upto(
    shape: tuple[int, ...],
    start: jax.Array | None,
    last_high: jax.Array | np.ndarray,
    last_low: jax.Array | np.ndarray,
) -> jax.Array:
    """Whether the position of every element of a piece is at most `last` (two words): bool [*shape].

    The 64-bit part is done once, on scalars, so that an element of a piece of fewer than 2^32 costs one comparison.
    `start` as in `flat_positions`.
    """
    high, low = _places(shape)
    first_high, first_low = (jnp.uint32(0), jnp.uint32(0)) if start is None else start
    borrow = (last_low < first_low).astype(jnp.uint32)
    before = (last_high < first_high) | ((last_high == first_high) & (borrow == 1))
    beyond = last_high - first_high - borrow
    if high is None:
        distance = jnp.where(beyond > 0, ~jnp.uint32(0), last_low - first_low)
        reached: jax.Array = (low <= distance) & ~before
        return reached
    near = (high < beyond) | ((high == beyond) & (low <= last_low - first_low))
    within: jax.Array = near & ~before
    return within


def split_position(position: int) -> tuple[int, int]:
    """High and low word of a position."""
    return position >> 32, position & 0xFFFFFFFF


def _places(shape: tuple[int, ...]) -> tuple[jax.Array | None, jax.Array]:
    """The row-major position of every element in its array: words uint32 [*shape], the high one None where all are zero.

    Axis by axis, not as one range in another shape: so a device makes those of its own part alone.
    """
    large = math.prod(shape) > WORD
    high, low = None, jnp.zeros(shape, jnp.uint32)
    step = 1
    for axis in reversed(range(len(shape))):
        if not large:
            along = jax.lax.broadcasted_iota(jnp.uint32, shape, axis)
            low += along * jnp.uint32(step)
        else:
            # once for each place of the axis, not for each element
            own_high, own_low = (
                jnp.expand_dims(words, [i for i in range(len(shape)) if i != axis])
                for words in _multiples(shape[axis], step)
            )
            moved = low + own_low
            high = (jnp.uint32(0) if high is None else high) + own_high
            high, low = high + (moved < low).astype(jnp.uint32), moved
        step *= shape[axis]
    return high, low


def _multiples(count: int, step: int) -> tuple[jax.Array, jax.Array]:
    """0, step, 2 step and so on as words uint32 [count]."""
    high, low = _count(count)
    step_high, step_low = split_position(step)
    # the product of two words of 32 bits, from halves of 16
    ones = jnp.uint32(0xFFFF)
    a, b = low >> 16, low & ones
    c, d = jnp.uint32(step_low >> 16), jnp.uint32(step_low & 0xFFFF)
    middle = (b * d >> 16) + (a * d & ones) + (b * c & ones)
    carried = a * c + (a * d >> 16) + (b * c >> 16) + (middle >> 16)
    carried += low * jnp.uint32(step_high) + high * jnp.uint32(step_low)
    return carried, low * jnp.uint32(step_low)


def _count(count: int) -> tuple[jax.Array, jax.Array]:
    """0, 1, 2 and so on as words uint32 [count]."""
    if count <= WORD:
        low = jax.lax.iota(jnp.uint32, count)
        return jnp.zeros_like(low), low
    shape = (-(-count // (1 << 16)), 1 << 16)
    row, place = (jax.lax.broadcasted_iota(jnp.uint32, shape, axis) for axis in (0, 1))
    return (row >> 16).reshape(-1)[:count], ((row << 16) | place).reshape(-1)[:count]
