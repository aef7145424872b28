"""Localize-and-Stitch without data: the largest changes of each whole model, averaged where several claim a weight.

He et al., "Localize-and-Stitch", TMLR 2025, https://arxiv.org/abs/2408.13656
"""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from jmerge.methods.combine import sum_models
from jmerge.methods.cuts import Cut, find_cut, is_kept, kept_count
from jmerge.methods.spec import Density, merge_method


@merge_method(
    "localize_stitch",
    takes="delta",
    base="needed",
    models=(0, None),
    density_scope="model",
    title="Localize-and-Stitch",
    summary=(
        "Keeps of each model the few changes that are largest in the whole model, and puts them side by side. "
        "Where several models claim a weight, it gets the mean of their changes."
    ),
    formula="base + sum_i m_i d_i / max(1, sum_i m_i),   m_i = [d_i among the density largest of the whole model]",
    when="Specialists whose skills sit in few weights; density 0.01 to 0.1.",
    paper="https://arxiv.org/abs/2408.13656",
    keep=Density(
        0.05,
        yaml="density",
        low=0.0,
        high=1.0,
        even=True,
        count=lambda own, size: kept_count(own["density"], size),
        doc="share of the whole model's changes, the largest, that is kept",
    ),
)
def localize_stitch(
    delta: jax.Array, *, keep: Cut | Sequence[float], start: jax.Array | None = None
) -> jax.Array:
    """delta [models, *shape] -> the change to make to the base [*shape].

    keep: a concrete share for each model, or the cut that follows from it over whole models. A change of zero claims
    nothing.
    """
    if delta.shape[0] == 0:
        return jnp.zeros(delta.shape[1:], delta.dtype)
    kept = is_kept(delta, find_cut(delta, keep), start)
    claims = [kept[i] & (delta[i] != 0) for i in range(delta.shape[0])]
    added = sum_models([jnp.where(each, delta[i], 0) for i, each in enumerate(claims)])
    return added / jnp.maximum(sum_models([each.astype(delta.dtype) for each in claims]), 1)
