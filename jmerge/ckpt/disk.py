"""What the operating system does for an output folder: its problems as one kind of error, and syncing beside the writing."""

from __future__ import annotations

import contextlib
import errno
import os
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

from jmerge.errors import RunError
from jmerge.tracer import Tracer

REASONS = {
    errno.ENOSPC: "the disk is full",
    errno.EFBIG: "a file would be larger than the system allows (see `ulimit -f`)",
}


@contextlib.contextmanager
def environment_errors(path: Path) -> Iterator[None]:
    """Turn an `OSError` into a `RunError` that names the path: the machine's problem, not the recipe's."""
    try:
        yield
    except OSError as error:
        reason = REASONS.get(error.errno or 0) or error.strerror or str(error)
        raise RunError(
            f"{path}: {reason}; free space or fix the cause, then run the same command again",
            code="JM501",
        ) from error


def allocated(path: Path) -> int:
    """The bytes a file takes on the disk already, none when it is not there."""
    try:
        status = path.stat()
    except FileNotFoundError:
        return 0
    return min(status.st_size, getattr(status, "st_blocks", 0) * 512)


def allocate(descriptor: int, size: int) -> None:
    """Reserve the whole file, so that a full disk is found now and writing does not have to grow it."""
    if hasattr(os, "posix_fallocate"):
        try:
            os.posix_fallocate(descriptor, 0, size)
            return
        except OSError as error:
            if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS):
                raise
    os.ftruncate(descriptor, size)


# At a time: for more, Linux looks for larger pages to hold it, and takes two to three times as long.
WRITE_BYTES = 1 << 18


def write_at(descriptor: int, data: memoryview, position: int) -> None:
    """Write all of `data` at a position of a file."""
    while data:
        part = data[:WRITE_BYTES]
        if hasattr(os, "pwrite"):
            count = os.pwrite(descriptor, part, position)
        else:  # Windows: one thread writes, so seek and write cannot be torn apart
            os.lseek(descriptor, position, os.SEEK_SET)
            count = os.write(descriptor, part)
        data, position = data[count:], position + count


def read_at(descriptor: int, size: int, position: int) -> bytes:
    """At most `size` bytes from a position of a file; fewer only where it ends, or the system gives fewer."""
    if hasattr(os, "pread"):
        data: bytes = os.pread(descriptor, size, position)
        return data
    os.lseek(descriptor, position, os.SEEK_SET)
    return os.read(descriptor, size)


def sync_path(path: Path) -> None:
    """Bring a file or folder to the disk; a system that cannot sync folders is let off."""
    # Windows syncs only what is open for writing
    flags = os.O_RDWR if sys.platform == "win32" else os.O_RDONLY
    try:
        descriptor = os.open(path, flags)
    except PermissionError:
        return
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


SYNC_BYTES = 1 << 27  # written before the disk is set to work: waiting for it at the end costs time


class Flusher:
    """A thread that brings written files to the disk while others are still being written."""

    def __init__(self, tracer: Tracer) -> None:
        self._tracer = tracer
        self._wake = threading.Condition()
        self._dirty: dict[int, int] = {}  # descriptor -> bytes written since it was last synced
        self._stop = False
        self._error: OSError | None = None
        self._thread = threading.Thread(target=self._run, name="jmerge-flush", daemon=True)
        self._thread.start()

    def wrote(self, descriptor: int, count: int) -> None:
        """Note that `count` bytes were written; raises what an earlier sync failed with."""
        self.check()
        with self._wake:
            self._dirty[descriptor] = self._dirty.get(descriptor, 0) + count
            if self._dirty[descriptor] >= SYNC_BYTES:
                self._wake.notify()

    def stop(self) -> None:
        """End the thread; a sync under way is waited for."""
        with self._wake:
            self._stop = True
            self._wake.notify()
        self._thread.join()

    def check(self) -> None:
        """Raise what a sync failed with: the system says it once, so a later sync may pass over it."""
        if self._error is not None:
            raise self._error

    def _run(self) -> None:
        while True:
            with self._wake:
                self._wake.wait_for(lambda: self._stop or self._ready() is not None)
                descriptor = self._ready()
                if self._stop or descriptor is None:
                    return
                count, self._dirty[descriptor] = self._dirty[descriptor], 0
            try:
                with self._tracer.span("flush", None, count):
                    getattr(os, "fdatasync", os.fsync)(descriptor)
            except OSError as error:
                self._error = error
                return

    def _ready(self) -> int | None:
        return next((fd for fd, count in self._dirty.items() if count >= SYNC_BYTES), None)
