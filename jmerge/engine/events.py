"""What a run tells those who watch it; listeners are plain functions of one event."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple


class Started(NamedTuple):
    """Work begins."""

    read_bytes: int
    write_bytes: int


class Wrote(NamedTuple):
    """Part of a tensor is in its file."""

    tensor: str
    nbytes: int


class Finished(NamedTuple):
    """A tensor is complete."""

    tensor: str
    crc32: int


Event = Started | Wrote | Finished
Listener = Callable[[Event], None]
