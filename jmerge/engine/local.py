"""Byte ranges of local files: windows into memory-mapped files, or read into aligned buffers."""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import sys
import threading
import weakref
from functools import cache
from pathlib import Path

import numpy as np

from jmerge.ckpt.safetensors import ALIGNMENT
from jmerge.ckpt.source import Source
from jmerge.errors import CheckpointError, Problem, RunError

# Linux's numbers, which `mmap` has only there, or not at all
PROT_READ, MAP_SHARED = 1, 1
DONTNEED, POPULATE_READ = 4, 22  # of madvise; the second since Linux 5.14
LOCAL = frozenset(("btrfs", "ext2", "ext3", "ext4", "f2fs", "overlay", "tmpfs", "xfs", "zfs"))


class Maps:
    """Files mapped into memory, for any thread."""

    def __init__(self) -> None:
        self._maps: dict[Path, np.ndarray | None] = {}
        self._lock = threading.Lock()
        self._types = _filesystems()

    def window(self, path: Path, start: int, size: int) -> tuple[np.ndarray, int] | None:
        """The bytes from the last aligned position at or before `start` to `ALIGNMENT` beyond the range's end if it
        began there, and how many of them lie before the range; None when it has to be read instead."""
        whole = self._map(path)
        skip = start % ALIGNMENT
        first, last = start - skip, start - skip + size + ALIGNMENT
        if whole is None or last > whole.size or not _advise(whole, first, last, POPULATE_READ):
            return None
        return whole[first:last], skip

    def release(self, window: np.ndarray) -> None:
        """Take the pages of a window out of this process; they stay in the page cache."""
        _advise(window, 0, window.size, DONTNEED)

    def close(self) -> None:
        """Forget the files; each is let go with the last window into it."""
        self._maps.clear()

    def _map(self, path: Path) -> np.ndarray | None:
        with self._lock:
            if path not in self._maps:
                self._maps[path] = self._try(path)
            return self._maps[path]

    def _try(self, path: Path) -> np.ndarray | None:
        if sys.platform != "linux":
            return None
        try:
            with path.open("rb") as file:
                device = os.fstat(file.fileno()).st_dev
                if self._types.get((os.major(device), os.minor(device))) not in LOCAL:
                    return None
                return _map_file(file.fileno())
        except OSError:
            return None


def _filesystems() -> dict[tuple[int, int], str]:
    """The type of every mounted file system by its device, on Linux; nothing on other systems."""
    types = {}
    try:
        with open("/proc/self/mountinfo", encoding="utf-8", errors="replace") as file:
            for line in file:
                mount, _, rest = line.partition(" - ")
                major, _, minor = mount.split()[2].partition(":")
                types[int(major), int(minor)] = rest.split()[0]
    except (OSError, ValueError, IndexError):
        return {}
    return types


def _map_file(descriptor: int) -> np.ndarray | None:
    """The bytes of an open file; None when it is empty or there is no room. Unlike the `mmap` module's maps, this one
    keeps no descriptor open: a large merge has hundreds of files."""
    size = os.fstat(descriptor).st_size
    if size == 0:
        return None
    address = _libc("mmap")(None, size, PROT_READ, MAP_SHARED, descriptor, 0)
    if address == ctypes.c_void_p(-1).value:
        return None
    memory = (ctypes.c_uint8 * size).from_address(address)
    weakref.finalize(memory, _libc("munmap"), address, size)
    array = np.ctypeslib.as_array(memory)
    array.flags.writeable = False
    return array


def _advise(array: np.ndarray, first: int, last: int, advice: int) -> bool:
    """Whether the system did what was advised for the pages of array[first:last]."""
    begin = array.ctypes.data + first
    page = begin - begin % mmap.PAGESIZE
    done: int = _libc("madvise")(page, array.ctypes.data + last - page, advice)
    return done == 0


@cache
def _libc(name: str) -> ctypes._NamedFuncPointer:
    """A function of the C library, which runs without Python's lock: `mmap.madvise` holds it while the kernel reads."""
    word, size, number = ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int
    function = ctypes.CDLL(None)[name]
    function.restype, function.argtypes = {
        "mmap": (word, (word, size, number, number, number, ctypes.c_long)),
        "munmap": (number, (word, size)),
        "madvise": (number, (word, size, number)),
    }[name]
    return function


# What opening or reading says of a file that somebody took away; anything else is the machine's problem.
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
                    Problem(
                        f"cannot be read: {error.strerror or error}", file=str(path), code="JM112"
                    )
                ) from error
            if count == 0:
                raise CheckpointError(
                    Problem(
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
