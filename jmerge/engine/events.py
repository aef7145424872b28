"""What a run tells those who watch it; listeners are plain functions of one event."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from jmerge.ckpt.journal import Block


class Without(NamedTuple):
    """Before anything else: platforms that were asked for are not here."""

    missing: tuple[str, ...]
    platform: str  # that does the work


class Started(NamedTuple):
    """Work begins."""

    read_bytes: int  # of inputs, in all passes that are left to do here
    write_bytes: (
        int  # of the output, with what is kept of an interrupted run and what other hosts write
    )


class Resumed(NamedTuple):
    """An interrupted run continues, before it starts: so much of its output was verified and is kept."""

    kept_bytes: int
    left_bytes: int


class Read(NamedTuple):
    """Pieces of inputs were read and used."""

    nbytes: int


class Wrote(NamedTuple):
    """Part of a tensor is in its file."""

    block: Block

    @property
    def tensor(self) -> str:
        """The tensor's name."""
        return self.block.tensor

    @property
    def nbytes(self) -> int:
        """How much of it."""
        return self.block.nbytes


class WroteElsewhere(NamedTuple):
    """Other hosts wrote so much more of the output."""

    nbytes: int


class Finished(NamedTuple):
    """A tensor is complete."""

    tensor: str
    crc32: int


class Nonfinite(NamedTuple):
    """A tensor is made of inputs that hold NaN or infinity, which is allowed."""

    tensor: str
    models: tuple[int, ...]  # whose they are, by position in the plan


Event = Without | Started | Resumed | Read | Wrote | WroteElsewhere | Finished | Nonfinite
Listener = Callable[[Event], None]
