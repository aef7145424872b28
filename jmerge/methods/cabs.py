"""CABS: each model in turn keeps its largest changes among those of every block that no model before it has taken.

Yang et al., "CABS: Conflict-Aware and Balanced Sparsification", https://arxiv.org/abs/2503.01874
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from jmerge.methods.combine import sum_models
from jmerge.methods.reduce import BLOCK
from jmerge.methods.spec import PerModel, Shared, Whole, merge_method
from jmerge.methods.statistics.rows import largest_of_rows
from jmerge.methods.statistics.thresholds import magnitude_keys


def largest_of_blocks(change: jax.Array, n: jax.Array, m: int) -> jax.Array:
    """Which of the n largest of every m neighbours an element of change [*shape] is; equal ones by place."""
    shape = change.shape
    if change.ndim and shape[-1] % m == 0:
        blocks = change.reshape(*shape[:-1], -1, m)  # what lies on several devices stays there
    else:
        blocks = jnp.pad(change.reshape(-1), (0, -change.size % m)).reshape(-1, m)
    kept = largest_of_rows(magnitude_keys(blocks), n.astype(jnp.uint32))
    return (
        kept.reshape(shape)
        if kept.size == change.size
        else kept.reshape(-1)[: change.size].reshape(shape)
    )


def _check(hyperparameters: Mapping[str, Any]) -> str | None:
    n, m = hyperparameters["n"], hyperparameters["m"]
    if m < 1 or BLOCK % m:
        return f"m is the length of a block, a power of two from 1 to {BLOCK}; found {m}"
    if not float(n).is_integer() or n > m:
        return f"n is how many of a block's {m} changes each model keeps, at most that; found {n:g}"
    return None


@merge_method(
    "cabs",
    takes="delta",
    base="needed",
    models=(0, None),
    check=_check,
    title="CABS",
    summary=(
        "The models take turns: each keeps the n largest of every m neighbouring changes, "
        "where no earlier model has kept one. No two models touch the same weight, and every "
        "part of a tensor keeps the same number of changes."
    ),
    formula="base + lambda sum_i w_i top_n_of_m((x_i - base) where none of x_1 .. x_(i-1) has kept)",
    when="Two to four specialists; the one that matters most comes first.",
    paper="https://arxiv.org/abs/2503.01874",
    weight=PerModel(1.0, doc="factor of the model's change"),
    n=Shared(64.0, low=0.0, high=BLOCK, doc="changes that a model keeps in each block"),
    m=Whole(256, low=1, high=BLOCK, doc="length of a block, a power of two"),
    scale=Shared(1.0, yaml="lambda", doc="factor of the merged change"),
)
def cabs(
    delta: jax.Array, *, weight: jax.Array, n: jax.Array, m: int, scale: jax.Array
) -> jax.Array:
    """delta [models, *shape], weight [models], n and scale scalars -> the change to make to the base [*shape].

    Blocks are m neighbours in memory, the last may be shorter; a change of zero is not kept and bars nobody.
    """
    if delta.shape[0] == 0:
        return jnp.zeros(delta.shape[1:], delta.dtype)
    free = jnp.ones(delta.shape[1:], bool)
    kept = []
    for i in range(delta.shape[0]):
        change = jnp.where(free, delta[i], 0)
        mine = largest_of_blocks(change, n, m)
        kept.append(weight[i] * jnp.where(mine, change, 0))
        free = free & ~(mine & (change != 0))
    return scale * sum_models(kept)
