"""A program for each function of `jmerge.methods.xla`, with it and without: for its tests, and to time it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np

from jmerge.methods import reduce, xla
from jmerge.methods.reduce import BLOCK, block_pairs

ELEMENTS = 256 * BLOCK
WIDER = 32  # elements: a window than its piece


class Example(NamedTuple):
    """Programs that compute the same; not jitted."""

    leaning: Callable[..., jax.Array]
    plain: Callable[..., jax.Array]  # without the function
    arguments: tuple[np.ndarray, ...]


def example(name: str, elements: int = ELEMENTS) -> Example:
    """The example of a function, or of a use of it; on arrays of so many elements, whole blocks."""
    random = np.random.default_rng(0)
    x, y = random.standard_normal((2, elements), np.float32)
    if name == "rounded":
        return Example(products, without_rounded(products), (x, y))
    if name == "branch":
        return Example(squares, without_branch(squares), (x,))
    if name == "branch, cutting":
        skips = np.asarray([3, 5], np.int32)
        windows = np.pad(x, (0, WIDER)), np.pad(y, (0, WIDER))
        return Example(cut_apart, cut_and_added, (*windows, skips))
    if name == "unknown":
        seven = jnp.float32(7)
        return Example(lambda x: x / xla.unknown(seven), lambda x: x / seven, (x[0],))
    raise KeyError(name)


NAMES = ("rounded", "branch", "branch, cutting", "unknown")


def products(x: jax.Array, y: jax.Array) -> jax.Array:
    """Sums of three products, as slerp's."""
    return block_pairs([x * y, x * x, y * y])


def squares(x: jax.Array) -> jax.Array:
    """A sum of squares."""
    return block_pairs([x * x])


def cut(windows: tuple[jax.Array, jax.Array, jax.Array]) -> list[jax.Array]:
    """Pieces of two windows, as the engine cuts them out: x, y, where they start -> pieces."""
    *two, skips = windows
    return [
        jax.lax.dynamic_slice_in_dim(window, skips[i], window.size - WIDER)
        for i, window in enumerate(two)
    ]


def cut_and_added(*windows: Any) -> jax.Array:
    """Sums of what is cut out."""
    return products(*cut(windows))


def cut_apart(*windows: Any) -> jax.Array:
    """The same, the pieces cut out in loops of their own."""
    skips = windows[2]
    pieces = xla.branch(
        jnp.all(skips >= 0), cut, lambda given: [each[:-WIDER] for each in given[:2]], windows
    )
    return products(*pieces)


def without_rounded(function: Callable[..., jax.Array]) -> Callable[..., jax.Array]:
    """A function of sums whose terms may be contracted."""
    return _replaced("rounded", lambda terms, true: list(terms), function)


def without_branch(function: Callable[..., jax.Array]) -> Callable[..., jax.Array]:
    """A function of sums whose terms are added in the loops that compute them, as XLA likes."""
    return _replaced("branch", lambda true, function, otherwise, inputs: function(inputs), function)


def _replaced(
    name: str, replacement: Callable[..., Any], function: Callable[..., jax.Array]
) -> Callable[..., jax.Array]:
    """The function as it is traced with a replacement."""

    def traced(*arguments: jax.Array) -> jax.Array:
        with mock.patch.object(reduce, name, replacement):
            return function(*arguments)

    return traced
