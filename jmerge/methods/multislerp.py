"""Multi-SLERP: the weighted mean of the models' directions, at the weighted mean of their lengths.

Goddard, https://goddard.blog/posts/multislerp-wow-what-a-cool-idea/; the barycentre is the projection of the
Euclidean one, from which the way back to the sphere is the direction itself.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from jmerge.methods.combine import cancel, sum_models, weighted_sum
from jmerge.methods.gram import gram_matrix, gram_sums, lengths_of, product
from jmerge.methods.spec import PerModel, Shared, Switch, merge_method

# Of the squared length that the mean direction could have, what rounding leaves where directions cancel.
NO_DIRECTION = 1e-6


def _check(hyperparameters: Mapping[str, Any]) -> str | None:
    if (
        hyperparameters["normalize_weights"]
        and len(hyperparameters["weight"]) > 1
        and cancel(hyperparameters["weight"])
    ):
        return "the weights sum to zero, so they have no mean; set normalize_weights: false or other weights"
    return None


@merge_method(
    "multislerp",
    takes="delta",
    base="optional",
    models=(1, None),
    statistics=(gram_sums(),),
    check=_check,
    divides=lambda hyperparameters: bool(hyperparameters["normalize_weights"]),
    carries_nan=True,
    unnormalised=lambda hyperparameters, models: (
        models > 1 and not hyperparameters["normalize_weights"]
    ),
    title="Multi-SLERP",
    summary=(
        "Averages the directions of any number of models, and their lengths separately. With "
        "a base, it averages the changes from the base in this way."
    ),
    formula="cos(eps) d / |d| sum_i w_i |x_i|,   d = sum_i w_i x_i / (|x_i| + eps)   (of x_i - base, plus base, with a base)",
    when="Slerp for more than two models, when averaging makes the weights too small.",
    paper="https://goddard.blog/posts/multislerp-wow-what-a-cool-idea/",
    weight=PerModel(doc="share of the model"),
    normalize_weights=Switch(True, doc="divide the weights by their sum"),
    eps=Shared(
        1e-8, low=0.0, doc="added to lengths; a mean direction shorter than this counts as zero"
    ),
)
def multislerp(
    vectors: jax.Array,
    *,
    weight: jax.Array,
    normalize_weights: bool,
    eps: jax.Array,
    sums: jax.Array,
) -> jax.Array:
    """vectors [models, *shape], weight [models], eps scalar -> their mean on the sphere, at their mean length.

    vectors: whole models, or their changes from a base. One alone comes back as it is. Where the directions cancel,
    or lengths are beyond the dtype, the result is the weighted sum. sums: totals of `gram_terms` over the
    whole tensor.
    """
    if vectors.shape[0] == 1:
        return vectors[0]
    if normalize_weights:
        weight = weight / sum_models(weight)
    gram, finite = gram_matrix(vectors, sums)
    length = lengths_of(gram)
    share = weight / (length + eps)
    square = product(product(gram, share), share)
    least = jnp.maximum(eps * eps, NO_DIRECTION * sum_models(jnp.abs(share * length)) ** 2)
    usable = finite & (square >= least) & (square > 0)
    norm = jnp.sqrt(jnp.where(usable, square, 1))
    # the way along the sphere from the mean direction to itself is none but for eps
    scale = sum_models(weight * length) * jnp.cos(eps) / norm
    factors = jnp.where(usable, scale * share, weight)
    return weighted_sum(factors, vectors)
