"""Arcee Fusion: take over from another model the elements that changed much in rows whose balance changed much.

Arcee's method in MergeKit, https://www.arcee.ai/blog/meet-mergekit-v0-1-arcee-fusion-expanded-model-support-multi-gpu-acceleration
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from jmerge.methods.reduce import along
from jmerge.methods.spec import merge_method
from jmerge.methods.statistics.thresholds import Threshold, ordered_keys, ordered_values
from jmerge.methods.statistics.topk import TopK

NO_CHANCE = 1e-8  # added to probabilities, so that none is zero
SMALL, TERMS = 0.1, 9  # up to which |d| phi(d) is a series, and its last power
SPREADS = 1.5  # interquartile ranges above the median from which an element counts as changed


def score(base: jax.Array, model: jax.Array) -> jax.Array:
    """How much each element [*shape] matters: its change times the KL divergence of its row, seen as a softmax.

    The divergence is summed as q phi(p/q - 1), phi(d) = (1 + d) log(1 + d) - d, whose terms are not negative. Where
    a row changed little, d comes from the change itself: from p and q it would be mostly their rounding.
    """
    if base.size == 0 or base.ndim == 0 or base.shape[-1] == 1:
        return jnp.zeros_like(base)  # the softmax of a single number is one
    change = model - base
    p, q = _softmax(model), _softmax(base)
    moved = jnp.log1p(along(q * jnp.expm1(jnp.clip(change, -1, 1)), -1))
    within = jnp.abs(change) < 1
    near = jnp.all(within, axis=-1, keepdims=True) & (jnp.abs(change - moved) < SMALL)
    d = jnp.where(near, jnp.expm1(change - moved) * q / (q + NO_CHANCE), 0)
    series = jnp.zeros_like(d)
    for k in range(TERMS, 1, -1):
        series = 1 / (k * (k - 1)) - d * series
    p, q = p + NO_CHANCE, q + NO_CHANCE
    terms = jnp.where(near, q * d * d * series, p * jnp.log(p / q) - p + q)
    return jnp.abs(change) * along(jnp.maximum(terms, 0), -1)


def score_keys(base: jax.Array, models: jax.Array, **_: Any) -> list[jax.Array]:
    """The scores in the form in which they are cut."""
    return [ordered_keys(score(base, models[0]))]


def quartile_counts(
    hyperparameters: Mapping[str, Any], size: int, found: object
) -> list[list[int]]:
    """How many scores are at least the first, second and third quartile (no interpolation)."""
    return [[size - int(share * (size - 1)) for share in (0.25, 0.5, 0.75)]]


def _softmax(tensor: jax.Array) -> jax.Array:
    lifted = jnp.exp(tensor - jnp.max(tensor, axis=-1, keepdims=True))
    return lifted / along(lifted, -1)


@merge_method(
    "arcee_fusion",
    takes="base, models",
    base="needed",
    models=(1, 1),
    statistics=(
        TopK(keyword="quartiles", terms=score_keys, counts=quartile_counts, uses_bits=True),
    ),
    unit=lambda hyperparameters: "last",
    title="Arcee Fusion",
    summary=(
        "Takes from the other model only the elements whose change stands out, and leaves the "
        "rest of the base alone. What stands out is decided for each tensor by how its scores "
        "are spread."
    ),
    formula="x where score >= median + 1.5 (q3 - q1), else base,   score = |x - base| KL(softmax x, softmax base) by row",
    when="One fine-tune of a base, to keep what it learned without its noise.",
    paper="https://www.arcee.ai/blog/meet-mergekit-v0-1-arcee-fusion-expanded-model-support-multi-gpu-acceleration",
)
def arcee_fusion(base: jax.Array, models: jax.Array, *, quartiles: Threshold) -> jax.Array:
    """base [*shape], models [1, *shape] -> each element from one of the two [*shape].

    quartiles: the thresholds of `score_keys` over the whole tensor, always exact.
    """
    scores = score(base, models[0])
    low, middle, high = ordered_values(jnp.asarray(quartiles.bits))
    return jnp.where(scores >= middle + SPREADS * (high - low), models[0], base)
