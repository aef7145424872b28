"""Passthrough: one model's tensor as it is, or times a number; stacks of layers ("frankenmerges") are made of it."""

from __future__ import annotations

import jax

from jmerge.methods.spec import PerModel, merge_method


@merge_method(
    "passthrough",
    takes="models",
    models=(1, 1),
    copies=lambda hyperparameters: hyperparameters["scale"] is None,
    carries_nan=True,
    title="Passthrough",
    summary=(
        "Copies the tensors of one model, optionally scaled. With slices, it stacks layers of "
        "one or several models into a deeper one."
    ),
    formula="x, or scale x",
    when=(
        "Frankenmerges, pruned models, copying with another dtype; scale 0 on o_proj "
        "and down_proj silences a layer."
    ),
    scale=PerModel(None, doc="factor; unset: the tensor is copied bit for bit"),
)
def passthrough(models: jax.Array, *, scale: jax.Array | None) -> jax.Array:
    """models [1, *shape], scale [1] or None -> the only model, scaled [*shape]."""
    return models[0] if scale is None else scale[0] * models[0]
