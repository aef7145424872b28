"""What the computation of one step remembers, and the keyword arguments of its method that follow from it."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future
from typing import Any

import jax
import numpy as np

from jmerge.ckpt.safetensors import ALIGNMENT
from jmerge.dtypes import NUMPY
from jmerge.engine.kernel import KernelKey, kernel_key, keys_kernel
from jmerge.engine.schedule import Work, last_of_group
from jmerge.methods.positions import split_position
from jmerge.methods.reduce import BLOCK
from jmerge.methods.statistics.counts import whole_number
from jmerge.methods.statistics.fold import Extent, Place, Statistic
from jmerge.methods.statistics.rows import Masks
from jmerge.methods.statistics.topk import TopK
from jmerge.methods.wrap import find_method
from jmerge.plan.steps import COPY

KEPT_BYTES = 16  # of a step's masks for each candidate that its searches may hold


class KeptMasks:
    """The masks of some pieces of a step, the first that fit into so many bytes."""

    def __init__(self, most: int) -> None:
        self._left = most
        self._packed: dict[int, list[np.ndarray]] = {}  # by the number of their piece
        self._shapes: dict[int, tuple[int, ...]] = {}

    def put(self, piece: int, masks: Sequence[np.ndarray]) -> None:
        """Keep the masks of a piece, all of one shape, if there is room."""
        size = sum(-(-mask.size // 8) for mask in masks)
        if masks and piece not in self._packed and size <= self._left:
            self._left -= size
            self._packed[piece] = [np.packbits(mask) for mask in masks]
            self._shapes[piece] = masks[0].shape

    def take(self, piece: int, *, again: bool) -> list[np.ndarray] | None:
        """The masks of a piece, None where they were not kept; again: whether they are needed once more."""
        if piece not in self._packed:
            return None
        packed, shape = self._packed[piece], self._shapes[piece]
        if not again:
            del self._packed[piece]
        count = int(np.prod(shape))
        return [np.unpackbits(each, count=count).view(np.bool_).reshape(shape) for each in packed]


Found = dict[str, Any]  # statistics by keyword, or futures of them


class Task:
    """What the computation of one step remembers from pass to pass.

    group: the statistics of the step's group.
    """

    def __init__(self, work: Work, group: Found, platform: str) -> None:
        self.work = work
        self.platform = platform  # of the devices
        self.key: KernelKey = kernel_key(work.step)
        self.method = None if work.step.method == COPY else find_method(work.step.method)
        self.statistics: Sequence[Statistic] = self.method.statistics if self.method else ()
        # from the pass of a tensor's statistic to that of its result; between those of whole models there are too many
        most = work.candidates * KEPT_BYTES if last_of_group(work) < 0 else 0
        self.kept = KeptMasks(most)
        self._found: Found = {}
        self._terms: dict[int, tuple[int, int]] = {}  # see `terms`
        self._group = group
        self._numbers = self._make_numbers()

    def settle(self, number: int, value: Any) -> None:
        """Put down a statistic, or the future of one."""
        statistic = self.statistics[number]
        of = self._group if statistic.scope == "model" else self._found
        of[statistic.keyword] = value

    def found(self, until: int | None = None) -> Found:
        """The statistics by keyword, or those before the one of a number; waits for them."""
        found: Found = {}
        for number, statistic in enumerate(self.statistics[:until]):
            if statistic.scope == "piece" or not statistic.when(self.work.step.hyperparameters):
                continue
            of = self._group if statistic.scope == "model" else self._found
            if statistic.keyword not in of:  # then there is no pass for it
                extent = self.extent(number)
                value = statistic.known(extent, self.work.step.hyperparameters, found)
                assert value is not None, f"{statistic.keyword} of {self.work.step.name}"
                of[statistic.keyword] = value
            value = of[statistic.keyword]
            found[statistic.keyword] = value.result() if isinstance(value, Future) else value
        return found

    def arguments(self, number: int, until: int | None = None) -> dict[str, Any]:
        """The keyword arguments of the method for a piece, or of the terms of the statistic number `until`."""
        arguments = {**self._numbers, **self.found(until)}
        if self.method is not None and "start" in self.method.reserved:
            offset = self.work.group.offset if self.method.counts_through else 0
            start, _ = self.work.pieces[number]
            arguments["start"] = np.asarray(split_position(offset + start), np.uint32)
        return arguments

    def begin(self, number: int, found: Found | None = None) -> Any:
        """The state of a statistic before its first piece; found: those before it, unless they are in here."""
        found = self.found(number) if found is None else found
        return self.statistics[number].init(
            self.extent(number), self.work.step.hyperparameters, found
        )

    def counts(self, number: int) -> list[list[int]]:
        """How many each of the thresholds of a `TopK` keeps, for each term a list."""
        statistic = self.statistics[number]
        assert isinstance(statistic, TopK)
        size = sum(self.work.place(statistic.scope).sizes)
        rows = statistic.counts(self.work.step.hyperparameters, size, self.found(number))
        return [[whole_number(count) for count in row] for row in rows]

    def on_host(self, until: int | None) -> list[int]:
        """The statistics of single pieces, or those before the one of a number, that the host is better at than XLA."""
        if self.platform != "cpu":
            return []
        found, hyperparameters = enumerate(self.statistics[:until]), self.work.step.hyperparameters
        return [n for n, each in found if each.scope == "piece" and each.when(hyperparameters)]

    def masks(self, until: int | None) -> Masks | None:
        """The last of those, if it is masks: what is kept of it is all that is needed of them."""
        drawn = self.on_host(until)
        last = self.statistics[drawn[-1]] if drawn else None
        return last if isinstance(last, Masks) else None

    def take_in(self, arguments: dict[str, Any], number: int, made: Any, until: int | None) -> None:
        """Put a statistic of a piece into the arguments; masks take the place of what they were made with."""
        statistic = self.statistics[number]
        if statistic is self.masks(until):
            for each in self.on_host(number):
                del arguments[self.statistics[each].keyword]
        arguments[statistic.keyword] = made

    def extent(self, number: int) -> Extent:
        """What a statistic is taken of."""
        place, (terms, each) = self.work.place(self.statistics[number].scope), self.terms(number)
        rows = place.rows if each > 1 else max(place.sizes)
        if not self.work.row:
            rows = 0
        return Extent(place.sizes, terms, self.key.compute, place.pieces, rows)

    def place(self, number: int, piece: int) -> Place:
        """Where a piece lies among those that a statistic is taken of."""
        own, (start, stop) = self.work.place(self.statistics[number].scope), self.work.pieces[piece]
        _, each = self.terms(number)
        return Place(
            piece=np.uint32(own.first + piece),
            tensor=np.uint32(own.number),
            block=np.uint32(start // (each if self.work.row else BLOCK)),
            start=np.asarray(split_position(own.offset + start), np.uint32),
            valid=np.uint32((stop - start) // each),
        )

    def terms(self, number: int) -> tuple[int, int]:
        """How many terms a statistic has, and of how many elements each of their numbers is: more than one where there
        is one for a row."""
        if number not in self._terms:
            inputs, kernel = window_shapes(self.work), keys_kernel(self.key, number)
            shapes = jax.eval_shape(kernel, *inputs, self.arguments(0, number))
            each = shapes[0].size if shapes else 0
            self._terms[number] = len(shapes), self.work.padded(0) // each if each else 1
        return self._terms[number]

    def _make_numbers(self) -> dict[str, Any]:
        hyperparameters: dict[str, Any] = {}
        if self.method is None:
            return hyperparameters
        step = self.work.step
        for name, value in step.hyperparameters.items():
            declared = self.method.parameters[name]
            if declared.given and not (value is None or isinstance(value, int)):
                hyperparameters[name] = np.asarray(value, self.key.compute)
        if "size" in self.method.reserved:
            hyperparameters["size"] = np.asarray(step.spec.size, self.key.compute)
        if "keys" in self.method.reserved:
            hyperparameters["keys"] = np.asarray(step.keys, np.uint32).reshape(-1, 2)
        return hyperparameters


def window_shapes(work: Work) -> tuple[list[jax.ShapeDtypeStruct], np.ndarray]:
    """What kernels read of the longest piece of a step's inputs, but for the values."""
    windows = piece_shapes(work, ALIGNMENT)
    return windows, np.zeros(len(windows), np.int32)


def piece_shapes(work: Work, beside: int = 0) -> list[jax.ShapeDtypeStruct]:
    """The longest piece of each of a step's inputs, with so many bytes beside it."""
    dtypes = [NUMPY[item.spec.dtype] for item in work.step.inputs]
    lengths = [work.padded(0) + beside // dtype.itemsize for dtype in dtypes]
    return [
        jax.ShapeDtypeStruct((length,), dtype)
        for length, dtype in zip(lengths, dtypes, strict=True)
    ]
