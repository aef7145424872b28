"""The weight files of a work folder that one process writes, and its journal of what it wrote."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path

from jmerge.ckpt.disk import Flusher, allocate, environment_errors, read_at, write_at
from jmerge.ckpt.journal import Block, Journal
from jmerge.ckpt.shards import OutFile
from jmerge.errors import RunError
from jmerge.tracer import Tracer

READ_BYTES = 1 << 22  # at a time, when written blocks are read back
BINARY = getattr(os, "O_BINARY", 0)


class Written:
    """Open weight files and a journal."""

    def __init__(self, work: Path, journal: Journal, tracer: Tracer) -> None:
        """tracer: is told when the disk is at work."""
        self.work = work
        self._tracer = tracer
        self.journal = journal
        # tensor -> (descriptor, byte of its start, byte of its file's end)
        self._places: dict[str, tuple[int, int, int]] = {}
        self._descriptors: list[int] = []
        self._flusher: Flusher | None = None
        self._open = True

    def make(self, path: Path, file: OutFile) -> None:
        """Make a weight file at its full size with its header, or take over what is there of it."""
        descriptor = self._open_file(path, file, os.O_RDWR | os.O_CREAT)
        if os.fstat(descriptor).st_size > file.size:
            os.ftruncate(descriptor, file.size)
        allocate(descriptor, file.size)
        write_at(descriptor, memoryview(file.header), 0)

    def open(self, path: Path, file: OutFile, *, shared: bool) -> None:
        """Open a weight file that was made, here or by another process, to write tensors of it.

        shared: other processes write in it too. Its writes go to the file system at once, byte for byte: from the
        memory of the system, NFS may write whole pages, with what they held of another's tensors before.
        """
        self._open_file(path, file, os.O_WRONLY | (getattr(os, "O_DSYNC", 0) if shared else 0))

    def _open_file(self, path: Path, file: OutFile, flags: int) -> int:
        descriptor = os.open(path, flags | BINARY, 0o644)
        self._descriptors.append(descriptor)
        for tensor, start in file.starts.items():
            self._places[tensor] = (descriptor, start, file.size)
        return descriptor

    def read(self, tensor: str, start: int, stop: int) -> Iterator[bytes]:
        """The bytes [start, stop) of a tensor as they are in its file; none of what it does not have."""
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
            if self._flusher is None:
                self._flusher = Flusher(self._tracer)
            with self.doubting():
                self._flusher.wrote(descriptor, len(data))

    def note(self, block: Block) -> None:
        """Put a block that was written in the journal."""
        with environment_errors(self.work):
            self.journal.add(block)

    @contextlib.contextmanager
    def doubting(self) -> Iterator[None]:
        """When the disk refuses what was written, no block is believed: it may still be read, but from memory."""
        try:
            yield
        except OSError:
            self.journal.forget()
            raise

    def sync(self) -> None:
        """Bring all that was written to the disk; OSError when that fails now or did before."""
        flusher = self._end_flusher()
        with self.doubting():
            for descriptor in self._descriptors:
                os.fsync(descriptor)
            if flusher is not None:
                flusher.check()

    def close(self) -> None:
        """Let go of the weight files; after a sync that failed, which nobody asked about yet, of their blocks too."""
        flusher = self._end_flusher()
        if flusher is not None:
            with contextlib.suppress(OSError), self.doubting():
                flusher.check()
        for descriptor in self._descriptors:
            os.close(descriptor)
        self._descriptors.clear()

    def close_journal(self) -> None:
        """Let go of the journal."""
        if self._open:
            self._open = False
            self.journal.close()

    def _end_flusher(self) -> Flusher | None:
        flusher, self._flusher = self._flusher, None
        if flusher is not None:
            flusher.stop()
        return flusher


class WritesWeights:
    """A folder in which this process writes weight files, once they are open."""

    _written: Written | None = None

    def write(self, tensor: str, start: int, data: memoryview) -> None:
        """Put `data` at byte `start` of a tensor."""
        assert self._written is not None
        self._written.write(tensor, start, data)

    def note(self, block: Block) -> None:
        """Put a block that was written in the journal."""
        assert self._written is not None
        self._written.note(block)


def journal_of(host: int) -> str:
    """The name of the journal of a process by its number, from 1."""
    return f"journal-{host:03d}.jsonl"


def journals_of_guests(work: Path) -> list[Path]:
    """All that are there, also those of an interrupted run with more processes."""
    return sorted(work.glob("journal-*.jsonl"))


class GuestFolder(WritesWeights):
    """A part of a work folder on a file system that all hosts share; a context manager that leaves what is there."""

    def __init__(self, work: Path, host: int, tracer: Tracer | None = None) -> None:
        self.work = work
        self._tracer = tracer or Tracer()
        self._host = host

    def open(
        self, word: str, plan: str, files: Sequence[OutFile], shared: Collection[OutFile]
    ) -> None:
        """Take up the work in `files`, those with a part for this host.

        word: what `OutputFolder.admit` gave on the host that made the folder; plan: the hash of the plan.

        Raises:
          RunError: it is another folder here, or nothing.
        """
        with environment_errors(self.work):
            journal = Journal.join(self.work / journal_of(self._host), {"plan": plan, "word": word})
            if journal is None:
                raise RunError(
                    f"{self.work} is not the folder that host 0 made; --out must be on a file system that all hosts share",
                    code="JM512",
                )
            self._written = Written(self.work, journal, self._tracer)
            for file in files:
                self._written.open(self.work / file.name, file, shared=file in shared)

    def finish(self) -> None:
        """Bring all that this process wrote to the disk and let go of it; RunError when that fails."""
        assert self._written is not None
        with environment_errors(self.work):
            self._written.sync()
        self.close()

    def close(self) -> None:
        """Let go of files and journal."""
        if self._written is not None:
            self._written.close()
            self._written.close_journal()

    def __enter__(self) -> GuestFolder:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
