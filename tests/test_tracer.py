"""The totals of spans: a stage is busy while at least one thread is in it, and waiting is no work."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest

from jmerge.tracer import Span, Timings, Tracer, Where


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Moves the time on by seconds; it stands still otherwise."""
    now = [5_000_000_000]
    monkeypatch.setattr("jmerge.tracer.time.perf_counter_ns", lambda: now[0])

    def pass_by(seconds: int) -> None:
        now[0] += seconds * 1_000_000_000

    return pass_by


def test_the_time_of_each_stage(clock: Callable[[int], None]) -> None:
    tracer = Tracer()
    clock(3)
    tracer.started()
    with tracer.span("read", nbytes=10):
        clock(1)
    for what in ("wait", "flush"):
        with tracer.span(what):
            clock(50)
    with tracer.span("compute", nbytes=7):
        clock(2)
    with tracer.span("result"), tracer.span("check", nbytes=7):
        clock(4)
    with tracer.span("write", nbytes=5):
        clock(8)
    with tracer.span("publish"):
        clock(16)
    assert tracer.timings() == Timings(
        seconds=3 + 100 + 31,
        starting=3,
        reading=1,
        computing=6,
        writing=28,
        read_bytes=10,
        write_bytes=5,
    )


def test_spans_at_once_count_once(clock: Callable[[int], None]) -> None:
    """Two threads in one stage, one in the other's time and beyond; and a span that is still open."""
    tracer = Tracer()
    first, second = tracer.span("compute"), tracer.span("result")
    first.__enter__()
    clock(1)
    second.__enter__()
    clock(2)
    first.__exit__(None, None, None)
    clock(4)
    assert tracer.timings().computing == 7
    second.__exit__(None, None, None)
    clock(8)
    assert tracer.timings().computing == 7
    with tracer.span("compute"):
        clock(16)
    assert tracer.timings().computing == 23


def test_what_failed_moved_no_bytes(clock: Callable[[int], None]) -> None:
    spans: list[Span] = []
    tracer = Tracer(spans.append)
    with pytest.raises(ZeroDivisionError), tracer.span("write", None, 9):
        clock(2)
        raise ZeroDivisionError
    assert (tracer.timings().write_bytes, tracer.timings().writing) == (0, 2)
    assert [(span.what, span.nbytes) for span in spans] == [("write", 0)]


def test_a_span_says_what_it_is(clock: Callable[[int], None]) -> None:
    spans: list[Span] = []
    tracer = Tracer(spans.append)
    clock(1)
    tracer.started()
    where = Where("x", "combine", 3)

    def body() -> None:
        with tracer.span("read", where, 9):
            clock(2)

    thread = threading.Thread(target=body, name="other")
    thread.start()
    thread.join()
    here = threading.get_ident(), threading.current_thread().name
    assert spans == [
        Span("start", here, 5_000_000_000, 1_000_000_000, None, 0),
        Span("read", (spans[1].thread[0], "other"), 6_000_000_000, 2_000_000_000, where, 9),
    ]


@pytest.mark.parametrize(
    ("seconds", "bound"),
    [
        ((1, 2, 3, 4), "writing"),
        ((1, 2, 4, 3), "computing"),
        ((1, 4, 2, 3), "reading"),
        ((4, 1, 2, 3), "starting"),
    ],
)
def test_the_longest_bounds(seconds: tuple[int, int, int, int], bound: str) -> None:
    assert Timings(20, *seconds, read_bytes=0, write_bytes=0).bound == bound


def test_time_before_the_run_is_time_to_start() -> None:
    timings = Timings(5, 1, 2, 3, 4, 0, 0)
    earlier = timings.begun_earlier(4)
    assert (earlier.seconds, earlier.starting, earlier.running) == (9, 5, timings.running)
    assert (timings.bound, earlier.bound) == ("writing", "starting")
