"""The files of one model, wherever they lie: names, sizes, and byte ranges for any thread."""

from __future__ import annotations

import os
import stat
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TypeVar

import numpy as np

from jmerge.errors import CheckpointError, Problem

MAX_WHOLE_BYTES = 256_000_000  # of a file that is read at once; tokenizers have up to 40 MB
POINTER = b"version https://git-lfs"  # what git leaves of a file whose content it did not fetch
MAX_POINTER_BYTES = 1024
NOT_FETCHED = "is a git-LFS pointer, not the file itself; run: git lfs pull"

T = TypeVar("T")
U = TypeVar("U")


class Source(ABC):
    """A folder of files.

    Attributes:
      label: the folder or URL, as errors name it and plans record it; with a revision that was looked up once.
      revision: the commit that is read; None where there are none.

    Every method that reads raises CheckpointError when a file is not what it should be, and RunError when it could
    not be had for now.
    """

    label: str
    revision: str | None = None

    @abstractmethod
    def names(self, folder: str = "") -> list[str]:
        """The files directly in the folder, or in `folder` in it without its name, in name order; where nothing lists
        them, those of the known names."""

    def folders(self, folder: str = "") -> list[str]:
        """The folders directly in the folder, or in `folder` in it, in name order; none where nothing lists them."""
        return []

    @abstractmethod
    def size(self, name: str) -> int | None:
        """Bytes of a file; None when there is none."""

    @abstractmethod
    def read_into(self, name: str, start: int, buffer: np.ndarray) -> None:
        """Fill the byte `buffer` from position `start` of a file."""

    def path(self, name: str) -> Path | None:
        """Where a file lies on this machine, if it does."""
        return None

    def map(self, function: Callable[[T], U], items: Iterable[T]) -> list[U]:
        """`function` of every item; side by side where each waits for a network."""
        return [function(item) for item in items]

    def changed(self) -> str | None:
        """The name of a file that is known to have changed since it was first asked for; None when none is."""
        return None

    def why_empty(self) -> str:
        """What may be the reason that files are missing, as the tail of a message."""
        return ""

    def read(self, name: str) -> bytes:
        """A whole small file; CheckpointError when it is larger than any that goes with weights."""
        if self.size_of(name) > MAX_WHOLE_BYTES:
            raise self.broken(
                name,
                f"is larger than {MAX_WHOLE_BYTES:,} bytes; it is probably a weight file",
                code="JM124",
            )
        buffer = np.empty(self.size_of(name), np.uint8)
        self.read_into(name, 0, buffer)
        data = buffer.tobytes()
        if data.startswith(POINTER):
            raise self.broken(name, NOT_FETCHED, code="JM113")
        return data

    def is_pointer(self, name: str) -> bool:
        """Whether a file is only what git leaves of one that git-LFS did not fetch."""
        if not len(POINTER) <= self.size_of(name) <= MAX_POINTER_BYTES:
            return False
        start = np.empty(len(POINTER), np.uint8)
        self.read_into(name, 0, start)
        return start.tobytes() == POINTER

    def check_whole(self, name: str) -> int:
        """Bytes of a file that will be read at once; CheckpointError when it cannot be or is too large for that."""
        size = self.size_of(name)
        if size > MAX_WHOLE_BYTES:
            message = f"is larger than {MAX_WHOLE_BYTES:,} bytes; it is probably a weight file"
            raise self.broken(name, message, code="JM124")
        if self.is_pointer(name):
            raise self.broken(name, NOT_FETCHED, code="JM113")
        return size

    def size_of(self, name: str) -> int:
        """Bytes of a file that has to be there."""
        size = self.size(name)
        if size is None:
            raise self.broken(name, "cannot be read: no such file", code="JM112")
        return size

    def shown(self, name: str) -> str:
        """A file as errors name it."""
        return f"{self.label.rstrip('/')}/{name}"

    def broken(self, name: str, message: str, tensor: str = "", *, code: str) -> CheckpointError:
        """The error that says `message` of a file; `code` is that of the kind of mistake."""
        return CheckpointError(Problem(message, tensor, self.shown(name), code=code))


class LocalSource(Source):
    """A folder of this machine."""

    def __init__(self, folder: Path, revision: str | None = None) -> None:
        self.folder = folder
        self.label = str(folder)
        self.revision = revision

    def names(self, folder: str = "") -> list[str]:
        place = self.folder / folder
        # a link that leads nowhere is one, so that it is missed where it is needed
        try:
            if folder and not place.is_dir():
                return []
            return sorted(
                path.name
                for path in place.iterdir()
                if path.is_file() or (path.is_symlink() and not path.is_dir())
            )
        except OSError as error:
            message = f"cannot be listed: {error.strerror or error}"
            raise CheckpointError(Problem(message, file=str(place), code="JM112")) from error

    def folders(self, folder: str = "") -> list[str]:
        try:
            place = os.path.realpath(self.folder / folder)
            inner = [path for path in Path(place).iterdir() if path.is_dir()]
            # a link to where it lies would go on without end
            return sorted(
                path.name
                for path in inner
                if not (path.is_symlink() and Path(place).is_relative_to(os.path.realpath(path)))
            )
        except OSError:  # what cannot be listed says nothing
            return []

    def size(self, name: str) -> int | None:
        path = self.folder / name
        try:
            if path.is_file():
                return self.size_of(name)
            target = os.readlink(path) if path.is_symlink() and not path.is_dir() else None
        except OSError as error:  # such as a name that is too long for any file
            raise self.broken(
                name, f"cannot be read: {error.strerror or error}", code="JM112"
            ) from error
        if target is not None:
            raise self.broken(name, f"is a link to {target}, which cannot be read", code="JM112")
        return None

    def path(self, name: str) -> Path | None:
        return self.folder / name

    def shown(self, name: str) -> str:
        return str(self.folder / name)

    def size_of(self, name: str) -> int:
        try:
            found = (self.folder / name).stat()
        except OSError as error:
            raise self.broken(
                name, f"cannot be read: {error.strerror or error}", code="JM112"
            ) from error
        if not stat.S_ISREG(found.st_mode):  # a pipe would be waited for
            raise self.broken(name, "cannot be read: it is not a file", code="JM112")
        return found.st_size

    def read_into(self, name: str, start: int, buffer: np.ndarray) -> None:
        try:
            with (self.folder / name).open("rb", buffering=0) as file:
                file.seek(start)
                view, done = buffer.data, 0
                while done < len(view) and (count := file.readinto(view[done:])):
                    done += count
        except OSError as error:
            raise self.broken(
                name, f"cannot be read: {error.strerror or error}", code="JM112"
            ) from error
        if done < buffer.nbytes:
            raise self.broken(
                name,
                f"ends at byte {start + done}; it changed while it was being read",
                code="JM111",
            )


def local_folder(text: str | Path) -> Path | None:
    """The folder of this machine that `text` is the path of."""
    path = Path(os.path.expanduser(text))
    return path if os.path.isdir(path) else None


class Inside(Source):
    """A folder in the folder of a model."""

    def __init__(self, source: Source, folder: str) -> None:
        self._source = source
        self._folder = folder
        self.label = source.shown(folder)
        self.revision = source.revision

    def names(self, folder: str = "") -> list[str]:
        return self._source.names(self._at(folder) if folder else self._folder)

    def folders(self, folder: str = "") -> list[str]:
        return self._source.folders(self._at(folder) if folder else self._folder)

    def size(self, name: str) -> int | None:
        return self._source.size(self._at(name))

    def read_into(self, name: str, start: int, buffer: np.ndarray) -> None:
        self._source.read_into(self._at(name), start, buffer)

    def path(self, name: str) -> Path | None:
        return self._source.path(self._at(name))

    def map(self, function: Callable[[T], U], items: Iterable[T]) -> list[U]:
        return self._source.map(function, items)

    def why_empty(self) -> str:
        return self._source.why_empty()

    def _at(self, name: str) -> str:
        return f"{self._folder}/{name}"


def inside(source: Source, folder: str) -> Source:
    """The files of `folder` in that of `source`; the source itself when it has no name."""
    return Inside(source, folder) if folder else source
