"""Passes take values and return values: nothing that they are given changes, and what they find is told once."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path

import pytest

from jmerge.ckpt.open import open_checkpoint
from jmerge.dtypes import TensorSpec
from jmerge.plan.build import build_plan, infer_layouts
from jmerge.plan.inputs import Assembled, Box, Gathered, Item, Read, Result
from jmerge.plan.outcomes import Finding, MergedWithout, SameName, Scene, tell
from jmerge.plan.problems import error, is_error, split, warning
from jmerge.recipe.recipe import Recipe
from jmerge.testing.tiny import llama_config, llama_tensors, write_checkpoint

SPEC = TensorSpec("F32", (4, 2))


def read(name: str, model: int = 0) -> Read:
    return Read(model=model, name=name, file="model.safetensors", start=0, spec=SPEC)


def scene(recipe: Recipe) -> Scene:
    return Scene(recipe, {}, {})


@pytest.fixture
def recipe(tmp_path: Path) -> Recipe:
    for seed, name in enumerate("ab"):
        write_checkpoint(tmp_path / name, llama_tensors(seed), llama_config())
    text = f"merge_method: linear\nmodels: [{{model: {tmp_path}/a}}, {{model: {tmp_path}/b}}]\n"
    return Recipe.from_text(text + "parameters: {weight: [{filter: mlp, value: 2}, {value: 1}]}\n")


def test_nothing_changes_that_passes_are_given(recipe: Recipe) -> None:
    checkpoints = {ref: open_checkpoint(ref.path) for ref in recipe.models()}
    layouts = infer_layouts(checkpoints)
    before = {ref: dict(layout.roles) for ref, layout in layouts.items()}
    first = build_plan(recipe, checkpoints, layouts=layouts)
    assert build_plan(recipe, checkpoints, layouts=layouts) == first
    assert {ref: dict(layout.roles) for ref, layout in layouts.items()} == before
    assert list(first.sources) == [model.path for model in first.models]


def test_hyperparameters_by_name_are_not_shared(recipe: Recipe) -> None:
    checkpoints = {ref: open_checkpoint(ref.path) for ref in recipe.models()}
    found = {step.name: step.hyperparameters for step in build_plan(recipe, checkpoints).steps}
    weights: Mapping[str, object] = {name: each["weight"] for name, each in found.items()}
    assert weights["model.layers.0.mlp.up_proj.weight"] == (2.0, 2.0)
    assert weights["model.layers.0.self_attn.q_proj.weight"] == (1.0, 1.0)


def test_equal_causes_are_one_problem(recipe: Recipe) -> None:
    """Kind by kind, in the order in which they were found."""
    cause = MergedWithout("b", "")
    findings = [Finding(cause, "x"), Finding(SameName(("models",)), "y"), Finding(cause, "z")]
    clash, without = tell((SameName, MergedWithout), findings, scene(recipe))
    assert clash.message == "two tensors of the output would be called y"
    assert without.message == "x and 1 more: not in b; merged from the others"
    assert is_error(clash) and not is_error(without)
    assert list(tell((SameName,), findings, scene(recipe))) == [clash]


def test_errors_and_warnings_are_lines_of_the_recipe(recipe: Recipe) -> None:
    found = [warning("JM019", "has no effect", ("parameters",)), error("JM201", "is wrong", ())]
    errors, warnings = split(recipe, found)
    assert [(each.line, each.code) for each in warnings] == [(3, "JM019")]
    assert [(each.message, each.code) for each in errors] == [("is wrong", "JM201")]


def test_inputs_say_what_they_are_made_of() -> None:
    own, other = read("a"), read("b", 1)
    box = Box(read=own, start=0, strides=(2, 1), box=((0, 4), (0, 2)))
    packed = Assembled(model=0, name="packed", view=(8, 2), boxes=(box, box), spec=SPEC)
    table = Gathered(rows=0, own=own, others=(other,), spec=TensorSpec("F32", (9, 2)))
    made: list[tuple[Item, tuple[Read, ...], TensorSpec | None]] = [
        (own, (own,), SPEC),
        (packed, (own,), SPEC),
        (table, (own, other), SPEC),
        (Result(step="s", spec=SPEC), (), None),
    ]
    for item, reads, stored in made:
        assert (item.reads, item.stored) == (reads, stored)
        with pytest.raises(dataclasses.FrozenInstanceError):
            item.spec = SPEC  # type: ignore[misc]
