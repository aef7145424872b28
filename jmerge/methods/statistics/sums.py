"""Totals that are the same bits however a tensor is cut; `methods.reduce` has the order in which they are added."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jmerge.methods.reduce import (
    BLOCK,
    add_blocks,
    block_pairs,
    block_tree,
    padded_blocks,
    total_pairs,
)
from jmerge.methods.statistics.fold import Extent, Found, Hyperparameters, Place, Statistic

LENGTHS = (1 << 5, 1 << 10, 1 << 15)  # of most buffers of blocks: every length takes a program


class Sums(NamedTuple):
    """The totals under way."""

    totals: jax.Array  # [sums, tensors, 2]: a pair for each tensor that is done
    pairs: jax.Array | None  # [sums, blocks, 2] of the tensor in pieces; None: tensors come whole
    rows: jax.Array | None  # [sums, rows]: instead, where terms have a number for each row


@dataclass(frozen=True, kw_only=True)
class BlockSum(Statistic):
    """Totals [sums] of terms, each [*shape] or, for a method that keeps rows or slabs together, a number for each."""

    short: bool = False  # an element of a term takes few operations, such as a product

    def init(self, extent: Extent, hyperparameters: Hyperparameters, found: Found) -> Sums:
        """Zeros, of NumPy's where pieces are to come: outside a trace JAX runs a program for each of its own."""
        zeros: Any = np.zeros if extent.pieces else jnp.zeros
        totals = zeros((extent.terms, len(extent.sizes), 2), extent.dtype)
        if not extent.pieces:
            return Sums(totals, None, None)
        if extent.rows:
            rows = padded_length(-(-extent.rows // BLOCK)) * BLOCK
            return Sums(totals, None, zeros((extent.terms, rows), extent.dtype))
        blocks = padded_length(-(-max(extent.sizes) // BLOCK))
        return Sums(totals, zeros((extent.terms, blocks, 2), extent.dtype), None)

    def known(
        self, extent: Extent, hyperparameters: Hyperparameters, found: Found
    ) -> np.ndarray | None:
        """Zeros where there is nothing."""
        return None if extent.size else np.zeros(extent.terms, extent.dtype)

    def update(
        self, state: Sums, terms: Sequence[jax.Array], place: Place, *, last: bool = True
    ) -> Sums:
        """The state with the blocks of a piece, or with a tensor. In its last block what is not valid is zero."""
        if state.rows is not None:
            values = jnp.stack([each.reshape(-1) for each in terms])
            count = values.shape[1] if place.valid is None else place.valid
            return state._replace(rows=_put(state.rows, values, place.block, count))
        if state.pairs is not None:
            pairs = block_pairs([each.reshape(-1) for each in terms], state.pairs, short=self.short)
            count = pairs.shape[1] if place.valid is None else (place.valid + BLOCK - 1) // BLOCK
            return state._replace(pairs=_put(state.pairs, pairs, place.block, count))
        if not terms:
            return state
        return state._replace(
            totals=jax.lax.dynamic_update_slice_in_dim(
                state.totals, total_pairs(terms, short=self.short), place.tensor, 1
            )
        )

    @staticmethod
    def close(state: Sums, tensor: int | jax.Array) -> Sums:
        """The total of a tensor that came in pieces, and no blocks any more."""
        pairs = state.pairs
        if state.rows is not None:
            pairs = block_pairs(list(state.rows))
        if pairs is None:
            return state
        own = block_tree(pairs)
        totals = jax.lax.dynamic_update_slice_in_dim(state.totals, own, tensor, 1)
        return Sums(
            totals, *(each if each is None else jnp.where(False, each, 0) for each in state[1:])
        )

    @staticmethod
    def join(states: Sequence[Sums]) -> Sums:
        """Every block from the state that has it."""
        return jax.tree.map(lambda *parts: _only(parts), *states)  # type: ignore[no-any-return]

    @staticmethod
    def finish(state: Sums, *, last: bool = True) -> jax.Array:
        """The totals [sums]."""
        return add_blocks(state.totals)


def padded_length(blocks: int) -> int:
    """The number of blocks of the buffer for so many: zeros more change no bit of a sum."""
    return next((few for few in LENGTHS if few >= blocks), padded_blocks(blocks))


def _put(buffer: jax.Array, values: jax.Array, at: Any, count: Any) -> jax.Array:
    """The first `count` of values, along axis 1, at a place of a buffer."""
    lanes = jnp.arange(values.shape[1], dtype=jnp.uint32)
    places = jnp.where(lanes < count, jnp.asarray(at, jnp.uint32) + lanes, buffer.shape[1])
    return buffer.at[:, places].set(values, mode="drop")


def _only(parts: Sequence[jax.Array]) -> jax.Array:
    """Of arrays of which at most one is not zero at any place, that one's."""
    word = f"u{parts[0].dtype.itemsize}"
    bits = [jax.lax.bitcast_convert_type(each, word) for each in parts]
    joined = bits[0]
    for each in bits[1:]:
        joined = joined | each
    return jax.lax.bitcast_convert_type(joined, parts[0].dtype)
