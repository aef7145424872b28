"""Byte ranges of local files without a copy: windows into memory-mapped files.

A mapped page of the page cache costs a fraction of copying it, and a window that begins at a multiple of 64 bytes is
taken by a jitted program as it is. A window therefore begins up to 63 bytes before the wanted range, and the kernel
skips what is too much. Every page is brought in beforehand by one system call that reports what cannot be read:
then, and on file systems that may be slow or fail late (network, FUSE), and on other systems than Linux, there is no
window and the range is read into a buffer instead.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import sys
import threading
import weakref
from functools import cache
from pathlib import Path

import numpy as np

from jmerge.ckpt.safetensors import ALIGNMENT

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
