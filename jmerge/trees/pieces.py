"""What happens to one piece, a leaf or a layer of one: the steps of a merge.

Each step is a program that pieces of one shape share; within a trace its plain function, `step.__wrapped__`, is called.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jmerge.methods.mesh import varying_axes
from jmerge.methods.spec import Method
from jmerge.methods.statistics.counts import Count, add, as_count, times
from jmerge.methods.statistics.fold import Place, Statistic, search
from jmerge.methods.statistics.sums import BlockSum
from jmerge.methods.statistics.topk import TopK
from jmerge.methods.whole import keywords_of

Found = dict[str, Any]  # statistics by keyword
Nonfinite = Literal["propagate", "ignore"]


class Piece(NamedTuple):
    """What a leaf, or a layer of one, is merged from; a pytree of arrays."""

    arrays: tuple[Any, ...]  # one of every model, and the base last where there is one
    hyperparameters: dict[str, Any]  # continuous ones, by their names in recipes
    keys: Any  # uint32 [models, 2] of methods that draw, else None
    start: Any  # uint32 [2]: where it begins among all pieces, one after the other
    number: Any  # among all pieces, of which a shard is one
    layer: Any = None  # uint32: which it is along the call's axis


@dataclass(frozen=True)
class Call:
    """What a merge of a piece is but for its arrays and numbers; it hashes, so programs are kept by it."""

    method: Method
    has_base: bool
    nonfinite: Nonfinite
    exact: bool
    switches: tuple[tuple[str, Any], ...] = ()  # the other numbers, by their names in recipes
    wide: np.dtype[Any] = np.dtype(np.float32)  # of the arithmetic
    result: np.dtype[Any] = np.dtype(np.float32)
    axis: int | None = None  # of the arrays, along which layers lie

    def cut(self, piece: Piece) -> Piece:
        """The piece with its layer alone."""
        if self.axis is None:
            return piece
        cut = partial(
            jax.lax.dynamic_index_in_dim, index=piece.layer, axis=self.axis, keepdims=False
        )
        return piece._replace(arrays=tuple(map(cut, piece.arrays)))

    def arguments(self, piece: Piece) -> tuple[tuple[jax.Array, ...], dict[str, Any]]:
        """The arrays and keywords of the method's function that are no statistics."""
        arrays = [each.astype(self.wide) for each in piece.arrays]
        size, method = math.prod(arrays[-1].shape), self.method
        keywords = keywords_of(
            method, {**piece.hyperparameters, **dict(self.switches)}, size, self.wide
        )
        if piece.keys is not None:
            keywords["keys"] = piece.keys
        axes = shard_axes(piece.arrays)
        if "start" in method.reserved and (method.counts_through or axes):
            first = piece.start if method.counts_through else np.zeros(2, np.uint32)
            keywords["start"] = _start_of(first, size, axes)
        if not self.has_base:
            return (jnp.stack(arrays),), keywords
        models, base = arrays[:-1], arrays[-1]
        if method.takes == "delta":
            return (jnp.stack([model - base for model in models]),), keywords
        return (base, jnp.stack(models)), keywords

    def terms(self, statistic: Statistic, piece: Piece, found: Found) -> Sequence[jax.Array]:
        """What a statistic looks at."""
        arrays, keywords = self.arguments(piece)
        terms: Sequence[jax.Array] = statistic.terms(*arrays, **keywords, **found)
        return terms

    def combine(self, piece: Piece, found: Found) -> list[jax.Array]:
        """The results, one or one for each model, in their dtype."""
        arrays, keywords = self.arguments(piece)
        result = self.method.function(*arrays, **keywords, **found)
        if self.method.takes == "delta" and self.has_base:
            base = piece.arrays[-1].astype(self.wide)
            result = jnp.broadcast_to(base, result.shape) + result
        results = list(result) if self.method.per_model_output else [result]
        if self.nonfinite == "propagate" and not self.method.carries_nan:
            spoilt = jnp.zeros((), bool)
            for array in piece.arrays:
                spoilt = spoilt | ~jnp.isfinite(array)
            results = [jnp.where(spoilt & jnp.isfinite(each), jnp.nan, each) for each in results]
        return [each.astype(self.result) for each in results]

    def adds_up(self, statistic: Statistic) -> bool:
        """Whether a statistic is taken by plain sums where the data lie."""
        return isinstance(statistic, BlockSum) and not self.exact


# Steps


@partial(jax.jit, static_argnums=0)
def combine(call: Call, piece: Piece, found: Found) -> list[jax.Array]:
    """The results, one or one for each model."""
    return call.combine(call.cut(piece), found)


@partial(jax.jit, static_argnums=(0, 1))
def terms_of(call: Call, statistic: Statistic, piece: Piece, found: Found) -> Sequence[jax.Array]:
    """What a statistic looks at."""
    return call.terms(statistic, call.cut(piece), found)


@partial(jax.jit, static_argnums=(0, 1))
def add_up(call: Call, statistic: Statistic, piece: Piece, found: Found) -> jax.Array:
    """Totals of the terms [sums] in whatever order is fastest where they lie."""
    terms = call.terms(statistic, call.cut(piece), found)
    totals = jnp.stack([jnp.sum(each) for each in terms]) if terms else jnp.zeros(0, call.wide)
    axes = shard_axes(piece.arrays)
    return _over_shards(totals, axes) if terms and axes else totals


@partial(jax.jit, static_argnums=(0, 1))
def take(call: Call, statistic: Statistic, piece: Piece, found: Found, state: Any) -> Any:
    """The value of a statistic of one piece, from the state before its first pass."""
    alone = call.cut(piece)._replace(start=np.zeros(2, np.uint32), number=0)
    terms = call.terms(statistic, call.cut(piece), found)

    def seen(state: Any, last: bool) -> Any:
        return _updated(statistic, last, alone, terms, state)

    return search(statistic, state, call.wide, seen)


@partial(jax.jit, static_argnums=(0, 1, 2))
def update(
    call: Call, statistic: Statistic, last: bool, piece: Piece, found: Found, state: Any
) -> Any:
    """The state of a statistic of whole models after one more piece, in the last pass or one before it."""
    cut = call.cut(piece)
    return _updated(statistic, last, cut, call.terms(statistic, cut, found), state)


@partial(jax.jit, static_argnums=(0, 1))
def finish(statistic: Statistic, last: bool, state: Any) -> Any:
    """The value after the last pass, `Again` after one before it."""
    return statistic.finish(state, last=last)


def _updated(
    statistic: Statistic, last: bool, piece: Piece, terms: Sequence[jax.Array], state: Any
) -> Any:
    """The state after the terms of a piece. Of one that is cut into shards each adds its own, and all have the same state
    afterwards."""
    axes = shard_axes(piece.arrays)
    first = piece.number + _shard(axes) if axes else piece.number
    start = _start_of(piece.start, math.prod(piece.arrays[-1].shape), axes)
    at = Place(first, first, 0, start)
    if not axes or statistic.scope == "piece":
        return statistic.close(statistic.update(state, terms, at, last=last), first)

    def seen(turn: Any, state: Any) -> Any:
        after = statistic.update(state, terms, at, last=last)
        mine = jnp.asarray(first % state.pieces == turn) if in_turn else jnp.asarray(True)
        return jax.tree.map(lambda old, new: _joined(old, new, mine, axes), state, after)

    in_turn = last and isinstance(statistic, TopK)
    if not in_turn:
        return seen(0, state)
    # the last ties that are kept are looked for in one piece of a group after the other
    return jax.lax.fori_loop(jnp.uint32(0), state.pieces, seen, state)


def _joined(old: jax.Array, new: jax.Array, mine: jax.Array, axes: tuple[str, ...]) -> Any:
    change = new - old  # whole numbers wrap around, and sums are added to zeros
    change = jnp.where(mine, change, jnp.zeros_like(change))
    if not varying_axes(change):
        change = jax.lax.pcast(change, axes, to="varying")
        change = jnp.where(_shard(axes) == 0, change, jnp.zeros_like(change))
    return old + _over_shards(change, axes)


# Shards


def shard_axes(arrays: Sequence[Any]) -> tuple[str, ...]:
    """The axes of `shard_map` along which arrays are cut into shards."""
    return tuple(sorted({axis for array in arrays for axis in varying_axes(array)}))


def _shard(axes: Sequence[str]) -> jax.Array:
    index = jnp.zeros((), jnp.uint32)
    for axis in axes:
        place = jax.lax.axis_index(axis).astype(jnp.uint32)
        index = index * jnp.uint32(jax.lax.axis_size(axis)) + place
    return index


def _over_shards(values: jax.Array, axes: tuple[str, ...]) -> jax.Array:
    total: jax.Array = jax.lax.psum(values, axes)
    return total


def _start_of(first: Any, size: int, axes: tuple[str, ...]) -> jax.Array:
    """The position uint32 [2] at which a piece, or this shard of it, begins."""
    start = Count(jnp.asarray(first[0], jnp.uint32), jnp.asarray(first[1], jnp.uint32))
    if axes:
        start = add(start, times(_shard(axes), size))
    return jnp.stack([jnp.asarray(word) for word in as_count(start)])
