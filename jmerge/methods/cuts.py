"""Selecting the largest elements of a tensor, exactly and piece by piece.

The *cut* of a model is a bound and a position: an element is kept when its magnitude is above the bound, or equal to
it at no later position. So exactly as many are kept as asked for, ties go to the lower flat index, and
any piece can be decided alone. Two ways give the same cut: a partial sort on the host, which is fastest on CPU, and
counting how many elements reach a bound, one bit of the bound after another, which runs anywhere and under `jit`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
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


def cut_by_counting(keys: Sequence[jax.Array], counts: jax.Array) -> Cut:
    """The cuts [*cuts] that keep the counts (uint32 [*cuts]) largest of some keys, ties by position.

    keys: unsigned [*cuts, *shape], of one tensor or of several that count as one after the other. The bound is found by
    counting, and then, where not all keys at the bound are kept, the position of the last one. Counts are sums over all
    elements as they lie, so that each device of a sharded tensor counts its own.
    """
    first = counts.ndim  # axis of shape
    sizes = [math.prod(part.shape[first:]) for part in keys]
    size, top = sum(sizes), 8 * keys[0].dtype.itemsize - 1
    if size >= 1 << 32:
        raise ValueError(
            f"{size} elements are too many to count at once; merge checkpoints in files"
        )
    counts = jnp.minimum(counts, jnp.uint32(size))

    def number(chosen: Callable[[jax.Array, int], jax.Array]) -> jax.Array:
        found = [
            jnp.sum(chosen(part, i), axis=tuple(range(first, part.ndim)), dtype=jnp.uint32)
            for i, part in enumerate(keys)
        ]
        added: jax.Array = jnp.sum(jnp.stack(found), axis=0, dtype=jnp.uint32)
        return added

    def lower_bit(i: jax.Array, bound: jax.Array) -> jax.Array:
        higher = bound | (jnp.ones_like(bound) << (top - i).astype(bound.dtype))
        enough = number(lambda part, _: part >= _beside(higher, part)) >= counts
        next_bound: jax.Array = jnp.where(enough, higher, bound)
        return next_bound

    bound = jax.lax.fori_loop(0, top + 1, lower_bit, jnp.zeros(counts.shape, keys[0].dtype))
    wanted = counts - number(lambda part, _: part > _beside(bound, part))
    some = number(lambda part, _: part == _beside(bound, part)) > wanted

    def later_bit(i: jax.Array, last: jax.Array) -> jax.Array:
        later = last | (jnp.ones_like(last) << (steps - 1 - i).astype(jnp.uint32))

        def before(part: jax.Array, number: int) -> jax.Array:
            places = flat_positions(part.shape[first:], None)[1] + jnp.uint32(sum(sizes[:number]))
            places = jnp.broadcast_to(jnp.expand_dims(places, tuple(range(first))), part.shape)
            tied: jax.Array = (part == _beside(bound, part)) & (places < _beside(later, part))
            return tied

        next_last: jax.Array = jnp.where(number(before) < wanted, later, last)
        return next_last

    # the wanted-th tie is at the largest position with fewer ties before it
    steps = (max(size, 1) - 1).bit_length()
    last = jax.lax.fori_loop(0, jnp.where(some.any(), steps, 0), later_bit, jnp.zeros_like(counts))
    bound = jnp.where(counts == 0, ~jnp.zeros_like(bound), bound)
    return Cut(bound, jnp.zeros_like(last), jnp.where(some, last, jnp.uint32(size)))


def _beside(values: jax.Array, part: jax.Array) -> jax.Array:
    """values [*cuts] so that they compare with part [*cuts, *shape]."""
    return jnp.expand_dims(values, tuple(range(values.ndim, part.ndim)))


def find_cut(delta: jax.Array, keep: Cut | Sequence[float]) -> Cut:
    """`keep` if it is a cut already, else that which keeps these shares (concrete numbers) of delta [models, *shape]."""
    if isinstance(keep, Cut):
        return keep
    size = math.prod(delta.shape[1:])
    return cut_largest(delta, [kept_count(float(density), size) for density in keep])


def cut_largest(delta: jax.Array, counts: Sequence[int]) -> Cut:
    """The cut that keeps so many of each of delta [models, *shape], the largest first."""
    return cut_by_counting([magnitude_keys(delta)], jnp.asarray(np.asarray(counts, np.uint32)))


def cut_terms(leaves: Sequence[Sequence[jax.Array]], counts: Sequence[Sequence[Any]]) -> Cut:
    """The cuts [cuts] that keep so many of each of some terms' keys, the largest first.

    leaves: unsigned keys [*shape] of each term, of one tensor or of several; counts: for each term a list.
    """
    repeated = [
        jnp.stack([keys for keys, row in zip(leaf, counts, strict=True) for _ in row])
        for leaf in leaves
    ]
    wanted = [jnp.asarray(count, jnp.uint32) for row in counts for count in row]
    return cut_by_counting(repeated, jnp.stack(wanted))


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


def is_kept(delta: jax.Array, cut: Cut, start: jax.Array | None = None) -> list[jax.Array]:
    """Whether each element of delta [models, *shape] is kept, for each model; `start` as in `flat_positions`."""
    kept = []
    for i in range(delta.shape[0]):
        own = Cut(cut.bound[i], cut.last_high[i], cut.last_low[i])
        kept.append(is_kept_key(magnitude_keys(delta[i]), own, start))
    return kept


def is_kept_key(keys: jax.Array, cut: Cut, start: jax.Array | None = None) -> jax.Array:
    """Whether each of keys [*shape] is kept by one cut (scalars)."""
    early = positions_upto(keys.shape, start, cut.last_high, cut.last_low)
    kept: jax.Array = keys + early.astype(keys.dtype) > cut.bound
    return kept


def _word(dtype: np.dtype[Any]) -> np.dtype[Any]:
    return np.dtype(f"u{dtype.itemsize}")


def _bits(magnitude: jax.Array) -> jax.Array:
    return jax.lax.bitcast_convert_type(magnitude, _word(magnitude.dtype))
