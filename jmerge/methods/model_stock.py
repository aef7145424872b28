"""Model Stock: between base and mean of the models, as near to the mean as their changes agree in direction.

Jang et al., "Model Stock", ECCV 2024, https://arxiv.org/abs/2403.19522
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from jmerge.methods.combine import sum_models
from jmerge.methods.gram import gram_matrix, gram_sums, lengths_of
from jmerge.methods.reduce import along
from jmerge.methods.spec import Switch, merge_method

NO_LENGTH = 1e-6  # a product of two lengths is at least this: MergeKit's bound
NO_SHARE = 1e-6  # 1 + (N - 1) cosine nearer to zero than this: the changes cancel


def share_of_mean(cosine: jax.Array, count: int) -> jax.Array:
    """How far to go from the base to the mean of `count` models whose changes have this mean cosine."""
    below = 1 + (count - 1) * cosine
    usable = jnp.abs(below) >= NO_SHARE
    return jnp.where(usable, count * cosine / jnp.where(usable, below, 1), 0)


@merge_method(
    "model_stock",
    takes="delta",
    base="needed",
    models=(2, None),
    statistics=(
        gram_sums(
            when=lambda hyperparameters: not hyperparameters["filter_wise"],
        ),
    ),
    unit=lambda hyperparameters: "last" if hyperparameters["filter_wise"] else "element",
    title="Model Stock",
    summary=(
        "Moves from the base towards the mean of the models, the further the more their "
        "changes point the same way. It needs no weights: the angle between the changes shows "
        "how much of them is noise."
    ),
    formula="base + t mean_i(x_i - base),   t = N c / (1 + (N - 1) c),   c = mean cosine of two changes",
    when="Two or more fine-tunes of one base on the same task, such as runs with different seeds.",
    paper="https://arxiv.org/abs/2403.19522",
    filter_wise=Switch(
        False, doc="one angle for every row (last axis) instead of one for the tensor"
    ),
)
def model_stock(delta: jax.Array, *, filter_wise: bool, sums: jax.Array | None = None) -> jax.Array:
    """delta [models, *shape] -> the change to make to the base [*shape].

    sums: totals of `gram_terms` over the whole tensor. Where lengths are beyond
    the dtype, the angle counts as right, so the base stays.
    """
    count = delta.shape[0]
    mean = sum_models([delta[i] / count for i in range(count)])
    pairs = [(i, j) for j in range(count) for i in range(j)]
    if filter_wise:
        squares = [along(delta[i] * delta[i], -1) for i in range(count)]
        dots = [along(delta[i] * delta[j], -1) for i, j in pairs]
        lengths = [jnp.sqrt(each) for each in squares]
        finite = jnp.isfinite(sum_models(squares))
    else:
        assert sums is not None
        gram, finite = gram_matrix(delta, sums)
        lengths = list(lengths_of(gram))
        dots = [gram[i, j] for i, j in pairs]
    cosines = []
    for (i, j), dot in zip(pairs, dots, strict=True):
        product = jnp.maximum(lengths[i] * lengths[j], NO_LENGTH)
        usable = finite & jnp.isfinite(product)
        cosines.append(jnp.where(usable, jnp.clip(dot / jnp.where(usable, product, 1), -1, 1), 0))
    return share_of_mean(sum_models(cosines) / len(pairs), count) * mean
