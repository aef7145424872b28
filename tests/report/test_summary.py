"""The end of a run: one line; with -v also which rates, and what bounded it with the evidence."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from jmerge import cli
from jmerge.report.summary import summary
from jmerge.testing.tiny import write_llama
from jmerge.tracer import Timings

TIMINGS = Timings(
    seconds=12.34,
    starting=2.34,
    reading=3.8,
    computing=5.2,
    writing=9.7,
    read_bytes=4_400_000_000,
    write_bytes=2_200_000_000,
)


def test_what_bounded_a_run() -> None:
    assert summary(TIMINGS).splitlines() == [
        "12.3 s, 2.3 s of it to start: read 4.40 GB at 440.00 MB/s, wrote 2.20 GB at 220.00 MB/s",
        "bounded by writing, busy 97% of the time after the start (reading 38%, computing 52%)",
    ]
    assert summary(TIMINGS._replace(reading=9.9)).splitlines()[1] == (
        "bounded by reading, busy 99% of the time after the start (computing 52%, writing 97%)"
    )


def test_a_run_that_hardly_did_more_than_start() -> None:
    quick = Timings(1.5, 1.0, 0.1, 0.4, 0.05, 2000, 1000)
    assert summary(quick).splitlines() == [
        "1.5 s, 1.0 s of it to start: read 2.00 kB at 4.00 kB/s, wrote 1.00 kB at 2.00 kB/s",
        "bounded by starting up (after that busy: reading 20%, computing 80%, writing 10%)",
    ]


def test_a_run_with_nothing_left_to_do() -> None:
    assert "read 0 B at 0 B/s, wrote 0 B at 0 B/s" in summary(Timings(1, 1, 0, 0, 0, 0, 0))


def test_the_last_lines(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for seed, name in enumerate("ab"):
        write_llama(tmp_path / name, seed)
    (tmp_path / "x.yml").write_text(
        "merge_method: linear\nparameters: {weight: 1}\nmodels: [{model: a}, {model: b}]\n"
    )
    assert cli.main(["x.yml", "short"]) == 0
    (line,) = capsys.readouterr().out.splitlines()
    assert re.fullmatch(
        r"Done in \d+\.\d s: merged 21 tensors \(5\.02 kB\) by linear into short\. "
        r"Next: jmerge inspect short, or from_pretrained\('short'\) in transformers",
        line,
    )
    assert cli.main(["x.yml", "out", "-v"]) == 0
    said = capsys.readouterr().out
    done, rates, bound = said.splitlines()[-3:]
    assert done.startswith("Done in ")
    number = r"\d+(\.\d+)?"
    assert re.fullmatch(
        rf"{number} s, {number} s of it to start: read 10.05 kB at {number} k?M?B/s, "
        rf"wrote 5.02 kB at {number} k?M?B/s",
        rates,
    )
    assert re.match(r"bounded by (starting up|reading|computing|writing)[ ,]", bound)
    assert cli.main(["x.yml", "quiet", "--quiet"]) == 0
    assert capsys.readouterr() == ("", "")
