"""Queues between the threads of a run, which all end when one of them fails."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from typing import Any, TypeVar

T = TypeVar("T")


class StoppedError(Exception):
    """Another thread failed, or another host; its error is the one to report."""


class Channel:
    """A bounded queue whose users wake up when the run stops."""

    def __init__(self, size: int, stop: threading.Event) -> None:
        self._queue: queue.Queue[Any] = queue.Queue(size)
        self._stop = stop

    def put(self, item: Any) -> None:
        self._patiently(lambda: self._queue.put(item, timeout=0.05))

    def get(self) -> Any:
        return self._patiently(lambda: self._queue.get(timeout=0.05))

    def _patiently(self, action: Callable[[], T]) -> T:
        while not self._stop.is_set():
            try:
                return action()
            except (queue.Full, queue.Empty):
                continue
        raise StoppedError
