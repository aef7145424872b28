"""TIES: keep each model's largest changes, agree on a sign, average those that agree.

Yadav et al., "TIES-Merging", NeurIPS 2023, https://arxiv.org/abs/2306.01708
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from jmerge.methods.combine import sign_consensus
from jmerge.methods.cuts import Cut, find_cut, is_kept, kept_count
from jmerge.methods.prune import norm_terms, restore_norm
from jmerge.methods.spec import Density, PerModel, Shared, Switch, merge_method


def drop(delta: jax.Array, cut: Cut, start: jax.Array | None) -> jax.Array:
    """delta [models, *shape] with what the cut does not keep set to zero."""
    kept = is_kept(delta, cut, start)
    return jnp.stack([jnp.where(kept[i], delta[i], 0) for i in range(delta.shape[0])])


def ties_sums(
    delta: jax.Array, *, keep: Cut, rescale: bool, start: jax.Array | None = None, **_: Any
) -> tuple[jax.Array, ...]:
    """The terms of the norms that `rescale` restores; none without it."""
    if not rescale:
        return ()
    return norm_terms(delta, drop(delta, keep, start))


@merge_method(
    "ties",
    takes="delta",
    base="needed",
    models=(0, None),
    sums=ties_sums,
    sums_when=lambda numbers: numbers["rescale"],
    no_effect=("int8_mask",),
    title="TIES",
    summary=(
        "Keeps the largest changes of each model, lets the models vote on the sign of "
        "every element, and averages those that agree. Small and conflicting changes no "
        "longer cancel what matters."
    ),
    formula=(
        "base + lambda mean_agreeing(w_i trim_i(x_i - base)),   sign = that of the weighted sum"
    ),
    when=(
        "Three or more specialists of one base that get in each other's way under task "
        "arithmetic; density 0.2 to 0.6."
    ),
    paper="https://arxiv.org/abs/2306.01708",
    weight=PerModel(doc="factor of the model's change; a negative one turns its vote"),
    keep=Density(
        1.0,
        yaml="density",
        count=lambda own, size: kept_count(own["density"], size),
        doc="share of the model's largest changes that is kept",
    ),
    scale=Shared(1.0, yaml="lambda", doc="factor of the merged change"),
    normalize=Switch(True, doc="divide by the weights of the models that agree"),
    rescale=Switch(False, doc="restore each model's L1 norm after dropping"),
)
def ties(
    delta: jax.Array,
    *,
    weight: jax.Array,
    keep: Cut | Sequence[float],
    scale: jax.Array,
    normalize: bool,
    rescale: bool,
    start: jax.Array | None = None,
    sums: jax.Array | None = None,
) -> jax.Array:
    """delta [models, *shape], weight [models], scale scalar -> the change to make to the base [*shape].

    keep: a concrete share for each model, or the cut that follows from it. Of a positive share at least one element
    is kept, of one that is not positive none; ties go to the lower flat index.
    """
    kept = drop(delta, find_cut(delta, keep), start)
    if rescale:
        kept = restore_norm(delta, kept, sums)
    return scale * sign_consensus(weight, kept, normalize=normalize)
