"""Progress of a run: the rate is this run's, whatever an interrupted one has left."""

from __future__ import annotations

import sys

import pytest

from jmerge.ckpt.journal import Block
from jmerge.engine.events import Resumed, Started, Wrote
from jmerge.report.progress import Progress, Reading


def wrote(nbytes: int) -> Wrote:
    return Wrote(Block("x", 0, nbytes, 0))


def test_lines_of_a_resumed_run(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    now = 100.0
    monkeypatch.setattr("jmerge.report.progress.time.monotonic", lambda: now)
    with Progress() as progress:
        progress(Resumed(6_000_000, 4_000_000))
        now += 50  # which verifying took
        progress(Started(0, 10_000_000))
        now += 20
        progress(wrote(0))  # an empty tensor, after long statistics
        now += 20
        progress(wrote(2_000_000))
    assert capsys.readouterr().err.splitlines() == [
        "resuming an interrupted run: 6.00 MB verified and kept, 4.00 MB left to write",
        "6.00 MB of 10.00 MB written, 0 B/s",
        "8.00 MB of 10.00 MB written, 50.00 kB/s, 40 s left",
    ]


def test_the_bar_of_a_resumed_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    now = 100.0
    with Progress() as progress:
        progress(Resumed(6_000_000, 4_000_000))
        progress(Started(0, 10_000_000))
        monkeypatch.setattr(progress.bar, "get_time", lambda: now)
        for _ in range(3):
            now += 10
            progress(wrote(1_000_000))
        (task,) = progress.bar.tasks
        assert (task.completed, task.total) == (9_000_000, 10_000_000)
        assert task.speed == pytest.approx(100_000)


def test_the_bar_of_a_pass_over_models(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    with Reading("comparing") as reading:
        reading(3, 10)
        reading(4, 10)
        (task,) = reading.bar.tasks
        assert (task.completed, task.total, task.description) == (7, 10, "comparing")


def test_a_quiet_pass_shows_nothing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with Reading("comparing") as reading:  # no terminal
        reading(3, 10)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    with Reading("comparing", quiet=True) as reading:
        reading(3, 10)
    assert reading.bar is None and capsys.readouterr() == ("", "")
