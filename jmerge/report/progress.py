"""Progress of a run: one bar on a terminal, a line now and then elsewhere.

What is done is what was read in all passes and what was written: so the bar moves while statistics are taken too, before
the first tensor is written.
"""

from __future__ import annotations

import sys
import time
from typing import Any

from jmerge.engine.events import Event, Read, Resumed, Started, Without, Wrote, WroteElsewhere
from jmerge.report.show import size
from jmerge.report.terminal import say

SECONDS_BETWEEN_LINES = 10.0


class Progress:
    """A listener that shows how far a run is, on standard error; a context manager."""

    def __init__(self, quiet: bool = False) -> None:
        self.quiet = quiet
        self.total = 0  # bytes to read and to write
        self.done = 0  # of those
        self.written = self.output = 0  # bytes of the output, and of all of it
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
            say(
                f"note: --devices: JAX finds no {missing} on this machine; {event.platform} does the work"
            )
        elif isinstance(event, Resumed):
            self.written = event.kept_bytes
            say(_resumption(event))
        elif isinstance(event, Started):
            self.output, self.done = event.write_bytes, 0  # of this attempt
            self.total = event.read_bytes + event.write_bytes - self.written
            self.began = self.spoke = time.monotonic()
            if sys.stderr.isatty():
                self._start_bar()
        elif isinstance(event, Read):
            self.done += event.nbytes
            self._show()
        elif isinstance(event, Wrote | WroteElsewhere):
            self.written += event.nbytes
            self.done += event.nbytes
            self._show()

    def _show(self) -> None:
        if self.bar is not None:
            self.bar.update(self.task, completed=self.done, written=self._written())
        elif self.done and time.monotonic() - self.spoke > SECONDS_BETWEEN_LINES:
            self.spoke = time.monotonic()
            left = (self.total - self.done) / self.done * (self.spoke - self.began)
            share = self.done / self.total
            say(f"{share:.0%} done, {self._written()} written, {left:.0f} s left")

    def _written(self) -> str:
        return f"{size(self.written)} of {size(self.output)}"

    def _start_bar(self) -> None:
        if self.bar is not None:  # of an attempt that did not fit a device
            self.bar.stop()
        from rich.console import Console  # slow to import, and only needed on a terminal
        from rich.progress import BarColumn, TaskProgressColumn, TextColumn, TimeRemainingColumn
        from rich.progress import Progress as Bar

        columns = (
            TextColumn("merging"),
            BarColumn(),
            TaskProgressColumn(),
            TextColumn("{task.fields[written]}"),
            TimeRemainingColumn(),
        )
        self.bar = Bar(*columns, console=Console(stderr=True), transient=True)
        self.task = self.bar.add_task("merging", total=self.total, written=self._written())
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
        return "an interrupted run left nothing that could be verified; the merge starts over"
    kept, left = size(event.kept_bytes), size(event.left_bytes)
    return f"resuming an interrupted run: {kept} verified and kept, {left} left to write"
