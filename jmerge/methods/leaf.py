"""What happens to one leaf: its statistics, then its result. Both ways of merging trees call this."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
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
LINES_DEPTH = "lines.depth"  # the parameter that `depth` fills in, leaf by leaf


class Piece(NamedTuple):
    """What a leaf, or a layer of one, is merged from; a pytree of arrays."""

    arrays: tuple[Any, ...]  # one of every model, and the base last where there is one
    numbers: dict[str, Any]  # continuous ones, by their names in recipes
    keys: Any = None  # uint32 [models, 2] of methods that draw
    start: Any = (
        None  # uint32 [2]: where it begins among all leaves, if positions count through them
    )
    piece: Any = 0  # its number among all pieces, of which a shard is one


@dataclass(frozen=True)
class Call:
    """What a merge of a leaf is but for its arrays and numbers; it hashes, so programs are kept by it."""

    method: Method
    has_base: bool
    switches: tuple[tuple[str, Any], ...]  # the other numbers, by their names in recipes
    nonfinite: Nonfinite
    exact: bool
    wide: np.dtype[Any]  # of the arithmetic
    result: np.dtype[Any]

    def arguments(self, piece: Piece) -> tuple[tuple[jax.Array, ...], dict[str, Any]]:
        """The arrays and keywords of the method's function that are no statistics."""
        arrays = [each.astype(self.wide) for each in piece.arrays]
        size, method = math.prod(arrays[-1].shape), self.method
        keywords = keywords_of(method, {**piece.numbers, **dict(self.switches)}, size, self.wide)
        if piece.keys is not None:
            keywords["keys"] = piece.keys
        if "start" in method.reserved:
            axes = _axes(piece)
            if method.counts_through or axes:
                first = piece.start if method.counts_through else np.zeros(2, np.uint32)
                keywords["start"] = jnp.stack(_start_of(first, size, axes))
        models = arrays[:-1] if self.has_base else arrays
        if not self.has_base:
            return (jnp.stack(models),), keywords
        if method.takes == "delta":
            return (jnp.stack([model - arrays[-1] for model in models]),), keywords
        return (arrays[-1], jnp.stack(models)), keywords

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


def _over_shards(values: jax.Array, axes: tuple[str, ...]) -> jax.Array:
    total: jax.Array = jax.lax.psum(values, axes)  # type: ignore[no-untyped-call]
    return total


def sizes_of(piece: Piece) -> tuple[int, ...]:
    """The elements of a piece, those of each shard by themselves."""
    size = math.prod(piece.arrays[-1].shape)
    return (size,) * math.prod(jax.lax.axis_size(axis) for axis in _axes(piece))


def plain_sums(statistic: Statistic, call: Call) -> bool:
    """Whether a statistic is taken by plain sums where the data lie."""
    return isinstance(statistic, BlockSum) and not call.exact


def take(call: Call, statistic: Statistic, state: Any, piece: Piece, found: Found) -> Any:
    """The value of a statistic of one piece, from the state before its first pass."""
    alone = piece._replace(start=np.zeros(2, np.uint32), piece=0)
    terms = call.terms(statistic, piece, found)

    def seen(state: Any, last: bool) -> Any:
        return _updated(call, statistic, state, alone, terms, last)

    return search(statistic, state, call.wide, seen)


def add_up(call: Call, statistic: Statistic, piece: Piece, found: Found) -> jax.Array:
    """Totals of the terms [sums] in whatever order is fastest where they lie."""
    terms = call.terms(statistic, piece, found)
    if not terms:
        return jnp.zeros(0, call.wide)
    totals = jnp.stack([jnp.sum(each) for each in terms])
    axes = _axes(piece)
    return _over_shards(totals, axes) if axes else totals


def update(
    call: Call, statistic: Statistic, state: Any, piece: Piece, found: Found, last: bool
) -> Any:
    """The state after one more piece, in the last pass or one before it."""
    return _updated(call, statistic, state, piece, call.terms(statistic, piece, found), last)


def _updated(
    call: Call,
    statistic: Statistic,
    state: Any,
    piece: Piece,
    terms: Sequence[jax.Array],
    last: bool,
) -> Any:
    """The state after the terms of a piece. Of one that is cut into shards each adds its own, and all have the same state
    afterwards."""
    axes = _axes(piece)
    size = math.prod(piece.arrays[-1].shape)
    shard = _shard(axes)
    first = piece.piece + shard if axes else piece.piece
    start = jnp.stack(_start_of(piece.start, size, axes))
    at = Place(first, first, 0, start)
    if not axes or statistic.scope == "piece":
        return statistic.close(statistic.update(state, terms, at, last=last), first)
    # the last ties that are kept are looked for in one piece of a group after the other
    turns = state.pieces if isinstance(statistic, TopK) and last else 1
    for turn in range(turns):
        after = statistic.update(state, terms, at, last=last)
        mine = (jnp.asarray(first) % turns == turn) if turns > 1 else None
        state = jax.tree.map(lambda old, new: _joined(old, new, mine, axes), state, after)  # noqa: B023
    return state


def _joined(old: jax.Array, new: jax.Array, mine: jax.Array | None, axes: tuple[str, ...]) -> Any:
    change = new - old  # whole numbers wrap around, and sums are added to zeros
    if mine is not None:
        change = jnp.where(mine, change, jnp.zeros_like(change))
    if not varying_axes(change):
        change = jax.lax.pcast(change, axes, to="varying")
        change = jnp.where(_shard(axes) == 0, change, jnp.zeros_like(change))
    return old + _over_shards(change, axes)


def _axes(piece: Piece) -> tuple[str, ...]:
    """The axes of `shard_map` along which a piece is cut into shards."""
    return tuple(sorted({axis for array in piece.arrays for axis in varying_axes(array)}))


def _shard(axes: Sequence[str]) -> jax.Array:
    index = jnp.zeros((), jnp.uint32)
    for axis in axes:
        index = index * jnp.uint32(jax.lax.axis_size(axis)) + jax.lax.axis_index(axis).astype(
            jnp.uint32
        )
    return index


def _start_of(first: Any, size: int, axes: tuple[str, ...]) -> tuple[jax.Array, jax.Array]:
    """The words of the position at which a piece, or this shard of it, begins."""
    start = Count(jnp.asarray(first[0], jnp.uint32), jnp.asarray(first[1], jnp.uint32))
    if axes:
        start = add(start, times(_shard(axes), size))
    high, low = as_count(start)
    return jnp.asarray(high), low
