"""NuSLERP: from one model to another along an arc, whole tensors or row by row, or their changes from a base.

As slerp (Shoemake, SIGGRAPH 1985), with weights in place of a share and a choice of what turns as one vector.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from jmerge.methods.arc import arc_factors
from jmerge.methods.gram import gram_matrix, gram_sums, lengths_of, root
from jmerge.methods.reduce import along
from jmerge.methods.spec import PerModel, Switch, Unit, merge_method

NO_WEIGHT = 1e-6  # a sum of weights nearer to zero than this: half of each
NO_LENGTH = 1e-7  # lengths are at least this
OPPOSITE = (
    1e-6  # 1 - cosine^2 up to which opposite vectors count as a line: the arc is not defined there
)


def _unit(hyperparameters: Mapping[str, Any]) -> Unit:
    if hyperparameters["nuslerp_flatten"]:
        return "element"
    return "whole" if hyperparameters["nuslerp_row_wise"] else "last"


@merge_method(
    "nuslerp",
    takes="delta",
    base="optional",
    models=(2, 2),
    statistics=(
        gram_sums(
            when=lambda hyperparameters: hyperparameters["nuslerp_flatten"],
        ),
    ),
    unit=_unit,
    divides=lambda hyperparameters: True,
    title="NuSLERP",
    summary=(
        "Moves along the arc from the first model to the second, by the second's share of the "
        "weights. With a base, it turns the models' changes from it; without "
        "flattening, every row or column separately."
    ),
    formula="sin((1-t) a)/sin(a) x_1 + sin(t a)/sin(a) x_2,   t = w_2 / (w_1 + w_2)",
    when="Slerp with weights; two fine-tunes of one base, when their changes should keep their size.",
    weight=PerModel(doc="share of the model"),
    nuslerp_flatten=Switch(True, doc="turn the whole tensor as one vector"),
    nuslerp_row_wise=Switch(
        False,
        doc="without flattening: vectors along the first axis instead of the last (MergeKit's name for it)",
    ),
)
def nuslerp(
    vectors: jax.Array,
    *,
    weight: jax.Array,
    nuslerp_flatten: bool,
    nuslerp_row_wise: bool,
    sums: jax.Array | None = None,
) -> jax.Array:
    """vectors [2, *shape], weight [2] -> the tensor between them [*shape].

    vectors: whole models, or their changes from a base. Nearly parallel and nearly opposite vectors, and those whose
    squared length is beyond the dtype, are interpolated linearly. sums: totals of `gram_terms` over the whole
    tensor.
    """
    one, two = vectors
    if nuslerp_flatten:
        assert sums is not None
        gram, finite = gram_matrix(vectors, sums)
        first, second = jnp.maximum(lengths_of(gram), NO_LENGTH)
        cosine = gram[0, 1] / first / second
        apart, together = root(2 - 2 * cosine), root(2 + 2 * cosine)
    else:
        axis = 0 if nuslerp_row_wise else -1
        squares = [along(vector * vector, axis) for vector in (one, two)]
        finite = jnp.isfinite(squares[0] + squares[1])
        lengths = [jnp.maximum(root(jnp.where(finite, each, 0)), NO_LENGTH) for each in squares]
        units = [
            jnp.where(finite, vector / length, 0)
            for vector, length in zip(vectors, lengths, strict=True)
        ]
        apart, together = (
            root(along(each * each, axis)) for each in (units[0] - units[1], units[0] + units[1])
        )
    # |u - v| and |u + v| of unit vectors give the angle between them where its cosine would not; zeros: a right angle
    square = apart * apart + together * together
    sine = 2 * apart * together / jnp.where(square > 0, square, 1)
    angle = 2 * jnp.arctan2(apart, jnp.where(together > 0, together, 1))
    arc = finite & (sine * sine > jnp.where(together < apart, OPPOSITE, 0))
    total = weight[0] + weight[1]
    some = jnp.abs(total) >= NO_WEIGHT
    t = jnp.where(some, weight[1] / jnp.where(some, total, 1), 0.5)
    start, end = arc_factors(t, angle, sine, arc)
    between: jax.Array = start * one + end * two
    return between
