"""Where the time of a run goes: spans of what its threads do, and how long each of its three stages was busy.

Reading, computing and writing go on at once, so how long a piece takes in one of them does not say what bounds the
run. Neither does what a thread waits for: when writing is slow no slot comes back, so the reader waits for one, and the
computing thread for a piece that cannot be read without it. But every wait begins at a stage that has no time to
spare: what bounds the run is the stage that is busy most of the time, and the others' idleness is the evidence.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import Literal, NamedTuple

Activity = Literal[
    "start", "read", "compute", "result", "check", "write", "flush", "publish", "wait"
]
Stage = Literal["reading", "computing", "writing"]

STAGES: dict[Activity, Stage] = {
    "read": "reading",
    "compute": "computing",  # handing pieces to kernels, compiling these, and the host's part in statistics
    # JAX hands a kernel over and returns at once: where kernels are slow, it is the writer that waits for a result.
    # Kernels that run while nobody waits for them are hidden behind another stage and bound nothing.
    "result": "computing",
    "check": "writing",  # checksums, and counting NaN where there may be some
    "write": "writing",
    "publish": "writing",  # the small files, and waiting for the disk
    # "flush" belongs to none: while the disk works beside the others it holds nobody up, and where it does, writing or
    # publishing waits for it.
}


class Where(NamedTuple):
    """The piece that a span is about."""

    step: str
    kind: str  # of the pass
    piece: int


class Span(NamedTuple):
    """A thread did something, or waited, for a while."""

    what: Activity
    thread: tuple[int, str]  # its identifier, which a later thread may have again, and its name
    start: int  # nanoseconds of `time.perf_counter_ns`
    duration: int  # nanoseconds
    where: Where | None  # None: not about one piece
    nbytes: int  # that went through it; 0 when it failed


class Timings(NamedTuple):
    """Where the time of a run went, in seconds."""

    seconds: float  # all of it
    starting: float  # until the first piece: planning, making the files, verifying what was kept
    # After that, how long each stage was busy. They work at once, so these do not add up to anything.
    reading: float
    computing: float
    writing: float  # with publishing
    read_bytes: int  # of local and remote files, in all passes; what was kept of an interrupted run is not in it
    write_bytes: int  # of tensors

    @property
    def running(self) -> float:
        """The seconds after the start."""
        return max(self.seconds - self.starting, 1e-9)

    @property
    def bound(self) -> Literal["starting", "reading", "computing", "writing"]:
        """What took most of the time."""
        if self.starting > max(self.reading, self.computing, self.writing):
            return "starting"
        if self.reading > max(self.computing, self.writing):
            return "reading"
        return "computing" if self.computing > self.writing else "writing"

    def begun_earlier(self, seconds: float) -> Timings:
        """The same with so much more time to start."""
        return self._replace(seconds=self.seconds + seconds, starting=self.starting + seconds)


class Tracer:
    """Adds up the timings of one run, from when it is made; for any thread."""

    def __init__(self, on_span: Callable[[Span], None] | None = None) -> None:
        """A tracer that keeps totals only.

        on_span: called with every span when it ends, by the thread whose span it is; it must be quick and not raise.
        """
        self._on_span = on_span
        self._lock = threading.Lock()
        self._began = time.perf_counter_ns()
        self._started: int | None = None
        self._open = dict.fromkeys(STAGES.values(), 0)  # spans under way
        self._since = dict.fromkeys(STAGES.values(), 0)  # when the first of them began
        self._busy = dict.fromkeys(STAGES.values(), 0)  # nanoseconds with at least one, before that
        self._nbytes: dict[Activity, int] = {"read": 0, "write": 0}

    def started(self) -> None:
        """Note that the first piece is read: what came before was starting."""
        self._started = time.perf_counter_ns()
        self._tell("start", None, self._began, self._started, 0)

    def span(self, what: Activity, where: Where | None = None, nbytes: int = 0) -> OpenSpan:
        """A context manager: what the thread does inside it is a span."""
        return OpenSpan(self, what, where, nbytes)

    def timings(self) -> Timings:
        """The totals up to now."""
        with self._lock:
            now = time.perf_counter_ns()
            busy = {
                stage: self._busy[stage] + (now - self._since[stage] if count else 0)
                for stage, count in self._open.items()
            }
            started = now if self._started is None else self._started
            return Timings(
                seconds=(now - self._began) / 1e9,
                starting=(started - self._began) / 1e9,
                reading=busy["reading"] / 1e9,
                computing=busy["computing"] / 1e9,
                writing=busy["writing"] / 1e9,
                read_bytes=self._nbytes["read"],
                write_bytes=self._nbytes["write"],
            )

    def begin(self, what: Activity) -> int:
        """Begin a span; its start."""
        stage = STAGES.get(what)
        if stage is None:
            return time.perf_counter_ns()
        with self._lock:
            now = time.perf_counter_ns()
            if self._open[stage] == 0:
                self._since[stage] = now
            self._open[stage] += 1
        return now

    def end(self, what: Activity, where: Where | None, start: int, nbytes: int) -> None:
        """End a span that began at `start`."""
        now = time.perf_counter_ns()
        stage = STAGES.get(what)
        if stage is not None:
            with self._lock:
                now = time.perf_counter_ns()
                self._open[stage] -= 1
                if self._open[stage] == 0:
                    self._busy[stage] += now - self._since[stage]
                if what in self._nbytes:
                    self._nbytes[what] += nbytes
        self._tell(what, where, start, now, nbytes)

    def _tell(
        self, what: Activity, where: Where | None, start: int, stop: int, nbytes: int
    ) -> None:
        if self._on_span is not None:
            thread = threading.get_ident(), threading.current_thread().name
            self._on_span(Span(what, thread, start, stop - start, where, nbytes))


class OpenSpan:
    """A span under way; a class, since a generator costs twice as much."""

    __slots__ = ("_tracer", "_what", "_where", "_nbytes", "_start")

    def __init__(self, tracer: Tracer, what: Activity, where: Where | None, nbytes: int) -> None:
        self._tracer = tracer
        self._what = what
        self._where = where
        self._nbytes = nbytes

    def __enter__(self) -> None:
        self._start = self._tracer.begin(self._what)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._tracer.end(self._what, self._where, self._start, 0 if kind else self._nbytes)
