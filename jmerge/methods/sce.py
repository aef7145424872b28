"""SCE: select the elements that vary most, calculate how much each model counts, erase what is in the minority.

Wan et al., "FuseChat", https://arxiv.org/abs/2408.07990
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jmerge.methods.combine import sum_models
from jmerge.methods.spec import Shared, merge_method
from jmerge.methods.statistics.counts import AnyCount, as_count, choose, is_traced, share
from jmerge.methods.statistics.sums import BlockSum
from jmerge.methods.statistics.thresholds import Threshold, is_kept, magnitude_keys
from jmerge.methods.statistics.topk import TopK

EVEN = 1e-6  # mean squares that sum to less than this: all models count alike
LEAST_SHARE = 1e-6  # the weights that agree count as this much at least


def variance(delta: jax.Array) -> jax.Array:
    """The population variance [*shape] of delta [models, *shape]; exactly zero where all are equal."""
    count = delta.shape[0]
    mean = sum_models(delta) / count
    squares = sum_models([(delta[i] - mean) ** 2 for i in range(count)]) / count
    varies = [delta[i] != delta[0] for i in range(count)]
    differ: jax.Array = sum_models([each.astype(delta.dtype) for each in varies]) > 0
    # what varies, but by so little that its square is zero, still varies
    return jnp.where(differ, jnp.maximum(squares, np.finfo(delta.dtype).tiny), 0)


def varied_terms(delta: jax.Array, **_: Any) -> list[jax.Array]:
    """Ones where the models differ, else zeros."""
    return [(variance(delta) > 0).astype(delta.dtype)]


def variance_keys(delta: jax.Array, **_: Any) -> list[jax.Array]:
    """The variances in the form in which they are selected."""
    return [magnitude_keys(variance(delta))]


def square_terms(
    delta: jax.Array, *, chosen: Threshold | None = None, start: jax.Array | None = None, **_: Any
) -> list[jax.Array]:
    """The squares [*shape] of each model's selected changes."""
    selected = select(delta, chosen, start)
    return [selected[i] * selected[i] for i in range(delta.shape[0])]


def select(delta: jax.Array, chosen: Threshold | None, start: jax.Array | None) -> jax.Array:
    """delta [models, *shape] with zeros where the variance is below the threshold; all of it without one."""
    if chosen is None:
        return delta
    keep = is_kept(magnitude_keys(variance(delta)), Threshold(*(part[0] for part in chosen)), start)
    return jnp.stack([jnp.where(keep, delta[i], 0) for i in range(delta.shape[0])])


def _count(
    hyperparameters: Mapping[str, Any], size: int, found: Mapping[str, Any]
) -> list[list[AnyCount]]:
    topk = hyperparameters["select_topk"]
    selected = share(topk, found["varied"][0])
    if is_traced(topk):  # where it turns out to be one, all are selected, as without the statistic
        return [[choose(topk >= 1, as_count(size), as_count(selected))]]
    return [[selected]]


def _selects(hyperparameters: Mapping[str, Any]) -> bool:
    topk = hyperparameters["select_topk"]
    return is_traced(topk) or bool(topk < 1)


def _advice(hyperparameters: Mapping[str, Any], models: int) -> str | None:
    if models == 1 and _selects(hyperparameters):
        return (
            "one model alone never varies, so with select_topk below 1 none of its changes is kept"
        )
    return None


@merge_method(
    "sce",
    takes="delta",
    base="needed",
    models=(0, None),
    statistics=(
        BlockSum(keyword="varied", terms=varied_terms, when=_selects),
        TopK(keyword="chosen", terms=variance_keys, counts=_count, when=_selects),
        BlockSum(keyword="sums", terms=square_terms, short=True),
    ),
    no_effect=("int8_mask",),
    advice=_advice,
    title="SCE",
    summary=(
        "Keeps the elements that differ most between the models, weighs each model by the "
        "size of its changes there, and leaves out changes against the majority's sign. It "
        "needs no weights."
    ),
    formula="base + sum_i w_i agree_i d_i / sum_i w_i agree_i,   w_i = mean d_i^2,   d_i = x_i - base where the models vary most",
    when="Fusing several chat models of one base, tensor by tensor, without tuning weights.",
    paper="https://arxiv.org/abs/2408.07990",
    select_topk=Shared(
        1.0,
        low=0.0,
        high=1.0,
        given=False,
        doc="share of the varying elements to keep; 1: all elements",
    ),
)
def sce(
    delta: jax.Array,
    *,
    varied: jax.Array | None = None,
    chosen: Threshold | None = None,
    sums: jax.Array,
    size: jax.Array,
    start: jax.Array | None = None,
) -> jax.Array:
    """delta [models, *shape] -> the change to make to the base [*shape].

    chosen: the threshold of `variance_keys` that follows from select_topk and the totals `varied` of `varied_terms`;
    None: all are selected. sums: totals of `square_terms`. size: elements of the tensor.
    """
    count = delta.shape[0]
    if count == 0 or delta.size == 0:
        return jnp.zeros(delta.shape[1:], delta.dtype)
    squares = sums / size
    together = sum_models(squares)
    usable = jnp.isfinite(together) & (together >= EVEN)
    weight = jnp.where(usable, squares / jnp.where(usable, together, 1), 1 / count)
    selected = select(delta, chosen, start)
    positive = sum_models(selected) >= 0
    agree = [jnp.where(positive, each > 0, each < 0) for each in selected]
    merged = sum_models([jnp.where(agree[i], weight[i] * selected[i], 0) for i in range(count)])
    share = sum_models([jnp.where(agree[i], weight[i], 0) for i in range(count)])
    return merged / jnp.maximum(share, LEAST_SHARE)
