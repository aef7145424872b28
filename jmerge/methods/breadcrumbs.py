"""Model Breadcrumbs: drop the largest changes as well as the small ones, and add up what lies between.

Davari and Belilovsky, "Model Breadcrumbs", ECCV 2024, https://arxiv.org/abs/2312.06795
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from jmerge.methods.cuts import Cut, cut_largest, is_kept
from jmerge.methods.prune import merge_kept, norm_terms, pruning_method
from jmerge.methods.spec import Density


def band(density: float, gamma: float, size: int) -> tuple[int, int]:
    """How many of the largest of `size` changes are dropped, and how many there are with those that are kept.

    Where fewer are left below the outliers than the density asks for, fewer outliers are dropped.
    """
    kept = min(max(int(density * size), 0), size)
    outliers = min(int(gamma * size), size - kept)
    return (outliers, outliers + kept) if kept else (0, 0)


def drop(
    delta: jax.Array,
    keep: Cut | Sequence[float],
    outliers: Cut | Sequence[float],
    start: jax.Array | None,
) -> jax.Array:
    """delta [models, *shape] with what is small and what is an outlier set to zero."""
    if not isinstance(keep, Cut) or not isinstance(outliers, Cut):
        assert not isinstance(keep, Cut) and not isinstance(outliers, Cut)
        size = math.prod(delta.shape[1:])
        shares = zip(keep, outliers, strict=True)
        bands = [band(float(density), float(gamma), size) for density, gamma in shares]
        outliers, keep = (cut_largest(delta, counts) for counts in zip(*bands, strict=True))
    large, largest = is_kept(delta, keep, start), is_kept(delta, outliers, start)
    chosen = [yes & ~no for yes, no in zip(large, largest, strict=True)]
    return jnp.stack([jnp.where(yes, delta[i], 0) for i, yes in enumerate(chosen)])


def breadcrumbs_sums(
    delta: jax.Array, *, keep: Cut, outliers: Cut, start: jax.Array | None = None, **_: Any
) -> tuple[jax.Array, ...]:
    """The terms of the norms that `rescale` restores."""
    return norm_terms(delta, drop(delta, keep, outliers, start))


def _counts(own: Mapping[str, float], size: int) -> tuple[int, int]:
    return band(own["density"], own["gamma"], size)


_declare = partial(
    pruning_method,
    sums=breadcrumbs_sums,
    rescale=False,
    paper="https://arxiv.org/abs/2312.06795",
    keep=Density(
        1.0,
        yaml="density",
        low=0.0,
        high=1.0,
        count=lambda own, size: _counts(own, size)[1],
        doc="share of the model's changes that is kept",
    ),
    outliers=Density(
        0.01,
        yaml="gamma",
        low=0.0,
        high=1.0,
        count=lambda own, size: _counts(own, size)[0],
        doc="share of the model's changes, the largest, that is dropped as outliers",
    ),
)


@_declare(
    "breadcrumbs",
    title="Model Breadcrumbs",
    summary=(
        "Drops of each model's changes the smallest and the few largest, and adds the rest to the base. "
        "The largest are outliers that harm other tasks, the smallest are noise."
    ),
    formula="base + lambda sum_i w_i mask_i * (x_i - base),   mask_i: neither small nor outlier",
    when="Task arithmetic with many models; density around 0.9, gamma around 0.01.",
)
def breadcrumbs(
    delta: jax.Array,
    *,
    weight: jax.Array,
    keep: Cut | Sequence[float],
    outliers: Cut | Sequence[float],
    scale: jax.Array,
    normalize: bool,
    rescale: bool,
    start: jax.Array | None = None,
    sums: jax.Array | None = None,
) -> jax.Array:
    """delta [models, *shape], weight [models], scale scalar -> the change to make to the base [*shape].

    keep, outliers: a concrete share for each model, or the cuts that follow from them (see `band`). In descending
    order, equal changes by their flat index, the outliers come first and what is kept follows.
    """
    return merge_kept(
        delta,
        drop(delta, keep, outliers, start),
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
        "Drops of each model's changes the smallest and the few largest, and adds of the rest what agrees with the "
        "sign of the weighted sum. It is TIES without the outliers."
    ),
    formula="base + lambda sum_agreeing(w_i mask_i * (x_i - base))",
    when="As breadcrumbs, where models disagree in sign.",
)
def breadcrumbs_ties(
    delta: jax.Array,
    *,
    weight: jax.Array,
    keep: Cut | Sequence[float],
    outliers: Cut | Sequence[float],
    scale: jax.Array,
    normalize: bool,
    rescale: bool,
    start: jax.Array | None = None,
    sums: jax.Array | None = None,
) -> jax.Array:
    """As `breadcrumbs`, but only changes that agree with the sign of their weighted sum are added."""
    return merge_kept(
        delta,
        drop(delta, keep, outliers, start),
        vote=True,
        weight=weight,
        scale=scale,
        normalize=normalize,
        rescale=rescale,
        sums=sums,
    )
