"""One run at a time for each output folder."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path

from jmerge.ckpt.disk import environment_errors
from jmerge.errors import RunError


class Lock:
    """The right to write a folder: a lock on a file beside it, which the system takes back when the process ends."""

    def __init__(self, out: Path) -> None:
        self._out = out
        self._path = out.with_name(f".{out.name}.jmerge-lock")
        self._descriptor: int | None = None

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Hold the lock for a moment, unless it is held already."""
        before = self._descriptor is not None
        self.take()
        try:
            yield
        finally:
            if not before:
                self.release()

    def take(self) -> None:
        """Take the lock; RunError when another process has it."""
        while self._descriptor is None:
            with environment_errors(self._path):
                descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o644)
                try:
                    free = _lock_file(descriptor)
                except OSError:  # some network file systems have no locks
                    os.close(descriptor)
                    raise
            if not free:
                os.close(descriptor)
                raise RunError(
                    f"another jmerge is writing {self._out}; wait for it, or choose another folder",
                    code="JM604",
                )
            # the holder before us may have deleted the file between our open and our lock
            if self._path.exists() and os.path.samestat(os.fstat(descriptor), os.stat(self._path)):
                self._descriptor = descriptor
            else:
                os.close(descriptor)

    def release(self) -> None:
        """Give the lock back, and delete its file."""
        if self._descriptor is not None:
            with contextlib.suppress(OSError):
                self._path.unlink()
            os.close(self._descriptor)
            self._descriptor = None


def _lock_file(descriptor: int) -> bool:
    if sys.platform == "win32":
        import msvcrt

        try:
            msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
        except OSError:
            return False
        return True
    import fcntl

    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
