"""Remote bytes, fetched once, ahead of their use, many requests at a time.

All that a schedule reads of remote files is known before the run: the ranges are cut into parts of a few megabytes, in
the order of their first use. Workers fetch the parts in that order, up to a limit beyond the one that is being used.
A part is held until its last use, in memory where all that is held at once is little, else in a temporary file: a
method that takes several passes over a tensor, or over whole models, reads it there again.
"""

from __future__ import annotations

import bisect
import queue
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import CancelledError, Future
from concurrent.futures import TimeoutError as NotYetError
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np

from jmerge.ckpt.remote import CONNECTIONS, PART_BYTES
from jmerge.ckpt.source import Source
from jmerge.dtypes import BITS
from jmerge.engine.assemble import spans_of
from jmerge.engine.schedule import Schedule
from jmerge.engine.store import MemoryStore, PartStore, make_store
from jmerge.plan.inputs import Assembled, Gathered, Item, Read

AHEAD_BYTES = 1 << 27  # fetched beyond what is being used: a second of a fast line

Key = tuple[int, str]  # model, file


class Span(NamedTuple):
    """Bytes of a remote file that are part of an input."""

    item: Read
    start: int
    stop: int


@dataclass(eq=False)
class Part:
    """A range that is fetched by one request."""

    source: Source
    file: str
    start: int
    stop: int
    order: int = -1  # of its first use
    uses: int = 0  # still to come
    done: Future[None] = field(default_factory=Future)

    @property
    def size(self) -> int:
        """Bytes."""
        return self.stop - self.start


class Fetcher:
    """The remote bytes of a run."""

    def __init__(
        self,
        schedule: Schedule,
        source_of: Callable[[Read], Source | None],
        scratch: Path | None,
        stop: threading.Event,
    ) -> None:
        self._schedule = schedule
        self._source_of = source_of
        self._stop = stop
        self._lock = threading.Lock()
        self._parts = self._cut()
        self._starts = {key: [part.start for part in parts] for key, parts in self._parts.items()}
        self._order: list[Part] = []
        self._ends: list[int] = []  # bytes up to and with each part, in order of use
        if self._parts:
            self._number_parts()
        # A statistic may end with another look at some pieces, when the reader may have gone on by all slots but one:
        # what was used for the last time is then held for as many reads more.
        looks_back = any(
            turn.what.again
            and not turn.what.samples  # of samples it is so rare that they are fetched anew
            for turn in schedule.turns
        )
        self._lag = schedule.slots * len(schedule.buffers) if looks_back else 0
        self._over: deque[list[Part]] = deque()  # by read, what was used for the last time
        self._asked = 0  # parts given to the workers
        self._used = 0  # parts whose use has begun, and all before them
        self._jobs: queue.SimpleQueue[Part | None] = queue.SimpleQueue()
        self._workers: list[threading.Thread] = []
        self._store: PartStore = MemoryStore()
        if self._order:
            self._store = make_store(self._most_held(), PART_BYTES, scratch)
            self._workers = [
                threading.Thread(target=self._work, name="jmerge-fetch", daemon=True)
                for _ in range(CONNECTIONS)
            ]
            for worker in self._workers:
                worker.start()

    def read(self, item: Read, start: int, buffer: np.ndarray, *, glance: bool = False) -> None:
        """Fill `buffer` from byte `start` of the file of an input, waiting for what is not there yet.

        Raises what fetching failed with. With `glance` the bytes are read besides what the schedule reads, which
        does not count as their use.
        """
        stop = start + buffer.nbytes
        for part in self._overlapping(item, start, stop):
            first, last = max(part.start, start), min(part.stop, stop)
            into = buffer[first - start : last - start]
            self._begin(part)
            self._wait(part)
            try:
                self._store.get(part.order, first - part.start, into)
            except KeyError:  # it is held no more
                part.source.read_into(part.file, first, into)
        if not glance:
            self.end(Span(item, start, stop))

    def end(self, *spans: Span) -> None:
        """Count one read of an input, of which some was looked at."""
        self._end(self._parts_of(spans))

    def close(self) -> None:
        """Give up what is being fetched, and let go of what is held."""
        with self._lock:
            self._asked = len(self._order)
        while True:
            try:
                self._jobs.get_nowait()
            except queue.Empty:
                break
        for _ in self._workers:
            self._jobs.put(None)
        if not self._stop.is_set() or all(part.done.done() for part in self._order):
            for worker in self._workers:
                worker.join()
        self._store.close()

    # What will be read

    def _uses(self) -> Iterator[tuple[list[Span], bool]]:
        """What is read of remote inputs, in the order of reading: the spans that one read of an input needs, and whether
        they are only looked at."""
        for turn in self._schedule.turns:
            inputs = turn.work.step.inputs
            if turn.what.samples:  # a sample of the whole is taken first
                for item in inputs:
                    if not isinstance(item, Gathered):
                        yield self._spans(item, 0, item.spec.size), True
            tables = [item for item in inputs if isinstance(item, Gathered)]
            for item in tables:  # any piece may need any of their rows
                yield self._spans(item, 0, item.spec.size), True
            for number in turn.pieces:
                for item in inputs:
                    if not isinstance(item, Gathered):
                        yield self._spans(item, *turn.work.pieces[number]), False
            for item in tables:
                yield self._spans(item, 0, item.spec.size), False

    def _spans(self, item: Item, start: int, stop: int) -> list[Span]:
        """The remote bytes that reading the elements [start, stop) of an input needs."""
        bits = BITS[item.spec.dtype]
        first, last = start * bits // 8, stop * bits // 8
        if isinstance(item, Assembled):
            found = list(spans_of(item, first, last))
        elif isinstance(item, Read):
            found = [(item, first, last)]
        else:
            found = [(table, 0, table.spec.nbytes) for table in item.reads]
        return [
            Span(read, read.start + first, read.start + last)
            for read, first, last in found
            if self._source_of(read)
        ]

    def _cut(self) -> dict[Key, list[Part]]:
        """The parts of every file, in the order of their place: what is read of it, cut at multiples of a part."""
        ranges: dict[Key, dict[tuple[int, int], Source]] = {}
        for turn in self._schedule.turns:
            for whole in turn.work.step.inputs:
                for item, start, stop in self._spans(whole, 0, whole.spec.size):
                    source = self._source_of(item)
                    assert source is not None
                    ranges.setdefault((item.model, item.file), {})[start, stop] = source
        parts: dict[Key, list[Part]] = {}
        for (model, file), found in ranges.items():
            source = next(iter(found.values()))
            parts[model, file] = [
                Part(source, file, max(start, at), min(stop, at + PART_BYTES))
                for start, stop in _joined(sorted(found))
                for at in range(start - start % PART_BYTES, stop, PART_BYTES)
            ]
        return parts

    def _number_parts(self) -> None:
        for spans, glance in self._uses():
            for part in self._parts_of(spans):
                if part.order < 0:
                    part.order = len(self._order)
                    self._order.append(part)
                    self._ends.append((self._ends[-1] if self._ends else 0) + part.size)
                part.uses += not glance

    def _most_held(self) -> int:
        """The most parts' bytes that are held at once."""
        uses = [part.uses for part in self._order]
        begun = released = most = 0
        over: deque[int] = deque()  # by read, bytes that were used for the last time
        for spans, glance in self._uses():
            parts = self._parts_of(spans)
            if not parts:
                continue
            begun = max([begun, *(part.order + 1 for part in parts)])
            fetched = min(self._ends[begun - 1] + AHEAD_BYTES + PART_BYTES, self._ends[-1])
            most = max(most, fetched - released)
            if glance:
                continue
            for part in parts:
                uses[part.order] -= 1
            ended = dict.fromkeys(part for part in parts if uses[part.order] == 0)
            over.append(sum(part.size for part in ended))
            if len(over) > self._lag:
                released += over.popleft()
        return most

    def _parts_of(self, spans: Sequence[Span]) -> list[Part]:
        return [part for span in spans for part in self._overlapping(*span)]

    def _overlapping(self, item: Read, start: int, stop: int) -> Iterator[Part]:
        if start == stop:
            return
        parts = self._parts[item.model, item.file]
        i = max(bisect.bisect_right(self._starts[item.model, item.file], start) - 1, 0)
        while i < len(parts) and parts[i].start < stop:
            if parts[i].stop > start:
                yield parts[i]
            i += 1

    # Fetching

    def _begin(self, part: Part) -> None:
        """Ask for all parts up to this one, and for as many more as may be under way."""
        with self._lock:
            self._used = max(self._used, part.order + 1)
            limit = self._ends[self._used - 1] + AHEAD_BYTES
            while self._asked < len(self._order) and (
                self._asked < self._used or self._ends[self._asked] <= limit
            ):
                self._jobs.put(self._order[self._asked])
                self._asked += 1

    def _end(self, parts: Sequence[Part]) -> None:
        """Count a read of these parts, and let go what has been read for the last time."""
        with self._lock:
            for part in parts:
                part.uses -= 1
            self._over.append([part for part in dict.fromkeys(parts) if part.uses == 0])
            if len(self._over) > self._lag:
                for part in self._over.popleft():
                    self._store.free(part.order)

    def _wait(self, part: Part) -> None:
        while True:
            try:
                return part.done.result(0.05)
            except NotYetError:
                if self._stop.is_set() and not part.done.done():
                    raise CancelledError from None

    def _work(self) -> None:
        while (part := self._jobs.get()) is not None:
            buffer = np.empty(part.size, np.uint8)
            try:
                part.source.read_into(part.file, part.start, buffer)
                self._store.put(part.order, buffer)
            except BaseException as error:
                part.done.set_exception(error)
            else:
                part.done.set_result(None)


def _joined(ranges: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """Sorted ranges with those made one that touch, and without empty ones."""
    joined: list[tuple[int, int]] = []
    for start, stop in ranges:
        if joined and start <= joined[-1][1]:
            joined[-1] = (joined[-1][0], max(joined[-1][1], stop))
        elif start < stop:
            joined.append((start, stop))
    return joined
