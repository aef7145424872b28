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
    if name == "add_together":
        return Example(products, one_by_one(products), (x, y))
    if name == "unknown":
        seven = jnp.float32(7)
        return Example(lambda x: x / xla.unknown(seven), lambda x: x / seven, (x[0],))
    raise KeyError(name)


NAMES = ("rounded", "branch", "add_together", "unknown")


def products(x: jax.Array, y: jax.Array) -> jax.Array:
    """Sums of three products, as slerp's."""
    return block_pairs([x * y, x * x, y * y], short=True)


def squares(x: jax.Array) -> jax.Array:
    """A sum of squares."""
    return block_pairs([x * x])


def without_rounded(function: Callable[..., jax.Array]) -> Callable[..., jax.Array]:
    """A function of sums whose terms may be contracted."""
    return _replaced("rounded", lambda terms, true: list(terms), function)


def without_branch(function: Callable[..., jax.Array]) -> Callable[..., jax.Array]:
    """A function of sums whose terms are added in the loops that compute them, as XLA likes."""
    return _replaced("branch", lambda true, function, otherwise, inputs: function(inputs), function)


def one_by_one(function: Callable[..., jax.Array]) -> Callable[..., jax.Array]:
    """A function of sums, each added in a loop of its own."""
    return _replaced("add_together", lambda terms: [_add_rows(each) for each in terms], function)


def _add_rows(rows: jax.Array) -> jax.Array:
    return rows[..., 0, :] + rows[..., 1, :]


def _replaced(
    name: str, replacement: Callable[..., Any], function: Callable[..., jax.Array]
) -> Callable[..., jax.Array]:
    """The function as it is traced with a replacement."""

    def traced(*arguments: jax.Array) -> jax.Array:
        with mock.patch.object(reduce, name, replacement):
            return function(*arguments)

    return traced
