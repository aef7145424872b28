"""A pool of threads whose jobs are spans."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import ParamSpec, TypeVar

from jmerge.tracer import Tracer

P = ParamSpec("P")
T = TypeVar("T")


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
