"""What the sparsifying methods share: their declaration, and what becomes of changes once elements are dropped."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp

from jmerge.methods.combine import sign_consensus
from jmerge.methods.spec import (
    Function,
    Parameter,
    PerModel,
    Shared,
    Switch,
    merge_method,
)
from jmerge.methods.statistics.fold import Statistic
from jmerge.methods.statistics.rows import Masks
from jmerge.methods.statistics.sums import BlockSum
from jmerge.methods.task_arithmetic import task_arithmetic

Rescale = bool | Literal["chance"]

NO_NORM = 1e-7  # an L1 norm below this is not restored: MergeKit's bound


def norm_terms(delta: jax.Array, kept: jax.Array) -> tuple[jax.Array, ...]:
    """delta, kept [models, *shape] -> the terms [*shape] of the L1 norms before, then after, one for each model."""
    return tuple(abs(part) for group in (delta, kept) for part in group)


def masked(delta: jax.Array, masks: Sequence[jax.Array]) -> jax.Array:
    """delta [models, *shape] with zeros where the mask of a model, of as many elements, is false."""
    # model by model: XLA fuses a stack of results into their uses, but not a computation on a stack
    kept = [jnp.where(mask.reshape(delta.shape[1:]), delta[i], 0) for i, mask in enumerate(masks)]
    return jnp.stack(kept) if kept else delta


def restore_norm(kept: jax.Array, sums: jax.Array) -> jax.Array:
    """kept [models, *shape] times what restores each model's L1 norm, as it was before elements were dropped.

    sums [2 models]: totals of `norm_terms` over the whole tensor. For DARE it is on average what `by_chance` does.
    """
    before, after = jnp.split(sums, 2)
    usable = jnp.minimum(before, after) >= NO_NORM
    factor = jnp.where(usable, before / jnp.where(usable, after, 1), 1)
    return jnp.stack([factor[i] * kept[i] for i in range(kept.shape[0])])


def by_chance(kept: jax.Array, chances: Sequence[jax.Array]) -> jax.Array:
    """kept [models, *shape] divided by the chance that each element had to be kept, which makes its mean what it was."""
    divided = [
        kept[i] / jnp.where(chance > 0, chance, 1).astype(kept.dtype)
        for i, chance in enumerate(chances)
    ]
    return jnp.stack(divided) if divided else kept


def merge_kept(
    kept: jax.Array,
    *,
    vote: bool,
    weight: jax.Array,
    scale: jax.Array,
    normalize: bool,
    rescale: Rescale,
    sums: jax.Array | None,
    chances: Callable[[], Sequence[jax.Array]] | None = None,
) -> jax.Array:
    """The change to make to the base [*shape], from what was kept of the models' changes [models, *shape].

    With `vote` only what agrees with the sign of the weighted sum is added; sums as in `restore_norm`. chances: of each
    model's elements to be kept, for methods that draw them.
    """
    if rescale == "chance":
        assert chances is not None
        kept = by_chance(kept, chances())
    elif rescale:
        assert sums is not None
        kept = restore_norm(kept, sums)
    if vote:
        return scale * sign_consensus(weight, kept, normalize=normalize)
    return task_arithmetic(kept, weight=weight, scale=scale, normalize=normalize)


def pruning_method(
    name: str,
    *,
    sums: Callable[..., Sequence[jax.Array]],
    rescale: bool,
    draws: Callable[..., Sequence[jax.Array]] | None = None,
    before: Sequence[Statistic] = (),
    weight: Parameter = PerModel(doc="factor of the model's change"),  # noqa: B008  (frozen)
    normalize: Parameter = Switch(  # noqa: B008
        False, doc="divide by the sum of the weights (of those that agree)"
    ),
    **rest: Any,
) -> Callable[[Function], Function]:
    """`merge_method` for a method that ends with `merge_kept`.

    sums: the terms of the norms that rescaling restores, see `norm_terms`; rescale, normalize: by default;
    draws: for methods that keep elements by chance, which they keep of each model; before: statistics that it needs first;
    rest: its texts and its own parameters.
    """
    return merge_method(
        name,
        takes="delta",
        base="needed",
        models=(0, None),
        statistics=(
            *before,
            # drawn once, and not once more for the result
            *([Masks(keyword="masks", terms=draws, when=_restores)] if draws else []),
            BlockSum(keyword="sums", terms=sums, when=_restores),
        ),
        no_effect=("int8_mask",),
        divides=lambda hyperparameters: bool(hyperparameters["normalize"]),
        weight=weight,
        **rest,
        scale=Shared(1.0, yaml="lambda", doc="factor of the merged change"),
        normalize=normalize,
        rescale=Switch(
            rescale,
            words=("norm", "chance") if draws else ("norm",),
            doc="restore each model's L1 norm after dropping",
        ),
    )


def _restores(hyperparameters: Mapping[str, Any]) -> bool:
    return hyperparameters["rescale"] not in (False, "chance")
