"""TIES: keep each model's largest changes, agree on a sign, average those that agree.

Yadav et al., "TIES-Merging", NeurIPS 2023, https://arxiv.org/abs/2306.01708
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax

from jmerge.methods.prune import masked, merge_kept, norm_terms, pruning_method
from jmerge.methods.spec import PerModel, Switch
from jmerge.methods.statistics.counts import AnyCount, kept_count
from jmerge.methods.statistics.thresholds import Threshold, change_keys, kept_changes
from jmerge.methods.statistics.topk import TopK


def density_counts(
    hyperparameters: Mapping[str, Any], size: int, found: object
) -> list[list[AnyCount]]:
    """How many of each model's changes its density keeps."""
    return [[kept_count(density, size)] for density in hyperparameters["density"]]


def drop(delta: jax.Array, keep: Threshold, start: jax.Array | None) -> jax.Array:
    """delta [models, *shape] with what is not kept set to zero."""
    return masked(delta, kept_changes(delta, keep, start))


def ties_sums(
    delta: jax.Array, *, keep: Threshold, start: jax.Array | None = None, **_: Any
) -> tuple[jax.Array, ...]:
    """The terms of the norms that `rescale` restores."""
    return norm_terms(delta, drop(delta, keep, start))


@pruning_method(
    "ties",
    before=[TopK(keyword="keep", terms=change_keys, counts=density_counts)],
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
    weight=PerModel(doc="factor of the model's change; a negative one reverses its vote"),
    density=PerModel(
        1.0,
        low=0.0,
        high=1.0,
        given=False,
        doc="share of the model's largest changes to keep",
    ),
    normalize=Switch(True, doc="divide by the weights of the models that agree"),
)
def ties(
    delta: jax.Array,
    *,
    weight: jax.Array,
    keep: Threshold,
    scale: jax.Array,
    normalize: bool,
    rescale: bool,
    start: jax.Array | None = None,
    sums: jax.Array | None = None,
) -> jax.Array:
    """delta [models, *shape], weight [models], scale scalar -> the change to make to the base [*shape].

    keep: the thresholds of the models' changes. Of a positive density at least one element is kept, of one that is not
    positive none; ties go to the lower flat index.
    """
    return merge_kept(
        drop(delta, keep, start),
        vote=True,
        weight=weight,
        scale=scale,
        normalize=normalize,
        rescale=rescale,
        sums=sums,
    )
