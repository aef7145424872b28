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
from jmerge.methods.reduce import total
from jmerge.methods.statistics.fold import Statistic
from jmerge.methods.wrap import conditioned, norm_factors, own_alpha, square_terms

Factors = Callable[[jax.Array, str], jax.Array]


def factors(variant: Factors) -> Change:
    """Other factors of the changes, from their squared norms [models] and the condition."""
    return lambda patch, _: patch.setattr(wrap, "norm_factors", variant)


def alpha(variant: Callable[[jax.Array, int], jax.Array]) -> Change:
    """Another alpha of LiNeS' own."""
    return lambda patch, _: patch.setattr(wrap, "own_alpha", variant)


@cache
def norms_alone(method: Method, condition: str) -> Method:
    """The conditioned method that takes the norms of a piece for those of the model."""
    right = conditioned(method, condition)

    def function(delta: jax.Array, **rest: Any) -> jax.Array:
        rest["condition_squares"] = total(square_terms(delta))
        found: jax.Array = right.function(delta, **rest)
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


def another(condition: str) -> Change:
    """The factors of another condition."""
    return factors(lambda squares, _: norm_factors(squares, condition))


def not_scaled(keyword: str) -> Change:
    """A statistic of the changes as they are."""

    @cache  # like the original: a program is kept by the function that it is made of
    def variant(method: Method, condition: str) -> Method:
        right = conditioned(method, condition)
        assert keyword in {each.keyword for each in method.statistics}
        inner = [
            as_they_are(own) if own.keyword == keyword else scaled
            for own, scaled in zip(method.statistics, right.statistics[1:], strict=True)
        ]
        return dataclasses.replace(right, statistics=(right.statistics[0], *inner))

    return lambda patch, _: patch.setattr(wrap, "conditioned", variant)


def as_they_are(statistic: Statistic) -> Statistic:
    """A statistic that ignores the norms."""

    def terms(delta: jax.Array, *, condition_squares: object, **rest: Any) -> Sequence[Any]:
        return statistic.terms(delta, **rest)

    return dataclasses.replace(statistic, terms=terms)


LINES: dict[str, Change] = {
    "no alpha of its own": alpha(lambda sums, models: jnp.ones_like(sums[0])),
    "squares for norms in alpha": alpha(lambda sums, models: own_alpha(sums * sums, models)),
    "alpha upside down": alpha(lambda sums, models: own_alpha(sums[::-1], models)),
    "alpha not divided by the models": alpha(lambda sums, models: own_alpha(sums, 1)),
    "alpha divided by one more": alpha(lambda sums, models: own_alpha(sums, models + 1)),
    "lengths of changes not scaled": not_scaled("lines_lengths"),
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
        "thresholds of changes not scaled": not_scaled("keep"),
    },
    "equalize(lines(ties))": {**SHARED, **LINES},
}
