"""Sums over a tensor that are the same bits however the tensor is cut.

The elements, in flat order and padded with zeros, are added in blocks of `BLOCK`: first `ROWS` of them by a plain
tree, which keeps the loop over memory fast, then by a tree of halvings in which each value is a pair of floats
(the sum, and what rounding lost: Knuth's two-sum). The blocks are added by the same tree of pairs, whose shape
depends on the tensor's size alone. Pieces, devices and threads only decide who computes which block.
The plain part adds 16 numbers, about as much error as the products being summed already carry.
"""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp

BLOCK = 4096  # elements; pieces of a tensor start at multiples of it
ROWS = 16  # of 256: measured fastest on CPU among the shapes of one block


def block_pairs(terms: Sequence[jax.Array]) -> jax.Array:
    """The sum of every block of each of the terms [elements], whole blocks long -> pairs [sums, blocks, 2]."""
    pairs = []
    for term in terms:
        rows = term.reshape(-1, ROWS, BLOCK // ROWS)
        sums = [rows[:, i] for i in range(ROWS)]
        while len(sums) > 1:
            sums = [sums[i] + sums[i + 1] for i in range(0, len(sums), 2)]
        pairs.append(_halve(sums[0], jnp.zeros_like(sums[0])))
    return jnp.stack(pairs)


def add_blocks(pairs: jax.Array) -> jax.Array:
    """The totals [sums] of pairs [sums, blocks, 2]; a number of blocks that is no power of two is zero-padded."""
    blocks = pairs.shape[1]
    pairs = jnp.pad(pairs, ((0, 0), (0, padded_blocks(blocks) - blocks), (0, 0)))
    totals = _halve(pairs[..., 0], pairs[..., 1])
    return totals[..., 0] + totals[..., 1]


def block_tree(pairs: jax.Array) -> jax.Array:
    """The sum of pairs [sums, blocks, 2], blocks a power of two, as one pair: [sums, 1, 2]."""
    return _halve(pairs[..., 0], pairs[..., 1])[:, None]


def padded_blocks(blocks: int) -> int:
    """The power of two to which a number of blocks is padded."""
    return 1 << (max(blocks, 1) - 1).bit_length()


def total(terms: Sequence[jax.Array]) -> jax.Array:
    """The sums [sums] of whole arrays."""
    flat = [term.reshape(-1) for term in terms]
    return add_blocks(block_pairs([jnp.pad(term, (0, -term.size % BLOCK)) for term in flat]))


def along(terms: jax.Array, axis: int) -> jax.Array:
    """The sums of terms over one axis, which is kept with length one; a scalar is its own sum.

    The order of the additions depends on that axis alone, so that rows have the same sums in any company.
    """
    if terms.ndim == 0:
        return terms
    sums = jnp.moveaxis(terms, axis, -1)
    if sums.shape[-1] == 0:
        sums = jnp.zeros((*sums.shape[:-1], 1), sums.dtype)
    while sums.shape[-1] > 1:
        width = -(-sums.shape[-1] // ROWS)
        missing = [(0, 0)] * (sums.ndim - 1) + [(0, ROWS * width - sums.shape[-1])]
        parts = jnp.split(jnp.pad(sums, missing), ROWS, axis=-1)
        while len(parts) > 1:
            parts = [parts[i] + parts[i + 1] for i in range(0, len(parts), 2)]
        # without it each step would be computed anew in the next
        sums = jax.lax.optimization_barrier(parts[0])  # type: ignore[no-untyped-call]
    return jnp.moveaxis(sums, -1, axis)


def _halve(high: jax.Array, low: jax.Array) -> jax.Array:
    """The sum over the last axis (a power of two long) of numbers high + low, as pairs in a new last axis."""
    while high.shape[-1] > 1:
        half = high.shape[-1] // 2
        a, b = high[..., :half], high[..., half:]
        high = a + b
        rounded = high - a
        lost = (a - (high - rounded)) + (b - rounded)
        low = low[..., :half] + low[..., half:] + lost
    return jnp.concatenate([high, low], axis=-1)
