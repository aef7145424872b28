"""What the operating system does for an output folder, and its faults as one kind of error."""

from __future__ import annotations

import contextlib
import errno
import os
import sys
from collections.abc import Iterator
from pathlib import Path

from jmerge.errors import RunError

REASONS = {
    errno.ENOSPC: "the disk is full",
    errno.EFBIG: "a file would be larger than the system allows (see `ulimit -f`)",
}


@contextlib.contextmanager
def environment_errors(path: Path) -> Iterator[None]:
    """Turn an `OSError` into a `RunError` that names the path: the machine's fault, not the recipe's."""
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
