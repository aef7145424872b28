"""DELLA: drop changes at random, small ones of a row more often, and make up for it; then add them up or let them vote.

Deep et al., "DELLA-Merging", https://arxiv.org/abs/2406.11617
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jmerge.methods.prune import Rescale, masked, merge_kept, norm_terms, pruning_method
from jmerge.methods.random import coins, uniform
from jmerge.methods.reduce import along_rows
from jmerge.methods.spec import PerModel, Switch
from jmerge.methods.statistics.rows import SortedRows, deal_rows
from jmerge.methods.statistics.thresholds import magnitude_keys


def rank_keys(delta: jax.Array, **_: Any) -> list[jax.Array]:
    """delta [models, *shape] -> what the changes of each model are ranked by along axis 1; a vector is one row."""
    return [magnitude_keys(_rows(delta[i])) for i in range(delta.shape[0])]


def draw(
    delta: jax.Array,
    *,
    density: jax.Array,
    epsilon: jax.Array,
    keys: jax.Array,
    start: jax.Array | None = None,
    ordered: list[jax.Array],
    **_: Any,
) -> list[jax.Array]:
    """Which elements of delta [models, *shape] are kept of each model, each with a chance that grows with its rank in its
    row; in the shape of `rank_keys`.

    The chance goes from density - epsilon for the smallest to density + epsilon for the largest; it is density in a
    row of one element, and for densities 0 and 1. Which of the ranks that equal elements share is theirs, the lowest
    or the highest, a coin decides for each, so that on average it is the middle one.

    No element needs to know its rank for that: its random number says which rank it takes to be kept, and the element
    in that place of the sorted row says whether it has it.
    """
    own = rank_keys(delta)
    kept = []
    for i, magnitudes in enumerate(own):
        last = magnitudes.shape[1] - 1
        drawn = uniform(keys[i], magnitudes.shape, start)
        needed = _rank_needed(drawn.astype(delta.dtype), last, density[i], epsilon[i])
        coin = coins(keys[i], magnitudes.shape, start)
        # at least as large as the element of that rank, or larger than the one below
        place = needed - 1 + coin.astype(jnp.int32)
        found = deal_rows(jnp.clip(place, 0, max(last, 0)), beside=magnitudes)
        bar = jnp.take_along_axis(ordered[i], found, axis=1, mode="promise_in_bounds")
        above = magnitudes + coin.astype(bar.dtype) > bar
        kept.append((needed <= 0) | ((place <= last) & above))
    return kept


def _rank_needed(drawn: jax.Array, last: int, density: jax.Array, epsilon: jax.Array) -> jax.Array:
    """The lowest rank int32 [*shape] whose chance is above the number drawn: 0 for any, last + 1 for none."""
    level = _is_level(last, density, epsilon)
    slope = last / (2 * jnp.where(level, 1, epsilon))
    reached = jnp.clip(jnp.floor(slope * (drawn - density) + last / 2), -1, last)
    needed: jax.Array = jnp.where(level, jnp.where(drawn < density, -1, last), reached) + 1
    return needed.astype(jnp.int32)


def della_sums(delta: jax.Array, *, masks: list[jax.Array], **_: Any) -> list[jax.Array]:
    """The terms of the norms that `rescale` restores, already added up in each row."""
    terms = norm_terms(delta, masked(delta, masks))
    return [along_rows(term, last=False) for term in terms]


class _Draw(NamedTuple):
    """The keywords of `draw`."""

    density: jax.Array
    epsilon: jax.Array
    keys: jax.Array
    start: jax.Array | None
    ordered: list[jax.Array]


def _merge(delta: jax.Array, own: _Draw, masks: list[jax.Array] | None, **rest: Any) -> jax.Array:
    if masks is None:
        masks = draw(delta, **own._asdict())
    return merge_kept(masked(delta, masks), chances=partial(chances_of, delta, own), **rest)


def chances_of(delta: jax.Array, own: _Draw) -> list[jax.Array]:
    """The chance of each element of each model [*shape] to be kept; equal ones of a row have that of their mean rank."""
    found = []
    for i, keys in enumerate(rank_keys(delta)):
        last = keys.shape[1] - 1
        rows, ordered = (
            jnp.moveaxis(each, 1, -1).reshape(-1, last + 1) for each in (keys, own.ordered[i])
        )
        below, upto = (
            jax.vmap(partial(jnp.searchsorted, side=side))(ordered, rows).astype(delta.dtype)
            for side in ("left", "right")
        )
        density, epsilon = own.density[i], own.epsilon[i]
        level = _is_level(last, density, epsilon)
        rank = (below + upto - 1) / 2
        chance = jnp.where(level, density, density - epsilon + 2 * epsilon * rank / max(last, 1))
        moved = jnp.moveaxis(keys, 1, -1).shape
        found.append(jnp.moveaxis(chance.reshape(moved), -1, 1).reshape(delta.shape[1:]))
    return found


def _is_level(last: int, density: jax.Array, epsilon: jax.Array) -> jax.Array:
    """Whether all elements of a row have the same chance."""
    return (density <= 0) | (density >= 1) | (epsilon == 0) | (last == 0)


def _rows(change: jax.Array) -> jax.Array:
    return change if change.ndim > 1 else change.reshape(1, change.size)


def _check(hyperparameters: Mapping[str, Any]) -> str | None:
    for density, epsilon in zip(
        hyperparameters["density"], hyperparameters["epsilon"], strict=True
    ):
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
    before=[SortedRows(keyword="ordered", terms=rank_keys)],
    unit=lambda hyperparameters: "slab",
    check=_check,
    rescale=True,
    draws=draw,
    paper="https://arxiv.org/abs/2406.11617",
    density=PerModel(1.0, low=0.0, high=1.0, doc="mean probability that a change is kept"),
    epsilon=PerModel(
        0.15,
        low=0.0,
        doc="how far the probabilities of a row's largest and smallest change are from density",
    ),
)


@_declare(
    "della",
    title="DELLA",
    summary=(
        "Drops changes at random, the smaller ones of each row more often, scales up the rest "
        "to compensate, and adds up those that agree on a sign. It is dare_ties guided by "
        "magnitude."
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
    rescale: Rescale,
    keys: jax.Array,
    start: jax.Array | None = None,
    ordered: list[jax.Array],
    masks: list[jax.Array] | None = None,
    sums: jax.Array | None = None,
) -> jax.Array:
    """delta [models, *shape]; weight, density, epsilon [models]; keys uint32 [models, 2] -> the change to make [*shape].

    Rows run along axis 1; a vector is one row. Elements are dropped independently by `methods.random.uniform`.
    ordered: the `rank_keys` of each model sorted along axis 1. masks: what `draw` gives, where that is known.
    """
    return _merge(
        delta,
        _Draw(density, epsilon, keys, start, ordered),
        masks,
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
        "Drops changes at random, the smaller ones of each row more often, scales up the rest "
        "to compensate, and adds them up. It is dare_linear guided by magnitude."
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
    rescale: Rescale,
    keys: jax.Array,
    start: jax.Array | None = None,
    ordered: list[jax.Array],
    masks: list[jax.Array] | None = None,
    sums: jax.Array | None = None,
) -> jax.Array:
    """As `della`, but all that is left of the changes is added up, whatever its sign."""
    return _merge(
        delta,
        _Draw(density, epsilon, keys, start, ordered),
        masks,
        vote=False,
        weight=weight,
        scale=scale,
        normalize=normalize,
        rescale=rescale,
        sums=sums,
    )
