"""Small tensors are made many at a time: few programs start, and no byte is another than one at a time."""

from __future__ import annotations

import dataclasses
from collections import Counter
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from enginekit import carry_out, checkpoints, plan_of, read, result, step
from headers import hollow_llama

import jmerge
from jmerge.engine import compute
from jmerge.engine.partition import subset
from jmerge.engine.schedule import MOST_ROWS, ROW, Schedule, Turn, make_schedule
from jmerge.engine.small import bundled, make_small
from jmerge.errors import NonFiniteError
from jmerge.plan.steps import Plan
from jmerge.testing.close import assert_same_bytes
from jmerge.testing.ways import Inputs, compilations, streamed

PIECE = 4096  # too short for a bundle
# method -> models, whether there is a base, numbers: one method for every kind of statistic
WEIGHTS = (0.3, 0.5)
METHODS: dict[str, tuple[int, bool, dict[str, Any]]] = {
    "linear": (2, False, {"weight": WEIGHTS}),
    "slerp": (1, True, {"t": 0.3}),
    "ties": (2, True, {"weight": WEIGHTS, "density": (0.3, 0.7)}),
    "dare_ties": (2, True, {"weight": WEIGHTS, "density": (0.3, 0.7)}),
    "breadcrumbs": (2, True, {"weight": WEIGHTS, "density": (0.6, 1.0), "gamma": (0.1, 0.0)}),
    "model_stock": (2, True, {}),
    "sce": (2, True, {"select_topk": 0.4}),
}


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Of how many tensors each bundle was."""
    found: list[int] = []

    def counted(tasks: Any, inputs: Any) -> Any:
        found.append(len(tasks))
        return make_small(tasks, inputs)

    monkeypatch.setattr(compute, "make_small", counted)
    return found


def norms(count: int, models: int = 2) -> list[dict[str, np.ndarray]]:
    """Models of tensors of many small sizes."""
    rng = np.random.default_rng(0)
    sizes = [int(size) for size in rng.integers(1, 300, count)]
    return [
        {f"n{i}": rng.standard_normal(size, np.float32) for i, size in enumerate(sizes)}
        for _ in range(models)
    ]


def plan_for(folder: Path, arrays: list[dict[str, np.ndarray]], method: str = "linear") -> Plan:
    models = checkpoints(folder, *arrays)
    names = list(arrays[0])
    inputs = {name: [read(models, i, name) for i in range(len(models))] for name in names}
    return plan_of(models, *(step(name, inputs[name], method) for name in names))


def bundles(schedule: Schedule) -> list[list[str]]:
    found = [each for each in bundled(schedule) if not isinstance(each, Turn)]
    return [[work.step.name for work in bundle] for bundle in found]


def single(schedule: Schedule) -> list[str]:
    return [turn.work.step.name for turn in bundled(schedule) if isinstance(turn, Turn)]


# What goes together


def test_every_small_tensor_is_in_one_bundle(tmp_path: Path) -> None:
    arrays = norms(2 * MOST_ROWS + 3)
    for model in arrays:
        model["large"] = np.zeros(ROW + 1, np.float32)
        model["empty"] = np.zeros(0, np.float32)
    schedule = make_schedule(plan_for(tmp_path, arrays))
    found = bundles(schedule)
    assert [len(names) for names in found] == [MOST_ROWS, MOST_ROWS, 3]
    assert Counter(name for names in found for name in names) == Counter(norms(131)[0].keys())
    assert sorted(single(schedule)) == ["empty", "large"]
    last = bundled(schedule)[3:]
    assert all(isinstance(each, Turn) for each in last), "they come first: nothing waits for them"


def test_only_what_goes_through_the_same_programs(tmp_path: Path) -> None:
    arrays = norms(6)
    models = checkpoints(tmp_path, *arrays)
    pairs = [[read(models, i, f"n{number}") for i in range(2)] for number in range(6)]
    steps = [
        step("a", pairs[0]),
        step("b", pairs[1], "slerp"),
        step("c", pairs[2]),
        step("d", pairs[3], dtype="BF16"),
        step("e", pairs[4], hyperparameters={"weight": (0.3, 0.9), "normalize": False}),
        step("f", pairs[5], hyperparameters={"weight": (2.0, 0.1), "normalize": True}),
    ]
    found = bundles(make_schedule(plan_of(models, *steps)))
    assert sorted(map(sorted, found)) == [["a", "c", "f"], ["b"], ["d"], ["e"]]


def test_not_what_depends_on_another_or_on_the_whole_model(tmp_path: Path) -> None:
    arrays = norms(3)
    models = checkpoints(tmp_path, *arrays)
    pairs = [[read(models, i, f"n{number}") for i in range(2)] for number in range(3)]
    first = step("first", pairs[0], written=False)
    second = step("second", [result(first), pairs[0][1]])
    of_group = dataclasses.replace(step("member", pairs[1]), group="all")
    copied = step("copied", pairs[2][:1], "copy")
    schedule = make_schedule(plan_of(models, first, second, of_group, copied))
    assert bundles(schedule) == []
    assert set(single(schedule)) == {"first", "second", "member", "copied"}
    sink, _ = carry_out(plan_of(models, first, second, of_group, copied))
    assert_same_bytes(sink["copied"], arrays[0]["n2"])


def test_short_pieces_leave_no_room(tmp_path: Path) -> None:
    plan = plan_for(tmp_path, norms(5))
    assert bundles(make_schedule(plan, ROW)) == []
    assert [len(names) for names in bundles(make_schedule(plan, 2 * ROW))] == [2, 2, 1]


@pytest.mark.parametrize(("count", "rows"), [(0, 0), (1, 2), (2, 2), (3, 4), (5, 8), (99, 64)])
def test_few_tensors_take_little_room(count: int, rows: int, tmp_path: Path) -> None:
    arrays = norms(count)
    for model in arrays:
        model["large"] = np.zeros(ROW + 1, np.float32)
    assert make_schedule(plan_for(tmp_path, arrays)).rows == rows


@pytest.mark.parametrize("piece", [2 * ROW, 8 * ROW, None])
def test_the_longest_tensors_are_whole(piece: int | None, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    sizes = (4097, ROW - 1, ROW, ROW + 1)
    arrays = [{f"n{n}": rng.standard_normal(n, np.float32) for n in sizes} for _ in range(2)]
    plan = plan_for(tmp_path, arrays)
    sink, outcome = carry_out(plan, piece=piece)
    alone, _ = carry_out(plan, piece=PIECE)
    for name in arrays[0]:
        assert_same_bytes(sink[name], alone[name])
    assert outcome.crc32.keys() == arrays[0].keys()


def test_only_what_is_wanted_is_made(tmp_path: Path) -> None:
    schedule = make_schedule(plan_for(tmp_path, norms(9)))
    left = subset(schedule, {"n2": [0], "n7": [0]})
    assert bundles(left) == [["n2", "n7"]]


# What comes of it


@pytest.mark.parametrize(
    ("method", "dtype"), [*((name, "float32") for name in METHODS), ("ties", "float64")]
)
def test_the_same_bytes_as_one_at_a_time(method: str, dtype: str, made: list[int]) -> None:
    models, has_base, hyperparameters = METHODS[method]
    rng = np.random.default_rng(1)
    shapes = [(), (1,), (7,), (4096,), (4097,), (3, 50), (ROW,), *((n,) for n in range(2, 80))]
    tensors = {}
    for i, shape in enumerate(shapes):
        base, *others = (np.asarray(rng.standard_normal(shape), dtype) for _ in range(1 + models))
        tensors[f"t{i}"] = Inputs(tuple(others), base if has_base else None)
    together = streamed(method, tensors, hyperparameters)
    assert sum(made) == len(shapes) and max(made) == MOST_ROWS
    made.clear()
    alone = streamed(method, tensors, hyperparameters, piece=PIECE)
    assert not made
    for name in tensors:
        assert_same_bytes(together[name], alone[name])


def test_each_tensor_has_its_own_numbers(tmp_path: Path) -> None:
    arrays = norms(20)
    models = checkpoints(tmp_path, *arrays)
    steps = [
        step(
            f"n{i}",
            [read(models, 0, f"n{i}"), read(models, 1, f"n{i}")],
            hyperparameters={"weight": (float(i), 1.0), "normalize": False},
        )
        for i in range(20)
    ]
    sink, _ = carry_out(plan_of(models, *steps))
    for i in range(20):
        wanted = np.float32(i) * arrays[0][f"n{i}"].astype(np.float64) + arrays[1][f"n{i}"]
        np.testing.assert_allclose(sink[f"n{i}"], wanted, rtol=1e-5, atol=1e-5)


def test_a_nan_is_laid_to_its_tensor(tmp_path: Path) -> None:
    arrays = norms(12)
    arrays[1]["n5"][0] = np.nan
    plan = plan_for(tmp_path, arrays)
    with pytest.raises(NonFiniteError, match=r"n5: 1 elements of 'n5' in m1 are NaN or infinite"):
        carry_out(plan)
    _, outcome = carry_out(plan, allow_nonfinite=True)
    assert outcome.nonfinite == {"n5": 1}


# How many programs


def test_thousands_of_norms_start_few_programs(tmp_path: Path, made: list[int]) -> None:
    plan = plan_for(tmp_path, norms(2000), "slerp")
    carry_out(plan)
    assert len(made) == -(-2000 // MOST_ROWS) and sum(made) == 2000


@pytest.mark.slow
@pytest.mark.parametrize("method", ["linear", "slerp", "ties"])
def test_a_model_of_7_b_compiles_at_most_12_programs(tmp_path: Path, method: str) -> None:
    """With the tensors of Llama 2 7B, of which all layers have the same shapes."""
    models = [hollow_llama(tmp_path / f"m{i}", 2, 4096, 11008) for i in range(3)]
    listed = "".join(
        f"- {{model: {model}, parameters: {{weight: 0.5, density: 0.5}}}}\n" for model in models[1:]
    )
    if method == "slerp":
        listed = f"- model: {models[1]}\nparameters: {{t: 0.5}}\n"
    base = "" if method == "linear" else f"base_model: {models[0]}\n"
    recipe = tmp_path / "x.yml"
    recipe.write_text(f"merge_method: {method}\n{base}models:\n{listed}")
    jax.clear_caches()
    with compilations() as found:
        jmerge.merge(recipe, tmp_path / "out")
    compiled = [event for event in found if "backend_compile" in event]
    assert 2 <= len(compiled) <= 12, "\n".join(compiled)
