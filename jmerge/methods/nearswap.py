"""NearSwap: towards the other model where the two are close, the base where they differ much.

QuartetAnemoi-70B, https://huggingface.co/alchemonaut/QuartetAnemoi-70B-t0.0001
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from jmerge.methods.spec import Shared, merge_method

LEAST_DISTANCE = 1e-6  # what divides t is at least this: MergeKit's bound


@merge_method(
    "nearswap",
    takes="base, models",
    base="needed",
    models=(1, 1),
    title="NearSwap",
    summary=(
        "Takes each weight of the other model where it is within t of the base's, and less of "
        "it the further apart the two are. Where they differ a lot, the base stays."
    ),
    formula="g x + (1 - g) base,   g = min(t / |x - base|, 1)",
    when="A base that should take on the fine detail of another model without its large changes.",
    paper="https://huggingface.co/alchemonaut/QuartetAnemoi-70B-t0.0001",
    t=Shared(
        doc=(
            "distance up to which the other model's weight is taken in full; a negative value "
            "gives the base"
        )
    ),
)
def nearswap(base: jax.Array, models: jax.Array, *, t: jax.Array) -> jax.Array:
    """base [*shape], models [1, *shape], t scalar -> the tensor between them [*shape]."""
    other = models[0]
    share = jnp.clip(t / jnp.maximum(jnp.abs(base - other), LEAST_DISTANCE), 0, 1)
    return share * other + (1 - share) * base
