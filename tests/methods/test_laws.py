"""Every law of `jmerge.testing.laws` for every registered method, from one table of rows."""

from __future__ import annotations

import pytest
import references

from jmerge.methods import REGISTRY
from jmerge.testing.laws import LAWS, Row, cases

NO_DELTA = "it takes whole models, not changes from a base"
ONE_MODEL = "it takes one model (besides the base), so there is nothing to reorder"

ROWS = {
    row.method: row
    for row in (
        Row(
            method="linear",
            reference=references.linear,
            numbers=(
                {"weight": (0.3, 0.5, 0.33)},
                {"weight": (0.3, 0.5, 0.33), "normalize": False},
                {"weight": (1.2, -0.3, 0.1), "normalize": True},
                {"weight": (0.7,)},
                {"weight": (0.1, 0.2, 0.3, 0.4, 0.5, 0.6), "normalize": False},
            ),
            identity=(
                {"weight": (0.3, 0.5, 0.33)},
                {"weight": (0.3, 0.6, 0.1), "normalize": False},
                {"weight": (1.5, -0.5), "normalize": False},
            ),
            opt_out={"shift": NO_DELTA},
        ),
        Row(
            method="slerp",
            reference=references.slerp,
            numbers=({"t": 0.3}, {"t": 0.0}, {"t": 1.0}, {"t": -0.25}, {"t": 1.4}),
            identity=({"t": 0.3}, {"t": 1.4}),
            opt_out={"shift": NO_DELTA, "order": ONE_MODEL},
        ),
        Row(
            method="task_arithmetic",
            reference=references.task_arithmetic,
            numbers=(
                {"weight": (0.3, 0.5, 0.33)},
                {"weight": (0.3, 0.5, 0.33), "lambda": 0.7},
                {"weight": (0.3, 0.5, 0.33), "normalize": True},
                {"weight": (1.0, -0.4), "lambda": 1.8, "normalize": True},
                {"weight": (1.0, -1.0), "normalize": True},
                {"weight": (0.7,), "lambda": -0.5, "normalize": False},
            ),
            identity=(
                {"weight": (0.3, 0.6, 0.1)},
                {"weight": (0.3, 0.5, 0.33), "lambda": 1.0, "normalize": True},
            ),
        ),
        Row(
            method="passthrough",
            reference=references.passthrough,
            numbers=({}, {"scale": (0.3,)}, {"scale": (-1.5,)}, {"scale": (0.0,)}),
            identity=({}, {"scale": (1.0,)}),
            opt_out={"shift": NO_DELTA, "order": ONE_MODEL},
        ),
    )
}


def test_every_method_has_a_row() -> None:
    assert set(ROWS) == set(REGISTRY)


@pytest.mark.parametrize(
    ("row", "law"),
    [pytest.param(row, law, id=f"{row.method}-{law}") for row, law in cases(ROWS.values())],
)
def test_law(row: Row, law: str) -> None:
    LAWS[law](row)
