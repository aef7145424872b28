"""Counts beyond 2^32 without 64-bit integers, which JAX has switched off by default, and exact shares of them.

A count is a Python int where it is known, or a `Count` of one or two 32-bit words where it is traced or found on a
device; the functions take both and give an int where all they are given are plain numbers.
"""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

LIMB = 16  # bits of the digits that products are made of
HALF = 1 << LIMB
FEW = 256  # counts of which every running total is added up by itself
LIMBS = 6  # of a product: 24 bits of a share times up to 64 of a count


class Count(NamedTuple):
    """A number below 2^64 as two words, uint32 of one shape; below 2^32, with all it is added to, as one."""

    high: jax.Array | None
    low: jax.Array


AnyCount = int | Count


def as_count(value: AnyCount) -> Count:
    """A count in two words."""
    if isinstance(value, Count):
        return Count(_high(value), value.low)
    return Count(np.uint32(value >> 32), np.uint32(value & 0xFFFFFFFF))  # type: ignore[arg-type]


def narrow(count: Count) -> Count:
    """A count that is below 2^32, as one word."""
    return Count(None, count.low)


def stack_counts(values: Sequence[AnyCount]) -> Count:
    """Several counts as one of arrays [counts], in two words."""
    if all(isinstance(value, int) for value in values):
        words = np.asarray([as_count(value) for value in values], np.uint32).reshape(-1, 2)
        return Count(jnp.asarray(words[:, 0]), jnp.asarray(words[:, 1]))
    found = [as_count(value) for value in values]
    return Count(*(jnp.stack([jnp.asarray(each[i]) for each in found]) for i in range(2)))


def add(a: Count, b: Count) -> Count:
    """a + b."""
    low = a.low + b.low
    if a.high is None and b.high is None:
        return Count(None, low)
    return Count(_high(a) + _high(b) + (low < b.low).astype(jnp.uint32), low)


def subtract(a: Count, b: Count) -> Count:
    """a - b, which must not be negative."""
    if a.high is None and b.high is None:
        return Count(None, a.low - b.low)
    return Count(_high(a) - _high(b) - (a.low < b.low).astype(jnp.uint32), a.low - b.low)


def less(a: Count, b: Count) -> jax.Array:
    """Whether a < b."""
    if a.high is None and b.high is None:
        return a.low < b.low
    high = _high(a), _high(b)
    return (high[0] < high[1]) | ((high[0] == high[1]) & (a.low < b.low))


def choose(condition: jax.Array, a: Count, b: Count) -> Count:
    """a where the condition holds, else b."""
    low = jnp.where(condition, a.low, b.low)
    if a.high is None and b.high is None:
        return Count(None, low)
    return Count(jnp.where(condition, _high(a), _high(b)), low)


def _high(count: Count) -> jax.Array:
    return jnp.zeros_like(count.low) if count.high is None else count.high


def minimum(a: AnyCount, b: AnyCount) -> AnyCount:
    """The smaller of two counts."""
    if isinstance(a, int) and isinstance(b, int):
        return min(a, b)
    a, b = as_count(a), as_count(b)
    return choose(less(b, a), b, a)


def maximum(a: AnyCount, b: AnyCount) -> AnyCount:
    """The larger of two counts."""
    if isinstance(a, int) and isinstance(b, int):
        return max(a, b)
    a, b = as_count(a), as_count(b)
    return choose(less(a, b), b, a)


def difference(a: AnyCount, b: AnyCount) -> AnyCount:
    """a - b, which must not be negative."""
    if isinstance(a, int) and isinstance(b, int):
        return a - b
    return subtract(as_count(a), as_count(b))


def plus(a: AnyCount, b: AnyCount) -> AnyCount:
    """a + b."""
    if isinstance(a, int) and isinstance(b, int):
        return a + b
    return add(as_count(a), as_count(b))


def times(number: jax.Array, factor: int) -> Count:
    """A uint32 number times a plain one, below 2^64."""
    low, high = number & jnp.uint32(0xFFFF), number >> 16
    found = Count(jnp.zeros_like(number), jnp.zeros_like(number))
    for place in range(0, 64, LIMB):
        limb = jnp.uint32((factor >> place) & 0xFFFF)
        for part, moved in ((low * limb, place), (high * limb, place + LIMB)):
            if moved >= 64:
                continue
            words = (
                (part << moved, part >> (32 - moved) if moved else jnp.zeros_like(part))
                if moved < 32
                else (jnp.zeros_like(part), part << (moved - 32))
            )
            found = add(found, Count(words[1], words[0]))
    return found


def total(counts: Count) -> Count:
    """The sum over the last axis, which is not empty."""
    if counts.high is None:
        return Count(None, jnp.sum(counts.low, axis=-1, dtype=jnp.uint32))
    if counts.low.shape[-1] > HALF:
        return total(total(_parted(counts, HALF)))
    mask = jnp.uint32(HALF - 1)  # of at most so many, sums of halves fit a word
    parts = (counts.low & mask, counts.low >> LIMB, counts.high)
    low, middle, high = (jnp.sum(each, axis=-1, dtype=jnp.uint32) for each in parts)
    return add(Count(high, low), Count(middle >> LIMB, middle << LIMB))


def reach(counts: Count, rank: Count) -> tuple[jax.Array, Count]:
    """The first index [...] at which the running total of counts [..., n] is at least rank [...], and the total before.

    Some index, and nothing of meaning before it, where none is.
    """
    length = counts.low.shape[-1]
    if length > FEW:
        chunks = _parted(counts, FEW)
        chunk, before = reach(total(chunks), rank)
        own = jax.tree.map(lambda word: _take(word, chunk, -2), chunks)
        index, within = reach(own, subtract(rank, before))
        return jnp.minimum(chunk * FEW + index, length - 1), add(before, within)
    until = np.tril(np.ones((length, length), bool))
    running = total(jax.tree.map(lambda word: jnp.where(until, word[..., None, :], 0), counts))
    short = less(running, jax.tree.map(lambda word: word[..., None], rank))
    index = jnp.minimum(jnp.sum(short, axis=-1, dtype=jnp.int32), length - 1)
    # those before it are short, and no larger than the last of them
    return index, total(
        jax.tree.map(lambda word: jnp.where(_before(index, length), word, 0), counts)
    )


def _before(index: jax.Array, length: int) -> jax.Array:
    """Which of so many places [..., length] are before an index [...]."""
    places = jax.lax.broadcasted_iota(jnp.int32, (*index.shape, length), index.ndim)
    return places < index[..., None]


def _parted(counts: Count, length: int) -> Count:
    """Counts [..., n] in parts of one length [..., parts, length], the last filled up with zeros."""
    *others, size = counts.low.shape
    rest = [(0, 0)] * len(others) + [(0, -size % length)]
    shape = (*others, -(-size // length), length)
    return jax.tree.map(lambda word: jnp.pad(word, rest).reshape(shape), counts)  # type: ignore[no-any-return]


def _take(array: jax.Array, index: jax.Array, axis: int) -> jax.Array:
    """What lies at an index [...] of one axis of an array [..., n] or [..., n, m]."""
    index = jnp.expand_dims(index, tuple(range(axis, 0)))
    return jnp.take_along_axis(array, index, axis=axis).squeeze(axis)


def is_traced(*values: Any) -> bool:
    """Whether any of the values has a number only when a program runs."""
    return any(isinstance(each, jax.core.Tracer) for each in jax.tree.leaves(values))


def share(fraction: Any, whole: Any, *, up: bool = False) -> AnyCount:
    """fraction times whole, without what is behind the point; `up`: rounded up.

    fraction: a number from 0, or traced, float32 or float64; whole: a count, or a float32 that is one. Exact for what
    a float32 stands for. A float64 is multiplied as one, as recipes say: 0.3 of 10 is 3, though 0.3 is a little less.
    """
    if is_traced(fraction):
        limbs_of_whole = _limbs_of(whole)
        fraction = jnp.asarray(fraction)
        if fraction.dtype != np.float64:
            return _exact_share(fraction.astype(jnp.float32), limbs_of_whole, up)
        return _double_share(fraction, whole, up)
    fraction = float(fraction)
    if not isinstance(whole, int) and is_traced(whole):
        if float(np.float32(fraction)) == fraction:
            return _exact_share(jnp.float32(fraction), _limbs_of(whole), up)
        return _double_share(fraction, whole, up)
    whole = whole_number(whole)
    if float(np.float32(fraction)) == fraction:
        exact = Fraction(fraction) * whole
        return max(0, -(-exact.numerator // exact.denominator) if up else int(exact))
    return max(0, int(np.ceil(fraction * whole)) if up else int(fraction * whole))


def kept_count(density: Any, size: int) -> AnyCount:
    """How many of `size` elements the share `density` keeps: truncated, but at least one of a positive share."""
    if is_traced(density):
        some = maximum(minimum(share(density, size), size), 1 if size else 0)
        kept = choose(_is_positive(density), as_count(some), as_count(0))
        return choose(density >= 1, as_count(size), kept)
    if density <= 0 or size == 0:
        return 0
    return size if density >= 1 else maximum(1, share(density, size))


def whole_number(whole: Any) -> int:
    """A count, or a float that is one, as a plain number; no traced one."""
    if isinstance(whole, Count):
        return (int(_high(whole)) << 32) + int(whole.low)
    return whole if isinstance(whole, int) else int(float(whole))


def _of_float(whole: jax.Array) -> Count:
    """The count that a float32 or float64 stands for."""
    high = jnp.floor(whole / 2.0**32)
    return Count(high.astype(jnp.uint32), (whole - high * 2.0**32).astype(jnp.uint32))


def _is_positive(fraction: jax.Array) -> jax.Array:
    """Whether it is above zero, by its bits: some backends take subnormal numbers for zero."""
    word = np.dtype(f"u{fraction.dtype.itemsize}")
    bits = jax.lax.bitcast_convert_type(fraction, word)
    positive: jax.Array = (bits != 0) & (bits >> (8 * word.itemsize - 1) == 0)
    return positive


def _limbs_of(whole: Any) -> list[jax.Array]:
    if not isinstance(whole, int | Count):
        whole = _of_float(jnp.asarray(whole))
    high, low = (jnp.asarray(word) for word in as_count(whole))
    mask = jnp.uint32((1 << LIMB) - 1)
    return [low & mask, low >> LIMB, high & mask, high >> LIMB]


def _exact_share(fraction: jax.Array, whole: list[jax.Array], up: bool) -> Count:
    """floor(fraction whole) in integers: the mantissa of the float32 times the count, shifted by its exponent."""
    bits = jax.lax.bitcast_convert_type(fraction, jnp.uint32)
    bits = jnp.where(_is_positive(fraction), bits, jnp.uint32(0))
    exponent = (bits >> 23) & 0xFF
    mantissa = (bits & 0x7FFFFF) | jnp.where(exponent > 0, jnp.uint32(1 << 23), jnp.uint32(0))
    shift = 150 - jnp.maximum(
        exponent, 1
    )  # the value is mantissa / 2^shift; below 2^24 it is not negative
    parts = [mantissa & 0xFFFF, mantissa >> LIMB]
    limbs = [jnp.zeros_like(mantissa + whole[0]) for _ in range(LIMBS + 1)]
    for i, part in enumerate(parts):
        carry = jnp.zeros_like(limbs[0])
        for j, limb in enumerate(whole):
            value = limbs[i + j] + part * limb + carry  # below 2^32: (2^16 - 1)^2 + 2 (2^16 - 1)
            limbs[i + j], carry = value & 0xFFFF, value >> LIMB
        limbs[i + len(whole)] = limbs[i + len(whole)] + carry
    stacked = jnp.stack(limbs)
    skipped, within = (shift >> 4).astype(jnp.int32), shift & 15

    def limb_at(place: int) -> jax.Array:
        def one(k: jax.Array) -> jax.Array:
            inside = (k >= 0) & (k < len(limbs))
            found = jnp.take_along_axis(
                stacked,
                jnp.broadcast_to(jnp.clip(k, 0, len(limbs) - 1), stacked.shape[1:])[None],
                0,
            )[0]
            return jnp.where(inside, found, 0)

        return (
            (one(skipped + place) >> within) | (one(skipped + place + 1) << (16 - within))
        ) & 0xFFFF

    found = Count(limb_at(2) | (limb_at(3) << LIMB), limb_at(0) | (limb_at(1) << LIMB))
    if not up:
        return found
    places = jnp.arange(len(limbs), dtype=jnp.int32).reshape(-1, *[1] * (stacked.ndim - 1))
    below = jnp.where(places < skipped, stacked, 0)
    edge = jnp.where(places == skipped, stacked & ((jnp.uint32(1) << within) - 1), 0)
    rest = jnp.any((below | edge) != 0, axis=0)
    return choose(
        rest, add(found, Count(jnp.zeros_like(found.low), jnp.ones_like(found.low))), found
    )


def _double_share(fraction: Any, whole: Any, up: bool) -> Count:
    """fraction whole as float64 has it."""
    with jax.enable_x64(True):
        if isinstance(whole, int | Count):
            high, low = (jnp.asarray(word).astype(jnp.float64) for word in as_count(whole))
            number = high * 2.0**32 + low
        else:
            number = jnp.asarray(whole).astype(jnp.float64)
        exact = number * jnp.maximum(jnp.asarray(fraction, jnp.float64), 0)
        return _of_float(jnp.ceil(exact) if up else jnp.floor(exact))
