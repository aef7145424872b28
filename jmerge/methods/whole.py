"""A method applied to whole arrays: its statistics are found first, then it is called with them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jmerge.methods.spec import Method
from jmerge.methods.statistics.fold import take
from jmerge.methods.xla import unknown


def apply(
    method: Method,
    arrays: tuple[jax.Array, ...],
    hyperparameters: Mapping[str, Any],
    *,
    keys: jax.Array | None = None,
    found: Mapping[str, Any] | None = None,
    **more: Any,
) -> jax.Array:
    """The result of a method for one tensor, as its function gives it [*shape].

    Args:
      arrays: what the function takes, in the dtype of the arithmetic: models or changes [models, *shape], or base
        [*shape] and models.
      hyperparameters: by their names in recipes, all of them; numbers may be traced, flags and whole numbers not.
      keys: uint32 [models, 2], of methods that draw random numbers.
      found: statistics that are known, as those of whole models; the others are found of these arrays.
      more: further keywords of the function, as `start`.
    """
    models = arrays[-1]
    size, dtype = models.size // max(models.shape[0], 1), models.dtype
    keywords = keywords_of(method, hyperparameters, size, dtype) | more
    if keys is not None:
        keywords["keys"] = keys
    known = dict(found or {})
    for statistic in method.needed(hyperparameters):
        if statistic.keyword not in known:
            terms = statistic.terms(*arrays, **keywords, **known)
            known[statistic.keyword] = take(
                statistic, [terms], hyperparameters, known, dtype, sizes=[size]
            )
    result: jax.Array = method.function(*arrays, **keywords, **known)
    return result


def keywords_of(
    method: Method, hyperparameters: Mapping[str, Any], size: int, dtype: np.dtype[Any]
) -> dict[str, Any]:
    """The keyword arguments of a method's function that are no statistics: its parameters, and the `size` of a tensor
    if it wants that."""
    keywords: dict[str, Any] = {}
    for name, declared in method.parameters.items():
        if declared.given and name in hyperparameters:
            value = hyperparameters[name]
            if declared.kind == "float" and value is not None:
                value = jnp.asarray(value, dtype)
            keywords[method.keywords[name]] = value
    if "size" in method.reserved:
        keywords["size"] = unknown(jnp.asarray(size, dtype))
    return keywords
