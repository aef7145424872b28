"""`--profile`: a trace that keeps to the format, whatever becomes of the run, and a folder that does not know of it."""

from __future__ import annotations

import json
import os
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from jmerge import cli
from jmerge.ckpt.writer import OutputFolder
from jmerge.errors import PlanError, RunError
from jmerge.report.profile import Profile
from jmerge.testing.tiny import llama_config, llama_tensors, write_checkpoint, write_llama
from jmerge.tracer import Span, Where

SIZES: dict[str, Any] = {"vocab": 2500}  # so that embedding and head are no small tensors
TENSORS = len(llama_tensors(0))


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory, with models `a` and `b` and a recipe `x.yml`."""
    monkeypatch.chdir(tmp_path)
    write_llama(tmp_path / "a", 0, **SIZES)
    write_llama(tmp_path / "b", 1, **SIZES)
    (tmp_path / "x.yml").write_text(
        "merge_method: ties\nbase_model: a\nmodels:\n- model: b\n"
        "  parameters: {weight: 1, density: 0.5}\n- model: a\n  parameters: {weight: 1}\n"
    )
    return tmp_path


def trace(path: Path) -> list[dict[str, Any]]:
    """The complete events of a trace that has been checked against the format."""
    content = json.loads(path.read_text(encoding="utf-8"))
    assert list(content) == ["traceEvents"]
    events: list[dict[str, Any]] = content["traceEvents"]
    named: set[tuple[int, int]] = set()
    for event in events:
        assert isinstance(event["name"], str) and isinstance(event["args"], dict)
        assert isinstance(event["pid"], int) and isinstance(event["tid"], int)
        if event["ph"] == "M":
            assert event["name"] in ("process_name", "thread_name")
            assert isinstance(event["args"]["name"], str)
            if event["name"] == "thread_name":
                named.add((event["pid"], event["tid"]))
        else:
            assert event["ph"] == "X" and isinstance(event["cat"], str)
            assert isinstance(event["ts"], float) and isinstance(event["dur"], float)
            assert event["ts"] >= 0 and event["dur"] >= 0
            assert (event["pid"], event["tid"]) in named, "a thread is named before it is used"
    assert events[0]["name"] == "process_name"
    complete = [event for event in events if event["ph"] == "X"]
    for thread in named:
        check_nesting([e for e in complete if (e["pid"], e["tid"]) == thread])
    return complete


def check_nesting(events: list[dict[str, Any]]) -> None:
    """Of two events of a thread one holds the other, or they do not meet; in whole nanoseconds."""
    ends: list[int] = []
    spans = [(round(e["ts"] * 1000), round((e["ts"] + e["dur"]) * 1000)) for e in events]
    for start, stop in sorted(spans, key=lambda span: (span[0], -span[1])):
        while ends and ends[-1] <= start:
            ends.pop()
        assert not ends or stop <= ends[-1]
        ends.append(stop)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


# What is in it


def test_a_trace_of_a_merge(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = set(threading.enumerate())  # of other tests of this process
    assert cli.main(["x.yml", "out", "--profile", "t.json"]) == 0
    events = trace(place / "t.json")
    names = {event["name"] for event in events}
    assert names >= {"start", "read", "compute", "result", "check", "write", "publish", "wait"}
    assert set(threading.enumerate()) <= before
    wrote = [event["args"] for event in events if event["name"] == "write"]
    assert len(wrote) == TENSORS
    assert {args["tensor"] for args in wrote} == set(llama_tensors(0))
    tensors = llama_tensors(0, **SIZES).values()
    assert sum(args["bytes"] for args in wrote) == sum(each.nbytes for each in tensors)
    for event in events:
        if event["name"] in ("read", "result", "check", "write"):
            assert set(event["args"]) == {"bytes", "tensor", "pass", "piece"}
    assert {event["args"]["pass"] for event in events if event["name"] == "read"} == {
        "keep",
        "combine",
        "small",
    }
    said = capsys.readouterr().out
    assert "open t.json in ui.perfetto.dev" in said


def test_the_format_by_hand(tmp_path: Path) -> None:
    """Two threads of one name have lanes of their own, and times are microseconds."""
    path = tmp_path / "t.json"
    with Profile(path, tmp_path / "out") as profile:
        start = profile._origin
        profile(Span("read", (7, "x"), start + 1500, 2_000_001, Where("é", "sums", 2), 9))
        profile(Span("wait", (8, "x"), start, 3_000_000, None, 0))
        profile(Span("flush", (7, "x"), start + 3_000_000, 0, None, 5))
    common = {"ph": "X", "pid": os.getpid()}
    assert trace(path) == [
        {
            **common,
            "name": "read",
            "cat": "reading",
            "ts": 1.5,
            "dur": 2000.001,
            "tid": 0,
            "args": {"bytes": 9, "tensor": "é", "pass": "sums", "piece": 2},
        },
        {
            **common,
            "name": "wait",
            "cat": "waiting",
            "ts": 0.0,
            "dur": 3000.0,
            "tid": 1,
            "args": {},
        },
        {
            **common,
            "name": "flush",
            "cat": "flush",
            "ts": 3000.0,
            "dur": 0.0,
            "tid": 0,
            "args": {"bytes": 5},
        },
    ]


def test_the_check_of_nesting_sees_an_overlap() -> None:
    check_nesting([{"ts": 0.0, "dur": 4.0}, {"ts": 1.0, "dur": 3.0}, {"ts": 4.0, "dur": 1.0}])
    with pytest.raises(AssertionError):
        check_nesting([{"ts": 0.0, "dur": 4.0}, {"ts": 1.0, "dur": 4.0}])


def test_an_older_trace_is_replaced(place: Path) -> None:
    for out in ("one", "two"):
        assert cli.main(["x.yml", out, "--profile", "t.json", "--quiet"]) == 0
        assert sum(event["name"] == "start" for event in trace(place / "t.json")) == 1


# Nothing else changes


def test_the_folder_is_the_same(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["x.yml", "one/out", "--quiet"]) == 0
    assert cli.main(["x.yml", "two/out", "--quiet", "--profile", "t.json"]) == 0
    assert contents(place / "one" / "out") == contents(place / "two" / "out")
    assert capsys.readouterr() == ("", "")
    assert (place / "t.json").is_file()


def test_what_is_up_to_date_leaves_no_trace(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["x.yml", "out", "--quiet"]) == 0
    assert cli.main(["x.yml", "out", "--profile", "t.json"]) == 0
    said = capsys.readouterr().out
    assert "up to date" in said and "t.json" in said and "bounded" not in said
    assert not (place / "t.json").exists()


# However the run ends


def test_a_trace_of_a_failed_run(place: Path) -> None:
    tensors = llama_tensors(1, **SIZES)
    tensors["model.norm.weight"][2] = np.nan
    write_checkpoint(place / "b", tensors, llama_config(**SIZES))
    assert cli.main(["x.yml", "out", "--profile", "t.json"]) == 2
    names = [event["name"] for event in trace(place / "t.json")]
    assert "write" in names and "publish" not in names
    assert not (place / "out").exists()


@pytest.mark.parametrize("error", [KeyboardInterrupt, RunError("the disk broke")])
def test_a_trace_of_an_interrupted_run(
    error: Any, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write, count = OutputFolder.write, 0

    def stop(folder: OutputFolder, tensor: str, start: int, data: memoryview) -> None:
        nonlocal count
        count += 1
        if count == 5:
            raise error
        write(folder, tensor, start, data)

    with monkeypatch.context() as patch:
        patch.setattr(OutputFolder, "write", stop)
        code = cli.main(["x.yml", "out", "--profile", "t.json"])
    assert code == (130 if error is KeyboardInterrupt else 3)
    wrote = [event["args"] for event in trace(place / "t.json") if event["name"] == "write"]
    assert [("bytes" in args) for args in wrote] == [True] * 4 + [False]
    assert cli.main(["x.yml", "out", "--profile", "t.json"]) == 0
    wrote = [event["args"] for event in trace(place / "t.json") if event["name"] == "write"]
    assert len(wrote) == TENSORS - 4, "a resumed run's trace is of what it does itself"


def test_a_mistake_in_the_recipe_leaves_no_trace(place: Path) -> None:
    (place / "x.yml").write_text("merge_method: nothing\n")
    (place / "t.json").write_text("")
    assert cli.main(["x.yml", "out", "--profile", "t.json"]) == 2
    assert (place / "t.json").read_text() == ""


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no full device here")
def test_a_trace_that_cannot_be_written(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It costs the trace and not the merge; a failed merge says its own error."""
    assert cli.main(["x.yml", "out", "--profile", "/dev/full"]) == 3
    assert "error: /dev/full: the disk is full; the merge is done" in capsys.readouterr().err
    assert (place / "out" / "jmerge.lock.json").is_file()
    tensors = llama_tensors(1, **SIZES)
    tensors["model.norm.weight"][2] = np.nan
    write_checkpoint(place / "b", tensors, llama_config(**SIZES))
    assert cli.main(["x.yml", "other", "--profile", "/dev/full"]) == 2
    *_, warning, error = capsys.readouterr().err.splitlines()
    assert warning == "warning: /dev/full: the disk is full; the trace is incomplete [JM501]"
    assert error.startswith("error: model.norm.weight: ")


# Where it may be


@pytest.mark.parametrize(
    ("path", "part"),
    [
        ("a", "a is a folder"),
        ("gone/t.json", "gone is not a folder"),
        ("x.yml/t.json", "x.yml is not a folder"),
        ("x.yml", "not a trace of jmerge"),
        ("a/model.safetensors", "not a trace of jmerge"),
        ("out/t.json", "in the folder to be made"),
        ("out", "in the folder to be made"),
        ("link/t.json", "in the folder to be made"),
        ("out.jmerge-work/t.json", "in the folder to be made"),
    ],
)
def test_where_a_trace_cannot_be(
    path: str, part: str, place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if path != "out":
        (place / "out").mkdir()
    (place / "out.jmerge-work").mkdir()
    (place / "link").symlink_to(place / "out")
    before = {item: item.read_bytes() for item in place.rglob("*") if item.is_file()}
    assert cli.main(["x.yml", "out", "--profile", path]) == 2
    said = capsys.readouterr()
    (line,) = said.err.splitlines()
    assert said.out == "" and line.startswith("error: --profile: ") and part in line
    assert {item: item.read_bytes() for item in place.rglob("*") if item.is_file()} == before


def test_the_folder_to_be_made_may_have_another_name(place: Path) -> None:
    (place / "out").mkdir()
    (place / "link").symlink_to(place / "out")
    with pytest.raises(PlanError, match="in the folder to be made"):
        Profile("out/t.json", "link")


def test_a_place_that_may_not_be_written(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a file that is there its own permission counts, else its folder's."""
    asked: list[str] = []
    monkeypatch.setattr(os, "access", lambda path, mode: asked.append(str(path)))
    (place / "t.json").touch()
    for name in ("t.json", "a/new.json"):
        with pytest.raises(PlanError, match="Permission denied"):
            Profile(name, "out")
    assert asked == ["t.json", "a"]
