"""Flat positions of elements as pairs of 32-bit words, so that tensors beyond 2^32 elements work without 64-bit
arithmetic, which JAX has switched off by default."""

from __future__ import annotations

import jax
import jax.numpy as jnp


def flat_positions(shape: tuple[int, ...], start: jax.Array | None) -> tuple[jax.Array, jax.Array]:
    """High and low words (uint32 [*shape]) of the row-major position of every element of a piece.

    start: uint32 [2], high and low word of the position of the piece's first element in its tensor; None: zero.
    A piece has fewer than 2^32 elements.
    """
    low = _places(shape)
    if start is None:
        return jnp.zeros_like(low), low
    moved = low + start[1]
    return start[0] + (moved < low).astype(jnp.uint32), moved


def positions_upto(
    shape: tuple[int, ...], start: jax.Array | None, last_high: jax.Array, last_low: jax.Array
) -> jax.Array:
    """Whether the position of every element of a piece is at most `last` (two words): bool [*shape].

    The 64-bit part is done once, on scalars, so that an element costs one comparison. `start` and the size of a
    piece as in `flat_positions`.
    """
    low = _places(shape)
    first_high, first_low = (jnp.uint32(0), jnp.uint32(0)) if start is None else start
    borrow = (last_low < first_low).astype(jnp.uint32)
    before = (last_high < first_high) | ((last_high == first_high) & (borrow == 1))
    beyond = last_high - first_high - borrow > 0
    distance = jnp.where(beyond, ~jnp.uint32(0), last_low - first_low)
    reached: jax.Array = (low <= distance) & ~before
    return reached


def split_position(position: int) -> tuple[int, int]:
    """High and low word of a position."""
    return position >> 32, position & 0xFFFFFFFF


def _places(shape: tuple[int, ...]) -> jax.Array:
    """The row-major position of every element in its array: uint32 [*shape].

    Axis by axis, not as one range in another shape: so a device makes those of its own part alone.
    """
    places, step = jnp.zeros(shape, jnp.uint32), 1
    for axis in reversed(range(len(shape))):
        along = jax.lax.broadcasted_iota(jnp.uint32, shape, axis)
        places, step = places + along * jnp.uint32(step), step * shape[axis]
    return places
