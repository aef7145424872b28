"""Threads of a run: queues that end when one of them fails, shared lists of work, and pools whose jobs are spans."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, ParamSpec, TypeVar

from jmerge.interrupt import check
from jmerge.tracer import Tracer


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


T = TypeVar("T")
R = TypeVar("R")


def work_through(
    items: Iterator[T],
    make: Callable[[], Callable[[T], R]],
    take: Callable[[T, R], None],
    *,
    threads: int,
    name: str,
) -> None:
    """Work through `items` with several threads, and stop at the first error, which is raised.

    Args:
      items: asked for the next one by one thread at a time.
      make: called by each thread; what it returns does the work, with memory of its own.
      take: gets every item with what came of it, in any order, from one thread at a time.
      threads: how many.
      name: what they are called.
    """
    lock = threading.Lock()
    stopped = threading.Event()

    def work() -> None:
        do = make()
        while not stopped.is_set():
            with lock:
                try:
                    item = next(items)
                except StopIteration:
                    return
            result = do(item)
            with lock:
                take(item, result)

    with ThreadPoolExecutor(threads, name) as pool:
        workers = [pool.submit(work) for _ in range(threads)]
        try:
            for each in workers:
                each.result()
        finally:
            stopped.set()


P = ParamSpec("P")


class TracedPool(ThreadPoolExecutor):
    """Threads that compute on the host."""

    def __init__(self, threads: int, name: str, tracer: Tracer) -> None:
        super().__init__(threads, name)
        self._tracer = tracer

    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        """Have a thread call `fn`; `map` comes through here too."""

        def job() -> T:
            with self._tracer.span("compute"):
                return fn(*args, **kwargs)

        return super().submit(job)
