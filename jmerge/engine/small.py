"""The arithmetic of small tensors: many at a time, statistics and result, each a row of arrays.

The arithmetic is that of pieces, so the bits are the same.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Hashable, Mapping, Sequence
from functools import cache
from typing import Any

import jax
import numpy as np

from jmerge.engine.kernel import KernelKey, Piece, combine, kernel_key, terms_of, update
from jmerge.engine.schedule import Schedule, Turn, Work
from jmerge.engine.select import is_searched
from jmerge.engine.task import Task
from jmerge.methods.statistics.fold import Place, search
from jmerge.methods.statistics.thresholds import thresholds_of
from jmerge.methods.wrap import find_method

Bundle = tuple[Work, ...]  # of one kind, at most `Schedule.rows`


def bundled(schedule: Schedule) -> list[Bundle | Turn]:
    """The turns of a schedule in order, with bundles first instead of the turns of small tensors.

    They depend on no other step, so they can be made before all others. Which are made together changes no bit.
    """
    kinds: dict[Hashable, list[Work]] = {}
    turns: list[Turn] = []
    for turn in schedule.turns:
        if not turn.work.small:
            turns.append(turn)
        elif turn.what.combines:
            kinds.setdefault(_kind(turn.work), []).append(turn.work)
    bundles = [
        tuple(works[start : start + schedule.rows])
        for works in kinds.values()
        for start in range(0, len(works), schedule.rows)
    ]
    return list(itertools.chain(bundles, turns))


def _kind(work: Work) -> Hashable:
    """What small tensors must have in common: the programs they go through."""
    return kernel_key(work.step), work.passes


@cache
def combine_rows(key: KernelKey) -> Callable[..., Piece]:
    """The jitted program (inputs [rows, ROW], arguments of the method by name [rows, ...]) -> Piece of rows."""
    return jax.jit(jax.vmap(combine(key)))


@cache
def terms_rows(key: KernelKey, statistic: int) -> Callable[..., Sequence[jax.Array]]:
    """The jitted program (inputs, arguments) -> each of the statistic's terms [rows, ROW]."""
    return jax.jit(jax.vmap(terms_of(key, statistic)))


@cache
def fold_rows(key: KernelKey, statistic: int) -> Callable[..., Any]:
    """The jitted program (states, inputs, arguments, elements that count [rows]) -> the statistic of every row, which
    is one piece."""
    fold = find_method(key.method).statistics[statistic]
    step = update(key, statistic)

    def value(
        state: Any, inputs: Sequence[jax.Array], arguments: Mapping[str, Any], valid: jax.Array
    ) -> Any:
        zero = np.uint32(0)
        place = Place(zero, zero, zero, np.zeros(2, np.uint32), valid)

        def seen(state: Any, last: bool) -> Any:
            return fold.close(step(state, inputs, arguments, place, last), zero)

        return search(fold, state, key.compute, seen)

    return jax.jit(jax.vmap(value))


def make_small(tasks: Sequence[Task], inputs: Sequence[np.ndarray]) -> Piece:
    """The results [rows, ROW] of some small tensors of one kind, of which as many elements count as a tensor has, with
    their bits [rows, LANES].

    inputs: [rows, ROW] each; there may be more rows than tensors.
    """
    key, rows = tasks[0].key, inputs[0].shape[0]
    with key.precision():
        for what in dict.fromkeys(tasks[0].work.passes[:-1]):
            values = _find(tasks, what.statistic, inputs)
            for task, value in zip(tasks, values, strict=True):
                task.settle(what.statistic, value)
        return combine_rows(key)(inputs, stacked([task.arguments(0) for task in tasks], rows))


def stacked(each: list[Any], rows: int) -> Any:
    """What every tensor has, for all rows; those that are not used have what the first has."""
    each = each + each[:1] * (rows - len(each))
    return jax.tree.map(lambda *values: np.stack(values), *each)


def _find(tasks: Sequence[Task], number: int, inputs: Sequence[np.ndarray]) -> list[Any]:
    """A statistic of every tensor."""
    key, rows, statistic = tasks[0].key, inputs[0].shape[0], tasks[0].statistics[number]
    arguments = stacked([task.arguments(0, number) for task in tasks], rows)
    if is_searched(statistic, key.view, tasks[0].platform):
        terms = [np.asarray(term) for term in terms_rows(key, number)(inputs, arguments)]
        return [
            thresholds_of(
                [term[row, : task.work.step.spec.size] for term in terms],
                task.counts(number),
                key.word,
            )
            for row, task in enumerate(tasks)
        ]
    states = stacked([task.begin(number) for task in tasks], rows)
    sizes = np.asarray([task.work.step.spec.size for task in tasks], np.uint32)
    found = fold_rows(key, number)(states, inputs, arguments, stacked(list(sizes), rows))
    found = jax.tree.map(np.asarray, found)
    return [jax.tree.map(lambda each, row=row: each[row], found) for row in range(len(tasks))]


ROWS = combine_rows, terms_rows, fold_rows  # what compiles programs
