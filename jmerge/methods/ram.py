"""RAM: changes that one model alone made are kept whole, changes that several made are averaged.

Yuan et al., "Reinforced Agent Merging", https://arxiv.org/abs/2601.13572
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from jmerge.methods.combine import sum_models
from jmerge.methods.spec import Shared, merge_method
from jmerge.methods.statistics.sums import BlockSum

EPSILON = Shared(1e-5, low=0.0, doc="changes up to this size do not count")


def split(delta: jax.Array, epsilon: jax.Array) -> tuple[list[jax.Array], jax.Array]:
    """delta [models, *shape] -> where each model changed something, and how many did [*shape]."""
    active = [jnp.abs(delta[i]) > epsilon for i in range(delta.shape[0])]
    return active, sum_models([each.astype(delta.dtype) for each in active])


@merge_method(
    "ram",
    takes="delta",
    base="needed",
    models=(0, None),
    title="Reinforced Agent Merging",
    summary=(
        "Keeps a change that only one model made, and averages changes that several models "
        "made. Models that left a weight alone do not dilute what another model learned "
        "there."
    ),
    formula="base + sum_i active_i (x_i - base) / max(1, sum_j active_j),   active_i = [|x_i - base| > epsilon]",
    when="Models trained by reinforcement learning, whose changes are sparse and seldom meet.",
    paper="https://arxiv.org/abs/2601.13572",
    epsilon=EPSILON,
)
def ram(delta: jax.Array, *, epsilon: jax.Array) -> jax.Array:
    """delta [models, *shape], epsilon scalar -> the change to make to the base [*shape]."""
    active, count = split(delta, epsilon)
    count = jnp.maximum(count, 1)
    return sum_models([jnp.where(each, delta[i], 0) / count for i, each in enumerate(active)])


def ramplus_sums(delta: jax.Array, *, epsilon: jax.Array, **_: Any) -> tuple[jax.Array, ...]:
    """The terms [*shape] of how many changes each model shares with others, then of how many it made alone."""
    active, count = split(delta, epsilon)
    shared = [(each & (count > 1)).astype(delta.dtype) for each in active]
    alone = [(each & (count == 1)).astype(delta.dtype) for each in active]
    return (*shared, *alone)


@merge_method(
    "ramplus_tl",
    takes="delta",
    base="needed",
    models=(0, None),
    statistics=(BlockSum(keyword="sums", terms=ramplus_sums),),
    title="Reinforced Agent Merging Plus",
    summary=(
        "Like ram, but scales up a model's own changes, the more of its other changes are "
        "shared. That compensates for what averaging took from the model."
    ),
    formula="as ram, with the changes of model i alone times 1 + r min(alpha, shared_i / alone_i)",
    when="As ram, when the averaged changes make the merged model weaker than its parts.",
    paper="https://arxiv.org/abs/2601.13572",
    r=Shared(0.1, doc="how much a model's own changes are scaled up"),
    alpha=Shared(0.2, low=0.0, doc="limit on the ratio of shared to own changes"),
    epsilon=EPSILON,
)
def ramplus_tl(
    delta: jax.Array,
    *,
    r: jax.Array,
    alpha: jax.Array,
    epsilon: jax.Array,
    sums: jax.Array,
) -> jax.Array:
    """delta [models, *shape]; r, alpha, epsilon scalars -> the change to make to the base [*shape].

    sums [2 models]: totals of `ramplus_sums` over the whole tensor.
    """
    shared, alone = jnp.split(sums, 2)
    factor = 1 + r * jnp.clip(shared / jnp.maximum(alone, epsilon), 0, alpha)
    active, count = split(delta, epsilon)
    parts = []
    for i, each in enumerate(active):
        change = jnp.where(count > 1, delta[i] / jnp.maximum(count, 1), factor[i] * delta[i])
        parts.append(jnp.where(each, change, 0))
    return sum_models(parts)
