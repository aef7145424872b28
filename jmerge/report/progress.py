"""Progress of a run: one bar in bytes on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import sys
import time
from typing import Any

from jmerge.engine.events import Event, Resumed, Started, Without, Wrote, WroteElsewhere
from jmerge.report.show import size

SECONDS_BETWEEN_LINES = 10.0


class Progress:
    """A listener that shows how far a run is, on standard error; a context manager."""

    def __init__(self, quiet: bool = False) -> None:
        self.quiet = quiet
        self.total = self.done = self.kept = 0
        self.began = self.spoke = time.monotonic()
        self.bar: Any = None

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *_: object) -> None:
        if self.bar is not None:
            self.bar.stop()

    def __call__(self, event: Event) -> None:
        """Show what the event changes."""
        if self.quiet:
            return
        if isinstance(event, Without):
            missing = " and no ".join(event.missing)
            message = f"there is no {missing} that JAX can use here; {event.platform} does the work"
            print(f"--devices: {message}", file=sys.stderr)
        elif isinstance(event, Resumed):
            self.done = self.kept = event.kept_bytes
            print(_resumption(event), file=sys.stderr)
        elif isinstance(event, Started):
            self.total = event.write_bytes
            self.began = self.spoke = time.monotonic()
            if sys.stderr.isatty():
                self._start_bar()
        elif isinstance(event, Wrote | WroteElsewhere):
            self.done += event.nbytes
            if self.bar is not None:
                self.bar.update(self.task, completed=self.done)
            elif time.monotonic() - self.spoke > SECONDS_BETWEEN_LINES:
                self.spoke = time.monotonic()
                rate = (self.done - self.kept) / (self.spoke - self.began)
                left = f", {(self.total - self.done) / rate:.0f} s left" if rate else ""
                print(
                    f"{size(self.done)} of {size(self.total)} written, {size(int(rate))}/s{left}",
                    file=sys.stderr,
                )

    def _start_bar(self) -> None:
        from rich.console import Console  # slow to import, and only needed on a terminal
        from rich.progress import (
            BarColumn,
            DownloadColumn,
            TextColumn,
            TimeRemainingColumn,
            TransferSpeedColumn,
        )
        from rich.progress import Progress as Bar

        columns = (
            TextColumn("merging"),
            BarColumn(),
            DownloadColumn(),
            TransferSpeedColumn(),
            TimeRemainingColumn(),
        )
        self.bar = Bar(*columns, console=Console(stderr=True), transient=True)
        self.task = self.bar.add_task("merging", total=self.total, completed=self.done)
        self.bar.start()


class Reading:
    """Shows on a terminal how far a pass over models is, on standard error; a context manager, called with the elements
    that were just read and those of all by any thread, one at a time."""

    def __init__(self, what: str, quiet: bool = False) -> None:
        self._what = what
        self._shown = sys.stderr.isatty() and not quiet
        self.bar: Any = None

    def __enter__(self) -> Reading:
        return self

    def __exit__(self, *_: object) -> None:
        if self.bar is not None:
            self.bar.stop()

    def __call__(self, done: int, total: int) -> None:
        """Show how much of the total is done."""
        if not self._shown:
            return
        if self.bar is None:
            from rich.console import Console
            from rich.progress import Progress as Bar

            self.bar = Bar(console=Console(stderr=True), transient=True)
            self._task = self.bar.add_task(self._what, total=total)
            self.bar.start()
        self.bar.advance(self._task, done)


def _resumption(event: Resumed) -> str:
    """One line on what is left of an interrupted run."""
    if event.kept_bytes == 0:
        return "an interrupted run left nothing that could be verified; the merge begins anew"
    kept, left = size(event.kept_bytes), size(event.left_bytes)
    return f"resuming an interrupted run: {kept} verified and kept, {left} left to write"
