"""TIES: keep each model's largest changes, agree on a sign, average those that agree.

Yadav et al., "TIES-Merging", NeurIPS 2023, https://arxiv.org/abs/2306.01708
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from jmerge.methods.cuts import Cut, find_cut, is_kept, kept_count
from jmerge.methods.prune import merge_kept, norm_terms, pruning_method
from jmerge.methods.spec import Density, PerModel, Switch


def drop(delta: jax.Array, cut: Cut, start: jax.Array | None) -> jax.Array:
    """delta [models, *shape] with what the cut does not keep set to zero."""
    kept = is_kept(delta, cut, start)
    return jnp.stack([jnp.where(kept[i], delta[i], 0) for i in range(delta.shape[0])])


def ties_sums(
    delta: jax.Array, *, keep: Cut, start: jax.Array | None = None, **_: Any
) -> tuple[jax.Array, ...]:
    """The terms of the norms that `rescale` restores."""
    return norm_terms(delta, drop(delta, keep, start))


@pruning_method(
    "ties",
    sums=ties_sums,
    rescale=False,
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
        low=0.0,
        high=1.0,
        count=lambda own, size: kept_count(own["density"], size),
        doc="share of the model's largest changes that is kept",
    ),
    normalize=Switch(True, doc="divide by the weights of the models that agree"),
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
    return merge_kept(
        delta,
        drop(delta, find_cut(delta, keep), start),
        vote=True,
        weight=weight,
        scale=scale,
        normalize=normalize,
        rescale=rescale,
        sums=sums,
    )
