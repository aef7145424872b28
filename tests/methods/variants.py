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
from jmerge.methods.statistics.fold import take
from jmerge.methods.statistics.topk import TopK

# Makes the method of a name wrong, until the test is over.
Change = Callable[[pytest.MonkeyPatch, str], None]


def replaced(change: Callable[[Method], Method]) -> Change:
    """Another method in the place of the method."""
    return lambda patch, name: patch.setitem(REGISTRY, name, change(REGISTRY[name]))


def function(variant: Callable[..., jax.Array]) -> Change:
    """The method with another function."""
    return replaced(lambda method: dataclasses.replace(method, function=variant))


def statistic(keyword: str, **changes: Any) -> Change:
    """The method with another statistic under a keyword."""

    def change(method: Method) -> Method:
        assert keyword in [each.keyword for each in method.statistics]
        found = [
            dataclasses.replace(each, **changes) if each.keyword == keyword else each
            for each in method.statistics
        ]
        return dataclasses.replace(method, statistics=tuple(found))

    return replaced(change)


def sums(variant: Callable[..., Sequence[jax.Array]]) -> Change:
    """The method that adds up other terms."""
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


def both(*changes: Change) -> Change:
    """One change after the other."""

    def change(patch: pytest.MonkeyPatch, method: str) -> None:
        for each in changes:
            each(patch, method)

    return change


def alone(*keywords: str) -> Change:
    """The method that takes statistics (the sums unless named) of a piece for those of the tensor."""
    chosen = keywords or ("sums",)

    def change(method: Method) -> Method:
        declared = {each.keyword: each for each in method.statistics}
        # thresholds need the numbers that the method does not get
        lent = any(isinstance(declared[name], TopK) for name in chosen)
        parameters = {
            name: dataclasses.replace(each, given=each.given or lent)
            for name, each in method.parameters.items()
        }
        unseen = [
            method.keywords[name] for name, each in method.parameters.items() if not each.given
        ]

        def variant(*arrays: jax.Array, **rest: Any) -> jax.Array:
            hyperparameters = {name: rest.get(word) for name, word in method.keywords.items()}
            own = {word: value for word, value in rest.items() if word not in unseen}
            models = arrays[-1]
            for name in chosen:
                if own.get(name) is not None:
                    found = declared[name].terms(*arrays, **own)
                    size = models.size // models.shape[0]
                    own[name] = take(
                        declared[name], [found], hyperparameters, own, models.dtype, [size]
                    )
            result: jax.Array = method.function(*arrays, **own)
            return result

        return dataclasses.replace(method, function=variant, parameters=parameters)

    return replaced(change)


def coarse(values: jax.Array) -> jax.Array:
    """`values` rounded to bfloat16, as arithmetic in the dtype of the file would do."""
    return values.astype(jnp.bfloat16).astype(values.dtype)
