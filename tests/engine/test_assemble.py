"""Assembled inputs: the elements that their boxes name, from any range of bytes, in blocks of any size."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

import ml_dtypes
import numpy as np
import pytest

from jmerge.dtypes import NUMPY, SAFETENSORS, TensorSpec
from jmerge.engine import assemble
from jmerge.engine.assemble import Assembler, place_of, spans_of
from jmerge.plan.inputs import Assembled, Box, Read

Reader = Callable[[Read, int, np.ndarray], None]
Window = Callable[[Read, int, int], AbstractContextManager[np.ndarray | None]]


def random_item(rng: np.random.Generator) -> tuple[Assembled, dict[str, np.ndarray], np.ndarray]:
    """An input of boxes of tensors whose axes may be in another order, the tensors, and what it should hold."""
    dtype = np.dtype([np.float32, ml_dtypes.bfloat16, np.int8][rng.integers(3)])
    view = tuple(int(size) for size in rng.integers(1, 7, rng.integers(1, 5)))
    wanted = rng.integers(-100, 100, view).astype(dtype)
    cuts = [sorted({0, size, int(rng.integers(0, size + 1))}) for size in view]
    boxes, tensors = [], {}
    for number, box in enumerate(itertools.product(*map(itertools.pairwise, cuts))):
        part = wanted[tuple(slice(low, high) for low, high in box)]
        order = rng.permutation(len(view)) if rng.random() < 0.6 else np.arange(len(view))
        moved = part.transpose(order)
        grown = [size + int(rng.integers(0, 3)) * (rng.random() < 0.4) for size in moved.shape]
        tensor = rng.integers(-100, 100, grown).astype(dtype)
        first = [int(rng.integers(0, a - b + 1)) for a, b in zip(grown, moved.shape, strict=True)]
        tensor[tuple(slice(a, a + b) for a, b in zip(first, moved.shape, strict=True))] = moved
        steps = [math.prod(grown[axis + 1 :]) for axis in range(len(grown))]
        start = sum(a * b for a, b in zip(first, steps, strict=True))
        strides = [0] * len(view)
        for place, axis in enumerate(order):
            strides[axis] = steps[place]
        name = str(number)
        tensors[name] = tensor
        spec = TensorSpec(SAFETENSORS[dtype], tuple(grown))
        read = Read(model=0, name=name, file="f", start=0, spec=spec)
        boxes.append(Box(read=read, start=start, strides=tuple(strides), box=tuple(box)))
    spec = TensorSpec(SAFETENSORS[dtype], (wanted.size,))
    item = Assembled(model=0, name=str(rng.integers(1 << 60)), view=view, boxes=tuple(boxes), spec=spec)  # fmt: skip
    return item, tensors, wanted.reshape(-1)


def reader(tensors: dict[str, np.ndarray], asked: list[tuple[str, int, int]]) -> Reader:
    """Bytes of tensors, as if from files; what was asked for is put down."""

    def read(item: Read, first: int, buffer: np.ndarray) -> None:
        raw = tensors[item.name].reshape(-1).view(np.uint8)
        assert 0 <= first and 0 < buffer.size and first + buffer.size <= raw.size
        asked.append((item.name, first, first + buffer.size))
        buffer[:] = raw[first : first + buffer.size]

    return read


def window_of(read: Reader | None) -> Window:
    """A window into what `read` gives, or none."""

    @contextmanager
    def window(item: Read, first: int, size: int) -> Iterator[np.ndarray | None]:
        if read is None:
            yield None
            return
        found = np.empty(size, np.uint8)
        read(item, first, found)
        yield found

    return window


@pytest.mark.parametrize("seed", range(40))
@pytest.mark.parametrize("mapped", [False, True])
@pytest.mark.parametrize(("chunk", "loose"), [(1 << 20, 3), (16, 1), (40, 50)])
def test_any_range_holds_what_the_boxes_name(
    seed: int, mapped: bool, chunk: int, loose: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And nothing is read beside the spans that are told beforehand."""
    monkeypatch.setattr(assemble, "CHUNK", chunk)
    monkeypatch.setattr(assemble, "LOOSE", loose)
    rng = np.random.default_rng(seed)
    item, tensors, wanted = random_item(rng)
    width = NUMPY[item.spec.dtype].itemsize
    asked: list[tuple[str, int, int]] = []
    read = reader(tensors, asked)
    assembler = Assembler(read, window_of(read if mapped else None))
    ranges = [(0, wanted.size), *(sorted(rng.integers(0, wanted.size + 1, 2)) for _ in range(8))]
    for start, stop in ranges:
        first, last = int(start) * width, int(stop) * width
        raw = np.full(last - first, 0xAB, np.uint8)
        asked.clear()
        assembler.read(item, first, raw)
        np.testing.assert_array_equal(raw, wanted[start:stop].view(np.uint8))
        spans = [(each.name, begin, end) for each, begin, end in spans_of(item, first, last)]
        for name, begin, end in asked:
            assert any(name == n and a <= begin and end <= b for n, a, b in spans)
        place = place_of(item, first, last - first)
        if place is not None:
            found = tensors[place[0].name].reshape(-1).view(np.uint8)[place[1] :]
            np.testing.assert_array_equal(found[: raw.size], raw)


def test_runs_are_read_in_place() -> None:
    """Stacked tensors need one read each, without a block between, and each is a window into its file."""
    arrays = {str(i): np.full((3, 5), i, np.float32) for i in range(4)}
    spec = TensorSpec("F32", (3, 5))
    boxes = tuple(
        Box(
            read=Read(model=0, name=name, file="f", start=0, spec=spec),
            start=0,
            strides=(0, 5, 1),
            box=((i, i + 1), (0, 3), (0, 5)),
        )
        for i, name in enumerate(arrays)
    )
    item = Assembled(model=0, name="stacked", view=(4, 3, 5), boxes=boxes, spec=TensorSpec("F32", (4, 3, 5)))  # fmt: skip
    asked: list[tuple[str, int, int]] = []
    raw = np.empty(item.spec.nbytes, np.uint8)
    Assembler(reader(arrays, asked), window_of(None)).read(item, 0, raw)
    assert asked == [(name, 0, 60) for name in arrays]
    np.testing.assert_array_equal(raw.view(np.float32).reshape(4, 15)[:, 0], range(4))
    assert not assemble.is_dealt_out(item)
    assert place_of(item, 64, 32) == (boxes[1].read, 4)
    assert place_of(item, 40, 40) is None  # of two


def test_what_lies_apart_is_read_in_few_requests() -> None:
    """A transposed matrix is read in runs along its rows, or with what lies between where that is little."""
    matrix = np.arange(64 * 48, dtype=np.float32).reshape(64, 48)
    read = Read(model=0, name="m", file="f", start=0, spec=TensorSpec("F32", (64, 48)))
    box = Box(read=read, start=0, strides=(1, 48), box=((0, 48), (0, 64)))
    item = Assembled(model=0, name="t", view=(48, 64), boxes=(box,), spec=TensorSpec("F32", (48, 64)))  # fmt: skip
    asked: list[tuple[str, int, int]] = []
    assembler = Assembler(reader({"m": matrix}, asked), window_of(None))
    for rows, most in ((48, 1), (30, 1), (4, 64)):
        asked.clear()
        raw = np.empty(rows * 64 * 4, np.uint8)
        assembler.read(item, 0, raw)
        np.testing.assert_array_equal(raw.view(np.float32).reshape(rows, 64), matrix.T[:rows])
        assert len(asked) == most


def test_little_is_read_around_the_edge_of_two_matrices() -> None:
    """The end of one transposed matrix with the beginning of the next does not bring in both."""
    stack = np.arange(2 * 64 * 48, dtype=np.float32).reshape(2, 64, 48)
    read = Read(model=0, name="s", file="f", start=0, spec=TensorSpec("F32", (2, 64, 48)))
    box = Box(read=read, start=0, strides=(64 * 48, 1, 48), box=((0, 2), (0, 48), (0, 64)))
    spec = TensorSpec("F32", (2, 48, 64))
    item = Assembled(model=0, name="e", view=(2, 48, 64), boxes=(box,), spec=spec)
    asked: list[tuple[str, int, int]] = []
    raw = np.empty(5 * 64 * 4, np.uint8)
    first = 44 * 64 * 4
    Assembler(reader({"s": stack}, asked), window_of(None)).read(item, first, raw)
    wanted = stack.transpose(0, 2, 1).reshape(-1)[44 * 64 : 49 * 64]
    np.testing.assert_array_equal(raw.view(np.float32), wanted)
    assert sum(stop - start for _, start, stop in asked) == raw.size
