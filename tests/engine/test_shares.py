"""Who makes what: everything once, whole files where they are enough, about as many bytes each."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from enginekit import two_models

import jmerge
from jmerge.ckpt.journal import Block, joined_crc32
from jmerge.ckpt.shards import OutFile, plan_files
from jmerge.dtypes import TensorSpec
from jmerge.engine.partition import left_to_do, shared_files, shares
from jmerge.engine.schedule import Schedule, make_schedule
from jmerge.engine.together import put_together
from jmerge.plan.steps import Plan

SIZES = {"layers": 2, "hidden": 64, "inner": 96, "vocab": 300}
PIECE = 4096


def planned(
    folder: Path, most: int, method: str = "linear"
) -> tuple[Plan, Schedule, tuple[OutFile, ...]]:
    two_models(folder, **SIZES)
    content: dict[str, Any] = {
        "merge_method": method,
        "models": [{"model": str(folder / name), "parameters": {"weight": 1}} for name in "ab"],
    }
    if method == "emr":
        content |= {"base_model": str(folder / "a"), "models": [{"model": str(folder / "b")}] * 2}
        content["models"] = [{"model": str(folder / "b")}, {"model": str(folder / "a")}]
    (folder / "x.yml").write_text(json.dumps(content))
    plan = jmerge.plan(folder / "x.yml")
    files = tuple(
        file for out, specs in plan.checkpoints.items() for file in plan_files(specs, most, out)
    )
    return plan, make_schedule(plan, piece=PIECE), files


def nbytes(plan: Plan, names: Any) -> int:
    return sum(plan.outputs[name].nbytes for name in names)


@pytest.mark.parametrize("method", ["linear", "emr"])
@pytest.mark.parametrize("count", [1, 2, 3, 5, 40])
@pytest.mark.parametrize("most", [0, 20_000, 90_000])
def test_everything_is_made_once(most: int, count: int, method: str, tmp_path: Path) -> None:
    plan, schedule, files = planned(tmp_path, most, method)
    parts = shares(schedule, files, count)
    assert len(parts) == count and parts == shares(schedule, files, count)
    every = {work.step.name: list(range(len(work.pieces))) for work in schedule.work}
    assert sorted(name for part in parts for name in part) == sorted(every)
    assert {n: list(pieces) for part in parts for n, pieces in part.items()} == every
    whole = len(files) >= count
    units = (
        [nbytes(plan, file.starts) for file in files]
        if whole
        else [spec.nbytes for spec in plan.outputs.values()]
    )
    loads = [nbytes(plan, part) for part in parts]
    assert max(loads) <= sum(loads) / count + max(units)
    assert bool(shared_files(files, parts)) == (not whole and count > 1)
    for file in files:
        users = [part for part in parts if file.starts.keys() & part.keys()]
        assert (file in shared_files(files, parts)) == (len(users) > 1)


def test_only_what_is_left_is_shared(tmp_path: Path) -> None:
    plan, schedule, files = planned(tmp_path, 20_000)
    names = list(plan.outputs)
    done = [Block(name, 0, plan.outputs[name].nbytes, 0) for name in names[:-1]]
    name = names[-1]
    half = schedule.work[[work.step.name for work in schedule.work].index(name)].pieces[0][1]
    rest, _ = left_to_do(schedule, [*done, Block(name, 0, 4 * half, 0)])
    parts = shares(rest, files, 2)
    assert {n: list(pieces)[:1] for n, pieces in parts[0].items()} == {name: [1]} and parts[1] == {}


SPECS = {"a": TensorSpec("U8", (10,)), "b": TensorSpec("U8", (0,))}


def test_what_hosts_wrote_is_put_together() -> None:
    blocks = [Block("a", 4, 10, 7, 1), Block("a", 0, 4, 9, 2)]
    wrote = [[list(blocks[0])], [list(blocks[1])], [["b", 0, 0, 0, 0]]]
    outcome = put_together(SPECS, wrote, [])
    assert outcome == ({"a": joined_crc32(blocks), "b": 0}, {"a": 3})
    assert put_together(SPECS, [], blocks) == outcome, "there was nothing to make"
    assert put_together(SPECS, wrote, blocks) == outcome, "what this host knows of others is old"


@pytest.mark.parametrize(
    "blocks",
    [
        [("a", 0, 4), ("a", 5, 10)],
        [("a", 0, 5), ("a", 4, 10)],
        [("a", 0, 4)],
        [("a", 4, 10)],
        [("a", 0, 10), ("a", 0, 10)],
        [],
    ],
)
def test_a_tensor_that_was_not_written_once_is_not_published(blocks: Any) -> None:
    with pytest.raises(RuntimeError, match="a: .*written"):
        put_together(SPECS, [[[*block, 0, 0]] for block in blocks], [])
