"""Reusable memory for the pieces under way."""

from __future__ import annotations

from typing import NamedTuple

from jmerge.engine.reads import aligned_buffer
from jmerge.engine.schedule import Pass, Work


class Slot:
    """Read buffers for one piece of every input."""

    def __init__(self, sizes: tuple[int, ...]) -> None:
        self.buffers = [aligned_buffer(size) for size in sizes]


class Loaded(NamedTuple):
    """A piece of the inputs of a step, in memory."""

    work: Work
    turn: Pass
    number: int  # of the piece
    slot: Slot

    @property
    def last(self) -> bool:
        """Whether it is the last piece of the tensor."""
        return self.number == len(self.work.pieces) - 1

    @property
    def elements(self) -> int:
        """Its length."""
        start, stop = self.work.pieces[self.number]
        return stop - start
