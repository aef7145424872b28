"""The output folder: built beside its place under a lock, and published whole by a rename.

`DIR.jmerge-work` holds everything until it is complete and on disk; `.DIR.jmerge-lock` keeps a second run out. A
folder that jmerge did not write is never touched, and one that it wrote is replaced only on request and only when
nothing else has been put in it.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from jmerge.ckpt.flush import Flusher
from jmerge.ckpt.shards import OutFile
from jmerge.errors import PlanError, RunError

LEDGER = "jmerge.lock.json"
JOURNAL = "journal.jsonl"


class OutputFolder:
    """A folder under construction; use as a context manager that holds the lock.

    Leaving it without `publish` keeps the work folder after a failure of the machine, so that the same command can
    go on, and removes it after a mistake of the user's.
    """

    def __init__(self, out: Path, identity: dict[str, Any], overwrite: bool) -> None:
        self.out = Path(os.path.realpath(out))
        if not self.out.name:
            raise PlanError(f"{out} cannot be made anew; choose a folder in it")
        self.work = self.out.with_name(self.out.name + ".jmerge-work")
        self.old = self.out.with_name(self.out.name + ".jmerge-old")
        self.identity = identity  # what the journal's first line says: the plan and who runs it
        self.overwrite = overwrite
        self._places: dict[str, tuple[int, int]] = {}  # tensor -> (descriptor, byte of its start)
        self._descriptors: list[int] = []
        self._flusher: Flusher | None = None
        self._lock: int | None = None
        self.discarded = False  # an interrupted run of the same plan was thrown away

    # What is there already

    def finished(self) -> bool:
        """Whether the folder already holds exactly this plan's result; PlanError when it holds something else
        that must not be replaced."""
        if self.old.exists():
            with self._locked():
                self._recover()
        if _is_vacant(self.out):
            return False
        ledger = read_ledger(self.out)
        if ledger is None:
            raise PlanError(
                f"{self.out} exists and was not written by jmerge; choose another --out"
            )
        intact = all(
            (self.out / name).is_file() and (self.out / name).stat().st_size == size
            for name, size in ledger["files"].items()
        )
        if ledger.get("plan") == self.identity["plan"] and intact:
            return True
        if not self.overwrite:
            state = "another recipe's result" if intact else "a damaged result of jmerge"
            raise PlanError(f"{self.out} holds {state}; --overwrite replaces it")
        foreign = sorted(set(_files(self.out)) - {*ledger["files"], LEDGER})
        if foreign:
            names = ", ".join(foreign[:3])
            raise PlanError(
                f"{self.out} holds files that jmerge did not write ({names}); move them"
            )
        return False

    def _recover(self) -> None:
        """Finish or undo a swap that was cut off between its two renames."""
        if read_ledger(self.old) is None:
            raise PlanError(f"{self.old} is in the way and was not left by jmerge; move it")
        if self.out.exists():
            shutil.rmtree(self.old)
        else:
            self.old.rename(self.out)

    # Building

    def __enter__(self) -> OutputFolder:
        with environment_errors(self.out):
            self.out.parent.mkdir(parents=True, exist_ok=True)
        self._take_lock()
        try:
            self._start_work()
        except BaseException:
            self._release_lock()
            raise
        return self

    def _start_work(self) -> None:
        if self.work.exists():
            known = self._left_over()
            if known is None:
                raise PlanError(f"{self.work} is in the way and was not left by jmerge; move it")
            if known not in ("", self.identity["plan"]) and not self.overwrite:
                raise PlanError(
                    f"{self.work} was left by an interrupted run of another recipe; --overwrite starts anew, "
                    "or delete it"
                )
            self.discarded = True
            shutil.rmtree(self.work)
        with environment_errors(self.work):
            self.work.mkdir()
            (self.work / JOURNAL).write_text(json.dumps(self.identity, sort_keys=True) + "\n")

    def _left_over(self) -> str | None:
        """The plan of the interrupted run that left the work folder, empty when it got nowhere; None when nobody of
        ours left it. The journal is its first file, and the ledger its last: then only the rename was missing."""
        if not self.work.is_dir():
            return None
        if (self.work / JOURNAL).is_file():
            return str(_first_line(self.work / JOURNAL).get("plan", ""))
        ledger = read_ledger(self.work)
        if ledger is not None:
            return str(ledger.get("plan", ""))
        return None if any(self.work.iterdir()) else ""

    def create(self, files: tuple[OutFile, ...]) -> None:
        """Make every weight file at its full size with its header; RunError when the disk cannot hold them."""
        needed = sum(file.size for file in files)
        free = shutil.disk_usage(self.work).free
        if needed > free:
            raise RunError(
                f"{self.work.parent} has {free:,} bytes free; the merge needs {needed:,}"
            )
        self._flusher = Flusher()
        with environment_errors(self.work):
            for file in files:
                flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0)
                descriptor = os.open(self._place_for(file.name), flags, 0o644)
                self._descriptors.append(descriptor)
                _allocate(descriptor, file.size)
                _write_at(descriptor, memoryview(file.header), 0)
                for tensor, start in file.starts.items():
                    self._places[tensor] = (descriptor, start)

    def write(self, tensor: str, start: int, data: memoryview) -> None:
        """Put `data` at byte `start` of a tensor."""
        descriptor, first = self._places[tensor]
        with environment_errors(self.work):
            _write_at(descriptor, data, first + start)
            if self._flusher is not None:
                self._flusher.wrote(descriptor, len(data))

    def write_text(self, name: str, text: str) -> None:
        """Write a small file."""
        with environment_errors(self.work):
            self._place_for(name).write_text(text, encoding="utf-8")

    def write_file(self, name: str, data: bytes) -> None:
        """Write a small file as it is."""
        with environment_errors(self.work):
            self._place_for(name).write_bytes(data)

    def _place_for(self, name: str) -> Path:
        """Where a file of the output goes; the folder it is in is made."""
        path = self.work / name
        path.parent.mkdir(exist_ok=True)
        return path

    def sizes(self) -> dict[str, int]:
        """Bytes of every file so far, by name, the journal left out."""
        return {
            name: (self.work / name).stat().st_size for name in _files(self.work) if name != JOURNAL
        }

    def publish(self) -> None:
        """Bring everything to the disk and put the folder in its place.

        Raises:
          RunError: the place is no longer as it was when the merge began; what is there stays.
        """
        with environment_errors(self.work):
            self._close(sync=True)
            for path in self.work.rglob("*"):
                _sync(path)
            (self.work / JOURNAL).unlink()
            _sync(self.work)
            self._swap()
            _sync(self.out.parent)

    def _swap(self) -> None:
        try:
            self.finished()
        except PlanError as error:
            raise RunError(f"{error}; the merge was not published") from error
        if not _is_vacant(self.out):
            self.out.rename(self.old)
        elif self.out.exists():
            self.out.rmdir()
        self.work.rename(self.out)
        if self.old.exists():
            shutil.rmtree(self.old)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: object
    ) -> None:
        self._close(sync=False)
        if self.work.exists() and not isinstance(error, RunError | KeyboardInterrupt):
            shutil.rmtree(self.work, ignore_errors=True)
        self._release_lock()

    def _close(self, *, sync: bool) -> None:
        flusher, self._flusher = self._flusher, None
        if flusher is not None:
            flusher.stop()
        try:
            if sync:
                for descriptor in self._descriptors:
                    os.fsync(descriptor)
                if flusher is not None:
                    flusher.check()
        finally:
            for descriptor in self._descriptors:
                os.close(descriptor)
            self._descriptors.clear()

    # The lock

    @property
    def _lock_path(self) -> Path:
        return self.out.with_name(f".{self.out.name}.jmerge-lock")

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        """Hold the lock for a moment, unless it is held already."""
        held = self._lock is not None
        self._take_lock()
        try:
            yield
        finally:
            if not held:
                self._release_lock()

    def _take_lock(self) -> None:
        while self._lock is None:
            with environment_errors(self._lock_path):
                descriptor = os.open(self._lock_path, os.O_RDWR | os.O_CREAT, 0o644)
            if not _lock_file(descriptor):
                os.close(descriptor)
                raise RunError(
                    f"another jmerge is writing {self.out}; wait for it, or choose another --out"
                )
            # the holder before us may have deleted the file between our open and our lock
            if self._lock_path.exists() and os.path.samestat(
                os.fstat(descriptor), os.stat(self._lock_path)
            ):
                self._lock = descriptor
            else:
                os.close(descriptor)

    def _release_lock(self) -> None:
        if self._lock is not None:
            with contextlib.suppress(OSError):
                self._lock_path.unlink()
            os.close(self._lock)
            self._lock = None


def _is_vacant(folder: Path) -> bool:
    """Whether nothing is there, or an empty folder."""
    return not folder.exists() or (folder.is_dir() and not any(folder.iterdir()))


def _files(folder: Path) -> list[str]:
    """Everything in a folder and those in it but for folders, by its path from there."""
    return sorted(
        path.relative_to(folder).as_posix() for path in folder.rglob("*") if not path.is_dir()
    )


def read_ledger(folder: Path) -> dict[str, Any] | None:
    """The ledger of a folder that jmerge wrote, or None."""
    try:
        ledger = json.loads((folder / LEDGER).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    files = ledger.get("files") if isinstance(ledger, dict) else None
    return ledger if isinstance(files, dict) else None


@contextlib.contextmanager
def environment_errors(path: Path) -> Iterator[None]:
    """Turn an `OSError` into a `RunError` that names the path: the machine's fault, not the recipe's."""
    try:
        yield
    except OSError as error:
        reason = "the disk is full" if error.errno == errno.ENOSPC else error.strerror or str(error)
        raise RunError(
            f"{path}: {reason}; free the cause and run the same command again"
        ) from error


def _first_line(journal: Path) -> dict[str, Any]:
    try:
        with journal.open(encoding="utf-8") as file:
            value = json.loads(file.readline())
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}


def _allocate(descriptor: int, size: int) -> None:
    """Reserve the whole file, so that a full disk is found now and writing does not have to grow it."""
    if hasattr(os, "posix_fallocate"):
        try:
            os.posix_fallocate(descriptor, 0, size)
            return
        except OSError as error:
            if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS):
                raise
    os.ftruncate(descriptor, size)


def _write_at(descriptor: int, data: memoryview, position: int) -> None:
    while data:
        if hasattr(os, "pwrite"):
            count = os.pwrite(descriptor, data, position)
        else:  # Windows: one thread writes, so seek and write cannot be torn apart
            os.lseek(descriptor, position, os.SEEK_SET)
            count = os.write(descriptor, data)
        data, position = data[count:], position + count


def _sync(path: Path) -> None:
    """Bring a file or folder to the disk; a system that cannot sync folders is let off."""
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except PermissionError:
        return
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _lock_file(descriptor: int) -> bool:
    try:
        import fcntl
    except ImportError:
        import msvcrt

        try:
            msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)  # type: ignore[attr-defined]
        except OSError:
            return False
        return True
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
