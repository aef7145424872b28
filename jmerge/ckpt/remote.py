"""What all remote sources share: patience with passing problems, and checks of what arrives.

A problem that passes (a lost connection, a busy server, silence, too few bytes) is tried again after a pause that
doubles, with jitter so that many readers do not come back at once. Bytes that came before a problem are kept.
"""

from __future__ import annotations

import random
import re
import threading
import time
from abc import abstractmethod
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import NamedTuple, TypeVar

import numpy as np

from jmerge.ckpt.source import Source
from jmerge.errors import RunError

T = TypeVar("T")
U = TypeVar("U")

CONNECTIONS = 16  # requests under way at once: one stream seldom fills a line
PART_BYTES = (
    1 << 22
)  # asked for at once: a problem costs little, and a request's latency is small beside it


@dataclass
class Patience:
    """How long a remote source is waited for."""

    attempts: int = 5
    pause: float = 0.5  # seconds before the second attempt, doubled before each further one
    longest_pause: float = 30.0  # seconds, whatever the server asks for
    silence: float = 30.0  # seconds without a byte after which a request is given up


PATIENCE = Patience()


class Stat(NamedTuple):
    """What a store says of a file."""

    size: int  # bytes
    tag: str  # changes with the content; empty where the store has none


class PassingError(Exception):
    """A problem that may be over when the same is tried again."""

    def __init__(self, message: str, pause: float = 0.0) -> None:
        super().__init__(message)
        self.pause = pause  # seconds that the server asks to wait


def patiently(action: Callable[[], T], what: str) -> T:
    """What `action` returns, tried again after passing problems; RunError that names `what` when they do not pass."""
    for attempt in range(1, PATIENCE.attempts + 1):
        try:
            return action()
        except PassingError as error:
            if attempt == PATIENCE.attempts:
                raise RunError(
                    f"{what}: {redacted(str(error))} ({attempt} attempts); run the same command again",
                    code="JM505",
                ) from error
            pause = PATIENCE.pause * 2 ** (attempt - 1) * random.uniform(0.5, 1.5)
            time.sleep(min(max(pause, error.pause), PATIENCE.longest_pause))
    raise AssertionError("unreachable")


def redacted(text: str) -> str:
    """`text` on one line and without what may give access: the queries of URLs, and names and passwords in them."""
    text = re.sub(r"(\w://)[^/\s@]*@", r"\1", " ".join(text.split()))
    return re.sub(r"(\w://[^\s?#'\"<>]*)[?#][^\s'\"<>)]*", r"\1?...", text)


class RemoteSource(Source):
    """Files that are fetched over a network."""

    def __init__(self, label: str) -> None:
        self.label = label
        self._stats: dict[str, Stat | None] = {}
        self._lock = threading.Lock()

    @abstractmethod
    def ask(self, name: str) -> Stat | None:
        """One attempt to learn of a file; None when there is none. May raise PassingError."""

    @abstractmethod
    def fetch(self, name: str, start: int, view: memoryview, stat: Stat) -> int:
        """One attempt to fill `view`; how many bytes came before the connection ended. May raise PassingError."""

    def stat(self, name: str) -> Stat | None:
        """What the store said of a file when it was first asked."""
        with self._lock:
            if name in self._stats:
                return self._stats[name]
        found = patiently(lambda: self.ask(name), self.shown(name))
        with self._lock:
            return self._stats.setdefault(name, found)

    def size(self, name: str) -> int | None:
        stat = self.stat(name)
        return None if stat is None else stat.size

    def map(self, function: Callable[[T], U], items: Iterable[T]) -> list[U]:
        with ThreadPoolExecutor(CONNECTIONS, "jmerge-ask") as pool:
            return list(pool.map(function, items))

    def read_into(self, name: str, start: int, buffer: np.ndarray) -> None:
        if buffer.nbytes <= 2 * PART_BYTES:
            self._read_part(name, start, buffer)
            return
        starts = range(0, buffer.nbytes, PART_BYTES)
        self.map(lambda i: self._read_part(name, start + i, buffer[i : i + PART_BYTES]), starts)

    def _read_part(self, name: str, start: int, buffer: np.ndarray) -> None:
        self.size_of(name)
        stat = self.stat(name)
        assert stat is not None
        stop = start + buffer.nbytes
        if stop > stat.size:
            raise self.broken(name, f"ends at byte {stat.size}, before byte {stop}", code="JM111")
        view, done = buffer.data, 0

        def attempt() -> None:
            nonlocal done
            if done < len(view):
                done += self.fetch(name, start + done, view[done:], stat)
            if done < len(view):
                raise PassingError(f"received only {done} of {len(view)} bytes")

        patiently(attempt, f"{self.shown(name)}, bytes {start} to {stop}")
