"""Localize-and-Stitch without data: the largest changes of each whole model, averaged where several claim a weight.

He et al., "Localize-and-Stitch", TMLR 2025, https://arxiv.org/abs/2408.13656
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from jmerge.methods.combine import sum_models
from jmerge.methods.spec import PerModel, merge_method
from jmerge.methods.statistics.thresholds import Threshold, change_keys, kept_changes
from jmerge.methods.statistics.topk import TopK
from jmerge.methods.ties import density_counts


@merge_method(
    "localize_stitch",
    takes="delta",
    base="needed",
    models=(0, None),
    statistics=(TopK(keyword="keep", terms=change_keys, counts=density_counts, scope="model"),),
    title="Localize-and-Stitch",
    summary=(
        "For each model, keeps the few largest changes of the whole model, and combines them. "
        "A weight that several models changed gets the mean of their changes."
    ),
    formula="base + sum_i m_i d_i / max(1, sum_i m_i),   m_i = [d_i among the density largest of the whole model]",
    when="Specialists whose skills sit in few weights; density 0.01 to 0.1.",
    paper="https://arxiv.org/abs/2408.13656",
    density=PerModel(
        0.05,
        low=0.0,
        high=1.0,
        even=True,
        given=False,
        doc="share of the whole model's largest changes to keep",
    ),
)
def localize_stitch(
    delta: jax.Array, *, keep: Threshold, start: jax.Array | None = None
) -> jax.Array:
    """delta [models, *shape] -> the change to make to the base [*shape].

    keep: the thresholds of the changes of whole models. A change of zero claims nothing.
    """
    if delta.shape[0] == 0:
        return jnp.zeros(delta.shape[1:], delta.dtype)
    kept = kept_changes(delta, keep, start)
    claims = [kept[i] & (delta[i] != 0) for i in range(delta.shape[0])]
    added = sum_models([jnp.where(each, delta[i], 0) for i, each in enumerate(claims)])
    return added / jnp.maximum(sum_models([each.astype(delta.dtype) for each in claims]), 1)
