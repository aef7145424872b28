"""What the computation of one step remembers, and the keyword arguments of its method that follow from it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from jmerge.engine.kernel import KernelKey, kernel_key
from jmerge.engine.radix import Radix
from jmerge.engine.schedule import Cutting, Pass, Work
from jmerge.engine.selection import Selection
from jmerge.methods.cuts import Cut, cut_by_partition, make_cut
from jmerge.methods.positions import split_position
from jmerge.methods.wrap import find_method
from jmerge.plan.steps import COPY, Step


class Known:
    """What has been found of one tensor, or of all tensors of a group."""

    def __init__(self) -> None:
        self.found: dict[str, Any] = {}  # statistics by keyword
        self.totals: dict[
            int, np.ndarray
        ] = {}  # by place: pairs [sums, 1, 2] of the sums under way
        self.radix: Radix | None = None  # of the cuts under way


class Task:
    """What the computation of one step remembers from pass to pass."""

    def __init__(self, work: Work, group: Known, platform: str) -> None:
        self.work = work
        self.platform = platform  # of the devices
        self.key: KernelKey = kernel_key(work.step)
        self.method = None if work.step.method == COPY else find_method(work.step.method)
        self.own = Known()
        self.group = group
        self.selection: Selection | None = None
        self.cuts: Callable[[], dict[Cutting, tuple[int, int]]] | None = None  # waits for them
        self.pairs: list[np.ndarray] = []
        self._selects = any(what.kind == "changes" for what in work.passes)
        self._numbers: dict[str, Any] | None = None
        self._densities: dict[str, Cut] | None = None  # once they are known

    def known(self, what: Pass) -> Known:
        """Where the statistic of a pass goes."""
        return self.own if what.scope == "tensor" else self.group

    @property
    def found(self) -> dict[str, Any]:
        """The statistics found so far, by keyword."""
        return {**self.group.found, **self.own.found}

    def arguments(self, number: int) -> dict[str, Any]:
        """The keyword arguments of the method for a piece; waits for the cuts of changes where these were looked for."""
        return self._arguments(number, jax.device_put)

    def on_host(self, number: int) -> dict[str, Any]:
        """The same as numpy arrays, where the statistics are."""
        return self._arguments(number, lambda arrays: arrays)

    def _arguments(self, number: int, place: Callable[[Any], Any]) -> dict[str, Any]:
        if self.method is None:
            return {}
        if self._numbers is None:
            self._numbers = place(self._make_numbers(self.work.step))
        if self._densities is None and not (self.cuts is None and self._selects):
            self._densities = place(self._make_cuts(self.work.step))
        arguments = {**self._numbers, **(self._densities or {}), **self.found}
        if "start" in self.method.reserved:
            offset = self.work.place.offset if self.method.counts_through else 0
            start, _ = self.work.pieces[number]
            arguments["start"] = np.asarray(split_position(offset + start), np.uint32)
        return arguments

    @property
    def sorts_on_host(self) -> bool:
        """Whether rows are sorted on the host, which is better at it than XLA on CPU."""
        return self.platform == "cpu"

    @property
    def row_view(self) -> tuple[int, ...]:
        """The shape of a piece with its rows along axis 1."""
        return self.key.view if len(self.key.view) > 1 else (1, -1)

    def factors(self) -> np.ndarray:
        """By what the changes of the models are multiplied before anything is done with them."""
        if self.method is None or self.method.factors is None:
            return np.ones(len(self.work.step.models), self.key.compute)
        return np.asarray(self.method.factors(self.found), self.key.compute)

    def _make_numbers(self, step: Step) -> dict[str, Any]:
        assert self.method is not None
        numbers: dict[str, Any] = {}
        for name, value in step.numbers.items():
            declared = self.method.parameters[name]
            if not (value is None or isinstance(value, int) or declared.concrete or declared.count):
                numbers[name] = np.asarray(value, self.key.compute)
        if "size" in self.method.reserved:
            numbers["size"] = np.asarray(step.spec.size, self.key.compute)
        if "keys" in self.method.reserved:
            numbers["keys"] = np.asarray(step.keys, np.uint32).reshape(-1, 2)
        return numbers

    def _make_cuts(self, step: Step) -> dict[str, Cut]:
        """The cuts of the densities of a single tensor."""
        assert self.method is not None
        if not any(statistic.kind == "changes" for statistic in self.method.statistics):
            return {}
        counts = self.method.counts_kept(step.numbers, step.spec.size)
        return {name: self._make_cut(name, kept) for name, kept in counts.items()}

    def _make_cut(self, parameter: str, counts: tuple[int, ...]) -> Cut:
        size = self.work.step.spec.size
        found = {} if self.cuts is None else self.cuts()
        known = {(cutting.parameter, cutting.position): cut for cutting, cut in found.items()}
        everything = 0, size
        nothing = cut_by_partition(np.empty(0, self.key.compute), 0)
        cuts = []
        for position, count in zip(self.work.step.model_positions, counts, strict=True):
            cuts.append(known.get((parameter, position), everything if count else nothing))
        bounds, last = zip(*cuts, strict=True)
        return make_cut(bounds, last, self.key.word)
