"""The random numbers: pinned values, and that they look independent and uniform."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jmerge.methods.dare import draw
from jmerge.methods.positions import split_position
from jmerge.methods.random import coins, make_key, uniform
from jmerge.methods.streams import Stream, stream_of

COUNT = 1 << 20
VECTOR_KEY = (537678479, 937196275)
VECTOR = np.asarray(
    [0.7119155526161194, 0.5378876328468323, 0.5966533422470093, 0.598101019859314], np.float32
)
LAYER_STREAM, LAYER_KEY = ((784884616, 3370917629), (3,)), (1777810645, 1094176175)


def numbers(seed: int, tensor: str, model: int, count: int = COUNT, start: int = 0) -> np.ndarray:
    """The uniform numbers of a model of a tensor from a position on."""
    key = jnp.asarray(make_key(seed, stream_of(tensor), model), jnp.uint32)
    at = jnp.asarray(split_position(start), jnp.uint32)
    return np.asarray(uniform(key, (count,), at))


def mix(x: int) -> int:
    """The mixer in Python integers."""
    x ^= x >> 16
    x = x * 0x7FEB352D & 0xFFFFFFFF
    x ^= x >> 15
    x = x * 0x846CA68B & 0xFFFFFFFF
    return x ^ x >> 16


def by_hand(key: tuple[int, int], position: int) -> float:
    """One number from the definition, in Python integers."""
    high, low = position >> 32, position & 0xFFFFFFFF
    bits = mix((mix(low ^ key[0]) + high * 0x9E3779B9 + key[1]) & 0xFFFFFFFF)
    return (bits >> 8) * 2.0**-24


def test_vectors() -> None:
    """Keys and numbers never change: a recipe with a seed gives the same model for ever."""
    assert make_key(0, stream_of("model.norm.weight"), 0) == VECTOR_KEY
    np.testing.assert_array_equal(numbers(0, "model.norm.weight", 0, 4), VECTOR)
    named = stream_of("model.layers.3.mlp.w")
    assert named == Stream(*LAYER_STREAM)
    assert make_key(-1, named, 2) == LAYER_KEY
    assert (
        make_key(1, stream_of("a"), 23)
        != make_key(12, stream_of("a"), 3)
        != make_key(1, stream_of("a2"), 3)
    )


def test_every_part_of_a_key_counts() -> None:
    """Seeds, names, layers and models, near ones and far ones."""
    seeds = (0, 1, -1, 1 << 32, (1 << 63) - 1)
    names = ("w", "a.w", "0.w", "a.0.w", "a.1.w", "a.0.1.w", "a.1.0.w", "a.4294967295.w")
    keys = [make_key(s, stream_of(n), m) for s in seeds for n in names for m in (0, 1, 1000)]
    assert len(set(keys)) == len(keys)
    assert len({word for key in keys for word in key}) == 2 * len(keys)
    bits = np.unpackbits(np.asarray(keys, "<u4").view(np.uint8))
    assert abs(bits.mean() - 0.5) < 5 * 0.5 / np.sqrt(bits.size)


@pytest.mark.parametrize("start", [0, 5, 2**31 - 3, 2**32 - 3, 2**40 + 9])
def test_definition(start: int) -> None:
    """The array function is the definition, at any position."""
    key = make_key(7, stream_of("x"), 1)
    wanted = [by_hand(key, start + i) for i in range(8)]
    np.testing.assert_array_equal(numbers(7, "x", 1, 8, start), np.asarray(wanted, np.float32))


def test_pieces_agree_with_the_whole() -> None:
    """No dependence on chunking, compiled or not."""
    whole = numbers(3, "w", 0, 10000)
    pieces = [numbers(3, "w", 0, min(4096, 10000 - s), s) for s in range(0, 10000, 4096)]
    np.testing.assert_array_equal(whole, np.concatenate(pieces))
    key = jnp.asarray(make_key(3, stream_of("w"), 0), jnp.uint32)
    compiled = jax.jit(lambda k: uniform(k, (100, 100)))(key)
    np.testing.assert_array_equal(whole.reshape(100, 100), np.asarray(compiled))


@pytest.mark.parametrize("seed", range(3))
def test_uniform(seed: int) -> None:
    """Mean, variance and a chi-square over 256 bins, five standard deviations wide."""
    found = numbers(seed, "t", seed)
    assert 0 <= found.min() and found.max() < 1
    assert abs(found.mean() - 0.5) < 5 * np.sqrt(1 / 12 / COUNT)
    assert abs(found.var() - 1 / 12) < 5 * np.sqrt(1 / 180 / COUNT)
    bins = np.bincount((found * 256).astype(int), minlength=256)
    chi = ((bins - COUNT / 256) ** 2 / (COUNT / 256)).sum()
    assert abs(chi - 255) < 5 * np.sqrt(2 * 255)


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ((0, "t", 0, COUNT), (0, "t", 1, COUNT)),  # between models
        ((0, "t", 0, COUNT), (0, "u", 0, COUNT)),  # between tensors
        ((0, "t", 0, COUNT), (1, "t", 0, COUNT)),  # between seeds
        ((0, "t", 0, COUNT), (0, "t", 0, COUNT, 1)),  # between neighbours
        ((0, "t", 0, COUNT), (0, "t", 0, COUNT, 4096)),  # a row further
        ((0, "t", 0, COUNT), (0, "t", 0, COUNT, 1 << 20)),
        ((0, "t", 0, COUNT), (0, "t", 0, COUNT, 1 << 32)),  # the same low word
    ],
)
def test_independent(first: tuple[Any, ...], second: tuple[Any, ...]) -> None:
    """Correlation of the numbers and of their upper halves is noise."""
    a, b = numbers(*first), numbers(*second)
    for x, y in ((a, b), (a > 0.5, b > 0.5), ((a * 4096) % 1, (b * 4096) % 1)):
        assert abs(np.corrcoef(x, y)[0, 1]) < 5 / np.sqrt(COUNT)


def test_coins() -> None:
    """Half are one, whatever the number beside them, the coin before and another model's."""
    key = jnp.asarray(make_key(0, stream_of("t"), 0), jnp.uint32)
    found = np.asarray(coins(key, (COUNT,)))
    assert set(np.unique(found)) == {0, 1}
    other = np.asarray(coins(jnp.asarray(make_key(0, stream_of("t"), 1), jnp.uint32), (COUNT,)))
    drawn = numbers(0, "t", 0)
    for beside in (drawn, drawn > 0.5, drawn * 4096 % 1, np.roll(found, 1), other):
        assert abs(np.corrcoef(found, beside)[0, 1]) < 5 / np.sqrt(COUNT)
    assert abs(found.mean() - 0.5) < 2.5 / np.sqrt(COUNT)
    pieces = [
        np.asarray(coins(key, (4096,), jnp.asarray(split_position(at), jnp.uint32)))
        for at in (0, 4096)
    ]
    np.testing.assert_array_equal(found[:8192], np.concatenate(pieces))


@pytest.mark.parametrize("density", [0.0, 0.01, 0.3, 0.5, 0.97, 1.0])
def test_kept_fraction(density: float) -> None:
    """Within five standard deviations of the binomial; none at 0 and all at 1."""
    keys = jnp.asarray([make_key(0, stream_of("t"), i) for i in range(2)], jnp.uint32)
    kept = draw(
        jnp.ones((2, COUNT), jnp.float32), density=jnp.full(2, density, jnp.float32), keys=keys
    )
    spread = np.sqrt(density * (1 - density) * COUNT)
    for count in np.asarray(kept).sum(axis=1):
        assert abs(count - density * COUNT) <= 5 * spread
