"""The keys of the leaves of a tree: of seeds that may be traced, and different along every axis that `vmap` or
`shard_map` hides."""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jmerge.methods.mesh import hides_shards, varying_axes
from jmerge.methods.random import NOWHERE, fold, make_key, mix_key
from jmerge.methods.streams import Stream

SHARDS = 0x51AD  # before the place of a shard is mixed in, so that it is no layer's number


class Draws(NamedTuple):
    """Where random numbers come from."""

    words: jax.Array | np.ndarray  # uint32 [words]
    name: str  # of the argument that says so


def read_draws(seed: Any, key: Any) -> Draws:
    """The draws of a seed, or of a key in place of it.

    Raises:
      TypeError: both are given, or one is neither an integer nor a typed key.
    """
    if key is None:
        return Draws(seed_words(seed, "seed"), "seed")
    if not (isinstance(seed, int) and seed == 0):
        raise TypeError("seed and key say the same; pass one of them")
    return Draws(seed_words(key, "key"), "key")


def seed_words(seed: Any, name: str) -> jax.Array | np.ndarray:
    """The words uint32 [words] of a seed: an integer, which may be traced, or a typed key.

    Raises:
      TypeError: it is neither; the message calls it `name`.
    """
    if isinstance(seed, jax.Array) and jnp.issubdtype(seed.dtype, jax.dtypes.prng_key):
        if seed.shape != ():
            raise TypeError(f"{name} is {seed.shape[0]} keys; pass one, or `jax.vmap` over them")
        return jax.random.key_data(seed).reshape(-1).astype(jnp.uint32)
    if isinstance(seed, int | np.integer) and not isinstance(seed, bool):
        return np.asarray([int(seed) >> 32 & 0xFFFFFFFF, int(seed) & 0xFFFFFFFF], np.uint32)
    if isinstance(seed, jax.Array | np.ndarray) and jnp.issubdtype(seed.dtype, jnp.integer):
        if seed.shape == ():
            return _words_of_integer(jnp.asarray(seed))
        if seed.dtype == jnp.uint32 and seed.ndim == 1:
            raise TypeError(
                f"{name} is a key without a type; pass jax.random.wrap_key_data({name}), or make it by jax.random.key"
            )
        raise TypeError(f"{name} has shape {seed.shape}; pass one number, or `jax.vmap` over them")
    what = f"an array of {seed.dtype}" if hasattr(seed, "dtype") else repr(seed)
    raise TypeError(f"{name} is an integer or a key of jax.random.key; found {what}")


def _words_of_integer(seed: jax.Array) -> jax.Array:
    """The high and the low word of an integer array []."""
    if seed.dtype.itemsize == 8:
        high, low = (seed >> np.asarray(32, seed.dtype)).astype(jnp.uint32), seed.astype(jnp.uint32)
    else:
        low = seed.astype(
            jnp.int32 if jnp.issubdtype(seed.dtype, jnp.signedinteger) else jnp.uint32
        )
        high = jnp.where(low < 0, ~jnp.uint32(0), jnp.uint32(0))
    return jnp.stack([high, low.astype(jnp.uint32)])


def keys_there(draws: Draws, stream: Stream, models: int) -> np.ndarray:
    """The keys uint32 [models, 2] of a leaf, of a seed that is there."""
    words = [int(word) for word in np.asarray(draws.words)]
    return np.asarray([make_key(words, stream, model) for model in range(models)], np.uint32)


def model_keys(
    seed: jax.Array | np.ndarray, stream: Stream, tag: jax.Array, models: int
) -> jax.Array:
    """The keys uint32 [models, 2] of a leaf, whose numbers may be traced; `tag` is that of its place."""
    numbers = (jnp.asarray(number).astype(jnp.uint32) for number in stream.numbers)
    place = reduce(fold, numbers, (tag[0], tag[1]))
    own = jnp.asarray(stream.words, jnp.uint32)
    chained = mix_key(list(seed), (own[0], own[1]), place, jnp.arange(models, dtype=jnp.uint32))
    return jnp.stack(chained, axis=-1)


def place_tag(seed: jax.Array | np.ndarray, arrays: Sequence[jax.Array], name: str) -> jax.Array:
    """The tag uint32 [2] that tells apart what is one array here and several to the caller.

    Under `vmap` an index of the arrays is what a number of a layer is; not where the seed has the axis too, as it then
    tells them apart. Shards of `shard_map` differ along the axes over which the arrays vary.

    Raises:
      TypeError: whether shards hold the same cannot be seen, as `check_vma` is off, and the seed does not say either.
    """
    tag = _tag(jnp.asarray(seed), [jax.lax.stop_gradient(array) for array in arrays])
    words = tag[0], tag[1]
    for axis in sorted(_varying(seed, arrays, name)):
        words = fold(words, jnp.uint32(SHARDS))
        words = fold(words, jax.lax.axis_index(axis).astype(jnp.uint32))
    return jnp.stack(words)


@jax.custom_batching.custom_vmap
def _tag(seed: jax.Array, arrays: list[jax.Array]) -> jax.Array:
    del seed, arrays  # the rule below looks at them
    return jnp.asarray(NOWHERE, jnp.uint32)


@_tag.def_vmap
def _batched_tag(
    size: int, batched: Any, seed: jax.Array, arrays: list[jax.Array]
) -> tuple[jax.Array, bool]:
    seed_batched, arrays_batched = batched
    first = [array[0] if own else array for array, own in zip(arrays, arrays_batched, strict=True)]
    outer = _tag(seed[0] if seed_batched else seed, first)
    if seed_batched or not any(arrays_batched):
        return outer, False
    places = jax.lax.iota(jnp.uint32, size)
    return jnp.stack(fold((outer[0], outer[1]), places), axis=-1), True


def _varying(seed: Any, arrays: Sequence[jax.Array], name: str) -> set[str]:
    """The axes of `shard_map` along which the arrays hold different parts."""
    if hides_shards():
        if isinstance(seed, jax.core.Tracer):
            return set()
        raise TypeError(
            f"with check_vma=False it cannot be seen which shards hold different parts; leave it on, or pass a {name} "
            "that says so, as jax.random.fold_in(jax.random.key(0), jax.lax.axis_index('axis'))"
        )
    return {axis for array in arrays for axis in varying_axes(array)}
