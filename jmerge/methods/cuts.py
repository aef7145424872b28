"""Selecting the largest elements of a tensor, exactly and piece by piece.

The *cut* of a model is a bound and a position: an element is kept when its magnitude is above the bound, or equal to
it at no later position. So exactly as many are kept as asked for, ties go to the lower flat index, and
any piece can be decided alone. Two ways give the same cut: a partial sort on the host, which is fastest on CPU, and
counting how many elements reach a bound, one bit of the bound after another, which runs anywhere and under `jit`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jmerge.methods.positions import positions_upto


class Cut(NamedTuple):
    """What decides for every element of [models, *shape] whether it is kept; see `make_cut`.

    Magnitudes are compared by their bits, which order numbers that are not negative as their values do: some
    backends take subnormal numbers for zero when they compare values.
    """

    bound: jax.Array | np.ndarray  # unsigned [models]: bits of the smallest magnitude kept
    # uint32 [models], words of the last position that is kept among magnitudes at the bound
    last_high: jax.Array | np.ndarray
    last_low: jax.Array | np.ndarray


def kept_count(density: float, size: int) -> int:
    """How many of `size` elements the share `density` keeps: truncated, but at least one of a positive share."""
    if density <= 0 or size == 0:
        return 0
    return size if density >= 1 else max(1, int(density * size))


def make_cut(bounds: Sequence[int], last: Sequence[int], word: np.dtype[Any]) -> Cut:
    """The cut of keys of an unsigned dtype from a bound and a last position for each."""
    return Cut(
        np.asarray(bounds, word),
        np.asarray([position >> 32 for position in last], np.uint32),
        np.asarray([position & 0xFFFFFFFF for position in last], np.uint32),
    )


def cut_by_partition(magnitude: np.ndarray, count: int) -> tuple[int, int]:
    """Bits of the bound and last position that keep the `count` largest of magnitude [elements], ties by position.

    magnitude: floats, or their bits as unsigned integers.
    """
    bits = magnitude.view(_word(magnitude.dtype))
    if count <= 0 or bits.size == 0:
        return int(np.iinfo(bits.dtype).max), 0  # above the bits of every magnitude
    place = bits.size - min(count, bits.size)
    ordered = np.partition(bits, place)
    bound = ordered[place]
    above = int(np.count_nonzero(ordered[place:] > bound))
    ties = np.flatnonzero(bits == bound)
    return int(bound), int(ties[bits.size - place - above - 1])


def cut_by_counting(bits: jax.Array, counts: jax.Array) -> Cut:
    """The cut that keeps the counts (uint32 [models]) largest of bits [models, elements], ties by position."""
    size, top = bits.shape[1], 8 * bits.dtype.itemsize - 1
    counts = jnp.minimum(counts, size)

    def number(chosen: jax.Array) -> jax.Array:
        return jnp.sum(chosen, axis=1, dtype=jnp.uint32)

    def lower_bit(i: jax.Array, bound: jax.Array) -> jax.Array:
        higher = bound | (jnp.ones_like(bound) << (top - i).astype(bits.dtype))
        return jnp.where(number(bits >= higher[:, None]) >= counts, higher, bound)

    bound = jax.lax.fori_loop(0, top + 1, lower_bit, jnp.zeros_like(bits, shape=bits.shape[:1]))
    wanted = counts - number(bits > bound[:, None])
    ties = jnp.cumsum(bits == bound[:, None], axis=1, dtype=jnp.uint32)
    last = jnp.sum(ties < wanted[:, None], axis=1, dtype=jnp.uint32)
    bound = jnp.where(counts == 0, ~jnp.zeros_like(bound), bound)
    return Cut(bound, jnp.zeros_like(last), last)


def find_cut(delta: jax.Array, keep: Cut | Sequence[float]) -> Cut:
    """`keep` if it is a cut already, else that which keeps these shares (concrete numbers) of delta [models, *shape]."""
    if isinstance(keep, Cut):
        return keep
    size = math.prod(delta.shape[1:])
    return cut_largest(delta, [kept_count(float(density), size) for density in keep])


def cut_largest(delta: jax.Array, counts: Sequence[int]) -> Cut:
    """The cut that keeps so many of each of delta [models, *shape], the largest first."""
    flat = magnitude_keys(delta).reshape(delta.shape[0], -1)
    return cut_by_counting(flat, jnp.asarray(np.asarray(counts, np.uint32)))


def cut_terms(terms: Sequence[jax.Array], counts: Sequence[Sequence[Any]]) -> Cut:
    """The cut [cuts] that keeps so many of each of some keys (unsigned [*shape]), the largest first."""
    repeated = [keys.reshape(-1) for keys, row in zip(terms, counts, strict=True) for _ in row]
    wanted = [jnp.asarray(count, jnp.uint32) for row in counts for count in row]
    return cut_by_counting(jnp.stack(repeated), jnp.stack(wanted))


def magnitude_keys(values: jax.Array) -> jax.Array:
    """Unsigned integers [*shape] in the order of the magnitudes of values."""
    return _bits(jnp.abs(values))


def ordered_keys(values: jax.Array) -> jax.Array:
    """Unsigned integers [*shape] in the order of values, which may be negative; -0 and 0 are equal."""
    bits = _bits(jnp.where(values == 0, 0, values))
    top = bits.dtype.type(1 << (8 * bits.dtype.itemsize - 1))
    return jnp.where(bits >= top, ~bits, bits | top)


def ordered_values(keys: jax.Array) -> jax.Array:
    """The values that `ordered_keys` stand for."""
    top = keys.dtype.type(1 << (8 * keys.dtype.itemsize - 1))
    bits = jnp.where(keys >= top, keys ^ top, ~keys)
    return jax.lax.bitcast_convert_type(bits, np.dtype(f"f{keys.dtype.itemsize}"))


def is_kept(delta: jax.Array, cut: Cut, start: jax.Array | None = None) -> jax.Array:
    """Whether each element of delta [models, *shape] is kept; `start` as in `flat_positions`."""
    kept = []
    for i in range(delta.shape[0]):
        own = Cut(cut.bound[i], cut.last_high[i], cut.last_low[i])
        kept.append(is_kept_key(magnitude_keys(delta[i]), own, start))
    return jnp.stack(kept)


def is_kept_key(keys: jax.Array, cut: Cut, start: jax.Array | None = None) -> jax.Array:
    """Whether each of keys [*shape] is kept by one cut (scalars)."""
    early = positions_upto(keys.shape, start, cut.last_high, cut.last_low)
    kept: jax.Array = keys + early.astype(keys.dtype) > cut.bound
    return kept


def _word(dtype: np.dtype[Any]) -> np.dtype[Any]:
    return np.dtype(f"u{dtype.itemsize}")


def _bits(magnitude: jax.Array) -> jax.Array:
    return jax.lax.bitcast_convert_type(magnitude, _word(magnitude.dtype))
