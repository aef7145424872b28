"""Which elements are kept of the largest.

The *threshold* of a selection is a number and a position: an element is kept when it is above the number, or equal to
it at no later position. So exactly as many are kept as asked for, ties go to the lower flat index, and any piece can be
decided alone. Elements are compared by keys, unsigned integers in their order. `topk` finds thresholds piece by piece
on devices, `thresholds_of` on the host.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jmerge.methods.positions import positions_upto

FEW = 1 << 17  # keys that are sorted as they are
PART = 1 << 20  # keys that the host counts at a time


class Threshold(NamedTuple):
    """What decides for every element whether it is kept, for selections [n].

    Keys are compared, not values: some backends take subnormal numbers for zero when they compare values.
    """

    bits: jax.Array | np.ndarray  # unsigned: the smallest key that is kept
    # uint32, words of the last position that is kept among keys equal to it
    last_high: jax.Array | np.ndarray
    last_low: jax.Array | np.ndarray


def make_threshold(bits: Sequence[int], last: Sequence[int], word: np.dtype[Any]) -> Threshold:
    """The threshold of keys of an unsigned dtype from bits and a last position for each selection."""
    return Threshold(
        np.asarray(bits, word),
        np.asarray([position >> 32 for position in last], np.uint32),
        np.asarray([position & 0xFFFFFFFF for position in last], np.uint32),
    )


def by_sorting(keys: np.ndarray, count: int) -> tuple[int, int]:
    """Bits and last position of the threshold that keeps the `count` largest of unsigned keys [elements], by counting
    and sorting on the host."""
    if count <= 0 or keys.size == 0:
        return int(np.iinfo(keys.dtype).max), 0  # above every key
    inside, rank = keys, min(count, keys.size)
    if keys.size > FEW:
        inside, rank = _of_digit(keys, rank)
    ordered = np.sort(inside)
    bits = ordered[ordered.size - rank]
    above = ordered.size - int(np.searchsorted(ordered, bits, "right"))
    return int(bits), int(np.flatnonzero(keys == bits)[rank - above - 1])


def _of_digit(keys: np.ndarray, rank: int) -> tuple[np.ndarray, int]:
    """The keys that share their highest 16 bits with the rank-th largest, and its rank among them."""
    shift = keys.dtype.type(8 * keys.dtype.itemsize - 16)
    counts = np.zeros(1 << 16, np.int64)
    for start in range(0, keys.size, PART):
        counts += np.bincount(keys[start : start + PART] >> shift, minlength=counts.size)
    counts = counts[::-1]
    running = np.cumsum(counts)
    place = int(np.searchsorted(running, rank))
    digit = counts.size - 1 - place
    return keys[keys >> shift == digit], rank - int(running[place] - counts[place])


def thresholds_of(
    keys: Sequence[np.ndarray], counts: Sequence[Sequence[int]], word: np.dtype[Any]
) -> Threshold:
    """The thresholds that keep so many of some keys of an unsigned dtype, for each term a list, found on the host."""
    cuts = [
        by_sorting(own.reshape(-1), count)
        for own, row in zip(keys, counts, strict=True)
        for count in row
    ]
    return make_threshold([bits for bits, _ in cuts], [last for _, last in cuts], word)


def magnitude_keys(values: jax.Array) -> jax.Array:
    """Unsigned integers [*shape] in the order of the magnitudes of values."""
    return _bits_of(jnp.abs(values))


def ordered_keys(values: jax.Array) -> jax.Array:
    """Unsigned integers [*shape] in the order of values, which may be negative; -0 and 0 are equal."""
    bits = _bits_of(jnp.where(values == 0, 0, values))
    top = bits.dtype.type(1 << (8 * bits.dtype.itemsize - 1))
    return jnp.where(bits >= top, ~bits, bits | top)


def ordered_values(keys: jax.Array) -> jax.Array:
    """The values that `ordered_keys` stand for."""
    top = keys.dtype.type(1 << (8 * keys.dtype.itemsize - 1))
    bits = jnp.where(keys >= top, keys ^ top, ~keys)
    return jax.lax.bitcast_convert_type(bits, np.dtype(f"f{keys.dtype.itemsize}"))


def change_keys(delta: jax.Array, **_: Any) -> list[jax.Array]:
    """delta [models, *shape] -> the magnitudes of each model's changes in the form in which they are selected."""
    return [magnitude_keys(delta[i]) for i in range(delta.shape[0])]


def is_kept(keys: jax.Array, threshold: Threshold, start: jax.Array | None = None) -> jax.Array:
    """Whether each of keys [*shape] is kept by one threshold (scalars); `start` as in `flat_positions`."""
    early = positions_upto(keys.shape, start, threshold.last_high, threshold.last_low)
    kept: jax.Array = keys + early.astype(keys.dtype) > threshold.bits
    return kept


def kept_changes(
    delta: jax.Array, threshold: Threshold, start: jax.Array | None = None
) -> list[jax.Array]:
    """Which elements of delta [models, *shape] are kept of each model [*shape], by the thresholds [models] of their
    magnitudes."""
    return [
        is_kept(magnitude_keys(delta[i]), Threshold(*(part[i] for part in threshold)), start)
        for i in range(delta.shape[0])
    ]


def _bits_of(values: jax.Array) -> jax.Array:
    return jax.lax.bitcast_convert_type(values, np.dtype(f"u{values.dtype.itemsize}"))
