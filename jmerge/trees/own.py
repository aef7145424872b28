"""Functions of a caller's own in the place of a method."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any

import jax
import numpy as np

from jmerge.methods.spec import REGISTRY, Method, Parameter, PerModel, Shared, Switch
from jmerge.names import did_you_mean


def method_of(
    function: Callable[..., Any], has_base: bool, hyperparameters: Mapping[str, Any], models: int
) -> Method:
    """The method that a function is registered as, or one made of it.

    It is called with models [models, *shape], after the base [*shape] where there is one, and with the numbers as
    keywords: those of each model as arrays [models], others as scalars, flags as they are. It gives the result [*shape].

    Raises:
      TypeError: it has no such keyword.
    """
    for method in REGISTRY.values():
        if method.function is function:
            return method
    name = getattr(function, "__name__", type(function).__name__)
    try:
        declared = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):  # it does not tell
        declared = None
    if declared is not None and not any(each.kind is each.VAR_KEYWORD for each in declared):
        known = [each.name for each in declared if each.kind is not each.POSITIONAL_ONLY]
        for keyword in hyperparameters:
            if keyword not in known:
                hint = did_you_mean(keyword, known)
                raise TypeError(f"'{keyword}' is not a parameter of '{name}'{hint}")
    kinds = tuple(
        (keyword, _kind(value, models)) for keyword, value in sorted(hyperparameters.items())
    )
    return _made(function, name, has_base, kinds)


def _kind(value: Any, models: int) -> str:
    if isinstance(value, bool):
        return "flag"
    array = isinstance(value, jax.Array | np.ndarray) and value.shape == (models,)
    return "each" if isinstance(value, list | tuple) or array else "one"


# kept, as programs are by their methods
@lru_cache(maxsize=256)
def _made(
    function: Callable[..., Any], name: str, has_base: bool, kinds: tuple[tuple[str, str], ...]
) -> Method:
    of_kind: dict[str, Parameter] = {"flag": Switch(False), "each": PerModel(), "one": Shared()}
    return Method(
        name=name,
        function=function,
        takes="base, models" if has_base else "models",
        base="needed" if has_base else "input",
        counts=(1, None),
        parameters={keyword: of_kind[kind] for keyword, kind in kinds},
        keywords={keyword: keyword for keyword, _ in kinds},
        reserved=frozenset(),
        statistics=(),
        unit=lambda hyperparameters: "whole",
        check=lambda hyperparameters: None,
        advice=lambda hyperparameters, models: None,
        no_effect=(),
        carries_nan=False,
        divides=lambda hyperparameters: False,
        copies=lambda hyperparameters: False,
        unnormalised=lambda hyperparameters, models: False,
        title=name,
        summary="",
        formula="",
        when="",
        paper="",
    )
