"""Inputs put together from other tensors of their model while they are read: no converted copy is ever made.

A box that lies in one run in the input and in its tensor is read into place. The elements of any other, such as a
transposed one, are brought in by blocks in the order in which they lie in the file, and dealt out from there: out of a
mapped file where it can be, since a row of a large matrix has few of the elements that a piece needs.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from jmerge.dtypes import BITS
from jmerge.plan.inputs import Assembled, Box, Item, Read

CHUNK = 1 << 18  # bytes of a block, so that it stays in cache
LOOSE = 3  # times what is wanted is read at once, where that lies apart
# What this takes at most, in the thread that reads ahead and the one that computes.
ASSEMBLE_BYTES = 2 * (1 + LOOSE) * CHUNK

Ranges = Sequence[tuple[int, int]]


class Assembler:
    """Assembled inputs, by byte ranges, for any thread."""

    def __init__(
        self,
        read: Callable[[Read, int, np.ndarray], None],
        window: Callable[[Read, int, int], AbstractContextManager[np.ndarray | None]],
    ) -> None:
        """read: fills a buffer from a byte of a tensor; window: bytes of a tensor where they lie, for a while, or None."""
        self._read = read
        self._window = window

    def read(self, item: Assembled, first: int, buffer: np.ndarray) -> None:
        """Fill the byte `buffer` from byte `first` of an input; both are whole elements."""
        width = BITS[item.spec.dtype] // 8
        start, stop = first // width, (first + buffer.size) // width
        runs = runs_of(item)
        groups: list[list[_Rect]] = []
        for number in runs.between(start, stop):
            box = item.boxes[number]
            if runs.straight[number]:
                begin, end = runs.common(number, start, stop)
                into = buffer[(begin - start) * width : (end - start) * width]
                self._read(box.read, (begin + runs.offset(number, box)) * width, into)
            else:
                groups = groups or _rects(item.view, start, stop, buffer.view(f"u{width}"))
                for rects in groups:
                    self._deal_out(box, rects)

    def _deal_out(self, box: Box, rects: Sequence[_Rect]) -> None:
        """Bring the elements of a box to where they belong in `rects`."""
        wanted = _common(_around([rect.ranges for rect in rects]), box.box)
        if wanted is None:
            return
        order = sorted(range(len(wanted)), key=lambda axis: -box.strides[axis])
        back = np.argsort(order)
        dtype = rects[0].values.dtype
        for block in _blocks([wanted[axis] for axis in order], CHUNK // dtype.itemsize):
            found = np.empty([high - low for low, high in block], dtype)
            place = [block[number] for number in back]
            first, _ = _extent(box, place)
            self._fill(box.read, first, [box.strides[axis] for axis in order], found)
            for rect in rects:
                common = _common(rect.ranges, place)
                if common is not None:
                    part = found.transpose(back)[_within(common, place)]
                    rect.values[_within(common, rect.ranges)] = part

    def _fill(self, read: Read, first: int, strides: Sequence[int], found: np.ndarray) -> None:
        """Fill an array with the elements of a tensor from `first` on, `strides` apart along each axis, falling."""
        sizes = zip(found.shape, strides, strict=True)
        span = 1 + sum((size - 1) * stride for size, stride in sizes)
        width = found.dtype.itemsize
        if span == found.size:
            self._read(read, first * width, found.reshape(-1).view(np.uint8))
            return
        with self._window(read, first * width, span * width) as mapped:
            if mapped is not None:
                found[...] = _spread(mapped.view(found.dtype), found.shape, strides)
                return
        if span <= LOOSE * found.size:
            around = np.empty(span, found.dtype)
            self._read(read, first * width, around.view(np.uint8))
            found[...] = _spread(around, found.shape, strides)
        else:
            for i, part in enumerate(found):
                self._fill(read, first + i * strides[0], strides[1:], part)


def _spread(flat: np.ndarray, shape: Sequence[int], strides: Sequence[int]) -> np.ndarray:
    """The elements of an array that lie so many apart along each axis."""
    steps = [stride * flat.itemsize for stride in strides]
    return np.lib.stride_tricks.as_strided(flat, shape, steps, writeable=False)


class Runs(NamedTuple):
    """Where the boxes of an input lie in it, by number."""

    starts: np.ndarray  # first elements
    stops: np.ndarray  # ends
    straight: (
        np.ndarray
    )  # whether all between is the box's, in the order in which its tensor has it

    def between(self, start: int, stop: int) -> list[int]:
        """The boxes that may have elements of [start, stop)."""
        if start >= stop:
            return []
        found: list[int] = np.flatnonzero((self.starts < stop) & (self.stops > start)).tolist()
        return found

    def offset(self, number: int, box: Box) -> int:
        """How much further on in its tensor than in the input the elements of a straight box lie."""
        return box.start - int(self.starts[number])

    def common(self, number: int, start: int, stop: int) -> tuple[int, int]:
        """The part of [start, stop) that a straight box has."""
        return max(start, int(self.starts[number])), min(stop, int(self.stops[number]))


@lru_cache(maxsize=256)
def runs_of(item: Assembled) -> Runs:
    """Where its boxes lie."""
    steps = _row_major(item.view)
    starts, stops, straight = [], [], []
    for box in item.boxes:
        sizes = [high - low for low, high in box.box]
        first = sum(low * step for (low, _), step in zip(box.box, steps, strict=True))
        last = sum((high - 1) * step for (_, high), step in zip(box.box, steps, strict=True))
        own = _row_major(sizes)
        runs = all(
            stride == step
            for size, stride, step in zip(sizes, box.strides, own, strict=True)
            if size > 1
        )
        starts.append(first)
        stops.append(last + 1)
        straight.append(runs and last + 1 - first == math.prod(sizes))
    return Runs(np.array(starts), np.array(stops), np.array(straight))


def place_of(item: Assembled, first: int, size: int) -> tuple[Read, int] | None:
    """The tensor that has all of the bytes [first, first + size) of an input in one run, and at which of its bytes that
    begins; None when there is none."""
    width, runs = BITS[item.spec.dtype] // 8, runs_of(item)
    found = runs.between(first // width, (first + size) // width)
    if len(found) != 1 or not runs.straight[found[0]]:
        return None
    box = item.boxes[found[0]]
    return box.read, runs.offset(found[0], box) * width + first


def spans_of(item: Assembled, first: int, stop: int) -> Iterator[tuple[Read, int, int]]:
    """What reading the bytes [first, stop) of an input needs: bytes [first, stop) of tensors."""
    width, runs = BITS[item.spec.dtype] // 8, runs_of(item)
    for number in runs.between(first // width, stop // width):
        box = item.boxes[number]
        if runs.straight[number]:
            inside = runs.common(number, first // width, stop // width)
            begin, end = (runs.offset(number, box) + each for each in inside)
            yield box.read, begin * width, end * width
            continue
        for group in _groups(item.view, first // width, stop // width):
            wanted = _common(_around(group), box.box)
            if wanted is not None:
                begin, end = _extent(box, wanted)
                yield box.read, begin * width, end * width


def is_dealt_out(item: Item) -> bool:
    """Whether an input is brought in by blocks."""
    return isinstance(item, Assembled) and not runs_of(item).straight.all()


class _Rect(NamedTuple):
    """A part of the wanted elements that is a block of the view."""

    ranges: Ranges
    values: np.ndarray  # where they go


def _rects(view: Sequence[int], start: int, stop: int, flat: np.ndarray) -> list[list[_Rect]]:
    """The elements [start, stop) of a view as groups of blocks of it, which lie in `flat`."""
    found, at = [], 0
    for group in _groups(view, start, stop):
        rects = []
        for ranges in group:
            sizes = [high - low for low, high in ranges]
            rects.append(_Rect(ranges, flat[at : at + math.prod(sizes)].reshape(sizes)))
            at += math.prod(sizes)
        found.append(rects)
    return found


def _groups(view: Sequence[int], start: int, stop: int) -> list[list[Ranges]]:
    """The elements [start, stop) of a view as blocks of it, in groups with little else around them: the rest of a row with
    the rows that follow, but not the end of one matrix with the beginning of the next."""
    groups: list[list[Ranges]] = []
    for ranges in _ranges(view, start, stop):
        grown = [*groups[-1], ranges] if groups else []
        if grown and _count(_around(grown)) <= LOOSE * sum(map(_count, grown)):
            groups[-1] = grown
        else:
            groups.append([ranges])
    return groups


def _count(ranges: Ranges) -> int:
    return math.prod(high - low for low, high in ranges)


def _ranges(view: Sequence[int], start: int, stop: int) -> Iterator[Ranges]:
    if len(view) <= 1:
        yield [(start, stop)] * len(view)
        return
    inner = math.prod(view[1:])
    (first, skipped), (last, left) = divmod(start, inner), divmod(stop, inner)
    if first == last:
        for rest in _ranges(view[1:], skipped, left):
            yield [(first, first + 1), *rest]
        return
    if skipped:
        for rest in _ranges(view[1:], skipped, inner):
            yield [(first, first + 1), *rest]
        first += 1
    if first < last:
        yield [(first, last), *((0, size) for size in view[1:])]
    if left:
        for rest in _ranges(view[1:], 0, left):
            yield [(last, last + 1), *rest]


def _around(blocks: Sequence[Ranges]) -> Ranges:
    """The block around some."""
    return [
        (min(low for low, _ in axis), max(high for _, high in axis))
        for axis in zip(*blocks, strict=True)
    ]


def _extent(box: Box, part: Ranges) -> tuple[int, int]:
    """The first element and the end of a part of a box in its tensor."""
    begin, count = box.start, 0
    for (low, high), (first, _), stride in zip(part, box.box, box.strides, strict=True):
        begin += (low - first) * stride
        count += (high - low - 1) * stride
    return begin, begin + count + 1


def _blocks(ranges: Ranges, most: int) -> Iterator[list[tuple[int, int]]]:
    """Blocks of at most so many elements, whole along the last axes."""
    steps, left = [], most
    for low, high in reversed(ranges):
        steps.append(max(min(high - low, left), 1))
        left //= steps[-1]
    cuts = [
        [(at, min(at + step, high)) for at in range(low, high, step)]
        for (low, high), step in zip(ranges, reversed(steps), strict=True)
    ]
    yield from map(list, itertools.product(*cuts))


def _common(one: Ranges, other: Ranges) -> Ranges | None:
    """What two blocks share."""
    found = [(max(a, c), min(b, d)) for (a, b), (c, d) in zip(one, other, strict=True)]
    return found if all(low < high for low, high in found) else None


def _within(part: Ranges, whole: Ranges) -> tuple[slice, ...]:
    return tuple(
        slice(low - start, high - start)
        for (low, high), (start, _) in zip(part, whole, strict=True)
    )


def _row_major(sizes: Sequence[int]) -> list[int]:
    """Elements from one to the next along each axis."""
    steps = [1]
    for size in reversed(sizes[1:]):
        steps.append(steps[-1] * size)
    return steps[::-1][: len(sizes)]
