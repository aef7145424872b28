"""Where fetched parts are held until their last use: in memory, or in a temporary file."""

from __future__ import annotations

import shutil
import tempfile
import threading
from pathlib import Path
from typing import Protocol

import numpy as np

from jmerge.ckpt.disk import environment_errors
from jmerge.ckpt.remote import CONNECTIONS, PART_BYTES
from jmerge.errors import RunError

IN_MEMORY = 1 << 28  # bytes of parts that are held in memory
# the most memory that remote inputs take: what is held, and what is just arriving
REMOTE_BYTES = IN_MEMORY + CONNECTIONS * PART_BYTES


class PartStore(Protocol):
    """Parts by number, for any thread."""

    def put(self, number: int, data: np.ndarray) -> None:
        """Hold the bytes `data`."""

    def get(self, number: int, start: int, buffer: np.ndarray) -> None:
        """Fill the byte `buffer` from byte `start` of a part."""

    def free(self, number: int) -> None:
        """Let a part go."""

    def close(self) -> None:
        """Let all go."""


class MemoryStore:
    """Parts in memory."""

    def __init__(self) -> None:
        self._parts: dict[int, np.ndarray] = {}

    def put(self, number: int, data: np.ndarray) -> None:
        self._parts[number] = data

    def get(self, number: int, start: int, buffer: np.ndarray) -> None:
        buffer[:] = self._parts[number][start : start + buffer.size]

    def free(self, number: int) -> None:
        del self._parts[number]

    def close(self) -> None:
        self._parts.clear()


class FileStore:
    """Parts in frames of a temporary file, which has no name where the system can do that; freed frames are used
    again, so the file does not grow beyond what is held at once."""

    def __init__(self, frame: int, folder: Path) -> None:
        self._frame = frame
        self._folder = folder
        self._lock = threading.Lock()  # seeking and reading or writing belong together
        with environment_errors(folder):
            self._file = tempfile.TemporaryFile(  # noqa: SIM115  # `close` does
                dir=folder, prefix="jmerge-fetched-", buffering=0
            )
        self._frames: dict[int, int] = {}
        self._free: list[int] = []
        self._made = 0

    def put(self, number: int, data: np.ndarray) -> None:
        with self._lock, environment_errors(self._folder):
            if not self._free:
                self._free.append(self._made)
                self._made += 1
            frame = self._free.pop()
            self._file.seek(frame * self._frame)
            view = data.data
            while view:
                view = view[self._file.write(view) :]
            self._frames[number] = frame

    def get(self, number: int, start: int, buffer: np.ndarray) -> None:
        with self._lock, environment_errors(self._folder):
            self._file.seek(self._frames[number] * self._frame + start)
            view = buffer.data
            while view and (count := self._file.readinto(view)):
                view = view[count:]
            if view:
                raise RunError(
                    f"{self._folder}: a temporary file is incomplete; run the same command again",
                    code="JM501",
                )

    def free(self, number: int) -> None:
        with self._lock:
            self._free.append(self._frames.pop(number))

    def close(self) -> None:
        self._file.close()


def make_store(most: int, frame: int, folder: Path | None) -> PartStore:
    """A store for at most `most` bytes in parts of at most `frame`; files go into `folder`, or the system's for them.

    Raises:
      RunError: the disk has no room for them.
    """
    if most <= IN_MEMORY:
        return MemoryStore()
    place = folder or Path(tempfile.gettempdir())
    with environment_errors(place):
        free = shutil.disk_usage(place).free
    if most > free:
        raise RunError(
            f"{place} has {free:,} bytes free; the method reads remote tensors more than once, and keeping "
            f"them meanwhile needs {most:,}; free space, or write to a larger disk",
            code="JM502",
        )
    return FileStore(frame, place)
