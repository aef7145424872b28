"""What the sparsifying methods share: dropping elements of a change, and giving back the norm it had."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from jmerge.methods.reduce import total

NO_NORM = 1e-7  # an L1 norm below this is not restored: MergeKit's bound


def norm_terms(delta: jax.Array, kept: jax.Array) -> tuple[jax.Array, ...]:
    """delta, kept [models, *shape] -> the terms [*shape] of the L1 norms before, then after, one for each model."""
    return tuple(abs(part) for group in (delta, kept) for part in group)


def restore_norm(delta: jax.Array, kept: jax.Array, sums: jax.Array | None) -> jax.Array:
    """kept [models, *shape] times what restores each model's L1 norm, as it was before elements were dropped.

    sums [2 models]: totals of `norm_terms` over the whole tensor; added up here when not given. DARE's paper
    divides by the density instead, which this equals on average.
    """
    if sums is None:
        sums = total(norm_terms(delta, kept))
    before, after = jnp.split(sums, 2)
    usable = jnp.minimum(before, after) >= NO_NORM
    factor = jnp.where(usable, before / jnp.where(usable, after, 1), 1)
    return jnp.stack([factor[i] * kept[i] for i in range(kept.shape[0])])
