"""Selecting the largest elements of a tensor, exactly and piece by piece.

The *cut* of a model is a threshold and a position: an element is kept when its magnitude is above the threshold,
or equal to it at no later position. So exactly as many are kept as asked for, ties go to the lower flat index, and
any piece can be decided alone. Two ways give the same cut: a partial sort on the host, which is fastest on CPU, and
counting how many elements reach a bound, one bit of the bound after another, which runs anywhere and under `jit`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jmerge.methods.positions import flat_positions


class Cut(NamedTuple):
    """What decides for every element of [models, *shape] whether it is kept."""

    threshold: jax.Array | np.ndarray  # [models]; -1 keeps everything, infinity nothing
    # uint32 [models], words of the last position that is kept among magnitudes at the threshold
    last_high: jax.Array | np.ndarray
    last_low: jax.Array | np.ndarray


def kept_count(density: float, size: int) -> int:
    """How many of `size` elements the share `density` keeps: truncated, but at least one of a positive share."""
    if density <= 0 or size == 0:
        return 0
    return size if density >= 1 else max(1, int(density * size))


def make_cut(threshold: Sequence[float], last: Sequence[int], dtype: np.dtype[Any]) -> Cut:
    """A cut from host numbers, one of each for every model."""
    return Cut(
        np.asarray(threshold, dtype),
        np.asarray([position >> 32 for position in last], np.uint32),
        np.asarray([position & 0xFFFFFFFF for position in last], np.uint32),
    )


def cut_by_partition(magnitude: np.ndarray, count: int) -> tuple[float, int]:
    """Threshold and last position that keep the `count` largest of magnitude [elements], ties by position."""
    size = magnitude.size
    if count >= size:
        return -1.0, 0
    if count <= 0:
        return float("inf"), 0
    ordered = np.partition(magnitude, size - count)
    threshold = ordered[size - count]
    above = int(np.count_nonzero(ordered[size - count :] > threshold))
    ties = np.flatnonzero(magnitude == threshold)
    return float(threshold), int(ties[count - above - 1])


def cut_by_counting(magnitude: jax.Array, counts: jax.Array) -> Cut:
    """The cut that keeps the counts (uint32 [models]) largest of magnitude [models, elements], ties by position."""
    word = jnp.uint64 if magnitude.dtype == jnp.float64 else jnp.uint32
    bits = jax.lax.bitcast_convert_type(magnitude, word)  # of numbers >= 0: ordered like them
    top = 8 * magnitude.dtype.itemsize - 2

    def reach(bound: jax.Array) -> jax.Array:
        return jnp.sum((bits >= bound[:, None]).astype(jnp.uint32), axis=1)

    def lower_bit(i: jax.Array, bound: jax.Array) -> jax.Array:
        higher = bound | (jnp.ones_like(bound) << (top - i).astype(word))
        return jnp.where(reach(higher) >= counts, higher, bound)

    bound = jax.lax.fori_loop(0, top + 1, lower_bit, jnp.zeros(bits.shape[:1], word))
    wanted = counts - jnp.sum((bits > bound[:, None]).astype(jnp.uint32), axis=1)
    ties = jnp.cumsum((bits == bound[:, None]).astype(jnp.uint32), axis=1)
    last = (
        jnp.argmax(ties >= wanted[:, None], axis=1).astype(jnp.uint32) if bits.shape[1] else wanted
    )
    threshold = jax.lax.bitcast_convert_type(bound, magnitude.dtype)
    threshold = jnp.where(counts >= bits.shape[1], -1, threshold)
    threshold = jnp.where(counts == 0, jnp.inf, threshold)
    return Cut(threshold.astype(magnitude.dtype), jnp.zeros_like(last), last)


def find_cut(delta: jax.Array, keep: Cut | Sequence[float]) -> Cut:
    """`keep` if it is a cut already, else that which keeps these shares (concrete numbers) of delta [models, *shape]."""
    if isinstance(keep, Cut):
        return keep
    flat = jnp.abs(delta).reshape(delta.shape[0], -1)
    counts = [kept_count(float(density), flat.shape[1]) for density in keep]
    return cut_by_counting(flat, jnp.asarray(np.asarray(counts, np.uint32)))


def is_kept(delta: jax.Array, cut: Cut, start: jax.Array | None = None) -> jax.Array:
    """Whether each element of delta [models, *shape] is kept; `start` as in `flat_positions`."""
    high, low = flat_positions(delta.shape[1:], start)
    kept = []
    for i in range(delta.shape[0]):
        magnitude = jnp.abs(delta[i])
        early = (high < cut.last_high[i]) | ((high == cut.last_high[i]) & (low <= cut.last_low[i]))
        kept.append((magnitude > cut.threshold[i]) | ((magnitude == cut.threshold[i]) & early))
    return jnp.stack(kept)
