"""NegMerge: forget a task by taking away what all models fine-tuned on it changed in the same direction.

Kim et al., "NegMerge", ICML 2025, https://arxiv.org/abs/2410.05583
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from jmerge.methods.combine import sum_models
from jmerge.methods.spec import Shared, merge_method


@merge_method(
    "negmerge",
    takes="delta",
    base="needed",
    models=(1, None),
    title="NegMerge",
    summary=(
        "Subtracts the mean change of the models from the base, where all models agree on its "
        "sign. Changes in different directions have little to do with the task, so those "
        "weights stay."
    ),
    formula="base - lambda mean_i(x_i - base) where all signs agree, else base",
    when=(
        "Making a model forget a task, from several fine-tunes on it; a negative lambda adds what all agree on "
        "instead."
    ),
    paper="https://arxiv.org/abs/2410.05583",
    scale=Shared(1.0, yaml="lambda", doc="factor of the subtracted change"),
)
def negmerge(delta: jax.Array, *, scale: jax.Array) -> jax.Array:
    """delta [models, *shape], scale scalar -> the change to make to the base [*shape]."""
    count = delta.shape[0]
    up, down = delta[0] > 0, delta[0] < 0
    for i in range(1, count):
        up, down = up & (delta[i] > 0), down & (delta[i] < 0)
    mean = sum_models([delta[i] / count for i in range(count)])
    return jnp.where(up | down, -scale * mean, 0)
