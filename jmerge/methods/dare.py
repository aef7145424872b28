"""DARE: drop changes at random and make up for it; then add them up, or let them agree on a sign first.

Yu et al., "Language Models are Super Mario", ICML 2024, https://arxiv.org/abs/2311.03099
"""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from jmerge.methods.prune import Rescale, masked, merge_kept, norm_terms, pruning_method
from jmerge.methods.random import uniform
from jmerge.methods.spec import PerModel


def draw(
    delta: jax.Array,
    *,
    density: jax.Array,
    keys: jax.Array,
    start: jax.Array | None = None,
    **_: Any,
) -> list[jax.Array]:
    """Which elements of delta [models, *shape] are kept of each model [*shape]: each with probability density [models]."""
    chance = density.astype(jnp.float32)
    numbers = [uniform(key, delta.shape[1:], start) for key in keys]
    return [number < chance[i] for i, number in enumerate(numbers)]


def dare_sums(delta: jax.Array, *, masks: list[jax.Array], **_: Any) -> tuple[jax.Array, ...]:
    """The terms of the norms that `rescale` restores."""
    return norm_terms(delta, masked(delta, masks))


_declare = partial(
    pruning_method,
    sums=dare_sums,
    rescale=True,
    draws=draw,
    paper="https://arxiv.org/abs/2311.03099",
    density=PerModel(1.0, low=0.0, high=1.0, doc="probability that a change is kept"),
)


@_declare(
    "dare_linear",
    title="Linear DARE",
    summary=(
        "Drops changes at random, restores the norm of what is left, and adds them to "
        "the base. Fine-tuning changes are redundant, so most can go."
    ),
    formula=("base + lambda sum_i w_i restore(mask_i * (x_i - base)),   mask_i = [u < density_i]"),
    when=(
        "Many fine-tunes of one base with small changes; low densities keep them out of "
        "each other's way."
    ),
)
def dare_linear(
    delta: jax.Array,
    *,
    weight: jax.Array,
    density: jax.Array,
    scale: jax.Array,
    normalize: bool,
    rescale: Rescale,
    keys: jax.Array,
    start: jax.Array | None = None,
    masks: list[jax.Array] | None = None,
    sums: jax.Array | None = None,
) -> jax.Array:
    """delta [models, *shape], weight and density [models], keys uint32 [models, 2] -> the change [*shape].

    Each model's elements are dropped independently by `methods.random.uniform`; the rest as in task arithmetic. masks:
    what `draw` gives, where that is known.
    """
    if masks is None:
        masks = draw(delta, density=density, keys=keys, start=start)
    return merge_kept(
        masked(delta, masks),
        vote=False,
        weight=weight,
        scale=scale,
        normalize=normalize,
        rescale=rescale,
        sums=sums,
        chances=lambda: list(density),
    )


@_declare(
    "dare_ties",
    title="DARE TIES",
    summary=(
        "Drops changes at random and restores their norm as DARE does, then adds only "
        "those that agree with the sign of their weighted sum. It is TIES with a random "
        "choice in place of the largest."
    ),
    formula="base + lambda sum_agreeing(w_i restore(mask_i * (x_i - base)))",
    when="The usual choice for three or more fine-tunes of one base; density around 0.5.",
)
def dare_ties(
    delta: jax.Array,
    *,
    weight: jax.Array,
    density: jax.Array,
    scale: jax.Array,
    normalize: bool,
    rescale: Rescale,
    keys: jax.Array,
    start: jax.Array | None = None,
    masks: list[jax.Array] | None = None,
    sums: jax.Array | None = None,
) -> jax.Array:
    """As `dare_linear`, but only changes that agree with the sign of their weighted sum are added."""
    if masks is None:
        masks = draw(delta, density=density, keys=keys, start=start)
    return merge_kept(
        masked(delta, masks),
        vote=True,
        weight=weight,
        scale=scale,
        normalize=normalize,
        rescale=rescale,
        sums=sums,
        chances=lambda: list(density),
    )
