"""The output folder: built beside its place under a lock, and published whole by a rename.

`DIR.jmerge-work` holds everything until it is complete and on disk, with a journal by which an interrupted run is
resumed; `.DIR.jmerge-lock` keeps a second run out. A folder that jmerge did not write is never touched, and one that
it wrote is replaced only on request and only when nothing else has been put in it.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from jmerge.ckpt.disk import allocated, environment_errors, sync_path
from jmerge.ckpt.journal import Block, Journal, ledger_blocks, read_journal, verified
from jmerge.ckpt.leftover import refusal
from jmerge.ckpt.lock import Lock
from jmerge.ckpt.shards import OutFile
from jmerge.ckpt.source import Source
from jmerge.ckpt.written import WritesWeights, Written, journal_of, journals_of_guests
from jmerge.errors import PlanError, RunError
from jmerge.interrupt import came
from jmerge.tracer import Tracer

LEDGER = "jmerge.lock.json"
JOURNAL = "journal.jsonl"
STRIDE = 16_000_000  # bytes of a file that are copied at a time
BEGUN_ANEW = "begun anew"  # in a journal whose run nobody resumes
BEGUN = JOURNAL + ".new"  # a journal that is not in its place yet


class OutputFolder(WritesWeights):
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
        other: Callable[[Mapping[str, Any]], str] = lambda ledger: "another recipe's result",
    ) -> None:
        """A folder to be.

        Args:
          out: where the folder goes.
          identity: what makes it what it is, and what its ledger says: the hash of the plan under `plan`, versions.
          overwrite: replace another result of ours in `out`, and another plan's work beside it.
          run: what else must be the same for an interrupted run to be resumed, see `leftover.refusal`.
          tracer: is told when the disk is at work.
          other: what to call the result with a ledger of another plan, see `leftover.other_result`.
        """
        self.out = Path(os.path.realpath(out))
        if not self.out.name:
            raise PlanError(
                f"{out} is the root of a file system; choose a folder in it", code="JM606"
            )
        self.work = self.out.with_name(self.out.name + ".jmerge-work")
        self.old = self.out.with_name(self.out.name + ".jmerge-old")
        self.identity = identity
        self._header = {**identity, **(run or {})}  # of the journal
        self.overwrite = overwrite
        self._other = other
        self._tracer = tracer or Tracer()
        self._claimed: list[Block] = []  # what the journal of an interrupted run says
        self._lock = Lock(self.out)
        self.resumed = False  # the work folder of an interrupted run of the same plan was there

    # What is there already

    def finished(self) -> bool:
        """Whether the folder already holds exactly this plan's result; PlanError when it holds something else
        that must not be replaced; RunError when it cannot be looked at."""
        with environment_errors(self.out):
            return self._finished()

    def _finished(self) -> bool:
        if self.old.exists():
            with self._lock.held():
                self._recover()
        if _is_vacant(self.out):
            return False
        ledger = read_ledger(self.out)
        if ledger is None:
            raise PlanError(
                f"{self.out} exists and was not written by jmerge; choose another folder",
                code="JM601",
            )
        intact = all(
            (self.out / name).is_file() and (self.out / name).stat().st_size == size
            for name, size in ledger["files"].items()
        )
        if ledger.get("plan") == self.identity["plan"] and intact:
            return True
        if not self.overwrite:
            state = self._other(ledger) if intact else "a damaged result of jmerge"
            raise PlanError(f"{self.out} holds {state}; overwrite=True replaces it", code="JM602")
        foreign = sorted(set(_files(self.out)) - {*ledger["files"], LEDGER})
        if foreign:
            names = ", ".join(foreign[:3])
            raise PlanError(
                f"{self.out} holds files that jmerge did not write ({names}); move them",
                code="JM603",
            )
        return False

    def _recover(self) -> None:
        """Finish or undo a swap that was cut off between its two renames."""
        if read_ledger(self.old) is None:
            raise PlanError(
                f"{self.old} is in the way and does not belong to jmerge; move it", code="JM603"
            )
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
            journal = Journal(self.work / JOURNAL, self._header, self._claimed)
            self._written = Written(self.work, journal, self._tracer)

    def _take_over(self) -> bool:
        """Whether the work folder that is there can be resumed; not, when it is to be deleted.

        Raises:
          PlanError: it is not ours, or of another run and may not be deleted.
        """
        found, blocks = self._left_over()
        if found is None:
            raise PlanError(
                f"{self.work} is in the way and does not belong to jmerge; move it", code="JM603"
            )
        if found.get(BEGUN_ANEW):
            return False
        if found:
            message = refusal(found, self._header)
            if message and not self.overwrite:
                raise PlanError(
                    f"{self.work} {message}; overwrite=True starts over, or delete it", code="JM605"
                )
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
            header, blocks = read_journal(self.work / JOURNAL)
            for path in journals_of_guests(self.work):
                blocks += read_journal(path)[1]
            return header, blocks
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
                f"{self.work.parent} has {free:,} bytes free; the merge needs {needed:,}; free space, or choose "
                "another --out",
                code="JM502",
            )
        assert self._written is not None
        with environment_errors(self.work):
            for file in files:
                self._written.make(self._place_for(file.name), file)
            return verified(self._claimed, self._written.read)

    def admit(self, hosts: int, shared: Collection[OutFile]) -> str:
        """Make ready for `hosts` processes to write in the files, `shared` being those that more than one does.

        Returns:
          A word that is in the journal of each, by which the others know that they see this folder.
        """
        assert self._written is not None
        word = secrets.token_hex(8)
        with environment_errors(self.work):
            for number in range(1, hosts):
                header = {"plan": self.identity["plan"], "word": word}
                Journal(self.work / journal_of(number), header).close()
            for file in shared:
                self._written.open(self.work / file.name, file, shared=True)
            if hosts > 1:  # headers first: another host may write to the page that a header ends on
                self._written.sync()
                sync_path(self.work)
        return word

    def _clear(self, keep: set[str]) -> None:
        """Delete what an interrupted run left beside its weights: these are small, and written again."""
        for name in _files(self.work):
            if name not in keep and name != JOURNAL:
                (self.work / name).unlink()

    def write_text(self, name: str, text: str) -> None:
        """Write a small file."""
        with environment_errors(self.work):
            self._place_for(name).write_text(text, encoding="utf-8", newline="\n")

    def write_file(self, name: str, data: bytes) -> None:
        """Write a small file as it is."""
        with environment_errors(self.work):
            self._place_for(name).write_bytes(data)

    def copy_file(self, name: str, source: Source, own: str) -> None:
        """Write a file of a model as it is, piece by piece."""
        size = source.size_of(own)
        with environment_errors(self.work):
            path = self._place_for(name)
            with path.open("wb") as file:
                for start in range(0, size, STRIDE):
                    piece = np.empty(min(STRIDE, size - start), np.uint8)
                    source.read_into(own, start, piece)
                    file.write(piece.data)

    def _place_for(self, name: str) -> Path:
        """Where a file of the output goes; the folder it is in is made."""
        path = self.work / name
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    def sizes(self) -> dict[str, int]:
        """Bytes of every file so far, by name, the journal left out."""
        return {
            name: (self.work / name).stat().st_size
            for name in _files(self.work)
            if name not in self._journals()
        }

    def _journals(self) -> list[str]:
        """The names of all journals, that of this process first."""
        return [JOURNAL, *(path.name for path in journals_of_guests(self.work))]

    def publish(self) -> None:
        """Bring everything to the disk and put the folder in its place.

        Raises:
          RunError: the place is no longer as it was when the merge began; what is there stays.
        """
        with environment_errors(self.work):
            assert self._written is not None
            self._written.sync()
            self._written.close()
            with self._written.doubting():
                for path in self.work.rglob("*"):
                    sync_path(path)
            self._written.close_journal()
            for name in self._journals():
                (self.work / name).unlink()
            sync_path(self.work)
            self._swap()
            sync_path(self.out.parent)

    def _swap(self) -> None:
        try:
            self.finished()
        except PlanError as error:
            raise RunError(
                f"{error.problems[0].text}; the result was not published", code="JM603"
            ) from error
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
        if self._written is not None:
            self._written.close()
            self._written.close_journal()
        kept = isinstance(error, RunError | KeyboardInterrupt) or came()
        if self.work.exists() and not kept:
            shutil.rmtree(self.work, ignore_errors=True)
        self._lock.release()


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
    except (OSError, ValueError, RecursionError):
        return None
    files = ledger.get("files") if isinstance(ledger, dict) else None
    return ledger if isinstance(files, dict) else None
