"""Orders of layers that config.json cannot say, or that what loads the model would not expect, are refused before
anything is written; others of the same families load."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
from familychecks import Matrix, load, merge
from familykit import Family
from familyreference import read_model, stack_recipe, stack_tensors
from matrix import FAMILIES

from jmerge.errors import JmergeError

Ranges = tuple[tuple[int, int], tuple[int, int]]

REFUSED: tuple[tuple[str, str | None, Ranges, str], ...] = (
    # family, module, layers of a and of b, what is said
    (
        "deepseek_v3",
        None,
        ((0, 2), (0, 2)),
        "config.json's 'first_k_dense_replace' gives layer types by their number, "
        "and no value of it tells that those are 0, 2",
    ),
    ("jamba", None, ((0, 2), (1, 3)), "'attn_layer_period'"),  # state space, attention, attention
    ("jamba", None, ((0, 1), (0, 2)), "'expert_layer_period'"),  # experts, experts, dense
    ("qwen3_vl", "vision_tower", ((0, 1), (1, 2)), "deepstack_visual_indexes'"),  # one of two
    ("qwen3_vl", "vision_tower", ((2, 3), (0, 1)), "deepstack_visual_indexes'"),  # second first
    (
        "t5",
        "encoder",
        ((0, 2), (0, 2)),
        "have 'encoder.block.{}.layer.0.SelfAttention.relative_attention_bias.weight', by their place",
    ),
    ("t5", "encoder", ((1, 3), (1, 3)), "here it would be in none"),
    ("t5", "decoder", ((1, 2), (0, 1)), "here it would be in 1; pick"),
    ("modernbert", None, ((0, 2), (0, 2)), "'model.layers.{}.attn_norm.bias', by their place"),
    ("modernbert", None, ((1, 3), (1, 3)), "here it would be in 0, 1, 2, 3"),
)
SAID: tuple[tuple[str, str | None, Ranges, dict[str, Any]], ...] = (
    # family, module, layers of a and of b, what config.json says of the output
    ("deepseek_v3", None, ((0, 1), (0, 3)), {"first_k_dense_replace": 2}),
    ("deepseek_v3", None, ((1, 2), (2, 3)), {"first_k_dense_replace": 0}),
    ("jamba", None, ((0, 2), (2, 3)), {"attn_layer_period": 2, "attn_layer_offset": 1}),
    ("jamba", None, ((1, 2), (0, 1)), {"attn_layer_offset": 0, "expert_layer_offset": 1}),
    ("qwen2_moe", None, ((1, 2), (1, 3)), {"decoder_sparse_step": 1, "mlp_only_layers": [2]}),
    ("qwen3_next", None, ((1, 3), (0, 1)), {"mlp_only_layers": [1]}),
)


def row(name: str, module: str | None, ranges: Ranges) -> Family:
    """A family with other layers of a and b in the stack of a module, and whole models in the others."""
    family = next(each for each in FAMILIES if each.name == name)
    parts = [
        dataclasses.replace(part, ranges=ranges if part.module == module else ((0, 1), (1, 3)))
        for part in family.parts
    ]
    return dataclasses.replace(family, parts=tuple(parts))


@pytest.fixture(scope="module")
def matrix(tmp_path_factory: pytest.TempPathFactory) -> Matrix:
    return Matrix(tmp_path_factory.mktemp("orders"))


@pytest.mark.slow
@pytest.mark.parametrize(("name", "module", "ranges", "said"), REFUSED)
def test_an_order_that_would_not_load_is_refused(
    name: str, module: str | None, ranges: Ranges, said: str, matrix: Matrix, tmp_path: Path
) -> None:
    """One line, and nothing is written."""
    family = row(name, module, ranges)
    with pytest.raises(JmergeError) as caught:
        merge(stack_recipe(family), matrix.inputs(family), tmp_path / "out")
    assert said in str(caught.value)
    assert "pick layers in another order" in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["out.yml"]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "module", "ranges", "said"), SAID)
def test_other_numbers_say_a_new_order(
    name: str,
    module: str | None,
    ranges: Ranges,
    said: dict[str, Any],
    matrix: Matrix,
    tmp_path: Path,
) -> None:
    """The rule's numbers change where that is enough, and the model loads."""
    family = row(name, module, ranges)
    folder = matrix.inputs(family)
    merge(stack_recipe(family), folder, tmp_path / "out")
    wanted = stack_tensors(family, read_model(folder / "a"), read_model(folder / "b"))
    assert read_model(tmp_path / "out").keys() == wanted.keys()
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert {key: config[key] for key in said} == said
    load(family, tmp_path / "out")
