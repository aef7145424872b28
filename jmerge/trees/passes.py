"""Merging groups of pieces: statistics of whole models first, then those of every piece and its results.

Outside of a trace every group is one piece and every step a program of its own, as in the engine. Inside of one a group
is all pieces of a shape, stacked and mapped over, so that the program grows with the number of shapes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jmerge.methods.statistics.counts import whole_number
from jmerge.methods.statistics.fold import Again, Extent, Statistic, search
from jmerge.methods.statistics.rows import SortedRows
from jmerge.methods.statistics.thresholds import thresholds_of
from jmerge.methods.statistics.topk import TopK
from jmerge.trees.hyperparameters import Hyperparameters
from jmerge.trees.pieces import Call, Found, Piece, add_up, combine, finish, take, terms_of, update


class Group(NamedTuple):
    """Pieces that go through one program."""

    call: Call
    stacked: Piece  # of arrays [pieces, ...]; of a piece alone, its own
    plain: Hyperparameters  # those of all pieces, as Python has them; the others are in `stacked`
    order: tuple[int, ...]  # the numbers of the pieces
    sizes: tuple[int, ...]  # elements of each piece, of every shard by itself

    @property
    def alone(self) -> bool:
        """Whether it is one piece."""
        return len(self.order) == 1

    def at(self, index: Any) -> Piece:
        """One of the pieces."""
        cut = partial(jax.lax.dynamic_index_in_dim, index=index, axis=0, keepdims=False)
        piece: Piece = self.stacked if self.alone else jax.tree.map(cut, self.stacked)
        return piece

    def hyperparameters(self, piece: Piece) -> Hyperparameters:
        """All numbers of one of its pieces."""
        return {**piece.hyperparameters, **self.plain}


@dataclass(frozen=True)
class Merge:
    """A merge of groups, in the order of their first pieces."""

    groups: Sequence[Group]
    there: bool  # outside of a trace

    def run(self, step: Any, *arguments: Any) -> Any:
        """What a step makes, as a program of its own or as a part of the one that is traced."""
        return (step if self.there else step.__wrapped__)(*arguments)

    def results(self, group: Group, known: Found) -> list[list[jax.Array]]:
        """For every piece of a group the results, one or one for each model."""

        def of(piece: Piece) -> list[jax.Array]:
            found = self._find(group, piece, known)
            results: list[jax.Array] = self.run(combine, group.call, piece, found)
            return results

        if group.alone:
            return [of(group.stacked)]
        results = jax.lax.map(of, group.stacked)
        return [[each[i] for each in results] for i in range(len(group.order))]

    def survey(self) -> Found:
        """The statistics of whole models."""
        found: Found = {}
        for first in self.groups[:1]:
            method, hyperparameters = first.call.method, first.hyperparameters(first.at(0))
            for statistic in method.needed(hyperparameters):
                if statistic.scope == "model":
                    found[statistic.keyword] = self._of_model(statistic, found)
        return found

    # Statistics of a piece

    def _find(
        self, group: Group, piece: Piece, known: Found, until: Statistic | None = None
    ) -> Found:
        """All statistics that a piece needs, or those before one, from those of whole models."""
        found = dict(known)
        for statistic in group.call.method.needed(group.hyperparameters(piece)):
            if statistic is until:
                break
            if statistic.keyword not in found:
                found[statistic.keyword] = self._of_piece(statistic, group, piece, found)
        return found

    def _of_piece(self, statistic: Statistic, group: Group, piece: Piece, found: Found) -> Any:
        given = group.call, statistic, piece, found
        if group.call.adds_up(statistic):
            return self.run(add_up, *given)
        hyperparameters = group.hyperparameters(piece)
        extent = _extent(*given, group.sizes)
        if self.there:
            if (value := statistic.known(extent, hyperparameters, found)) is not None:
                return value
            if isinstance(statistic, TopK | SortedRows) and _on_one_cpu(piece):
                return _by_numpy(statistic, terms_of(*given), hyperparameters, extent, found)
        return self.run(take, *given, statistic.init(extent, hyperparameters, found))

    # Statistics of whole models

    def _of_model(self, statistic: Statistic, known: Found) -> Any:
        first = self.groups[0]
        if first.call.adds_up(statistic):
            totals = [self._totals(statistic, group, known) for group in self.groups]
            return jnp.sum(jnp.stack(totals), axis=0)
        piece = first.at(0)
        hyperparameters, found = (
            first.hyperparameters(piece),
            self._find(first, piece, known, statistic),
        )
        order = sorted((number, group.sizes) for group in self.groups for number in group.order)
        sizes = tuple(size for _, own in order for size in own)
        extent = _extent(first.call, statistic, piece, found, sizes)
        if self.there and (value := statistic.known(extent, hyperparameters, found)) is not None:
            return value
        state, dtype = statistic.init(extent, hyperparameters, found), first.call.wide
        if not self.there:
            return search(statistic, state, dtype, partial(self._pass, statistic, known))
        for last in [False] * (statistic.passes(dtype) - 1) + [True]:
            value = finish(statistic, last, self._pass(statistic, known, state, last))
            state = value.state if isinstance(value, Again) else value
        return state

    def _totals(self, statistic: Statistic, group: Group, known: Found) -> jax.Array:
        """Plain sums over all pieces of a group."""

        def of(piece: Piece) -> jax.Array:
            found = self._find(group, piece, known, statistic)
            totals: jax.Array = self.run(add_up, group.call, statistic, piece, found)
            return totals

        return of(group.stacked) if group.alone else jnp.sum(jax.lax.map(of, group.stacked), axis=0)

    def _pass(self, statistic: Statistic, known: Found, state: Any, last: bool) -> Any:
        """The state after all pieces."""

        def step(group: Group, state: Any, piece: Piece) -> tuple[Any, None]:
            found = self._find(group, piece, known, statistic)
            return self.run(update, group.call, statistic, last, piece, found, state), None

        if all(group.alone for group in self.groups) or not isinstance(statistic, TopK):
            for group in self.groups:
                if group.alone:
                    state, _ = step(group, state, group.stacked)
                else:
                    state, _ = jax.lax.scan(partial(step, group), state, group.stacked)
            return state
        # Which ties are kept depends on the order, and that is the tree's: at each place one of the groups has the piece.
        branches = [
            lambda state, row, group=group: step(group, state, group.at(row))
            for group in self.groups
        ]
        places = [
            (number, i, row)
            for i, group in enumerate(self.groups)
            for row, number in enumerate(group.order)
        ]
        order = jnp.asarray([place[1:] for place in sorted(places)], jnp.int32)
        return jax.lax.scan(
            lambda state, place: jax.lax.switch(place[0], branches, state, place[1]), state, order
        )[0]


def _extent(
    call: Call, statistic: Statistic, piece: Piece, found: Found, sizes: tuple[int, ...]
) -> Extent:
    """What a statistic is taken of."""
    terms = terms_of.eval_shape(call, statistic, piece, found)
    return Extent(sizes, len(terms), call.wide)


def _on_one_cpu(piece: Piece) -> bool:
    """Whether the arrays lie where NumPy selects and sorts better than XLA."""
    devices = {device for array in piece.arrays for device in array.devices()}
    return len(devices) == 1 and devices.pop().platform == "cpu"


def _by_numpy(
    statistic: TopK | SortedRows,
    terms: Sequence[Any],
    hyperparameters: Hyperparameters,
    extent: Extent,
    found: Found,
) -> Any:
    keys = [np.asarray(each) for each in terms]
    if isinstance(statistic, SortedRows):
        return statistic.on_host(keys)
    rows = statistic.counts(hyperparameters, extent.size, found)
    counts = [[whole_number(count) for count in row] for row in rows]
    return thresholds_of(keys, counts, np.dtype(f"u{extent.dtype.itemsize}"))
