"""A part of a schedule: it makes the wanted pieces, the same bytes, and nothing besides."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from enginekit import Memory, checkpoints, plan_of, read, result, step, two_models, within

import jmerge
from jmerge.dtypes import BITS
from jmerge.engine.partition import subset
from jmerge.engine.run import run
from jmerge.engine.schedule import Schedule, make_schedule
from jmerge.plan.steps import Plan
from jmerge.testing.tiny import write_llama

PIECE = 4096
SIZES = {"layers": 2, "hidden": 64, "inner": 96, "vocab": 300}

RECIPES: dict[str, dict[str, Any]] = {
    "linear": {"parameters": {"weight": 0.5}},
    "slerp": {"parameters": {"t": 0.3}},
    "ties": {"parameters": {"weight": 0.5, "density": 0.4}},
    "dare_ties": {"parameters": {"weight": 0.5, "density": 0.4}},
    "della": {"parameters": {"weight": 0.5, "density": 0.4, "epsilon": 0.1}},
    "sce": {"parameters": {"select_topk": 0.3}},
    "localize_stitch": {"parameters": {"density": 0.1}},
    "task_arithmetic": {
        "parameters": {"weight": 0.5},
        "wrap": {"condition": "equalize", "lines": {}},
    },
    "emr": {},
}
OF_WHOLE_MODELS = ("localize_stitch", "task_arithmetic", "emr")


def plan_for(folder: Path, method: str) -> Plan:
    two_models(folder, **SIZES)
    write_llama(folder / "base", 9, **SIZES)
    names = "a" if method == "slerp" else "ab"
    content = {
        "merge_method": method,
        "models": [{"model": str(folder / name)} for name in names],
        **({} if method == "linear" else {"base_model": str(folder / "base")}),
        **RECIPES[method],
    }
    (folder / "x.yml").write_text(json.dumps(content))
    return jmerge.plan(folder / "x.yml")


def turns(schedule: Schedule, kind: str) -> dict[str, list[list[int]]]:
    """The pieces of the turns of a kind by step; `statistics` are all but `combine`."""
    found: dict[str, list[list[int]]] = {}
    for turn in schedule.turns:
        if (turn.what.combines) == (kind == "combine"):
            found.setdefault(turn.work.step.name, []).append(list(turn.pieces))
    return found


@pytest.mark.parametrize("method", RECIPES)
def test_a_part_gives_the_same_bytes(method: str, tmp_path: Path) -> None:
    plan = plan_for(tmp_path, method)
    schedule = make_schedule(plan, piece=PIECE)
    whole = Memory(plan)
    within(lambda: run(plan, schedule, whole))
    rng = random.Random(0)
    every = {work.step.name: len(work.pieces) for work in schedule.work}
    assert max(every.values()) > 3
    chosen = [rng.sample(sorted(every), 3), rng.sample(sorted(every), 1), sorted(every)]
    for names in chosen:
        wanted = {
            name: rng.sample(range(every[name]), rng.randint(1, every[name])) for name in names
        }
        part = subset(schedule, wanted)
        assert turns(part, "combine") == {name: [sorted(n)] for name, n in wanted.items()}
        if method not in OF_WHOLE_MODELS:
            assert turns(part, "statistics").keys() <= wanted.keys()
        sink = Memory(plan)
        outcome = within(lambda part=part, sink=sink: run(plan, part, sink))  # type: ignore[misc]
        assert outcome.crc32.keys() == wanted.keys()
        for work in schedule.work:
            name, bits = work.step.name, BITS[work.step.spec.dtype]
            for number, (start, stop) in enumerate(work.pieces):
                piece = slice(start * bits // 8, stop * bits // 8)
                made = number in wanted.get(name, ())
                assert sink.missing[name][piece].all() == (not made)
                if made:
                    assert sink.data[name][piece] == whole.data[name][piece]


@pytest.mark.parametrize("method", RECIPES)
def test_everything_and_nothing(method: str, tmp_path: Path) -> None:
    plan = plan_for(tmp_path, method)
    schedule = make_schedule(plan, piece=PIECE)
    everything = {work.step.name: range(len(work.pieces)) for work in schedule.work}
    part = subset(schedule, everything)
    assert [(t.what, t.closes, list(t.pieces), t.work) for t in part.turns] == [
        (t.what, t.closes, list(t.pieces), t.work) for t in schedule.turns
    ]
    nothing = subset(schedule, {})
    assert nothing.turns == () and nothing.work == ()


@pytest.mark.parametrize("method", OF_WHOLE_MODELS)
def test_statistics_of_whole_models_stay_while_any_tensor_is_left(
    method: str, tmp_path: Path
) -> None:
    schedule = make_schedule(plan_for(tmp_path, method), piece=PIECE)
    name = schedule.work[3].step.name
    part = subset(schedule, {name: [0]})
    of_models = [t for t in schedule.turns if t.what.scope == "model"]
    assert [t for t in part.turns if t.what.scope == "model"] == of_models
    assert turns(part, "combine") == {name: [[0]]}


def test_results_are_made_whole_while_they_are_needed(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    arrays = [{name: rng.standard_normal(9000, np.float32) for name in "xy"} for _ in range(2)]
    models = checkpoints(tmp_path, *arrays)
    first = step("first", [read(models, 0, "x"), read(models, 1, "x")], written=False)
    second = step("second", [result(first), read(models, 1, "x")], written=False)
    one = step("one", [result(second), read(models, 0, "x")])
    two = step("two", [result(first), read(models, 0, "x")])
    alone = step("alone", [read(models, 0, "y"), read(models, 1, "y")])
    plan = plan_of(models, first, second, one, two, alone)
    schedule = make_schedule(plan, piece=PIECE)
    every = [0, 1, 2, 3][: len(schedule.work[0].pieces)]
    part = subset(schedule, {"one": [1]})
    assert turns(part, "combine") == {"first": [every], "second": [every], "one": [[1]]}
    assert {name: w.step.name for w in part.work for name in w.frees} == {
        "first": "second",
        "second": "one",
    }
    assert part.held == {"first", "second"}
    part = subset(schedule, {"two": [0], "alone": [2]})
    assert turns(part, "combine") == {"first": [every], "two": [[0]], "alone": [[2]]}
    assert turns(subset(schedule, {"alone": [2]}), "combine") == {"alone": [[2]]}
    sink, whole = Memory(plan), Memory(plan)
    within(lambda: run(plan, subset(schedule, {"one": [1]}), sink))
    within(lambda: run(plan, schedule, whole))
    start, stop = (4 * each for each in schedule.work[0].pieces[1])
    assert sink.data["one"][start:stop] == whole.data["one"][start:stop]


def test_a_part_of_a_part(tmp_path: Path) -> None:
    """What a host does of its own share after a kill."""
    schedule = make_schedule(plan_for(tmp_path, "ties"), piece=PIECE)
    name = max(schedule.work, key=lambda work: len(work.pieces)).step.name
    part = subset(subset(schedule, {name: [0, 2, 3]}), {name: [1, 2, 3], "other": [0]})
    assert turns(part, "combine") == {name: [[2, 3]]}


@pytest.mark.parametrize("method", OF_WHOLE_MODELS)
def test_a_part_of_a_part_with_statistics_of_whole_models(method: str, tmp_path: Path) -> None:
    """Steps that are there for their group's statistics alone stay for them, and only for them."""
    plan = plan_for(tmp_path, method)
    schedule = make_schedule(plan, piece=PIECE)
    names = [work.step.name for work in schedule.work]
    part = subset(schedule, {names[3]: [0], names[5]: [0]})
    again = subset(part, {names[5]: [0]})
    assert again == subset(schedule, {names[5]: [0]})
    assert subset(part, {}).turns == ()
    whole, sink = Memory(plan), Memory(plan)
    within(lambda: run(plan, schedule, whole))
    within(lambda: run(plan, again, sink))
    start, stop = (4 * each for each in schedule.work[5].pieces[0])
    assert sink.data[names[5]][start:stop] == whole.data[names[5]][start:stop]
