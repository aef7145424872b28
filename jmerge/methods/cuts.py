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

from jmerge.methods.positions import flat_positions, positions_upto


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


def make_cut(bounds: Sequence[int], last: Sequence[int], dtype: np.dtype[Any]) -> Cut:
    """The cut of tensors of `dtype` from the bits of a bound and a last position for each model."""
    return Cut(
        np.asarray(bounds, _word(dtype)),
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


def cut_by_counting(magnitude: jax.Array, counts: jax.Array) -> Cut:
    """The cut that keeps the counts (uint32 [models]) largest of magnitude [models, *shape], ties by position.

    The bound is found by counting, and then, where not all magnitudes at the bound are kept, the position of the last
    one. Counts are sums over all elements as they lie, so that each device of a sharded tensor counts its own.
    """
    bits = _bits(magnitude)
    shape, top = bits.shape[1:], 8 * bits.dtype.itemsize - 2
    size = math.prod(shape)

    def each(values: jax.Array) -> jax.Array:
        """values [models] beside [models, *shape]."""
        return jax.lax.broadcast_in_dim(values, (len(values), *[1] * len(shape)), (0,))

    def number(chosen: jax.Array) -> jax.Array:
        return jnp.sum(chosen, axis=tuple(range(1, bits.ndim)), dtype=jnp.uint32)

    def lower_bit(i: jax.Array, bound: jax.Array) -> jax.Array:
        higher = bound | (jnp.ones_like(bound) << (top - i).astype(bits.dtype))
        return jnp.where(number(bits >= each(higher)) >= counts, higher, bound)

    bound = jax.lax.fori_loop(0, top + 1, lower_bit, jnp.zeros_like(bits, shape=bits.shape[:1]))
    wanted = counts - number(bits > each(bound))
    some = number(bits == each(bound)) > wanted

    def later_bit(i: jax.Array, last: jax.Array) -> jax.Array:
        later = last | (jnp.ones_like(last) << (steps - 1 - i).astype(jnp.uint32))
        before = (bits == each(bound)) & (flat_positions(shape, None)[1][None] < each(later))
        return jnp.where(number(before) < wanted, later, last)

    # the wanted-th tie is at the largest position with fewer ties before it
    steps = (max(size, 1) - 1).bit_length()
    last = jax.lax.fori_loop(0, jnp.where(some.any(), steps, 0), later_bit, jnp.zeros_like(counts))
    everything, nothing = counts >= size, counts == 0
    bound = jnp.where(everything, jnp.zeros_like(bound), bound)
    bound = jnp.where(nothing, ~jnp.zeros_like(bound), bound)
    return Cut(bound, jnp.zeros_like(last), jnp.where(some, last, jnp.uint32(size)))


def find_cut(delta: jax.Array, keep: Cut | Sequence[float]) -> Cut:
    """`keep` if it is a cut already, else that which keeps these shares (concrete numbers) of delta [models, *shape]."""
    if isinstance(keep, Cut):
        return keep
    size = math.prod(delta.shape[1:])
    return cut_largest(delta, [kept_count(float(density), size) for density in keep])


def cut_largest(delta: jax.Array, counts: Sequence[int]) -> Cut:
    """The cut that keeps so many of each of delta [models, *shape], the largest first."""
    return cut_by_counting(jnp.abs(delta), jnp.asarray(np.asarray(counts, np.uint32)))


def is_kept(delta: jax.Array, cut: Cut, start: jax.Array | None = None) -> jax.Array:
    """Whether each element of delta [models, *shape] is kept; `start` as in `flat_positions`."""
    kept = []
    for i in range(delta.shape[0]):
        bits = _bits(jnp.abs(delta[i]))
        early = positions_upto(delta.shape[1:], start, cut.last_high[i], cut.last_low[i])
        kept.append(bits + early.astype(bits.dtype) > cut.bound[i])
    return jnp.stack(kept)


def _word(dtype: np.dtype[Any]) -> np.dtype[Any]:
    return np.dtype(f"u{dtype.itemsize}")


def _bits(magnitude: jax.Array) -> jax.Array:
    return jax.lax.bitcast_convert_type(magnitude, _word(magnitude.dtype))
