"""Small sums over the models, written so that they fuse and always add in the order of the recipe."""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np


def sum_models(values: jax.Array | Sequence[jax.Array]) -> jax.Array:
    """The sum of values [models, ...] over the models, left to right."""
    result = values[0]
    for i in range(1, len(values)):
        result = result + values[i]
    return result


def weighted_sum(weight: jax.Array, values: jax.Array) -> jax.Array:
    """The sum of weight [models] times values [models, *shape] over the models, left to right."""
    result = weight[0] * values[0]
    for i in range(1, values.shape[0]):
        result = result + weight[i] * values[i]
    return result


def cancel(weights: Sequence[float]) -> bool:
    """Whether the numbers of a recipe sum to zero in float32, as the methods add them up: then they have no mean."""
    share = np.float32(0)
    for weight in weights:
        share += np.float32(weight)
    return bool(share == 0)


def sign_consensus(weight: jax.Array, values: jax.Array, *, normalize: bool) -> jax.Array:
    """The sum over the models of weight [models] times values [models, *shape], of those that agree on a sign.

    The sign of an element is that of its weighted sum, an exact tie counting as positive; zeros never agree. With
    `normalize` the sum is divided by the weights that agreed, where those do not add up to zero.
    """
    votes = [
        weight[i] * values[i] for i in range(values.shape[0])
    ]  # one by one: a stack would not fuse
    positive = sum_models(votes) >= 0
    agree = [jnp.where(positive, vote > 0, vote < 0) for vote in votes]
    merged = sum_models([jnp.where(yes, vote, 0) for yes, vote in zip(agree, votes, strict=True)])
    if normalize:
        share = sum_models([jnp.where(yes, weight[i], 0) for i, yes in enumerate(agree)])
        merged = merged / jnp.where(share == 0, 1, share)
    return merged
