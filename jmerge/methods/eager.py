"""Merging trees whose arrays are there: leaf by leaf, by programs that leaves of one shape share."""

from __future__ import annotations

import math
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
    take,
    update,
)
from jmerge.methods.statistics.counts import whole_number
from jmerge.methods.statistics.fold import Again, Extent, Statistic
from jmerge.methods.statistics.rows import SortedRows
from jmerge.methods.statistics.topk import Threshold, TopK, by_partition, make_threshold


class Work(NamedTuple):
    """A leaf, or a layer of one, and how it is merged."""

    call: Call
    piece: Piece
    axis: int | None  # of the arrays, along which layers lie
    layer: Any  # which it is, uint32
    hyperparameters: dict[str, Any]  # by their names in recipes, all of them and plain


def survey(works: Sequence[Work]) -> list[Found]:
    """The statistics of whole models, as each leaf needs them: those that are no model's alone come later."""
    found: Found = {}
    if not works:
        return []
    first = works[0]
    method = first.call.method
    needed = method.needed(first.hyperparameters)
    for number, statistic in enumerate(method.statistics):
        if statistic not in needed or statistic.scope != "model":
            continue
        found[statistic.keyword] = _of_model(works, number, statistic, found)
    return [found] * len(works)


def merge(work: Work, known: Found) -> list[jax.Array]:
    """The results of a leaf, from the statistics of whole models."""
    found = _find(work, known, None)
    results: list[jax.Array] = _combine(work.call, work.axis, work.piece, work.layer, found)
    return results


def _find(work: Work, known: Found, until: int | None) -> Found:
    """All statistics that a leaf needs, or those before one."""
    found = dict(known)
    needed = work.call.method.needed(work.hyperparameters)
    for number, statistic in enumerate(work.call.method.statistics[:until]):
        if statistic in needed and statistic.keyword not in found:
            found[statistic.keyword] = _of_leaf(work, number, statistic, found)
    return found


def _of_leaf(work: Work, number: int, statistic: Statistic, found: Found) -> Any:
    call, given = work.call, (work.axis, work.piece, work.layer, found)
    if plain_sums(statistic, call):
        return _add_up(call, number, *given)
    extent = _extent([work], number, found)
    if (value := statistic.known(extent, work.hyperparameters, found)) is not None:
        return value
    if isinstance(statistic, TopK | SortedRows) and _on_host(work.piece):
        terms = [np.asarray(each) for each in _terms(call, number, *given)]
        if isinstance(statistic, SortedRows):
            return statistic.on_host(terms)
        return _by_partition(statistic, terms, work.hyperparameters, _size(work), found)
    state = statistic.init(extent, work.hyperparameters, found)
    return _take(call, number, *given, state)


def _extent(works: Sequence[Work], number: int, found: Found) -> Extent:
    """What a statistic is taken of over some leaves."""
    first = works[0]
    given = (first.axis, first.piece, first.layer, found)
    terms = _terms.eval_shape(first.call, number, *given)  # type: ignore[no-untyped-call]
    return Extent(tuple(map(_size, works)), len(terms), first.call.wide)


def _size(work: Work) -> int:
    shape: tuple[int, ...] = work.piece.arrays[-1].shape
    return math.prod(shape) // (1 if work.axis is None else max(shape[work.axis], 1))


def _on_host(piece: Piece) -> bool:
    """Whether the arrays lie where NumPy selects and sorts better than XLA: on a single CPU."""
    devices = {device for array in piece.arrays for device in array.devices()}
    return len(devices) == 1 and devices.pop().platform == "cpu"


def _by_partition(
    statistic: TopK,
    terms: Sequence[np.ndarray],
    hyperparameters: dict[str, Any],
    size: int,
    found: Found,
) -> Threshold:
    rows = statistic.counts(hyperparameters, size, found)
    pairs = [
        by_partition(keys.reshape(-1), whole_number(count))
        for keys, row in zip(terms, rows, strict=True)
        for count in row
    ]
    word = terms[0].dtype if terms else np.dtype(np.uint32)
    return make_threshold([bits for bits, _ in pairs], [last for _, last in pairs], word)


def _of_model(works: Sequence[Work], number: int, statistic: Statistic, known: Found) -> Any:
    first = works[0]
    if plain_sums(statistic, first.call):
        each = [
            _add_up(w.call, number, w.axis, w.piece, w.layer, _find(w, known, number))
            for w in works
        ]
        return _sum(each)
    found = _find(first, known, number)
    extent = _extent(works, number, found)
    if (value := statistic.known(extent, first.hyperparameters, found)) is not None:
        return value
    state = statistic.init(extent, first.hyperparameters, found)
    passes = statistic.passes(first.call.wide)
    for turn in range(passes):
        last = turn == passes - 1
        state = jax.tree.map(jnp.copy, state)  # one buffer may be there twice, and all are donated
        for work in works:
            found = _find(work, known, number)
            state = _update(
                work.call, number, last, work.axis, work.piece, work.layer, found, state
            )
        value = _finish(first.call, number, last, state)
        state = value.state if isinstance(value, Again) else value
    return state


# Programs: of a method's statistic number, for arrays of one shape


def _sliced(axis: int | None, piece: Piece, layer: Any) -> Piece:
    if axis is None:
        return piece
    cut = partial(jax.lax.dynamic_index_in_dim, axis=axis, keepdims=False)
    return piece._replace(arrays=tuple(cut(array, layer) for array in piece.arrays))


@partial(jax.jit, static_argnums=(0, 1))
def _combine(call: Call, axis: int | None, piece: Piece, layer: Any, found: Found) -> Any:
    return call.combine(_sliced(axis, piece, layer), found)


@partial(jax.jit, static_argnums=(0, 1, 2))
def _terms(
    call: Call, number: int, axis: int | None, piece: Piece, layer: Any, found: Found
) -> Any:
    return call.terms(call.method.statistics[number], _sliced(axis, piece, layer), found)


@partial(jax.jit, static_argnums=(0, 1, 2))
def _add_up(
    call: Call, number: int, axis: int | None, piece: Piece, layer: Any, found: Found
) -> jax.Array:
    return add_up(call, call.method.statistics[number], _sliced(axis, piece, layer), found)


@partial(jax.jit, static_argnums=(0, 1, 2))
def _take(
    call: Call, number: int, axis: int | None, piece: Piece, layer: Any, found: Found, state: Any
) -> Any:
    statistic = call.method.statistics[number]
    return take(call, statistic, state, _sliced(axis, piece, layer), found)


@partial(jax.jit, static_argnums=(0, 1, 2, 3), donate_argnums=7)
def _update(
    call: Call,
    number: int,
    last: bool,
    axis: int | None,
    piece: Piece,
    layer: Any,
    found: Found,
    state: Any,
) -> Any:
    statistic = call.method.statistics[number]
    return update(call, statistic, state, _sliced(axis, piece, layer), found, last)


@partial(jax.jit, static_argnums=(0, 1, 2))
def _finish(call: Call, number: int, last: bool, state: Any) -> Any:
    return call.method.statistics[number].finish(state, last=last)


@jax.jit
def _sum(totals: Sequence[jax.Array]) -> jax.Array:
    return jnp.sum(jnp.stack(totals), axis=0)
