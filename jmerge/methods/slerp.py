"""Slerp: from the base to the other model along the arc between them instead of the straight line.

Shoemake, "Animating rotation with quaternion curves", SIGGRAPH 1985; for vectors of any length.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from jmerge.methods.arc import arc_factors
from jmerge.methods.spec import Shared, merge_method
from jmerge.methods.statistics.sums import BlockSum

COLINEAR = 0.9995  # |cosine| above which the arc is a line: MergeKit's bound, recipes depend on it
NO_LENGTH = 1e-8  # a norm up to this one is taken as 1: there is no direction to turn


def slerp_sums(base: jax.Array, models: jax.Array, **_: Any) -> tuple[jax.Array, ...]:
    """base [*shape], models [1, *shape] -> the terms [*shape] of |base|^2, of |model|^2 and of their product."""
    return base * base, models[0] * models[0], base * models[0]


@merge_method(
    "slerp",
    takes="base, models",
    base="needed",
    models=(1, 1),
    statistics=(BlockSum(keyword="sums", terms=slerp_sums, short=True),),
    carries_nan=True,
    title="SLERP",
    summary=(
        "Moves from the base to one other model along the arc between them, which keeps the "
        "length of the weights where a straight line would shrink it. Nearly parallel and "
        "nearly opposite tensors are interpolated linearly."
    ),
    formula="sin((1-t) a)/sin(a) base + sin(t a)/sin(a) other,   a = angle between the two",
    when=(
        "Two models of one family; a gradient for t lets attention and MLP, early and "
        "late layers lean to different sides."
    ),
    paper="https://en.wikipedia.org/wiki/Slerp",
    t=Shared(
        doc="0 gives the base, 1 the other model; values outside [0, 1] continue along the arc"
    ),
)
def slerp(base: jax.Array, models: jax.Array, *, t: jax.Array, sums: jax.Array) -> jax.Array:
    """base [*shape], models [1, *shape], t scalar -> the tensor at the share t of the way [*shape].

    sums [3]: totals of `slerp_sums` over the whole tensor. Nearly parallel and nearly
    opposite tensors, and tensors whose squared norm is beyond the dtype, are interpolated linearly; a tensor of zeros
    counts as orthogonal to the other.
    """
    # what a branch does not use is replaced before it is computed, so that gradients stay finite
    finite = jnp.isfinite(sums).all()
    sums = jnp.where(finite, sums, 0)
    long = sums[:2] > NO_LENGTH**2
    norm = jnp.where(long, jnp.sqrt(jnp.where(long, sums[:2], 1)), 1)
    cosine = jnp.clip(sums[2] / norm[0] / norm[1], -1, 1)
    arc = finite & (jnp.abs(cosine) <= COLINEAR)
    angle = jnp.arccos(jnp.where(arc, cosine, 0))
    start, end = arc_factors(t, angle, jnp.sin(angle), arc)
    return start * base + end * models[0]
