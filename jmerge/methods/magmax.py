"""MagMax: of every weight the largest change that any model made.

Marczak et al., "MagMax", ECCV 2024, https://arxiv.org/abs/2407.06322
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from jmerge.methods.spec import Shared, merge_method


@merge_method(
    "magmax",
    takes="delta",
    base="needed",
    models=(1, None),
    title="MagMax",
    summary=(
        "For each weight, keeps the largest change among the models. If changes are equally "
        "large, the last model's is kept."
    ),
    formula="base + lambda (x_m - base),   m = argmax_i |x_i - base| for each element",
    when="Models fine-tuned one after the other, each from the one before, on different tasks.",
    paper="https://arxiv.org/abs/2407.06322",
    scale=Shared(0.5, yaml="lambda", doc="factor of the merged change"),
)
def magmax(delta: jax.Array, *, scale: jax.Array) -> jax.Array:
    """delta [models, *shape], scale scalar -> the change to make to the base [*shape]."""
    largest = delta[0]
    for i in range(1, delta.shape[0]):
        largest = jnp.where(jnp.abs(delta[i]) >= jnp.abs(largest), delta[i], largest)
    return scale * largest
