"""The work folder as a process sees it that writes a part of it beside the one that made it."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path

from jmerge.ckpt.disk import environment_errors
from jmerge.ckpt.journal import Journal
from jmerge.ckpt.shards import OutFile
from jmerge.ckpt.written import WritesWeights, Written
from jmerge.errors import RunError
from jmerge.tracer import Tracer


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
