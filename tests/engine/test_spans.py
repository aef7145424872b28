"""The spans of a run: every piece of every pass once, with its bytes; and what bounds a run is what was made slow."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from enginekit import Memory, checkpoints, plan_of, read, result, step, two_models, within

import jmerge
from jmerge.api.merge import merge
from jmerge.ckpt.writer import OutputFolder
from jmerge.engine.compute import Computer
from jmerge.engine.inputs import Inputs
from jmerge.engine.kernel import Piece, combine_kernel
from jmerge.engine.local import Maps
from jmerge.engine.run import run
from jmerge.engine.schedule import Schedule, make_schedule
from jmerge.plan.inputs import Read
from jmerge.plan.steps import Plan
from jmerge.testing.tiny import write_llama
from jmerge.tracer import Span, Timings, Tracer, Where

PIECE = 4096
SIZES: dict[str, Any] = {"layers": 1, "hidden": 64, "inner": 96, "vocab": 300}
RECIPES: dict[str, dict[str, Any]] = {
    "linear": {"parameters": {"weight": 0.5}},
    "slerp": {"parameters": {"t": 0.3}},
    "ties": {"parameters": {"weight": 0.5, "density": 0.4}},
    "della": {"parameters": {"weight": 0.5, "density": 0.4, "epsilon": 0.1}},
    "localize_stitch": {"parameters": {"density": 0.1}},
    "emr": {},
}
MANY = 30  # pieces
SLOW = 0.03  # seconds for each


def write_models(folder: Path, method: str) -> Path:
    """Tiny models and a recipe of them."""
    two_models(folder, **SIZES)
    write_llama(folder / "base", 9, **SIZES)
    content = {
        "merge_method": method,
        "models": [{"model": str(folder / n)} for n in ("a" if method == "slerp" else "ab")],
        **({} if method == "linear" else {"base_model": str(folder / "base")}),
        **RECIPES[method],
    }
    (folder / "x.yml").write_text(json.dumps(content))
    return folder / "x.yml"


def watched(
    plan: Plan, schedule: Schedule, sink: Memory | None = None
) -> tuple[list[Span], Timings]:
    """The spans of a run and its totals."""
    spans: list[Span] = []
    tracer = Tracer(spans.append)
    within(lambda: run(plan, schedule, sink or Memory(plan), tracer=tracer))
    return spans, tracer.timings()


def told(spans: list[Span], what: str) -> Counter[tuple[Where | None, int]]:
    """What the spans of one activity are about, but for jobs on the host that are about no piece."""
    return Counter((s.where, s.nbytes) for s in spans if s.what == what and s.where)


def pieces(
    schedule: Schedule, *, combined: bool, of_files: bool
) -> Counter[tuple[Where | None, int]]:
    """Every piece of every pass, or of the results alone, with the bytes of inputs from files, or of results."""
    found: Counter[tuple[Where | None, int]] = Counter()
    for turn in schedule.turns:
        step = turn.work.step
        if combined and not turn.what.combines:
            continue
        inputs = step.inputs
        specs = (
            [item.spec for item in inputs if isinstance(item, Read)] if of_files else [step.spec]
        )
        for number, (start, stop) in enumerate(turn.work.pieces):
            nbytes = sum(spec.nbytes * (stop - start) // max(spec.size, 1) for spec in specs)
            found[Where(step.name, turn.what.name, number), nbytes] += 1
    return found


@pytest.mark.parametrize("method", RECIPES)
def test_every_piece_of_every_pass_once(method: str, tmp_path: Path) -> None:
    plan = jmerge.plan(write_models(tmp_path, method))
    schedule = make_schedule(plan, piece=PIECE)
    spans, timings = watched(plan, schedule)
    every = pieces(schedule, combined=False, of_files=True)
    results = pieces(schedule, combined=True, of_files=False)
    assert len(results) > len(plan.outputs), "some tensor has several pieces"
    assert (len(every) > len(results)) == (method != "linear")
    assert told(spans, "read") == told(spans, "compute") == every
    assert told(spans, "result") == told(spans, "check") == told(spans, "write") == results
    assert timings.write_bytes == plan.write_bytes
    assert timings.read_bytes == sum(nbytes * count for (_, nbytes), count in every.items())
    assert [span.what for span in spans].count("start") == 1
    assert all(span.duration >= 0 for span in spans)


def test_copies_and_results_of_results(tmp_path: Path) -> None:
    """A copy needs no computing, a result that is not written no writing, and reading it moves no bytes of files."""
    rng = np.random.default_rng(0)
    models = checkpoints(
        tmp_path,
        *(
            {"x": rng.standard_normal(9000), "n": np.arange(9000), "e": np.ones(0)}
            for _ in range(2)
        ),
    )
    both = [[read(models, i, name) for i in range(2)] for name in "xne"]
    mean = step("mean", both[0], written=False)
    last = step("last", [result(mean), both[0][1]])
    plan = plan_of(models, mean, last, step("n", both[1], "copy"), step("e", both[2]))
    schedule = make_schedule(plan, piece=PIECE)
    spans, timings = watched(plan, schedule)
    every = pieces(schedule, combined=False, of_files=True)
    results = pieces(schedule, combined=True, of_files=False)

    def without(counted: Counter[Any], name: str) -> Counter[Any]:
        return Counter({key: n for key, n in counted.items() if key[0].step != name})

    assert told(spans, "read") == every
    assert told(spans, "compute") == without(every, "n")
    assert told(spans, "result") == without(results, "n")
    assert told(spans, "check") == results
    assert told(spans, "write") == without(results, "mean")
    assert timings.read_bytes == 5 * 9000 * 8
    assert timings.write_bytes == 2 * 9000 * 8


def test_threads_have_their_names_and_no_span_overlaps_another_in_part(tmp_path: Path) -> None:
    spans: list[Span] = []
    merge(write_models(tmp_path, "ties"), tmp_path / "out", on_span=spans.append)
    lanes: dict[tuple[int, str], list[Span]] = {}
    for span in spans:
        lanes.setdefault(span.thread, []).append(span)
    names = {name for _, name in lanes}
    assert {"jmerge-read", "jmerge-write"} <= names
    assert any(name.startswith("jmerge-select") for name in names)
    assert any(name.startswith("jmerge-settle") for name in names)
    for lane in lanes.values():
        ends: list[int] = []
        for span in sorted(lane, key=lambda span: (span.start, -span.duration)):
            while ends and ends[-1] <= span.start:
                ends.pop()
            assert not ends or span.start + span.duration <= ends[-1]
            ends.append(span.start + span.duration)


def test_a_merge_is_the_same_with_and_without_spans(tmp_path: Path) -> None:
    recipe = write_models(tmp_path, "ties")
    one = merge(recipe, tmp_path / "one" / "out")
    two = merge(recipe, tmp_path / "two" / "out", on_span=lambda span: None)
    for folder in (one.folder, two.folder):
        assert len(list(folder.iterdir())) > 3
    assert {p.name: p.read_bytes() for p in one.folder.iterdir()} == {
        p.name: p.read_bytes() for p in two.folder.iterdir()
    }


# What bounds a run


def slowly(function: Callable[..., Any]) -> Callable[..., Any]:
    def slow(*words: Any, **rest: Any) -> Any:
        time.sleep(SLOW)
        return function(*words, **rest)

    return slow


class Late:
    """A result that is there only after a while, as those of a slow device are."""

    def __init__(self, values: Any) -> None:
        self.values = values

    def __array__(self, dtype: Any = None, copy: Any = None) -> np.ndarray:
        time.sleep(SLOW)
        return np.asarray(self.values)


def make_slow(stage: str, patch: pytest.MonkeyPatch) -> None:
    def late_kernel(key: Any) -> Callable[..., Piece]:
        kernel = combine_kernel(key)

        def late(*words: Any) -> Piece:
            piece = kernel(*words)
            return piece._replace(values=Late(piece.values))  # type: ignore[arg-type]

        return late

    if stage == "reading":
        patch.setattr(Maps, "window", slowly(Maps.window))
        patch.setattr(Inputs, "read", slowly(Inputs.read))
    elif stage == "handing over":
        patch.setattr(Computer, "feed", slowly(Computer.feed))
    elif stage == "kernels":
        patch.setattr("jmerge.engine.compute.combine_kernel", late_kernel)
    elif stage == "checks":
        crc32 = slowly(lambda data: 0)
        patch.setattr("jmerge.engine.checking.zlib_ng.crc32", crc32)
    else:
        patch.setattr(Memory, "write", slowly(Memory.write))


@pytest.mark.parametrize(
    ("slow", "bound"),
    [
        ("reading", "reading"),
        ("handing over", "computing"),
        ("kernels", "computing"),
        ("checks", "writing"),
        ("sink", "writing"),
    ],
)
def test_what_is_slow_bounds(
    slow: str, bound: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arrays = [{"x": np.full(MANY * PIECE, float(i), np.float32)} for i in range(2)]
    models = checkpoints(tmp_path, *arrays)
    plan = plan_of(models, step("x", [read(models, i, "x") for i in range(2)]))
    schedule = make_schedule(plan, piece=PIECE)
    watched(plan, schedule)  # which compiles
    make_slow(slow, monkeypatch)
    _, timings = watched(plan, schedule)
    assert timings.bound == bound
    stages = {name: getattr(timings, name) for name in ("reading", "computing", "writing")}
    slept = stages.pop(bound)
    assert slept >= MANY * SLOW * 0.99
    assert max(stages.values()) < slept / 2
    assert slept <= timings.running


def test_waiting_for_a_result_is_no_reading(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The reader has slots for all of the first step, and then nothing to do until its result is there."""
    monkeypatch.setattr("test_spans.SLOW", 0.2)
    models = checkpoints(tmp_path, *({"x": np.ones(3 * PIECE, np.float32)} for _ in range(2)))
    first = step("s0", [read(models, i, "x") for i in range(2)], written=False)
    last = step("last", [result(first), read(models, 1, "x")])
    plan = plan_of(models, first, last)
    schedule = make_schedule(plan, piece=PIECE)
    watched(plan, schedule)
    make_slow("kernels", monkeypatch)
    _, timings = watched(plan, schedule)
    assert timings.bound == "computing"
    assert timings.reading < timings.computing / 4


@pytest.mark.parametrize(("slow", "bound"), [("start", "starting"), ("publish", "writing")])
def test_before_and_after_the_pieces(
    slow: str, bound: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = write_models(tmp_path, "linear")
    merge(recipe, tmp_path / "warm")
    work = {"start": "__enter__", "publish": "publish"}[slow]
    own = getattr(OutputFolder, work)

    def slow_one(folder: OutputFolder) -> Any:
        time.sleep(1)
        return own(folder)

    monkeypatch.setattr(OutputFolder, work, slow_one)
    timings = merge(recipe, tmp_path / "out").timings
    assert timings is not None and timings.bound == bound
    assert getattr(timings, bound) >= 0.99


def test_a_resumed_run_counts_what_it_does_itself(tmp_path: Path) -> None:
    """Neither bytes nor rates are those of the run before."""
    recipe = write_models(tmp_path, "linear")
    count = 0

    def stop(event: Any) -> None:
        nonlocal count
        count += type(event).__name__ == "Wrote"
        if count == 6:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        merge(recipe, tmp_path / "out", listeners=[stop])
    spans: list[Span] = []
    merged = merge(recipe, tmp_path / "out", on_span=spans.append)
    assert merged.resumed_bytes and merged.timings is not None
    assert merged.timings.write_bytes == merged.plan.write_bytes - merged.resumed_bytes
    assert merged.timings.read_bytes == 2 * merged.timings.write_bytes
    assert sum(s.nbytes for s in spans if s.what == "write") == merged.timings.write_bytes


def test_what_is_up_to_date_has_no_timings(tmp_path: Path) -> None:
    recipe = write_models(tmp_path, "linear")
    assert merge(recipe, tmp_path / "out").timings is not None
    spans: list[Span] = []
    assert merge(recipe, tmp_path / "out", on_span=spans.append).timings is None
    assert spans == []


def test_timings_of_a_plan_run_by_hand(tmp_path: Path) -> None:
    """As those do who want arrays and no folder; a run without a tracer is the same run."""
    plan = jmerge.plan(write_models(tmp_path, "linear"))
    tracer = jmerge.advanced.Tracer()
    sinks = [Memory(plan), Memory(plan)]
    outcome = jmerge.advanced.run(plan, make_schedule(plan), sinks[0], tracer=tracer)
    assert outcome == jmerge.advanced.run(plan, make_schedule(plan), sinks[1])
    assert sinks[0].data == sinks[1].data
    assert tracer.timings().write_bytes == plan.write_bytes
