"""Model Breadcrumbs: drop the largest changes as well as the small ones, and add up what lies between.

Davari and Belilovsky, "Model Breadcrumbs", ECCV 2024, https://arxiv.org/abs/2312.06795
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import jax

from jmerge.methods.prune import masked, merge_kept, norm_terms, pruning_method
from jmerge.methods.spec import PerModel
from jmerge.methods.statistics.counts import AnyCount, difference, minimum, plus, share
from jmerge.methods.statistics.thresholds import Threshold, change_keys, kept_changes
from jmerge.methods.statistics.topk import TopK


def band(density: Any, gamma: Any, size: int) -> tuple[AnyCount, AnyCount]:
    """How many of the largest of `size` changes are dropped, and how many there are with those that are kept.

    Where fewer are left below the outliers than the density asks for, fewer outliers are dropped; where none are to be
    kept, all are dropped.
    """
    kept = minimum(share(density, size), size)
    outliers = minimum(share(gamma, size), difference(size, kept))
    return outliers, plus(outliers, kept)


def drop(delta: jax.Array, bands: Threshold, start: jax.Array | None) -> jax.Array:
    """delta [models, *shape] with what is small and what is an outlier set to zero."""
    largest, large = (
        kept_changes(delta, Threshold(*(part[first::2] for part in bands)), start)
        for first in (0, 1)
    )
    return masked(delta, [yes & ~no for yes, no in zip(large, largest, strict=True)])


def breadcrumbs_sums(
    delta: jax.Array, *, bands: Threshold, start: jax.Array | None = None, **_: Any
) -> tuple[jax.Array, ...]:
    """The terms of the norms that `rescale` restores."""
    return norm_terms(delta, drop(delta, bands, start))


def _bands(
    hyperparameters: Mapping[str, Any], size: int, found: object
) -> list[tuple[AnyCount, AnyCount]]:
    shares = zip(hyperparameters["density"], hyperparameters["gamma"], strict=True)
    return [band(density, gamma, size) for density, gamma in shares]


_declare = partial(
    pruning_method,
    before=[
        TopK(keyword="bands", terms=change_keys, counts=_bands),
    ],
    sums=breadcrumbs_sums,
    rescale=False,
    paper="https://arxiv.org/abs/2312.06795",
    density=PerModel(
        1.0, low=0.0, high=1.0, given=False, doc="share of the model's changes to keep"
    ),
    gamma=PerModel(
        0.01,
        low=0.0,
        high=1.0,
        given=False,
        doc="share of the model's largest changes to drop as outliers",
    ),
)


@_declare(
    "breadcrumbs",
    title="Model Breadcrumbs",
    summary=(
        "Drops the smallest and the few largest changes of each model, and adds the rest to "
        "the base. The largest changes are outliers that harm other tasks, the smallest are "
        "noise."
    ),
    formula="base + lambda sum_i w_i mask_i * (x_i - base),   mask_i: neither small nor outlier",
    when="Task arithmetic with many models; density around 0.9, gamma around 0.01.",
)
def breadcrumbs(
    delta: jax.Array,
    *,
    weight: jax.Array,
    bands: Threshold,
    scale: jax.Array,
    normalize: bool,
    rescale: bool,
    start: jax.Array | None = None,
    sums: jax.Array | None = None,
) -> jax.Array:
    """delta [models, *shape], weight [models], scale scalar -> the change to make to the base [*shape].

    bands: for each model the two thresholds of its changes that follow from `band`. In descending order, equal changes by their flat index, the outliers come first and what is kept follows.
    """
    return merge_kept(
        drop(delta, bands, start),
        vote=False,
        weight=weight,
        scale=scale,
        normalize=normalize,
        rescale=rescale,
        sums=sums,
    )


@_declare(
    "breadcrumbs_ties",
    title="Model Breadcrumbs with TIES",
    summary=(
        "Drops the smallest and the few largest changes of each model, and adds those of the "
        "rest that agree with the sign of the weighted sum. It is TIES without the outliers."
    ),
    formula="base + lambda sum_agreeing(w_i mask_i * (x_i - base))",
    when="As breadcrumbs, where models disagree in sign.",
)
def breadcrumbs_ties(
    delta: jax.Array,
    *,
    weight: jax.Array,
    bands: Threshold,
    scale: jax.Array,
    normalize: bool,
    rescale: bool,
    start: jax.Array | None = None,
    sums: jax.Array | None = None,
) -> jax.Array:
    """As `breadcrumbs`, but only changes that agree with the sign of their weighted sum are added."""
    return merge_kept(
        drop(delta, bands, start),
        vote=True,
        weight=weight,
        scale=scale,
        normalize=normalize,
        rescale=rescale,
        sums=sums,
    )
