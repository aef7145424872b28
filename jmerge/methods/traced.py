"""Merging trees inside a transformation: leaves of one shape are stacked and mapped over, so that the program grows with
the number of shapes."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jmerge.methods.leaf import (
    Call,
    Found,
    Piece,
    add_up,
    plain_sums,
    sizes_of,
    take,
    update,
)
from jmerge.methods.statistics.fold import Extent, Statistic, search
from jmerge.methods.statistics.topk import TopK


class Group(NamedTuple):
    """Pieces that go through one program."""

    call: Call
    stacked: Piece  # of arrays [pieces, ...]; of a piece alone, its own
    shared: dict[
        str, Any
    ]  # plain hyperparameters that are the same for all; the others are in `stacked.numbers`
    order: tuple[int, ...]  # which of all pieces they are

    @property
    def pieces(self) -> int:
        """How many there are."""
        return len(self.order)

    def at(self, index: Any) -> Piece:
        """One of the pieces."""
        if self.pieces == 1:
            return self.stacked
        if isinstance(index, int):
            return jax.tree.map(lambda array: array[index], self.stacked)  # type: ignore[no-any-return]
        cut = partial(jax.lax.dynamic_index_in_dim, index=index, axis=0, keepdims=False)
        return jax.tree.map(cut, self.stacked)  # type: ignore[no-any-return]

    def one(self, piece: Piece) -> tuple[Piece, dict[str, Any]]:
        """A piece with all its numbers, and its hyperparameters."""
        plain = {
            name: known(value)
            for name, value in self.shared.items()
            if self.call.method.parameters[name].given and name not in dict(self.call.switches)
        }
        hyperparameters = {**piece.numbers, **self.shared, **dict(self.call.switches)}
        return piece._replace(numbers={**piece.numbers, **plain}), hyperparameters


def known(value: Any) -> jax.Array:
    """Numbers that the compiler does not see, so that it makes the program that it makes of those it does not know."""
    array = jnp.asarray(value, float)
    hidden: jax.Array = jax.lax.optimization_barrier(array)  # type: ignore[no-untyped-call]
    return hidden


def merge_groups(groups: Sequence[Group]) -> list[list[list[jax.Array]]]:
    """For every piece of every group the results, one or one for each model."""
    found, merged = _survey(groups), []
    for group in groups:
        results = _mapped(group, partial(_merge, group, found))
        if group.pieces == 1:
            merged.append([results])
        else:
            merged.append([[each[i] for each in results] for i in range(group.pieces)])
    return merged


def _merge(group: Group, known_of_model: Found, piece: Piece) -> list[jax.Array]:
    whole, hyperparameters = group.one(piece)
    return group.call.combine(whole, _find(group, whole, hyperparameters, known_of_model, None))


def _find(
    group: Group,
    piece: Piece,
    hyperparameters: dict[str, Any],
    known_of_model: Found,
    until: int | None,
) -> Found:
    """All statistics that a piece needs, or those before one."""
    call, found = group.call, dict(known_of_model)
    needed = call.method.needed(hyperparameters)
    for statistic in call.method.statistics[:until]:
        if statistic not in needed or statistic.keyword in found:
            continue
        if plain_sums(statistic, call):
            found[statistic.keyword] = add_up(call, statistic, piece, found)
            continue
        state = _begin(call, statistic, piece, sizes_of(piece), hyperparameters, found)
        found[statistic.keyword] = take(call, statistic, state, piece, found)
    return found


def _begin(
    call: Call,
    statistic: Statistic,
    piece: Piece,
    sizes: tuple[int, ...],
    hyperparameters: dict[str, Any],
    found: Found,
) -> Any:
    terms = jax.eval_shape(lambda piece, found: call.terms(statistic, piece, found), piece, found)
    return statistic.init(Extent(sizes, len(terms), call.wide), hyperparameters, found)


# Statistics of whole models


def _survey(groups: Sequence[Group]) -> Found:
    found: Found = {}
    if not groups:
        return found
    first = groups[0]
    _, hyperparameters = first.one(first.at(0))
    needed = first.call.method.needed(hyperparameters)
    for number, statistic in enumerate(first.call.method.statistics):
        if statistic in needed and statistic.scope == "model":
            found[statistic.keyword] = _of_model(groups, number, statistic, found)
    return found


def _of_model(
    groups: Sequence[Group], number: int, statistic: Statistic, known_of_model: Found
) -> Any:
    first = groups[0]
    if plain_sums(statistic, first.call):
        totals = []
        for group in groups:

            def one(piece: Piece, group: Group = group) -> list[jax.Array]:
                whole, hyperparameters = group.one(piece)
                found = _find(group, whole, hyperparameters, known_of_model, number)
                return [add_up(group.call, statistic, whole, found)]

            (total,) = _mapped(group, one)
            totals.append(total if group.pieces == 1 else jnp.sum(total, axis=0))
        return jnp.sum(jnp.stack(totals), axis=0)
    whole, hyperparameters = first.one(first.at(0))
    found = _find(first, whole, hyperparameters, known_of_model, number)
    state = _begin(first.call, statistic, whole, _all_sizes(groups), hyperparameters, found)

    def seen(state: Any, last: bool) -> Any:
        return _pass(groups, number, statistic, known_of_model, state, last)

    return search(statistic, state, first.call.wide, seen)


def _pass(
    groups: Sequence[Group],
    number: int,
    statistic: Statistic,
    known_of_model: Found,
    state: Any,
    last: bool,
) -> Any:
    """The state after all pieces."""

    def step(group: Group, state: Any, piece: Piece) -> Any:
        whole, hyperparameters = group.one(piece)
        found = _find(group, whole, hyperparameters, known_of_model, number)
        return update(group.call, statistic, state, whole, found, last)

    if not isinstance(statistic, TopK):
        for group in groups:
            if group.pieces == 1:
                state = step(group, state, group.at(0))
            else:
                state, _ = jax.lax.scan(partial(_scanned, step, group), state, group.stacked)
        return state
    # Which ties are kept depends on the order, and that is the tree's: at each place one of the groups has the piece.
    places = [
        (own, i, row) for i, group in enumerate(groups) for row, own in enumerate(group.order)
    ]
    _, numbers, rows = (np.asarray(each, np.int32) for each in zip(*sorted(places), strict=True))
    branches = [partial(_at_row, step, group) for group in groups]

    def follow(state: Any, place: Any) -> tuple[Any, None]:
        return jax.lax.switch(place[0], branches, state, place[1]), None

    if len(places) == 1:
        return branches[0](state, 0)
    state, _ = jax.lax.scan(follow, state, (jnp.asarray(numbers), jnp.asarray(rows)))
    return state


def _scanned(step: Any, group: Group, state: Any, piece: Piece) -> tuple[Any, None]:
    return step(group, state, piece), None


def _at_row(step: Any, group: Group, state: Any, row: Any) -> Any:
    return step(group, state, group.at(row))


def _all_sizes(groups: Sequence[Group]) -> tuple[int, ...]:
    """The elements of all pieces, in the order of the tree."""
    sizes: dict[int, tuple[int, ...]] = {}
    for group in groups:
        sizes |= dict.fromkeys(group.order, sizes_of(group.at(0)))
    return tuple(size for own in sorted(sizes) for size in sizes[own])


def _mapped(group: Group, function: Any) -> list[jax.Array]:
    """The results of a function of a piece, of all of a group [pieces, ...]; of a piece alone, its own."""
    results: list[jax.Array] = (
        function(group.stacked) if group.pieces == 1 else jax.lax.map(function, group.stacked)
    )
    return results
