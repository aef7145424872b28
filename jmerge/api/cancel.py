"""Merges end early when their caller says so, in any thread."""

from __future__ import annotations

import threading

from jmerge.errors import CancelledError


class Stop(threading.Event):
    """What ends a run: its own event, or the caller's."""

    def __init__(self, own: threading.Event, cancel: threading.Event | None) -> None:
        """own: is set by the run too, when it ends; cancel: is not."""
        super().__init__()
        self._own = own
        self._cancel = cancel

    def is_set(self) -> bool:
        """Whether either is set."""
        return self._own.is_set() or (self._cancel is not None and self._cancel.is_set())

    def set(self) -> None:
        """Set the run's own event."""
        self._own.set()


def check_cancel(cancel: threading.Event | None, *, goes_on: bool) -> None:
    """CancelledError where the caller's event is set; `goes_on`: the same call will find what was written."""
    if cancel is not None and cancel.is_set():
        hint = "; the same call continues" if goes_on else ""
        raise CancelledError(f"the merge was cancelled{hint}", code="JM508")
