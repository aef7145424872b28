"""The output folder: built beside its place under a lock, and published whole by a rename.

`DIR.jmerge-work` holds everything until it is complete and on disk, with a journal by which an interrupted run is
resumed; `.DIR.jmerge-lock` keeps a second run out. A folder that jmerge did not write is never touched, and one that
it wrote is replaced only on request and only when nothing else has been put in it.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from jmerge.ckpt.disk import allocate, allocated, environment_errors, read_at, sync_path, write_at
from jmerge.ckpt.flush import Flusher
from jmerge.ckpt.journal import Block, Journal, ledger_blocks, read_journal, verified
from jmerge.ckpt.leftover import refusal
from jmerge.ckpt.lock import Lock
from jmerge.ckpt.shards import OutFile
from jmerge.errors import PlanError, RunError
from jmerge.tracer import Tracer

LEDGER = "jmerge.lock.json"
JOURNAL = "journal.jsonl"
READ_BYTES = 1 << 22  # at a time, when written blocks are read back
BEGUN = JOURNAL + ".new"  # a journal that is not in its place yet


class OutputFolder:
    """A folder under construction; use as a context manager that holds the lock.

    Leaving it without `publish` keeps the work folder after a failure of the machine, so that the same command can
    go on, and removes it after a mistake of the user's.
    """

    def __init__(
        self,
        out: Path,
        identity: dict[str, Any],
        overwrite: bool,
        run: Mapping[str, Any] | None = None,
        tracer: Tracer | None = None,
    ) -> None:
        """A folder to be.

        Args:
          out: where the folder goes.
          identity: what makes it what it is, and what its ledger says: the hash of the plan under `plan`, versions.
          overwrite: replace another result of ours in `out`, and another plan's work beside it.
          run: what else must be the same for an interrupted run to be resumed, see `leftover.refusal`.
          tracer: is told when the disk is at work.
        """
        self.out = Path(os.path.realpath(out))
        if not self.out.name:
            raise PlanError(f"{out} cannot be made anew; choose a folder in it")
        self.work = self.out.with_name(self.out.name + ".jmerge-work")
        self.old = self.out.with_name(self.out.name + ".jmerge-old")
        self.identity = identity
        self._header = {**identity, **(run or {})}  # of the journal
        self.overwrite = overwrite
        self._tracer = tracer or Tracer()
        # tensor -> (descriptor, byte of its start, byte of its file's end)
        self._places: dict[str, tuple[int, int, int]] = {}
        self._descriptors: list[int] = []
        self._flusher: Flusher | None = None
        self._journal: Journal | None = None
        self._claimed: list[Block] = []  # what the journal of an interrupted run says
        self._lock = Lock(self.out)
        self.resumed = False  # the work folder of an interrupted run of the same plan was there

    # What is there already

    def finished(self) -> bool:
        """Whether the folder already holds exactly this plan's result; PlanError when it holds something else
        that must not be replaced."""
        if self.old.exists():
            with self._lock.held():
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
        self._lock.take()
        try:
            self._start_work()
        except BaseException:
            self._lock.release()
            raise
        return self

    def _start_work(self) -> None:
        with environment_errors(self.work):
            if self.work.exists() and not self._take_over():
                shutil.rmtree(self.work)
            self.work.mkdir(exist_ok=True)
            # anew, so that no line follows a torn one
            self._journal = Journal(self.work / JOURNAL, self._header, self._claimed)

    def _take_over(self) -> bool:
        """Whether the work folder that is there can be resumed; not, when it is to be deleted.

        Raises:
          PlanError: it is not ours, or of another run and may not be deleted.
        """
        found, blocks = self._left_over()
        if found is None:
            raise PlanError(f"{self.work} is in the way and was not left by jmerge; move it")
        if found:
            message = refusal(found, self._header)
            if message and not self.overwrite:
                raise PlanError(f"{self.work} {message}; --overwrite begins anew, or delete it")
            if message:
                return False
        self.resumed = True
        self._claimed = blocks
        return True

    def _left_over(self) -> tuple[dict[str, Any] | None, list[Block]]:
        """Whose the work folder is, and what its journal claims: nothing in it when the run got nowhere, None when
        nobody of ours left it. The journal is its first file, and the ledger its last: where only the rename was
        missing, that says the same."""
        if not self.work.is_dir():
            return None, []
        if (self.work / JOURNAL).is_file():
            return read_journal(self.work / JOURNAL)
        ledger = read_ledger(self.work)
        if ledger is not None:
            return {key: ledger.get(key) for key in self.identity}, ledger_blocks(ledger)
        names = {path.name for path in self.work.iterdir()}
        return (None if names - {BEGUN} else {}), []

    def create(self, files: tuple[OutFile, ...]) -> list[Block]:
        """Make every weight file at its full size with its header, or take over what an interrupted run left of it.

        Returns:
          The blocks that run had written, as far as reading them back proves it.

        Raises:
          RunError: the disk cannot hold the files, or fails.
        """
        with environment_errors(self.work):
            self._clear({file.name for file in files})
            needed = sum(max(f.size - allocated(self.work / f.name), 0) for f in files)
            free = shutil.disk_usage(self.work).free
        if needed > free:
            raise RunError(
                f"{self.work.parent} has {free:,} bytes free; the merge needs {needed:,}; free some, or choose "
                "another --out"
            )
        self._flusher = Flusher(self._tracer)
        with environment_errors(self.work):
            for file in files:
                flags = os.O_RDWR | os.O_CREAT | getattr(os, "O_BINARY", 0)
                descriptor = os.open(self._place_for(file.name), flags, 0o644)
                self._descriptors.append(descriptor)
                if os.fstat(descriptor).st_size > file.size:
                    os.ftruncate(descriptor, file.size)
                allocate(descriptor, file.size)
                write_at(descriptor, memoryview(file.header), 0)
                for tensor, start in file.starts.items():
                    self._places[tensor] = (descriptor, start, file.size)
            return verified(self._claimed, self._read)

    def _clear(self, keep: set[str]) -> None:
        """Delete what an interrupted run left beside its weights: these are small, and written again."""
        for name in _files(self.work):
            if name not in keep and name != JOURNAL:
                (self.work / name).unlink()

    def _read(self, tensor: str, start: int, stop: int) -> Iterator[bytes]:
        """The bytes [start, stop) of a tensor as they are in its file."""
        descriptor, first, end = self._places.get(tensor, (-1, 0, 0))
        if not 0 <= start <= stop <= end - first:
            return
        position = first + start
        while data := read_at(descriptor, min(READ_BYTES, first + stop - position), position):
            yield data
            position += len(data)

    def write(self, tensor: str, start: int, data: memoryview) -> None:
        """Put `data` at byte `start` of a tensor."""
        descriptor, first, _ = self._places[tensor]
        with environment_errors(self.work):
            write_at(descriptor, data, first + start)
            if self._flusher is not None:
                with self._doubting():
                    self._flusher.wrote(descriptor, len(data))

    def note(self, block: Block) -> None:
        """Put a block that was written in the journal."""
        assert self._journal is not None
        with environment_errors(self.work):
            self._journal.add(block)

    @contextlib.contextmanager
    def _doubting(self) -> Iterator[None]:
        """When the disk refuses what was written, no block is believed: it may still be read, but from memory."""
        try:
            yield
        except OSError:
            if self._journal is not None:
                self._journal.forget()
            raise

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
            with self._doubting():
                for path in self.work.rglob("*"):
                    sync_path(path)
            self._close_journal()
            (self.work / JOURNAL).unlink()
            sync_path(self.work)
            self._swap()
            sync_path(self.out.parent)

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
        self._close_journal()
        if self.work.exists() and not isinstance(error, RunError | KeyboardInterrupt):
            shutil.rmtree(self.work, ignore_errors=True)
        self._lock.release()

    def _close(self, *, sync: bool) -> None:
        flusher, self._flusher = self._flusher, None
        if flusher is not None:
            flusher.stop()
        try:
            if sync:
                with self._doubting():
                    for descriptor in self._descriptors:
                        os.fsync(descriptor)
                    if flusher is not None:
                        flusher.check()
        finally:
            for descriptor in self._descriptors:
                os.close(descriptor)
            self._descriptors.clear()

    def _close_journal(self) -> None:
        journal, self._journal = self._journal, None
        if journal is not None:
            journal.close()


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
