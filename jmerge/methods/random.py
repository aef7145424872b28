"""Random numbers that depend on seed, tensor, model and element alone, not on order, pieces or devices.

A key is mixed of the seed, the tensor's stream (`methods.streams`) and the model's number, by the same steps on the host
and on a device, where the seed may be traced. The number of an element is a hash of the key and the element's position,
two rounds of a 32-bit mixer (Ettinger's lowbias32, https://nullprogram.com/blog/2018/07/31/), the same bits everywhere and
fifty times faster on CPU than threefry.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jmerge.methods.positions import flat_positions
from jmerge.methods.streams import Stream

GOLDEN = 0x9E3779B9  # 2^32 over the golden ratio: spreads the high word of the position
NOWHERE = (0x243F6A88, 0x85A308D3)  # the tag of what no number tells apart: digits of pi

Words = tuple[Any, Any]  # two uint32 arrays, of NumPy or of JAX


def make_key(seed: int | Sequence[int], stream: Stream, model: int) -> tuple[int, int]:
    """The two 32-bit words for the `model`-th non-base source (as the recipe lists them) of an output tensor.

    Of the seed 64 bits count; a key is a sequence of 32-bit words.
    """
    seeds = (seed >> 32 & 0xFFFFFFFF, seed & 0xFFFFFFFF) if isinstance(seed, int) else seed
    words = [np.asarray([word], np.uint32) for word in seeds]
    tag = _arrays(NOWHERE)
    for number in stream.numbers:
        tag = fold(tag, np.asarray([number], np.uint32))
    high, low = mix_key(words, _arrays(stream.words), tag, np.asarray([model], np.uint32))
    return int(high[0]), int(low[0])


def mix_key(seed: Sequence[Any], stream: Words, tag: Words, model: Any) -> Words:
    """The key of a model of a tensor, from words of the seed, of the stream and of the tag that tells layers apart.

    All are uint32 arrays that broadcast together, and so are the two words that come back.
    """
    found = stream
    for word in (*seed, model, *tag):
        found = fold(found, word)
    return found


def fold(words: Words, number: Any) -> Words:
    """Words of which each pair, and each number (uint32), makes others."""
    high = _mix(words[0] ^ number)
    return high, _mix(words[1] + high * np.uint32(GOLDEN) + number)


def uniform(key: jax.Array, shape: tuple[int, ...], start: jax.Array | None = None) -> jax.Array:
    """Uniform numbers float32 [*shape] in [0, 1), multiples of 2^-24.

    key: uint32 [2], of one model; start: position of the piece's first element, see `flat_positions`.
    """
    numbers: jax.Array = (_bits(key, shape, start) >> 8).astype(jnp.float32) * jnp.float32(2.0**-24)
    return numbers


def coins(key: jax.Array, shape: tuple[int, ...], start: jax.Array | None = None) -> jax.Array:
    """Zeros and ones uint32 [*shape], equally likely; of the same hash as `uniform`, but of a bit that it leaves."""
    return _bits(key, shape, start) & 1


def _bits(key: jax.Array, shape: tuple[int, ...], start: jax.Array | None) -> jax.Array:
    high, low = flat_positions(shape, start)
    found: jax.Array = _mix(_mix(low ^ key[0]) + high * jnp.uint32(GOLDEN) + key[1])
    return found


def _arrays(words: tuple[int, int]) -> Words:
    """As arrays, which wrap around without a warning."""
    return np.asarray([words[0]], np.uint32), np.asarray([words[1]], np.uint32)


def _mix(x: Any) -> Any:
    x = (x ^ (x >> 16)) * np.uint32(0x7FEB352D)
    x = (x ^ (x >> 15)) * np.uint32(0x846CA68B)
    return x ^ (x >> 16)
