"""PCB-Merging: weights compete; each change counts as much as it is large in its model and agreed on by the others.

Du et al., "Parameter Competition Balancing for Model Merging", NeurIPS 2024, https://arxiv.org/abs/2410.02396
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from jmerge.methods.combine import sum_models
from jmerge.methods.spec import PerModel, Shared, merge_method
from jmerge.methods.statistics.counts import AnyCount, difference, is_traced, plus, share
from jmerge.methods.statistics.thresholds import (
    Threshold,
    change_keys,
    ordered_keys,
    ordered_values,
)
from jmerge.methods.statistics.topk import TopK

TAIL = 1e-4  # share of the magnitudes at either end that count as the least and the largest of the rest


def level_keys(delta: jax.Array, *, spans: Threshold, **_: Any) -> list[jax.Array]:
    """The scores of each model's changes in the form in which they are selected."""
    return [ordered_keys(each) for each in scores(delta, spans)]


def scores(delta: jax.Array, spans: Threshold) -> list[jax.Array]:
    """How each change [*shape] competes: e^(models (own size)^2) tanh(its product with the sum of all), over e^models.

    Its own size goes from 0 to 1 between the two bounds of its model in `spans`.
    """
    count = delta.shape[0]
    bounds = jax.lax.bitcast_convert_type(jnp.asarray(spans.bits), delta.dtype).reshape(count, 2)
    together = sum_models(delta)
    found = []
    for i in range(count):
        low, high = bounds[i]
        size = spread(jnp.clip(jnp.abs(delta[i]), low, high), low, high)
        score = jnp.exp(count * (size * size - 1)) * jnp.tanh(delta[i] * together)
        found.append(jnp.where(jnp.isfinite(score), score, 0))  # what is not a number competes not
    return found


def spread(values: jax.Array, low: jax.Array, high: jax.Array) -> jax.Array:
    """From 0 at `low` to 1 at `high`; 0 everywhere when they are equal."""
    some = high > low
    return jnp.where(some, (values - low) / jnp.where(some, high - low, 1), 0)


def span_counts(hyperparameters: Mapping[str, Any], size: int, found: object) -> list[list[int]]:
    """How many magnitudes are at least as large as the two ends, for each model."""
    ends = [size - int(share * (size - 1)) for share in (TAIL, 1 - TAIL)]
    return [ends] * len(hyperparameters["weight"])


def level_counts(
    hyperparameters: Mapping[str, Any], size: int, found: object
) -> list[list[AnyCount]]:
    """How many scores are at least as large as the least that competes and as the largest, for each model."""
    rho, rest = hyperparameters["rho"], max(size - 1, 0)
    if is_traced(rho):  # the same, of a float32 without rounding 1 - rho
        competing = plus(size - rest, share(rho, rest, up=True))
    else:
        competing = difference(size, share(1 - rho, rest))
    return [[competing, 1]] * len(hyperparameters["weight"])


@merge_method(
    "pcb",
    takes="delta",
    base="needed",
    models=(1, None),
    statistics=(
        TopK(
            keyword="spans",
            terms=change_keys,
            counts=span_counts,
            uses_bits=True,
            scope="model",
        ),
        TopK(
            keyword="levels",
            terms=level_keys,
            counts=level_counts,
            uses_bits=True,
            scope="model",
        ),
    ),
    title="PCB-Merging",
    summary=(
        "Changes compete over whole models: each is scored by its size in its own model and "
        "by the agreement of the others. Each model keeps only the share rho."
    ),
    formula="base + lambda sum_i s_i w_i d_i / sum_i s_i,   s_i: e^(N size_i^2) tanh(d_i sum_j d_j), its top rho share on [0, 1]",
    when="Specialists of one base; rho 0.05 to 0.2, lambda 1 to 1.5.",
    paper="https://arxiv.org/abs/2410.02396",
    weight=PerModel(1.0, doc="factor of the model's change"),
    rho=Shared(
        0.1, low=0.0, high=1.0, given=False, even=True, doc="share of the changes that compete"
    ),
    scale=Shared(1.2, yaml="lambda", doc="factor of the merged change"),
)
def pcb(
    delta: jax.Array,
    *,
    weight: jax.Array,
    scale: jax.Array,
    spans: Threshold,
    levels: Threshold,
) -> jax.Array:
    """delta [models, *shape], weight [models], scale scalar -> the change to make to the base [*shape].

    spans, levels: the thresholds of the magnitudes of changes and of `level_keys` over whole models.
    """
    count, elements = delta.shape[0], delta[0].size
    if elements == 0:
        return jnp.zeros(delta.shape[1:], delta.dtype)
    ends = ordered_values(jnp.asarray(levels.bits)).reshape(count, 2)
    shares = [
        spread(jnp.maximum(each, ends[i][0]), *ends[i])
        for i, each in enumerate(scores(delta, spans))
    ]
    together = sum_models(shares)
    merged = sum_models([shares[i] * weight[i] * delta[i] for i in range(count)])
    return scale * merged / jnp.where(together > 0, together, 1)
