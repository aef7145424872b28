"""Task arithmetic: the base plus the weighted sum of what each model changed.

Ilharco et al., "Editing Models with Task Arithmetic", ICLR 2023, https://arxiv.org/abs/2212.04089
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from jmerge.methods.combine import sum_models, weighted_sum
from jmerge.methods.spec import PerModel, Shared, Switch, merge_method

NO_WEIGHT = 1e-8  # a sum of weights nearer to zero than this does not normalise


@merge_method(
    "task_arithmetic",
    takes="delta",
    base="needed",
    models=(0, None),
    no_effect=("density", "int8_mask", "rescale"),
    divides=lambda hyperparameters: bool(hyperparameters["normalize"]),
    carries_nan=True,
    title="Task Arithmetic",
    summary=(
        "Adds the models' changes to the base, each multiplied by its weight. A negative "
        "weight removes an ability."
    ),
    formula=(
        "base + lambda sum_i w_i (x_i - base)   (divided by sum_i w_i when normalize is true)"
    ),
    when="Specialists fine-tuned from one base, when each should keep most of its skill.",
    paper="https://arxiv.org/abs/2212.04089",
    weight=PerModel(doc="factor of the model's change; negative forgets it"),
    scale=Shared(1.0, yaml="lambda", doc="factor of the summed change"),
    normalize=Switch(False, doc="divide by the sum of the weights"),
)
def task_arithmetic(
    delta: jax.Array, *, weight: jax.Array, scale: jax.Array, normalize: bool
) -> jax.Array:
    """delta [models, *shape], weight [models], scale scalar -> the change to make to the base [*shape]."""
    merged = weighted_sum(weight, delta)
    if normalize:
        share = sum_models(weight)
        merged = merged / jnp.where(jnp.abs(share) < NO_WEIGHT, 1, share)
    return scale * merged
