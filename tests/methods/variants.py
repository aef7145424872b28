"""What makes a method wrong, on purpose."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import pytest

from jmerge.methods import REGISTRY, Method

# Makes the method of a name wrong, until the test is over.
Change = Callable[[pytest.MonkeyPatch, str], None]


def replaced(change: Callable[[Method], Method]) -> Change:
    """Another method in the place of the method."""
    return lambda patch, name: patch.setitem(REGISTRY, name, change(REGISTRY[name]))


def function(variant: Callable[..., jax.Array]) -> Change:
    """The method with another function."""
    return replaced(lambda method: dataclasses.replace(method, function=variant))


def statistic(keyword: str, **changes: Any) -> Change:
    """The method for which the engine finds another statistic under a keyword."""

    def change(method: Method) -> Method:
        assert keyword in [each.keyword for each in method.statistics]
        found = [
            dataclasses.replace(each, **changes) if each.keyword == keyword else each
            for each in method.statistics
        ]
        return dataclasses.replace(method, statistics=tuple(found))

    return replaced(change)


def sums(variant: Callable[..., Sequence[jax.Array]]) -> Change:
    """The method for which the engine adds up other terms."""
    return statistic("sums", terms=variant)


def inside(name: str, value: Any) -> Change:
    """The method with something else under a name of the modules in `jmerge.methods`, by hand and in the engine."""

    def change(patch: pytest.MonkeyPatch, method: str) -> None:
        patch.setattr(f"jmerge.methods.{name}", value)
        # programs of the old one are kept by its function
        function(partial(REGISTRY[method].function))(patch, method)

    return change


def default(name: str, value: float | bool) -> Change:
    """The method with another default of one parameter."""

    def change(method: Method) -> Method:
        declared = dataclasses.replace(method.parameters[name], default=value)
        return dataclasses.replace(method, parameters={**method.parameters, name: declared})

    return replaced(change)


def negative(method: Callable[..., jax.Array]) -> Change:
    """The method's result with the other sign."""
    return function(lambda *arrays, **rest: -method(*arrays, **rest))


def alone(method: Callable[..., jax.Array], *keywords: str) -> Change:
    """The method that takes statistics (the sums unless named) of a piece for those of the tensor."""

    def variant(*arrays: jax.Array, **rest: Any) -> jax.Array:
        kept = {name: rest[name] for name in rest if name not in (keywords or ("sums",))}
        return method(*arrays, **kept)

    return function(variant)


def coarse(values: jax.Array) -> jax.Array:
    """`values` rounded to bfloat16, as arithmetic in the dtype of the file would do."""
    return values.astype(jnp.bfloat16).astype(values.dtype)
