"""Memory for the pieces under way: reused buffers, or windows into mapped files."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from jmerge.ckpt.safetensors import ALIGNMENT
from jmerge.dtypes import BITS, NUMPY
from jmerge.engine.local import aligned_buffer
from jmerge.engine.schedule import ROW, Turn, Work
from jmerge.plan.inputs import Result
from jmerge.tracer import Where


class View(NamedTuple):
    """A piece of one input among the bytes around it."""

    around: np.ndarray  # bytes, aligned
    skip: int  # how many of them lie before the piece
    mapped: bool  # a window into a file, not a buffer


class Slot:
    """Read buffers for one piece of every input, and what is in them or stands for them."""

    def __init__(self, buffers: Sequence[np.ndarray]) -> None:
        self.buffers = buffers  # bytes, aligned
        self.views: dict[int, View] = {}  # by position of the input
        # of the inputs [runs, elements], with the first piece of a pass that looks at samples
        self.samples: list[np.ndarray] = []
        self.made: Any = None  # of its contents, while that may still be in use

    @classmethod
    def of_sizes(cls, sizes: Sequence[int]) -> Slot:
        """One with new buffers."""
        return cls([aligned_buffer(size) for size in sizes])


class Loaded(NamedTuple):
    """A piece of the inputs of a step, in memory."""

    turn: Turn
    number: int  # of the piece
    slot: Slot

    @property
    def work(self) -> Work:
        """What the piece is of."""
        return self.turn.work

    @property
    def last(self) -> bool:
        """Whether it is the last piece that the pass goes over."""
        return self.number == self.turn.pieces[-1]

    @property
    def closes(self) -> bool:
        """Whether it is the last piece of all that the pass is over."""
        return self.last and self.turn.closes

    @property
    def elements(self) -> int:
        """Its length."""
        start, stop = self.work.pieces[self.number]
        return stop - start

    @property
    def where(self) -> Where:
        """What it is called in spans."""
        return Where(self.work.step.name, self.turn.what.name, self.number)

    @property
    def read_bytes(self) -> int:
        """Bytes of its inputs that come from files."""
        return self.work.read_bytes(self.elements)

    @property
    def results(self) -> list[Result]:
        """Those of its inputs that other steps make."""
        return [item for item in self.work.step.inputs if isinstance(item, Result)]

    def raw(self, position: int) -> np.ndarray:
        """The bytes of the piece of one input."""
        around, skip, _ = self.slot.views[position]
        bits = BITS[self.work.step.inputs[position].spec.dtype]
        return around[skip : skip + self.elements * bits // 8]

    def values(self, position: int) -> np.ndarray:
        """The elements of the piece of one input."""
        return self.raw(position).view(NUMPY[self.work.step.inputs[position].spec.dtype])

    def windows(self) -> tuple[list[np.ndarray], np.ndarray]:
        """What kernels read of the inputs: elements in the dtype of each, and how many they skip (int32 [inputs]).

        A jitted program takes aligned memory of the host as it is, without a copy on CPU, and in a tenth of the time
        that `jax.device_put` needs to do the same.
        """
        arrays, skips = [], []
        for position, item in enumerate(self.work.step.inputs):
            around, skip, _ = self.slot.views[position]
            dtype = NUMPY[item.spec.dtype]
            size = self.work.padded(self.number) * dtype.itemsize + ALIGNMENT
            arrays.append(around[:size].view(dtype))
            skips.append(skip // dtype.itemsize)
        return arrays, np.asarray(skips, np.int32)

    def pieces(self) -> list[np.ndarray]:
        """The elements of the inputs by themselves, where the turn `adds`: so they are aligned."""
        windows, skips = self.windows()
        assert not skips.any()
        return [window[: self.work.padded(self.number)] for window in windows]


class LoadedBundle(NamedTuple):
    """A bundle of small tensors in memory, each a row of the buffers."""

    slot: Slot
    rows: tuple[Loaded, ...]  # whose slots lie within it

    @property
    def where(self) -> Where:
        """What it is called in spans: by its first tensor."""
        return Where(self.rows[0].work.step.name, "small", 0)

    @property
    def read_bytes(self) -> int:
        """Bytes of the inputs of all rows that come from files."""
        return sum(row.read_bytes for row in self.rows)

    @property
    def result_bytes(self) -> int:
        """Bytes of what is made of all rows."""
        return sum(row.work.step.spec.nbytes for row in self.rows)

    def arrays(self, rows: int) -> list[np.ndarray]:
        """The inputs [rows, ROW], each in its dtype; as many rows as programs are made for, zeros after the last."""
        found = []
        for buffer, item in zip(self.slot.buffers, self.rows[0].work.step.inputs, strict=False):
            dtype = NUMPY[item.spec.dtype]
            buffer[len(self.rows) * ROW * dtype.itemsize : rows * ROW * dtype.itemsize] = 0
            found.append(buffer[: rows * ROW * dtype.itemsize].view(dtype).reshape(rows, ROW))
        return found


def bundle_in(bundle: Sequence[Work], slot: Slot) -> LoadedBundle:
    """A place in a slot for every tensor of a bundle, still to be loaded."""
    rows = []
    for number, work in enumerate(bundle):
        buffers = []
        for buffer, item in zip(slot.buffers, work.step.inputs, strict=False):
            size = ROW * BITS[item.spec.dtype] // 8
            buffers.append(buffer[number * size : (number + 1) * size])
        turn = Turn.whole(work, work.passes[-1], closes=True)
        rows.append(Loaded(turn, 0, Slot(buffers)))
    return LoadedBundle(slot, tuple(rows))
