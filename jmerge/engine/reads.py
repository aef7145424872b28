"""Byte ranges of input files into aligned buffers."""

from __future__ import annotations

import errno
import os
import threading
from pathlib import Path

import numpy as np

from jmerge.ckpt.safetensors import ALIGNMENT
from jmerge.ckpt.source import Source
from jmerge.errors import CheckpointError, Fault, RunError

# What opening or reading says of a file that somebody took away; anything else is the machine's fault.
GONE = (errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.EACCES, errno.EPERM, errno.ELOOP)


def aligned_buffer(nbytes: int) -> np.ndarray:
    """A byte buffer whose first byte is 64-byte aligned, which a jitted program takes without copying."""
    raw = np.empty(nbytes + ALIGNMENT, np.uint8)
    start = -raw.ctypes.data % ALIGNMENT
    return raw[start : start + nbytes]


class Files:
    """Open files, read by position from any thread."""

    def __init__(self) -> None:
        self._open: dict[Path, int] = {}
        self._lock = threading.RLock()

    def read(self, path: Path, start: int, buffer: np.ndarray) -> None:
        """Fill the byte `buffer` from position `start` of the file.

        Raises:
          CheckpointError: the file ends first, or is gone.
          RunError: the machine could not read it, which may pass.
        """
        done = 0
        view = memoryview(buffer.data)
        while done < len(view):
            try:
                count = self._read_some(path, start + done, view[done:])
            except OSError as error:
                if error.errno not in GONE:
                    raise RunError(
                        f"{path}: {error.strerror or error}; fix the cause and run the same command again",
                        code="JM501",
                    ) from error
                raise CheckpointError(
                    Fault(
                        f"cannot be read: {error.strerror or error}", file=str(path), code="JM112"
                    )
                ) from error
            if count == 0:
                raise CheckpointError(
                    Fault(
                        f"ends at byte {start + done}; it changed while it was being read",
                        file=str(path),
                        code="JM111",
                    )
                )
            done += count

    def _read_some(self, path: Path, start: int, view: memoryview) -> int:
        if hasattr(os, "preadv"):
            count: int = os.preadv(self._descriptor(path), [view], start)
            return count
        with self._lock:  # seek and read belong together
            os.lseek(self._descriptor(path), start, os.SEEK_SET)
            data = os.read(self._descriptor(path), len(view))
        view[: len(data)] = data
        return len(data)

    def _descriptor(self, path: Path) -> int:
        with self._lock:
            if path in self._open:
                return self._open[path]
            self._open[path] = os.open(
                path, os.O_RDONLY | getattr(os, "O_BINARY", 0) | getattr(os, "O_CLOEXEC", 0)
            )
            return self._open[path]

    def read_from(self, source: Source, name: str, start: int, buffer: np.ndarray) -> None:
        """Fill the byte `buffer` from position `start` of a file of a source, wherever that is; errors as of `read`."""
        path = source.path(name)
        if path is not None:
            self.read(path, start, buffer)
        else:
            source.read_into(name, start, buffer)

    def close(self) -> None:
        """Close every file."""
        for descriptor in self._open.values():
            os.close(descriptor)
        self._open.clear()
