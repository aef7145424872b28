"""Merges of tiny models of many families, made, loaded and run by transformers.

Every family is a row of `FAMILIES`. What the merged tensors must be is computed in numpy float64 from the input files,
by the literal names of their tensors: nothing that knows architectures in jmerge takes part. The result must also load
without a complaint and compute what a model filled with the numpy tensors computes.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from familychecks import (
    STACK,
    Matrix,
    check,
    influences,
    merge,
    new_model,
)
from familykit import Family
from familyreference import METHODS, entry, read_model, stack_recipe
from familytable import HEADER, line
from matrix import FAMILIES

from jmerge.errors import PlanError

PAGE = Path(__file__).parents[2] / "jmerge" / "docs" / "families.md"
SILENCE = 0.1  # a tensor of less influence would be swapped or lost without a sign
ROWS = [
    pytest.param(each, id=each.name, marks=() if each.quick else pytest.mark.slow)
    for each in FAMILIES
]
# one worker makes the models of a family, and merges them in all ways
GROUPED = [
    pytest.param(each, id=each.name, marks=pytest.mark.xdist_group(each.name)) for each in FAMILIES
]
KINDS = [
    pytest.param(
        family,
        kind,
        id=f"{family.name}-{kind}",
        marks=[pytest.mark.xdist_group(family.name)]
        + ([] if family.quick and kind in ("linear", STACK) else [pytest.mark.slow]),
    )
    for family in FAMILIES
    for kind in (*METHODS, STACK)
    if kind != STACK or not family.no_stack
]


@pytest.fixture(scope="module")
def matrix(tmp_path_factory: pytest.TempPathFactory) -> Matrix:
    return Matrix(tmp_path_factory.mktemp("families"))


@pytest.mark.parametrize("family", ROWS)
def test_forward_pass_depends_on_every_tensor(family: Family) -> None:
    """Comparing outputs sees every tensor, but for those that no input can make visible."""
    found = influences(family, new_model(family, seed=1))
    silent = {name: size for name, size in found.items() if size < SILENCE}
    assert silent.keys() == {name for name in found if re.fullmatch(family.silent, name)}, silent


@pytest.mark.parametrize(("family", "kind"), KINDS)
def test_merges(family: Family, kind: str, matrix: Matrix) -> None:
    """Whole models merged tensor by tensor; layers of one under layers of another, where config.json follows."""
    assert matrix.check(family, kind) > 0


@pytest.mark.slow
@pytest.mark.parametrize(
    "family", [each for each, family in zip(GROUPED, FAMILIES, strict=True) if family.no_stack]
)
def test_layers_that_cannot_be_stacked(family: Family, matrix: Matrix) -> None:
    """They are refused before anything is written."""
    folder = matrix.inputs(family)
    with pytest.raises(PlanError, match="slices"):
        merge(stack_recipe(family), folder, folder / "refused")
    assert not (folder / "refused").exists()


@pytest.mark.slow
@pytest.mark.parametrize("family", GROUPED)
def test_the_page_has_its_line(family: Family, matrix: Matrix) -> None:
    """As the merges above are: how many tensors they made, and that all of them hold."""
    wanted = line(family, matrix)
    assert wanted in PAGE.read_text(encoding="utf-8"), f"python tools/docs.py --families: {wanted}"


def test_the_page_lists_every_family() -> None:
    """In the order of the matrix, and no other."""
    table = PAGE.read_text(encoding="utf-8").partition(HEADER)[2].partition("<!--")[0]
    assert [row.split("`")[1] for row in table.splitlines()] == [each.name for each in FAMILIES]


@pytest.mark.parametrize(
    ("name", "module"),
    [
        ("t5", "decoder"),
        ("llava", "language_model"),
        ("llava", "vision_tower"),
        *(
            pytest.param(*each, marks=pytest.mark.slow)
            for each in (
                ("bart", "final_logits_bias"),
                ("whisper", "encoder"),
                ("clip", "vision_model"),
                ("siglip", "text_model"),
                ("gemma3_vision", "text_decoder"),
                ("qwen2_vl", "multi_modal_projector"),
                ("qwen3_vl", "vision_tower"),
            )
        ),
    ],
)
def test_a_module_of_another_model(name: str, module: str, matrix: Matrix, tmp_path: Path) -> None:
    """One module is model b's and the others are model a's."""
    family = next(family for family in FAMILIES if family.name == name)
    folder = matrix.inputs(family)
    origin = {part.module: "b" if part.module == module else "a" for part in family.parts}
    recipe = {
        "merge_method": "passthrough",
        "modules": {part: {"models": [entry(model)]} for part, model in origin.items()},
    }
    merge(recipe, folder, tmp_path / "out")
    a, b = (read_model(folder / model) for model in "ab")
    part = next(part for part in family.parts if part.module == module)
    wanted = {
        name: b[name]
        if name in part.before + part.after or name.startswith(f"{part.layers}.")
        else a[name]
        for name in a
    }
    check(family, tmp_path / "out", wanted, exact=True)
