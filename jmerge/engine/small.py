"""The arithmetic of small tensors: many at a time, statistics and result, each a row of arrays.

The arithmetic is that of pieces, so the bits are the same. Cuts are found on the host, which has each tensor whole.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import Any

import jax
import numpy as np

from jmerge.engine.kernel import KernelKey, Piece, change_bits, combine, terms_of
from jmerge.engine.schedule import ROW, Cutting, Work
from jmerge.engine.task import Known, Task
from jmerge.methods.cuts import cut_by_partition, make_cut
from jmerge.methods.reduce import BLOCK, add_blocks, block_pairs


@cache
def combine_rows(key: KernelKey) -> Callable[..., Piece]:
    """The jitted program (inputs [rows, ROW], arguments of the method by name [rows, ...]) -> Piece of rows."""
    return jax.jit(jax.vmap(combine(key)))


@cache
def sum_rows(key: KernelKey, statistic: int) -> Callable[..., jax.Array]:
    """The jitted program (inputs, arguments) -> the statistic's sums [rows, sums]."""
    terms = jax.vmap(terms_of(key, statistic))

    def add(inputs: Sequence[jax.Array], arguments: Mapping[str, Any]) -> jax.Array:
        found = terms(inputs, arguments)
        # blocks are added like those of a piece, each alone
        pairs = block_pairs([each.reshape(-1) for each in found])
        rows: jax.Array = jax.vmap(add_blocks, in_axes=1)(
            pairs.reshape(len(found), -1, ROW // BLOCK, 2)
        )
        return rows

    return jax.jit(add)


@cache
def key_rows(key: KernelKey, statistic: int) -> Callable[..., Sequence[jax.Array]]:
    """The jitted program (inputs, arguments) -> each of the statistic's terms: unsigned keys [rows, ROW]."""
    return jax.jit(jax.vmap(terms_of(key, statistic)))


@cache
def change_rows() -> Callable[..., Sequence[jax.Array]]:
    """The jitted program (base, models, factors [rows, models]) -> for each model, bits of the magnitudes of its
    changes times its factor [rows, ROW]."""

    def bits(base: jax.Array, models: Sequence[jax.Array], factors: jax.Array) -> list[jax.Array]:
        return [change_bits(base, model, factors[i]) for i, model in enumerate(models)]

    return jax.jit(jax.vmap(bits))


class Small:
    """Some small tensors of one kind on their way through the statistics of their method to the result.

    rows: that the programs are made for, perhaps more than there are tensors.
    """

    def __init__(self, works: Sequence[Work], rows: int, platform: str) -> None:
        self.tasks = [Task(work, Known(), platform) for work in works]
        self.key = self.tasks[0].key
        self.method = self.tasks[0].method
        self._rows = rows
        self._statistics = {what.statistic for what in works[0].passes[:-1]}

    def make(self, inputs: Sequence[Any]) -> Piece:
        """Their results [rows, ROW], of which as many count as a tensor has elements, with their bits [rows, LANES].

        inputs: [rows, ROW] each.
        """
        with self.key.precision():
            for number, statistic in enumerate(self.method.statistics if self.method else ()):
                if statistic.kind == "changes":
                    self._find_changes(inputs)
                elif number in self._statistics:
                    found = self._find(number, inputs)
                    for row, task in enumerate(self.tasks):
                        task.own.found[statistic.keyword] = jax.tree.map(
                            lambda each, row=row: each[row], found
                        )
            return combine_rows(self.key)(inputs, self.arguments())

    def arguments(self) -> dict[str, Any]:
        """The keyword arguments of all rows [rows, ...]."""
        found: dict[str, Any] = self._stacked([task.on_host(0) for task in self.tasks])
        return found

    def _stacked(self, each: list[Any]) -> Any:
        """What every tensor has, for all rows; those that are not used have what the first has."""
        each += each[:1] * (self._rows - len(each))
        return jax.tree.map(lambda *values: np.stack(values), *each)

    def _find(self, number: int, inputs: Sequence[Any]) -> Any:
        """A statistic of every row."""
        assert self.method is not None
        if self.method.statistics[number].kind == "sums":
            return np.asarray(sum_rows(self.key, number)(inputs, self.arguments()))
        keys = [np.asarray(term) for term in key_rows(self.key, number)(inputs, self.arguments())]
        counts = self.method.statistics[number].counts
        assert counts is not None
        cuts = []
        for row, task in enumerate(self.tasks):
            step = task.work.step
            wanted = counts(step.numbers, step.spec.size, task.found)
            found = [
                cut_by_partition(keys[term][row, : step.spec.size], count)
                for term, each in enumerate(wanted)
                for count in each
            ]
            bounds, last = zip(*found, strict=True)
            cuts.append(make_cut(bounds, last, self.key.word))
        return jax.tree.map(lambda *values: np.stack(values), *cuts)

    def _find_changes(self, inputs: Sequence[Any]) -> None:
        """The cuts of the largest changes of every row."""
        selected = [_selected(task.work) for task in self.tasks]
        bits: Mapping[int, np.ndarray] = {}
        if any(selected):
            step = self.tasks[0].work.step
            assert step.base is not None
            factors = self._stacked([task.factors() for task in self.tasks])
            models = [inputs[position] for position in step.model_positions]
            found = change_rows()(inputs[step.base], models, factors)
            bits = dict(zip(step.model_positions, map(np.asarray, found), strict=True))
        for row, (task, cuttings) in enumerate(zip(self.tasks, selected, strict=True)):
            size = task.work.step.spec.size
            cuts = {
                cutting: cut_by_partition(bits[cutting.position][row, :size], cutting.number)
                for cutting in cuttings
            }
            task.cuts = cuts.copy


def _selected(work: Work) -> tuple[Cutting, ...]:
    return tuple(cutting for what in work.passes for cutting in what.selected)
