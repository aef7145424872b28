"""EMR: elect one change for all tasks; each task gets back its own by a mask of signs and a factor.

Huang et al., "EMR-Merging: Tuning-Free High-Performance Model Merging", NeurIPS 2024, https://arxiv.org/abs/2405.17461
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from jmerge.methods.combine import sum_models
from jmerge.methods.spec import Shared, merge_method
from jmerge.methods.statistics.sums import BlockSum


def masked_changes(delta: jax.Array) -> list[jax.Array]:
    """delta [models, *shape] -> of the elected change what has the sign of each model's own [*shape].

    Elected is, with the sign of the sum (zero counts as negative), the largest magnitude of those that have it.
    """
    positive = sum_models(delta) > 0
    elected = jnp.zeros(delta.shape[1:], delta.dtype)
    for i in range(delta.shape[0]):
        same = jnp.where(positive, delta[i] > 0, delta[i] < 0)
        elected = jnp.maximum(elected, jnp.where(same, jnp.abs(delta[i]), 0))
    elected = jnp.where(positive, elected, -elected)
    return [jnp.where(delta[i] * elected > 0, elected, 0) for i in range(delta.shape[0])]


def emr_sums(delta: jax.Array, **_: Any) -> list[jax.Array]:
    """The terms of the L1 norms of the models' changes, then of what their masks leave of the elected one."""
    masked = masked_changes(delta)
    return [jnp.abs(each) for each in (*(delta[i] for i in range(delta.shape[0])), *masked)]


@merge_method(
    "emr",
    takes="delta",
    base="needed",
    models=(1, None),
    statistics=(BlockSum(keyword="sums", terms=emr_sums, scope="model"),),
    per_model_output=True,
    title="EMR-Merging",
    summary=(
        "Elects one change for all models, and gives each model back the part that has the "
        "signs of its own change, at the length of its own change. It makes a checkpoint for "
        "each model, in a folder of its name."
    ),
    formula="for each i: base + s_i [sign e = sign d_i] e,   e elected of all d_i = x_i - base,   s_i = |d_i|_1 / |masked e|_1",
    when="Keeping every task's skill when the task is known at inference; what the models share can be stored once.",
    paper="https://arxiv.org/abs/2405.17461",
    task=Shared(0.0, planned=True, doc="the model whose checkpoint it is"),
)
def emr(delta: jax.Array, *, task: jax.Array | None = None, sums: jax.Array) -> jax.Array:
    """delta [models, *shape] -> the change to make to the base for the model number `task` [*shape], or without it for
    each of the models [models, *shape].

    sums: totals of `emr_sums` over whole models.
    """
    masked = masked_changes(delta)
    before, after = jnp.split(sums, 2)
    usable = jnp.isfinite(before) & jnp.isfinite(after) & (after > 0)
    factor = jnp.where(usable, before / jnp.where(usable, after, 1), 1)
    results = [factor[i] * each for i, each in enumerate(masked)]
    if task is None:
        return jnp.stack(results)
    return sum_models([jnp.where(task == i, each, 0) for i, each in enumerate(results)])
