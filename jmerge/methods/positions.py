"""Flat positions of elements as pairs of 32-bit words, so that tensors beyond 2^32 elements work without 64-bit
arithmetic, which JAX has switched off by default."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp


def flat_positions(shape: tuple[int, ...], start: jax.Array | None) -> tuple[jax.Array, jax.Array]:
    """High and low words (uint32 [*shape]) of the row-major position of every element of a piece.

    start: uint32 [2], high and low word of the position of the piece's first element in its tensor; None: zero.
    A piece has fewer than 2^32 elements.
    """
    low = jax.lax.iota(jnp.uint32, math.prod(shape)).reshape(shape)
    if start is None:
        return jnp.zeros_like(low), low
    moved = low + start[1]
    return start[0] + (moved < low).astype(jnp.uint32), moved


def split_position(position: int) -> tuple[int, int]:
    """High and low word of a position."""
    return position >> 32, position & 0xFFFFFFFF
