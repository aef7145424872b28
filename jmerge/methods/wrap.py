"""Wrappers: methods made of other methods. `equalize(lines(ties))` is TIES between changes made equally long, with a
merged change that grows with depth.

Conditioning scales each model's change before the method sees it; LiNeS scales the merged change after it. Both work
with norms of whole models and on any method that takes changes from a base.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import Any

import jax
import jax.numpy as jnp

from jmerge.methods.combine import sum_models
from jmerge.methods.gram import root
from jmerge.methods.reduce import along_rows
from jmerge.methods.spec import REGISTRY, Method, Parameter, Shared
from jmerge.methods.statistics.sums import BlockSum

LINES = "lines"

# condition -> what a model's change is multiplied by, from the L2 norms n_i of all changes of a model; the paper
CONDITION_DOCS: Mapping[str, tuple[str, str]] = {
    "equalize": ("min n / n_i: long changes shrink", "https://arxiv.org/abs/2508.01148"),
    "equalize_mean": ("mean n / n_i", "https://arxiv.org/abs/2508.01148"),
    "metagpt": ("n_i^2 / sum n^2; for weights of 1", "https://arxiv.org/abs/2406.11385"),
    "inverse_norm": (
        "(1 / n_i) / sum 1 / n; for weights of 1",
        "https://arxiv.org/abs/2505.16148",
    ),
}
LINES_PAPER = "https://arxiv.org/abs/2410.17146"
LINES_PARAMETERS: Mapping[str, Parameter] = {
    "lines.alpha": Shared(
        None, doc="factor of the first block; auto: |sum of changes| / (models |merged change|)"
    ),
    "lines.beta": Shared(None, doc="what the factor of the last block has more; auto: 1 - alpha"),
    "lines.depth": Shared(0.0, planned=True, doc="relative depth of the tensor, from 0 to 1"),
}


def find_method(name: str) -> Method:
    """The method of a name: a registered one, or `wrapper(name)` of a wrapped one; KeyError when there is none."""
    if name in REGISTRY or not name.endswith(")"):
        return REGISTRY[name]
    wrapper, _, inner = name[:-1].partition("(")
    if wrapper != LINES and wrapper not in CONDITION_DOCS:
        raise KeyError(name)
    method = find_method(inner)
    conditions = (f"{each}(" for each in CONDITION_DOCS)
    twice = inner.startswith(tuple(conditions)) or (wrapper == LINES and inner.startswith(LINES))
    if twice or not can_wrap(method):
        raise ValueError(
            f"'{method.name}' cannot be wrapped in '{wrapper}': it takes a condition around lines, "
            "each once, around a method that merges changes from a base into one checkpoint"
        )
    return lines(method) if wrapper == LINES else conditioned(method, wrapper)


def can_wrap(method: Method) -> bool:
    """Whether wrappers work on a method."""
    return method.takes == "delta" and method.base == "needed" and not method.per_model_output


@cache
def conditioned(method: Method, condition: str) -> Method:
    """`method` on changes each multiplied by a factor; see `norm_factors`."""

    def scaled(function: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(delta: jax.Array, *, condition_squares: jax.Array, **rest: Any) -> Any:
            factor = norm_factors(condition_squares, condition)
            changes = [factor[i] * delta[i] for i in range(delta.shape[0])]
            return function(jnp.stack(changes) if changes else delta, **rest)

        return wrapped

    def terms(delta: jax.Array, **keywords: Any) -> Sequence[jax.Array]:
        return _by_row(method, square_terms(delta), keywords)

    squares = BlockSum(keyword="condition_squares", terms=terms, scope="model")
    inner = [dataclasses.replace(each, terms=scaled(each.terms)) for each in method.statistics]
    return dataclasses.replace(
        method,
        name=f"{condition}({method.name})",
        title=f"{method.title} of changes scaled by {condition}",
        function=scaled(method.function),
        statistics=(squares, *inner),
    )


def square_terms(delta: jax.Array, **_: Any) -> list[jax.Array]:
    """delta [models, *shape] -> the squares [*shape] of each model's changes."""
    return [delta[i] * delta[i] for i in range(delta.shape[0])]


def norm_factors(squares: jax.Array, condition: str) -> jax.Array:
    """What to multiply each model's change by, from the squares of the L2 norms n of the changes [models].

    `CONDITION_DOCS` says what each condition makes of them (equalize: Huang et al., DisTaC; metagpt: Zhou et al., EMNLP
    2024; inverse_norm: NAN). Models that changed nothing take no part; norms beyond the dtype count as equal.
    """
    if squares.shape[0] == 0:
        return squares
    finite = jnp.isfinite(squares).all()
    squares = jnp.where(finite, squares, 1)
    moved = squares > 0
    count = jnp.maximum(sum_models(moved.astype(squares.dtype)), 1)
    norm = root(squares)
    if condition == "metagpt":
        largest = jnp.maximum(jnp.max(squares), 1e-37)
        share = squares / largest  # so that tiny ones do not vanish in the sum
        factors: jax.Array = jnp.where(moved, share / jnp.maximum(sum_models(share), 1e-37), 1)
        return factors
    if condition == "inverse_norm":
        least = jnp.min(jnp.where(moved, norm, jnp.inf))
        inverse = jnp.where(moved, least / jnp.where(moved, norm, 1), 0)
        return jnp.where(moved, inverse / jnp.where(moved.any(), sum_models(inverse), 1), 1)
    goal = sum_models(norm) / count
    if condition == "equalize":
        goal = jnp.min(jnp.where(moved, norm, jnp.inf))
    even: jax.Array = jnp.where(moved, goal / jnp.where(moved, norm, 1), 1)
    return even


@cache
def lines(method: Method) -> Method:
    """`method` with its merged change times alpha + beta depth (LiNeS, Wang et al., ICLR 2025, arXiv 2410.17146).

    depth goes from 0 in the first block to 1 in the last, and is 0 outside the blocks. Without `lines.alpha` it is
    |sum_i d_i| / (models |d|), of the changes d_i and the merged change d of whole models; without `lines.beta` it is
    1 - alpha, so that the last block is left as it is.
    """

    def terms(delta: jax.Array, **keywords: Any) -> Sequence[jax.Array]:
        _, _, rest = _lines_keywords(keywords)
        merged = method.function(delta, **rest)
        added = sum_models(delta) if delta.shape[0] else jnp.zeros_like(merged)
        return _by_row(method, [added * added, merged * merged], rest)

    def function(delta: jax.Array, *, lines_depth: Any = 0.0, **keywords: Any) -> jax.Array:
        alpha, beta, rest = _lines_keywords(keywords)
        merged = method.function(delta, **rest)
        if alpha is None:
            alpha = own_alpha(keywords["lines_lengths"], delta.shape[0])
        beta = 1 - alpha if beta is None else beta
        scaled: jax.Array = (alpha + beta * lines_depth) * merged
        return scaled

    lengths = BlockSum(
        keyword="lines_lengths",
        terms=terms,
        scope="model",
        when=lambda hyperparameters: hyperparameters["lines.alpha"] is None,
    )
    return dataclasses.replace(
        method,
        name=f"{LINES}({method.name})",
        title=f"{method.title} with LiNeS",
        function=function,
        statistics=(*method.statistics, lengths),
        parameters={**method.parameters, **LINES_PARAMETERS},
        keywords={
            **method.keywords,
            **{name: name.replace(".", "_") for name in LINES_PARAMETERS},
        },
    )


def _by_row(
    method: Method, terms: Sequence[jax.Array], keywords: Mapping[str, Any]
) -> Sequence[jax.Array]:
    """Terms [*shape], or for a method that keeps rows together a number for each row: what the engine adds up."""
    named = {name: keywords.get(keyword) for name, keyword in method.keywords.items()}
    unit = method.unit(named)
    if unit == "element":
        return terms
    return [along_rows(each, last=unit == "last") for each in terms]


def own_alpha(sums: jax.Array, models: int) -> jax.Array:
    """LiNeS' own alpha from the squared norms of the added and of the merged change; 1 where nothing is merged."""
    finite = jnp.isfinite(sums).all() & (sums[1] > 0)
    added, merged = root(jnp.where(finite, sums, 1))
    alpha: jax.Array = jnp.where(finite, added / merged / max(models, 1), 1)
    return alpha


def _lines_keywords(keywords: Mapping[str, Any]) -> tuple[Any, Any, dict[str, Any]]:
    """alpha, beta, and the keywords of the wrapped method."""
    rest = dict(keywords)
    for name in ("lines_depth", "lines_lengths"):
        rest.pop(name, None)
    return rest.pop("lines_alpha", None), rest.pop("lines_beta", None), rest
