"""Queues between the threads of a run, which all end when one of them fails."""

from __future__ import annotations

import queue
import threading
from typing import Any

from jmerge.interrupt import check


class StoppedError(Exception):
    """Another thread failed, or another host; its error is the one to report."""


class Channel:
    """A queue whose users wake up when the run stops. What goes round is bounded by the slots there are."""

    def __init__(self, stop: threading.Event) -> None:
        self._queue: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._stop = stop

    def put(self, item: Any) -> None:
        """Add an item; StoppedError when the run stopped."""
        self._check()
        self._queue.put(item)

    def get(self) -> Any:
        """Wait for an item; StoppedError when the run stops."""
        while True:
            self._check()
            try:
                return self._queue.get(timeout=0.05)
            except queue.Empty:
                continue

    def _check(self) -> None:
        check()
        if self._stop.is_set():
            raise StoppedError
