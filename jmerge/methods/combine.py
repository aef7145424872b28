"""Small sums over the models, written so that they fuse and always add in the order of the recipe."""

from __future__ import annotations

import jax


def sum_models(values: jax.Array) -> jax.Array:
    """The sum of values [models, ...] over the models, left to right."""
    result = values[0]
    for i in range(1, values.shape[0]):
        result = result + values[i]
    return result


def weighted_sum(weight: jax.Array, values: jax.Array) -> jax.Array:
    """The sum of weight [models] times values [models, *shape] over the models, left to right."""
    result = weight[0] * values[0]
    for i in range(1, values.shape[0]):
        result = result + weight[i] * values[i]
    return result
