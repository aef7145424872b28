"""Wrapped methods made wrong on purpose; the methods in them are right."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
from variants import Change

from jmerge.methods import Method, wrap
from jmerge.methods.combine import sum_models
from jmerge.methods.spec import Statistic
from jmerge.methods.wrap import conditioned, norm_factors, own_alpha

Factors = Callable[[jax.Array, str], jax.Array]


def factors(variant: Factors) -> Change:
    """Other factors of the changes, from their squared norms [models] and the condition."""
    return lambda patch, _: patch.setattr(wrap, "norm_factors", variant)


def alpha(variant: Callable[[jax.Array, int], jax.Array]) -> Change:
    """Another alpha of LiNeS' own."""
    return lambda patch, _: patch.setattr(wrap, "own_alpha", variant)


def changed(**changes: Any) -> Change:
    """Other fields of the conditioned method."""
    # cached like the original: a program is kept by the function that it is made of
    variant = cache(
        lambda method, condition: dataclasses.replace(conditioned(method, condition), **changes)
    )
    return lambda patch, _: patch.setattr(wrap, "conditioned", variant)


@cache
def norms_alone(method: Method, condition: str) -> Method:
    """The conditioned method that takes the norms of a piece for those of the model."""
    right = conditioned(method, condition)

    def function(delta: jax.Array, **rest: Any) -> jax.Array:
        found: jax.Array = right.function(delta, **{**rest, "condition_squares": None})
        return found

    return dataclasses.replace(right, function=function)


NONE: Factors = lambda squares, _: jnp.ones_like(squares)  # noqa: E731
SHARED: dict[str, Change] = {
    "not scaled": factors(NONE),
    "sign flipped": factors(lambda squares, condition: -norm_factors(squares, condition)),
    "upside down": factors(lambda squares, condition: 1 / norm_factors(squares, condition)),
    "squares for norms": factors(
        lambda squares, condition: norm_factors(squares * squares, condition)
    ),
    "models reversed": factors(lambda squares, condition: norm_factors(squares, condition)[::-1]),
    "norms of the piece alone": lambda patch, _: patch.setattr(wrap, "conditioned", norms_alone),
}
# What a program that scaled before the cut of the changes was found would miss.
NO_FACTORS: Change = changed(factors=lambda found: jnp.ones_like(found["condition_squares"]))


def another(condition: str) -> Change:
    """The factors of another condition."""
    return factors(lambda squares, _: norm_factors(squares, condition))


def not_scaled(statistic: Statistic, _: object) -> Statistic:
    """A statistic of the changes as they are."""

    def terms(
        delta: jax.Array, *, condition_squares: object = None, **rest: Any
    ) -> Sequence[jax.Array]:
        assert statistic.terms is not None
        return statistic.terms(delta, **rest)

    return dataclasses.replace(statistic, terms=statistic.terms and terms)


LINES: dict[str, Change] = {
    "no alpha of its own": alpha(lambda sums, models: jnp.ones_like(sums[0])),
    "squares for norms in alpha": alpha(lambda sums, models: own_alpha(sums * sums, models)),
    "alpha upside down": alpha(lambda sums, models: own_alpha(sums[::-1], models)),
    "alpha not divided by the models": alpha(lambda sums, models: own_alpha(sums, 1)),
    "alpha divided by one more": alpha(lambda sums, models: own_alpha(sums, models + 1)),
    "lengths of changes not scaled": lambda patch, _: patch.setattr(
        wrap, "_with_terms", not_scaled
    ),
}

WRAPPED: Mapping[str, Mapping[str, Change]] = {
    "equalize_mean(task_arithmetic)": {
        **SHARED,
        "the least for the mean": another("equalize"),
        "the mean of all sizes": factors(
            lambda squares, _: jnp.sqrt(sum_models(squares) / squares.shape[0] / squares)
        ),
    },
    "metagpt(task_arithmetic)": {
        **SHARED,
        "inverse norms": another("inverse_norm"),
        "norms for their squares": factors(
            lambda squares, _: jnp.sqrt(squares) / sum_models(jnp.sqrt(squares))
        ),
        "not divided by the sum": factors(lambda squares, _: squares),
        "divided by the mean": factors(
            lambda squares, condition: squares.shape[0] * norm_factors(squares, condition)
        ),
    },
    "inverse_norm(task_arithmetic)": {
        **SHARED,
        "squared norms": another("metagpt"),
        "not divided by the sum": factors(lambda squares, _: 1 / jnp.sqrt(squares)),
    },
    "equalize(ties)": {
        **SHARED,
        "the mean for the least": another("equalize_mean"),
        "the largest for the least": factors(
            lambda squares, _: jnp.sqrt(jnp.max(squares) / squares)
        ),
        "cuts of changes not scaled": NO_FACTORS,
    },
    "equalize(lines(ties))": {**SHARED, **LINES},
}
