"""Threads that share a list of work."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

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
