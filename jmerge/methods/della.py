"""DELLA: drop changes at random, small ones of a row more often, and make up for it; then add them up or let them vote.

Deep et al., "DELLA-Merging", https://arxiv.org/abs/2406.11617
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jmerge.methods.cuts import magnitude_keys
from jmerge.methods.prune import merge_kept, norm_terms, pruning_method
from jmerge.methods.random import uniform
from jmerge.methods.ranks import ranks_along
from jmerge.methods.reduce import along, total
from jmerge.methods.spec import PerModel, Statistic, Switch


def rank_keys(delta: jax.Array, **_: Any) -> list[jax.Array]:
    """delta [models, *shape] -> what the changes of each model are ranked by along axis 1; a vector is one row."""
    return [magnitude_keys(_rows(delta[i])) for i in range(delta.shape[0])]


def drop(
    delta: jax.Array,
    *,
    density: jax.Array,
    epsilon: jax.Array,
    keys: jax.Array,
    start: jax.Array | None = None,
    ranks: list[jax.Array] | None = None,
    **_: Any,
) -> jax.Array:
    """delta [models, *shape] with each element kept with a chance that grows with its rank in its row, else zero.

    The chance goes from density - epsilon for the smallest to density + epsilon for the largest; it is density in a
    row of one element, and for densities 0 and 1.
    """
    if ranks is None:
        ranks = [ranks_along(each, axis=1) for each in rank_keys(delta)]
    last = _rows(delta[0]).shape[1] - 1 if delta.shape[0] else 0
    kept = []
    for i in range(delta.shape[0]):
        centred = ranks[i].reshape(delta.shape[1:]).astype(delta.dtype) - last / 2
        chance = density[i] + 2 * epsilon[i] / max(last, 1) * centred
        sure = (density[i] <= 0) | (density[i] >= 1)
        chance = jnp.where(sure, density[i], chance).astype(jnp.float32)
        drawn = uniform(keys[i], delta.shape[1:], start)
        kept.append(jnp.where(drawn < chance, delta[i], 0))
    return jnp.stack(kept) if kept else delta


def della_sums(delta: jax.Array, **keywords: Any) -> list[jax.Array]:
    """The terms of the norms that `rescale` restores, already added up in each row."""
    terms = norm_terms(delta, drop(delta, **keywords))
    slabs = [_rows(term) for term in terms]
    return [along(slab.reshape(len(slab), math.prod(slab.shape[1:])), 1)[:, 0] for slab in slabs]


class _Drop(NamedTuple):
    """The keywords of `drop`."""

    density: jax.Array
    epsilon: jax.Array
    keys: jax.Array
    start: jax.Array | None
    ranks: list[jax.Array] | None


def _merge(
    delta: jax.Array, own: _Drop, *, rescale: bool, sums: jax.Array | None, **rest: Any
) -> jax.Array:
    keywords = own._asdict()
    if rescale and sums is None and delta.shape[0]:
        sums = total(della_sums(delta, **keywords))
    return merge_kept(delta, drop(delta, **keywords), rescale=rescale, sums=sums, **rest)


def _rows(change: jax.Array) -> jax.Array:
    return change if change.ndim > 1 else change.reshape(1, change.size)


def _check(numbers: Mapping[str, Any]) -> str | None:
    for density, epsilon in zip(numbers["density"], numbers["epsilon"], strict=True):
        if 0 < density < 1 and not 0 < density - epsilon <= density + epsilon < 1:
            room = min(density, 1 - density)
            return (
                f"density {density:g} needs an epsilon from 0 to below {room:g}, so that all chances "
                f"lie between 0 and 1; found {epsilon:g}"
            )
    return None


_declare = partial(
    pruning_method,
    sums=della_sums,
    before=[Statistic(kind="ranks", keyword="ranks", terms=rank_keys)],
    unit=lambda numbers: "slab",
    check=_check,
    rescale=True,
    paper="https://arxiv.org/abs/2406.11617",
    density=PerModel(1.0, low=0.0, high=1.0, doc="mean chance of a change to be kept"),
    epsilon=PerModel(
        0.15, doc="how far the chances of the largest and smallest of a row lie from it"
    ),
)


@_declare(
    "della",
    title="DELLA",
    summary=(
        "Drops changes at random, the smaller ones of each row more often, enlarges the rest to make up for it, and "
        "adds up those that agree on a sign. It is dare_ties with magnitude as a guide to what matters."
    ),
    formula="base + lambda sum_agreeing w_i drop(x_i - base),   chance of rank r of n: density - epsilon + 2 epsilon r / (n - 1)",
    when="Specialists of one base that conflict, at densities that keep much less than all.",
    normalize=Switch(True, doc="divide by the sum of the weights (of those that agree)"),
)
def della(
    delta: jax.Array,
    *,
    weight: jax.Array,
    density: jax.Array,
    epsilon: jax.Array,
    scale: jax.Array,
    normalize: bool,
    rescale: bool,
    keys: jax.Array,
    start: jax.Array | None = None,
    ranks: list[jax.Array] | None = None,
    sums: jax.Array | None = None,
) -> jax.Array:
    """delta [models, *shape]; weight, density, epsilon [models]; keys uint32 [models, 2] -> the change to make [*shape].

    Rows run along axis 1; a vector is one row. Elements are dropped independently by `methods.random.uniform`.
    ranks: of each model, see `rank_keys`; found here when not given.
    """
    return _merge(
        delta,
        _Drop(density, epsilon, keys, start, ranks),
        vote=True,
        weight=weight,
        scale=scale,
        normalize=normalize,
        rescale=rescale,
        sums=sums,
    )


@_declare(
    "della_linear",
    title="Linear DELLA",
    summary=(
        "Drops changes at random, the smaller ones of each row more often, enlarges the rest to make up for it, and "
        "adds them up. It is dare_linear with magnitude as a guide to what matters."
    ),
    formula="base + lambda sum_i w_i drop(x_i - base),   chance of rank r of n: density - epsilon + 2 epsilon r / (n - 1)",
    when="As dare_linear, when the large changes are those to keep.",
)
def della_linear(
    delta: jax.Array,
    *,
    weight: jax.Array,
    density: jax.Array,
    epsilon: jax.Array,
    scale: jax.Array,
    normalize: bool,
    rescale: bool,
    keys: jax.Array,
    start: jax.Array | None = None,
    ranks: list[jax.Array] | None = None,
    sums: jax.Array | None = None,
) -> jax.Array:
    """As `della`, but all that is left of the changes is added up, whatever its sign."""
    return _merge(
        delta,
        _Drop(density, epsilon, keys, start, ranks),
        vote=False,
        weight=weight,
        scale=scale,
        normalize=normalize,
        rescale=rescale,
        sums=sums,
    )
