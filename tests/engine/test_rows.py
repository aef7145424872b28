"""Methods that keep rows, or whole tensors, together: the engine cuts between rows, and the bytes stay the same."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from enginekit import carry_out, checkpoints, plan_of, read, step

from jmerge.dtypes import NUMPY
from jmerge.engine.schedule import make_schedule
from jmerge.methods import REGISTRY
from jmerge.plan.steps import Plan
from jmerge.testing.close import assert_same_bytes
from jmerge.testing.ways import Inputs, by_hand, streamed

SHAPES = ((), (1,), (0, 4), (4, 0), (37, 700), (5, 3, 640), (2, 9000))
NUMBERS: dict[str, tuple[str, dict[str, Any]]] = {
    "stock": ("model_stock", {"filter_wise": True}),
    "rows": (
        "nuslerp",
        {"weight": (0.3, 0.5), "nuslerp_flatten": False, "nuslerp_row_wise": False},
    ),
    "columns": (
        "nuslerp",
        {"weight": (0.3, 0.5), "nuslerp_flatten": False, "nuslerp_row_wise": True},
    ),
}


def draw(shape: tuple[int, ...], seed: int, dtype: str) -> np.ndarray:
    rng = np.random.default_rng([seed, *shape])
    return np.asarray(rng.standard_normal(shape)).astype(NUMPY[dtype])


def plan_for(folder: Path, kind: str, dtype: str, based: bool) -> tuple[Plan, list[dict[str, Any]]]:
    """A plan of one tensor for each shape."""
    method, hyperparameters = NUMBERS[kind]
    names = {"x".join(["t", *map(str, shape)]): shape for shape in SHAPES}
    tensors = [{n: draw(s, i, dtype) for n, s in names.items()} for i in range(2 + based)]
    models = checkpoints(folder, *tensors)
    steps = [
        dataclasses.replace(
            step(
                name,
                [read(models, i, name) for i in range(len(models))],
                method,
                hyperparameters=hyperparameters,
            ),
            base=0 if based else None,
        )
        for name in names
    ]
    return plan_of(models, *steps), tensors


@pytest.mark.parametrize(
    "dtype", ["BF16", *(pytest.param(each, marks=pytest.mark.slow) for each in ("F32", "F64"))]
)
@pytest.mark.parametrize("kind", NUMBERS)
def test_any_number_of_rows_at_a_time(kind: str, dtype: str, tmp_path: Path) -> None:
    """One by one, some, or all: as the function called by hand."""
    based = kind == "stock" or dtype == "BF16"
    plan, tensors = plan_for(tmp_path, kind, dtype, based)
    method, hyperparameters = NUMBERS[kind]
    for piece in (None, 1 << 12):
        made, outcome = carry_out(plan, piece=piece)
        assert not outcome.nonfinite
        for name in plan.outputs:
            models = tuple(each[name] for each in tensors)
            inputs = Inputs(models[based:], models[0] if based else None)
            wanted = by_hand(REGISTRY[method], inputs, hyperparameters).astype(NUMPY[dtype])
            assert_same_bytes(made[name], wanted)


def test_pieces_are_whole_rows(tmp_path: Path) -> None:
    plan, _ = plan_for(tmp_path, "rows", "F32", False)
    for work in make_schedule(plan, piece=1 << 12).work:
        shape = work.step.spec.shape
        row = shape[-1] if shape else 1
        assert all(start % max(row, 1) == 0 for start, _ in work.pieces)
        assert work.pieces[-1][1] == work.step.spec.size
    plan, _ = plan_for(tmp_path, "columns", "F32", False)
    assert all(len(work.pieces) == 1 for work in make_schedule(plan, piece=1 << 12).work)


def test_norms_of_whole_models_count_every_element_of_rows() -> None:
    """A wrapper's terms have a number for each element, also where the wrapped method keeps rows together."""
    rng = np.random.default_rng(0)
    shapes = {"a": (6, 5000), "b": (70,), "c": (3, 4096), "none": (0, 4), "single": ()}
    tensors = {}
    for name, shape in shapes.items():
        base, one, two = (rng.standard_normal(shape, np.float32) for _ in range(3))
        tensors[name] = Inputs((base + one, base + 3 * two), base)
    weight = {"weight": (0.5, 0.5)}
    everything = {"density": (1.0, 1.0), "epsilon": 0.0, "rescale": False}
    by_rows = streamed("equalize(della_linear)", tensors, {**weight, **everything}, piece=1 << 12)
    plain = streamed("equalize(task_arithmetic)", tensors, weight)
    for name in tensors:
        np.testing.assert_allclose(by_rows[name], plain[name], rtol=1e-5, atol=1e-6)
