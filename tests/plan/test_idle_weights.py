"""Weights that are divided away are told, and no others."""

from __future__ import annotations

from pathlib import Path

import pytest

import jmerge
from jmerge.testing.tiny import write_llama

DIVIDED = "has no effect: weights are divided by their sum, and here"
ALONE = f"{DIVIDED} one model is alone; remove it"
ALIKE = f"{DIVIDED} all models have the same; give each its own"
FALSE = ", or set 'normalize: false'"
TWO = "slices: [{sources: [{model: a, layer_range: [0, 2]}, {model: b, layer_range: [0, 2]}]"
OWN = (
    "models: [{{model: a, parameters: {{weight: {0}}}}}, {{model: b, parameters: {{weight: {1}}}}}]"
)
BASE = "merge_method: ties\nbase_model: c\n"


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory, with models a, b and c."""
    for seed, name in enumerate("abc"):
        write_llama(tmp_path / name, seed)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("text", "warning"),
    [
        (f"merge_method: linear\n{TWO}, parameters: {{weight: [0.9, 0.1]}}}}]\n", ALIKE + FALSE),
        ("merge_method: linear\nmodels: [{model: a}, {model: b}]\nparameters: {weight: [1, 0.5]}\n", ALIKE + FALSE),
        ("merge_method: linear\n" + OWN.format("[1, 0.5]", "[1, 0.5]"), ALIKE + FALSE),
        ("merge_method: linear\nmodels: [{model: a, parameters: {weight: 0.5}}]\n", ALONE + FALSE),
        ("merge_method: linear\nmodels: [{model: a}]\nparameters: {weight: [1, 0.5]}\n", ALONE + FALSE),
        (BASE + "models: [{model: a, parameters: {weight: 0.5}}]\n", ALONE + FALSE),
        ("merge_method: nuslerp\nmodels: [{model: a}, {model: b}]\nparameters: {weight: [1, 0.5]}\n", ALIKE),
    ],
)  # fmt: skip
def test_told(text: str, warning: str, place: Path) -> None:
    (place / "x.yml").write_text(text)
    (found,) = jmerge.plan(place / "x.yml").warnings
    assert found.endswith(f"parameters.weight: {warning} [JM210]")


@pytest.mark.parametrize(
    "text",
    [
        "merge_method: linear\nmodels: [{model: a}, {model: b}]\nparameters: {weight: 0.8}\n",
        "merge_method: linear\nmodels: [{model: a, parameters: {weight: 1}}]\n",
        "merge_method: linear\n" + OWN.format("[1, 0.5]", "[1, 0.4]"),
        "merge_method: linear\n" + OWN.format("0.5", "0.5"),
        "merge_method: linear\nmodels: [{model: a}]\nparameters: {weight: [1, 0.5], normalize: false}\n",
        BASE + "models: [{model: a, parameters: {weight: 0.5}}]\nparameters: {normalize: false}\n",
        # it counts in the other slice
        f"merge_method: linear\n{TWO}, parameters: {{normalize: false}}}}, "
        "{sources: [{model: c, layer_range: [0, 2]}]}]\nparameters: {weight: 0.5}\n",
        "merge_method: task_arithmetic\nbase_model: c\nmodels: [{model: a, parameters: {weight: 0.5}}]\n",
    ],
)
def test_not_told(text: str, place: Path) -> None:
    (place / "x.yml").write_text(text)
    assert jmerge.plan(place / "x.yml").warnings == ()
