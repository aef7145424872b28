"""Positions beyond 32 bits, in pieces of large tensors and within tensors of any shape."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jmerge.methods.positions import flat_positions, positions_upto, split_position

STARTS = [0, 9, 2**32 - 3, 2**40 + 1]
# where in an array of so many elements, of which only these are computed
LARGE: list[tuple[tuple[int, ...], tuple[int | slice, ...]]] = [
    ((80, 8192, 28672), (79, 8191, slice(28668, None))),
    ((80, 8192, 28672), (slice(18, 20), 2340, slice(16384, 16386))),  # on both sides of 2^32
    ((3, 2**32 + 7), (2, slice(2**32 - 2, 2**32 + 2))),
    ((2**33 + 5,), (slice(2**33 - 2, None),)),
    ((2, 2**16, 2**16), (slice(None), 2**16 - 1, slice(2**16 - 2, None))),
    ((2**16, 1, 2**17, 1), (2**16 - 1, 0, slice(5), 0)),
]


def exact(shape: tuple[int, ...], index: tuple[int | slice, ...], start: int) -> np.ndarray:
    """The same in 64 bits."""
    axes = [np.asarray(range(n)[i], np.uint64) for n, i in zip(shape, index, strict=True)]
    strides = np.cumprod([1, *shape[:0:-1]], dtype=np.uint64)[::-1]
    total = np.uint64(start)
    for number, (axis, stride) in enumerate(zip(axes, strides, strict=True)):
        after = sum(1 for other in axes[number + 1 :] if other.ndim)
        total = total + axis.reshape(axis.shape + (1,) * after) * stride
    return np.asarray(total)


def of_large(
    shape: tuple[int, ...], index: tuple[int | slice, ...], make: Callable[[], jax.Array]
) -> np.ndarray:
    return np.asarray(jax.jit(lambda: make()[index])())


@pytest.mark.parametrize("start", STARTS)
@pytest.mark.parametrize(("shape", "index"), LARGE)
def test_large_arrays(shape: tuple[int, ...], index: tuple[int | slice, ...], start: int) -> None:
    words = jnp.asarray(split_position(start), jnp.uint32)

    def flat_word(word: int) -> jax.Array:
        return flat_positions(shape, words)[word]

    high, low = (of_large(shape, index, partial(flat_word, word)) for word in (0, 1))
    wanted = exact(shape, index, start)
    np.testing.assert_array_equal(high.astype(np.uint64) << np.uint64(32) | low, wanted)
    for last in (int(wanted.flat[0]), int(wanted.flat[-1]) - 1, 0, 2**50):
        limit = [jnp.uint32(word) for word in split_position(last)]
        found = of_large(shape, index, lambda: positions_upto(shape, words, *limit))  # noqa: B023
        np.testing.assert_array_equal(found, wanted <= last)
