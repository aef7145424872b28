"""Linear: the weighted mean of the models ("model soup").

Wortsman et al., "Model soups", ICML 2022, https://arxiv.org/abs/2203.05482
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax

from jmerge.methods.combine import cancel, sum_models, weighted_sum
from jmerge.methods.spec import PerModel, Switch, merge_method


def _check(hyperparameters: Mapping[str, Any]) -> str | None:
    if hyperparameters["normalize"] and cancel(hyperparameters["weight"]):
        return (
            "the weights sum to zero, so they have no mean; set normalize: false or other weights"
        )
    return None


@merge_method(
    "linear",
    takes="models",
    check=_check,
    divides=lambda hyperparameters: bool(hyperparameters["normalize"]),
    carries_nan=True,
    unnormalised=lambda hyperparameters, models: not hyperparameters["normalize"],
    title="Linear",
    summary=(
        "The weighted mean of the models, tensor by tensor. With one weight for all it "
        "is the model soup of the paper."
    ),
    formula="sum_i w_i x_i / sum_i w_i   (without the division when normalize is false)",
    when=(
        "Fine-tunes of one base that share a task, or checkpoints of one training run; "
        "the safest first try."
    ),
    paper="https://arxiv.org/abs/2203.05482",
    weight=PerModel(doc="share of the model; any number, negative too"),
    normalize=Switch(True, doc="divide by the sum of the weights"),
)
def linear(models: jax.Array, *, weight: jax.Array, normalize: bool) -> jax.Array:
    """models [models, *shape], weight [models] -> their weighted mean [*shape], or weighted sum.

    The weights are divided before the models are multiplied, so a mean never overflows. Weights that sum to zero
    have no mean: the result is then not finite.
    """
    if normalize:
        weight = weight / sum_models(weight)
    return weighted_sum(weight, models)
