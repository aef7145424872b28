"""Consensus task arithmetic: of the sum of all changes, keep what several models want.

Wang et al., "Localizing Task Information for Improved Model Merging and Compression", ICML 2024,
https://arxiv.org/abs/2405.07813
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from jmerge.methods.combine import sum_models
from jmerge.methods.spec import PerModel, Shared, merge_method


@merge_method(
    "consensus",
    takes="delta",
    base="needed",
    models=(0, None),
    title="Consensus Task Arithmetic",
    summary=(
        "Adds up all changes and keeps the elements that at least k models need, according to "
        "their TALL masks. Changes that serve only one task, or no task, are left out."
    ),
    formula="base + lambda [at least k of |d_i| > mask_i |s - d_i|] s,   d_i = x_i - base,   s = sum_i d_i",
    when="Many specialists of one base, to keep what is common; lambda 0.2 to 0.5.",
    paper="https://arxiv.org/abs/2405.07813",
    mask=PerModel(
        0.4,
        low=0.0,
        doc="a model needs an element when its change exceeds this share of the others'",
    ),
    k=Shared(2.0, low=0.0, doc="how many models must need an element; never more than there are"),
    scale=Shared(1.0, yaml="lambda", doc="factor of the merged change"),
)
def consensus(delta: jax.Array, *, mask: jax.Array, k: jax.Array, scale: jax.Array) -> jax.Array:
    """delta [models, *shape], mask [models], k and scale scalars -> the change to make to the base [*shape]."""
    count = delta.shape[0]
    if count == 0:
        return jnp.zeros(delta.shape[1:], delta.dtype)
    added = sum_models(delta)
    needs = [jnp.abs(delta[i]) > mask[i] * jnp.abs(added - delta[i]) for i in range(count)]
    needed_by = sum_models([each.astype(delta.dtype) for each in needs])
    return scale * jnp.where(needed_by >= jnp.minimum(k, count), added, 0)
