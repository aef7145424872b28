"""Progress of a run: the rate is this run's, whatever an interrupted one has left."""

from __future__ import annotations

import contextlib
import io
import sys
from pathlib import Path

import pytest

import jmerge
from jmerge.ckpt.journal import Block
from jmerge.engine.events import Read, Resumed, Started, Wrote
from jmerge.report.progress import Progress, Reading
from jmerge.testing.tiny import write_llama


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
        progress(Started(6_000_000, 10_000_000))
        now += 20
        progress(wrote(0))  # an empty tensor
        progress(Read(2_500_000))  # by statistics
        now += 20
        progress(Read(1_000_000))
        progress(wrote(2_000_000))
        now += 5
        progress(wrote(1_000_000))
        now += 6
        progress(wrote(1_000_000))
    assert capsys.readouterr().err.splitlines() == [
        "resuming an interrupted run: 6.00 MB verified and kept, 4.00 MB left to write",
        "25% done, 6.00 MB of 10.00 MB written, 60 s left",
        "35% done, 6.00 MB of 10.00 MB written, 74 s left",
        "75% done, 10.00 MB of 10.00 MB written, 17 s left",
    ]


def test_the_bar_moves_while_statistics_are_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    with Progress() as progress:
        progress(Resumed(6_000_000, 4_000_000))
        progress(Started(6_000_000, 10_000_000))
        for _ in range(3):
            progress(Read(1_000_000))
        (task,) = progress.bar.tasks
        assert (task.completed, task.total) == (3_000_000, 10_000_000)
        assert task.fields["written"] == "6.00 MB of 10.00 MB"
        progress(wrote(4_000_000))
        assert task.completed == 7_000_000 and task.fields["written"] == "10.00 MB of 10.00 MB"


def test_another_attempt_starts_another_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    """With shorter pieces, after one that did not fit a device."""
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    with Progress() as progress:
        progress(Started(6_000_000, 10_000_000))
        progress(Read(5_000_000))
        progress(wrote(2_000_000))
        first = progress.bar
        progress(Started(4_000_000, 10_000_000))
        assert not first.live.is_started and progress.bar.live.is_started
        (task,) = progress.bar.tasks
        assert (task.completed, task.total) == (0, 12_000_000)
        assert task.fields["written"] == "2.00 MB of 10.00 MB"


@pytest.mark.parametrize("method", ["linear", "ties", "sce", "dare_ties", "breadcrumbs"])
def test_a_merge_ends_at_the_end_of_the_bar(method: str, tmp_path: Path) -> None:
    """Whatever passes it makes."""
    for seed, name in enumerate("abc"):
        write_llama(tmp_path / name, seed, hidden=64, inner=300)
    models = [{"model": str(tmp_path / name)} for name in "bc"]
    recipe = {"merge_method": method, "models": models, "parameters": {"weight": 1}}
    if method != "linear":
        recipe["base_model"] = str(tmp_path / "a")
    shown = Progress()
    with contextlib.redirect_stderr(io.StringIO()):
        jmerge.merge(recipe, tmp_path / "out", listeners=(shown,))
    assert 0 < shown.done == shown.total and shown.written == shown.output


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
