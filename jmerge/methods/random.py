"""Random numbers that depend on seed, tensor, model and element alone, not on order, pieces or devices.

A key is made of names on the host; the number of an element is a hash of the key and the element's position,
two rounds of a 32-bit mixer (Ettinger's lowbias32, https://nullprogram.com/blog/2018/07/31/), the same bits
everywhere and fifty times faster on CPU than threefry.
"""

from __future__ import annotations

import hashlib

import jax
import jax.numpy as jnp

from jmerge.methods.positions import flat_positions

GOLDEN = 0x9E3779B9  # 2^32 over the golden ratio: spreads the high word of the position


def make_key(seed: int, tensor: str, model: int) -> tuple[int, int]:
    """The two 32-bit words for the `model`-th non-base source (as the recipe lists them) of an output tensor."""
    text = b"\0".join([str(seed).encode(), tensor.encode(), str(model).encode()])
    digest = hashlib.sha256(text).digest()
    return int.from_bytes(digest[:4], "little"), int.from_bytes(digest[4:8], "little")


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
    return _mix(_mix(low ^ key[0]) + high * jnp.uint32(GOLDEN) + key[1])


def _mix(x: jax.Array) -> jax.Array:
    x = (x ^ (x >> 16)) * jnp.uint32(0x7FEB352D)
    x = (x ^ (x >> 15)) * jnp.uint32(0x846CA68B)
    return x ^ (x >> 16)
