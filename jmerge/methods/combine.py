"""Small sums over the models, written so that they fuse and always add in the order of the recipe."""

from __future__ import annotations

import jax
import jax.numpy as jnp


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


def sign_consensus(weight: jax.Array, values: jax.Array, *, normalize: bool) -> jax.Array:
    """The sum over the models of weight [models] times values [models, *shape], of those that agree on a sign.

    The sign of an element is that of its weighted sum, an exact tie counting as positive; zeros never agree. With
    `normalize` the sum is divided by the weights that agreed, where those do not add up to zero.
    """
    votes = weight.reshape(-1, *(1 for _ in values.shape[1:])) * values
    positive = sum_models(votes)[None] >= 0
    agree = jnp.where(positive, votes > 0, votes < 0)
    merged = sum_models(jnp.where(agree, votes, 0))
    if normalize:
        weights = jnp.broadcast_to(weight.reshape(-1, *(1 for _ in values.shape[1:])), votes.shape)
        share = sum_models(jnp.where(agree, weights, 0))
        merged = merged / jnp.where(share == 0, 1, share)
    return merged
