"""Orders of layers: what config.json says of each follows it, and what goes by its place may not leave it."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from partialkit import SOUP, refused, run
from partialkit import write as write_recipe

import jmerge
from jmerge.errors import PlanError
from jmerge.testing.tiny import llama_config, llama_tensors, write_checkpoint

LAYERS = 4
TABLE = "model.layers.{}.positions.weight"


def write(folder: Path, seed: int, having: Iterable[int] = (), **fields: Any) -> None:
    """A model of four layers; those of `having` have one tensor more."""
    tensors = llama_tensors(seed, layers=LAYERS)
    tensors |= {TABLE.format(i): np.full(8, seed, np.float32) for i in having}
    write_checkpoint(folder, tensors, llama_config(layers=LAYERS) | fields)


def stack(*slices: tuple[str, int, int]) -> str:
    """A recipe of these layers of these models."""
    lines = [
        f"  - sources: [{{model: {{{model}}}, layer_range: [{first}, {end}]}}]\n"
        for model, first, end in slices
    ]
    return "merge_method: passthrough\nslices:\n" + "".join(lines)


@pytest.mark.parametrize(
    ("having", "slices", "wanted"),
    [
        # first layer
        ([0], [("a", 0, 2), ("b", 1, 4)], [0]),
        ([0], [("a", 0, 1), ("a", 0, 1), ("b", 1, 4)], None),
        ([0], [("a", 1, 2), ("b", 1, 2)], None),
        # all but the first
        ([1, 2, 3], [("a", 0, 2), ("b", 1, 4)], [1, 2, 3, 4]),
        ([1, 2, 3], [("a", 2, 4), ("b", 1, 4)], None),
        # last layers
        ([3], [("a", 0, 3), ("b", 1, 4)], [5]),
        ([3], [("a", 0, 4), ("b", 3, 4)], None),
        ([2, 3], [("a", 0, 3), ("b", 1, 4)], None),
        # the first half, in doubt, rather than all but the second
        ([0, 1], [("a", 0, 2), ("b", 2, 3), ("a", 2, 4)], [0, 1]),
        ([0, 1], [("a", 0, 2), ("b", 1, 2), ("b", 2, 4)], None),
        # no end: no other places than their own
        ([0, 2], [("a", 0, 2), ("b", 2, 4)], [0, 2]),
        ([0, 2], [("a", 0, 2), ("b", 0, 4)], None),
    ],
)
def test_by_place(
    having: list[int],
    slices: list[tuple[str, int, int]],
    wanted: list[int] | None,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A tensor of the first or the last layers stays there; config.json knows nothing of it."""
    write(tmp_path / "a", 0, having)
    write(tmp_path / "b", 1, having)
    if wanted is None:
        (error,) = refused(tmp_path, stack(*slices), capsys)
        numbers = ", ".join(map(str, having))
        assert error.startswith(
            f"error: x.yml:2: slices: only layers {numbers} of a have '{TABLE}', by their place"
        )
    else:
        made = run(tmp_path, stack(*slices))
        assert [i for i in range(8) if TABLE.format(i) in made.tensors] == wanted


@pytest.mark.parametrize(
    ("fields", "new"),
    [
        ({"layer_types": ["x", "y", "y", "x"]}, {"layer_types": ["x", "x", "x"]}),
        ({"cross_attention_layers": [0, 3]}, {"cross_attention_layers": [0, 1, 2]}),
        ({"attn_layer_period": 3, "attn_layer_offset": 0}, {"attn_layer_period": 1}),
    ],
)
def test_by_config(fields: dict[str, Any], new: dict[str, Any], tmp_path: Path) -> None:
    """Where config.json tells layers 0 and 3 apart, they may stand anywhere."""
    write(tmp_path / "a", 0, [0, 3], **fields)
    write(tmp_path / "b", 1, [0, 3], **fields)
    made = run(tmp_path, stack(("a", 0, 1), ("b", 3, 4), ("a", 3, 4)))
    assert made.config == llama_config(layers=3) | fields | new
    assert [i for i in range(8) if TABLE.format(i) in made.tensors] == [0, 1, 2]
    assert made.ledger["warnings"] == []


def test_by_config_and_place(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The first layer lacks what others of its kind have, and no layer of the other kind has it."""
    kinds = {"layer_types": ["x", "y", "x", "x"]}
    write(tmp_path / "a", 0, [2, 3], **kinds)
    made = run(tmp_path, stack(("a", 0, 3), ("a", 1, 2), ("a", 3, 4)))
    assert made.config["layer_types"] == ["x", "y", "x", "y", "x"]
    (error,) = refused(tmp_path, stack(("a", 2, 4), ("a", 0, 2)), capsys)
    assert "here it would be in 0, 1; pick layers in another order" in error


def test_a_rule_that_cannot_say_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Every problem of the order at once, with the layers of the kind."""
    rules: dict[str, Any] = {
        "first_k_dense_replace": 1,
        "attn_layer_period": 2,
        "attn_layer_offset": 1,
    }
    write(tmp_path / "a", 0, **rules)
    tail = "; pick layers in another order"
    instead = f"{tail}, or write 'mlp_layer_types' into config.json if its class reads that"
    start = "error: x.yml:2: slices: config.json's"
    middle = "gives layer types by their number, and no value of it tells that those are"
    assert refused(tmp_path, stack(("a", 0, 2), ("a", 0, 2), ("a", 3, 4)), capsys) == [
        f"{start} 'first_k_dense_replace' {middle} 0, 2{instead}",
        f"{start} 'attn_layer_period' {middle} 1, 3, 4{tail}",
    ]


def test_a_list_instead_of_a_rule(tmp_path: Path) -> None:
    """Kinds of attention are listed where no number places them, and whoever loads the model is warned."""
    for model, seed in (("a", 0), ("b", 1)):
        write(tmp_path / model, seed, model_type="gemma3_text", sliding_window_pattern=2)
    made = run(tmp_path, stack(("a", 0, 2), ("b", 1, 4)))
    full, sliding = "full_attention", "sliding_attention"
    assert made.config["layer_types"] == [sliding, full, full, sliding, full]
    assert made.config["sliding_window_pattern"] == 2
    (warning,) = made.ledger["warnings"]
    assert "no 'sliding_window_pattern' tells the kinds of the layers in their new order" in warning
    assert "config.json gets 'layer_types'" in warning


@pytest.mark.parametrize(
    "fields",
    [
        {"model_type": "llama4_text", "no_rope_layers": []},  # as published
        {"model_type": "smollm3"},
        {"model_type": "cohere2"},
    ],
)
def test_a_rule_that_config_json_does_not_spell(fields: dict[str, Any], tmp_path: Path) -> None:
    """Every fourth layer is of a kind of its own where the class takes that for granted."""
    write(tmp_path / "a", 0, **fields)
    made = run(tmp_path, stack(("a", 0, 4), ("a", 3, 4)))
    if fields["model_type"] == "cohere2":
        full, sliding = "full_attention", "sliding_attention"
        assert made.config["layer_types"] == [sliding, sliding, sliding, full, full]
    else:
        assert made.config["no_rope_layers"] == [1, 1, 1, 0, 0]


def test_layers_of_another_model_in_their_own_places(tmp_path: Path) -> None:
    """No layer moves, but some are of another kind than the donor's."""
    write(tmp_path / "a", 0, layer_types=["x", "x", "x", "x"], first_k_dense_replace=2)
    write(tmp_path / "b", 1, layer_types=["y", "y", "y", "x"], first_k_dense_replace=3)
    made = run(tmp_path, stack(("a", 0, 1), ("b", 1, 4)))
    assert made.config["layer_types"] == ["x", "y", "y", "x"]
    assert made.config["first_k_dense_replace"] == 3


def test_merged_layers_in_their_places_keep_the_donor_s_kinds(tmp_path: Path) -> None:
    """A mean of two models has the donor's config."""
    write(tmp_path / "a", 0, layer_types=["x", "x", "x", "x"])
    write(tmp_path / "b", 1, layer_types=["y", "y", "y", "x"])
    recipe = "merge_method: linear\nslices:\n  - sources:\n" + "".join(
        f"      - {{model: {{{model}}}, layer_range: [0, 4], parameters: {{weight: 1}}}}\n"
        for model in "ba"
    )
    made = run(tmp_path, recipe.replace("linear\n", "linear\nbase_model: {a}\n"))
    assert made.config["layer_types"] == ["x", "x", "x", "x"]


@pytest.mark.parametrize(
    ("old", "new", "other"),
    [
        (r"layers\.(\d+)\.mlp", r"mlps.\1", "model.mlps"),  # as in XLM
        (
            r"layers\.(\d+)\.input_layernorm.weight",
            r"norms.input.\1",
            "model.norms.input",
        ),  # Inkling 2
    ],
)
def test_parts_of_layers_in_lists_of_their_own(
    old: str, new: str, other: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """One of two lists would keep its length, and a loader would miss the rest of it."""
    for model, seed in (("a", 0), ("b", 1)):
        tensors = {
            re.sub(old, new, name): tensor
            for name, tensor in llama_tensors(seed, layers=LAYERS).items()
        }
        write_checkpoint(tmp_path / model, tensors, llama_config(layers=LAYERS))
    assert refused(tmp_path, stack(("a", 0, 3), ("b", 2, 4)), capsys) == [
        f"error: x.yml:2: slices: a numbers '{other}' like 'model.layers', and config.json has one key that counts "
        "both, so layers cannot be rearranged"
    ]
    made = run(tmp_path, "merge_method: linear\nmodels: [{model: {a}, parameters: {weight: 1}}]\n")
    assert len(made.tensors) == len(llama_tensors(0, layers=LAYERS))


def test_columns_for_each_layer(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """As in Gemma 3n: one table for all layers cannot follow them."""
    fields = {"hidden_size_per_layer_input": 3}
    tensors = llama_tensors(0, layers=LAYERS)
    tensors["model.embed_tokens_per_layer.weight"] = np.ones((32, 3 * LAYERS), np.float32)
    write_checkpoint(tmp_path / "a", tensors, llama_config(layers=LAYERS) | fields)
    (error,) = refused(tmp_path, stack(("a", 0, 2), ("a", 1, 4)), capsys)
    assert "'model.embed_tokens_per_layer.weight' has 3 entries for each layer" in error
    assert "layers cannot be rearranged" in error


def with_one_behind(folder: Path, seed: int) -> None:
    """Four layers and one more that foretells a second token, as DeepSeek V3 and GLM 4.5 are published."""
    tensors = llama_tensors(seed, layers=LAYERS + 1)
    behind = f"model.layers.{LAYERS}"
    tensors[f"{behind}.embed_tokens.weight"] = tensors["model.embed_tokens.weight"]
    tensors[f"{behind}.eh_proj.weight"] = np.full((8, 16), seed, np.float32)
    config = llama_config(layers=LAYERS) | {"num_nextn_predict_layers": 1}
    write_checkpoint(folder, tensors, config)


def test_a_layer_behind_the_others(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It is none of the stack: fine-tunes may be without it, and ranges do not count it."""
    with_one_behind(tmp_path / "a", 0)
    write(tmp_path / "b", 1)
    made = run(tmp_path, SOUP)
    wanted = llama_tensors(0, layers=LAYERS + 1)
    name = f"model.layers.{LAYERS}.mlp.up_proj.weight"
    np.testing.assert_array_equal(made.tensors[name], wanted[name])
    assert "merged from the others" in made.ledger["warnings"][0]
    first, second = refused(tmp_path, stack(("a", 0, 3), ("a", 1, 4)), capsys)
    assert f"numbers 'model.layers.{LAYERS}." in first and "' like its layers, and" in first
    assert f"would be called model.layers.{LAYERS}." in second


def test_layers_of_another_shape_by_place(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As in Swin, where each is wider than the last: config.json does not say so of one layer."""
    for model, seed in (("a", 0), ("b", 1)):
        write(tmp_path / model, seed)
        tensors = llama_tensors(seed, layers=LAYERS)
        tensors |= {TABLE.format(i): np.ones(8 + (i == 1), np.float32) for i in range(LAYERS)}
        write_checkpoint(tmp_path / model, tensors, llama_config(layers=LAYERS))
    (error,) = refused(tmp_path, stack(("a", 0, 4), ("b", 1, 4)), capsys)
    assert f"only layers 1 of a have '{TABLE}' as [9], by their place" in error
    assert "here it would be in 1, 4" in error
    plan = jmerge.plan(write_recipe(tmp_path, stack(("a", 0, 2), ("b", 2, 4))))
    assert {step.name: step.spec.shape for step in plan.steps}[TABLE.format(1)] == (9,)


def test_layers_of_another_shape_by_config(tmp_path: Path) -> None:
    """Where config.json tells them apart, under whatever key, it follows them."""
    fields = {"global_attn_indexes": [1], "per_layer_config": {"1": {"size": 9}}}
    tensors = llama_tensors(0, layers=LAYERS)
    tensors |= {TABLE.format(i): np.ones(8 + (i == 1), np.float32) for i in range(LAYERS)}
    write_checkpoint(tmp_path / "a", tensors, llama_config(layers=LAYERS) | fields)
    made = run(tmp_path, stack(("a", 0, 4), ("a", 1, 4)))
    assert made.config["global_attn_indexes"] == [1, 4]
    assert made.config["per_layer_config"] == {"1": {"size": 9}, "4": {"size": 9}}
    shapes = [made.tensors[TABLE.format(i)].shape for i in range(7)]
    assert [i for i, shape in enumerate(shapes) if shape == (9,)] == [1, 4]


INNER = "model.layers.{}.mlp.gate.scale"


@pytest.mark.parametrize(
    ("of_a", "of_b", "recipe", "hole"),
    [
        ([1, 2, 3], [1, 2, 3], SOUP, None),
        ([1, 2, 3], [1, 2, 3], stack(("a", 0, 2), ("b", 1, 4)), None),
        ([1, 2, 3], [1, 2, 3], stack(("a", 1, 4)), "only layers 1, 2, 3 of a have"),
        ([1, 2, 3], [1, 2, 3], stack(("a", 0, 2), ("b", 0, 4)), "only layers 1, 2, 3 of a have"),
        ([1, 2, 3], [0, 1, 2, 3], SOUP, "a lacks model.layers.0.mlp.gate.scale"),
        ([0, 2, 3], [0, 2, 3], SOUP, "lacks model.layers.1.mlp.gate.scale"),
    ],
)
def test_what_the_first_layer_alone_lacks(
    of_a: list[int],
    of_b: list[int],
    recipe: str,
    hole: str | None,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """ZAYA mixes in what the layer before had, so its first has no scale for that: no hole where all models lack it."""
    for seed, (model, having) in enumerate((("a", of_a), ("b", of_b))):
        tensors = llama_tensors(seed, layers=LAYERS)
        tensors |= {
            f"model.layers.{i}.mlp.gate.weight": np.ones((2, 8), np.float32) for i in range(LAYERS)
        }
        tensors |= {INNER.format(i): np.ones(8, np.float32) for i in having}
        write_checkpoint(tmp_path / model, tensors, llama_config(layers=LAYERS))
    if hole is not None:
        assert any(hole in line for line in refused(tmp_path, recipe, capsys))
    else:
        made = run(tmp_path, recipe)
        layers = 5 if "slices" in recipe else 4
        assert [i for i in range(layers) if INNER.format(i) in made.tensors] == [*range(1, layers)]


def test_fields_that_nothing_says(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Each is named, with what to do; config.json without them is merged."""
    fields: dict[str, Any] = {"cross_layer_interval": 2, "num_linear_layers": 4, "exit_layer": 3}
    write(tmp_path / "a", 0, **fields)
    errors = refused(tmp_path, stack(("a", 0, 4), ("a", 1, 4)), capsys)
    assert [next(key for key in fields if f"'{key}'" in line) for line in errors] == list(fields)
    assert all("pick layers in another order, or take it out of" in line for line in errors)
    write(tmp_path / "a", 0)
    assert run(tmp_path, stack(("a", 0, 4), ("a", 1, 4))).config["num_hidden_layers"] == 7


def test_one_key_for_two_stacks(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Of an encoder and a decoder of one depth, where config.json has one number for both."""
    tensors = llama_tensors(0, layers=LAYERS)
    for side in ("encoder", "decoder"):
        inner = {n: t for n, t in tensors.items() if ".layers." in n}
        tensors |= {n.replace("model.", f"model.{side}."): t for n, t in inner.items()}
    tensors = {n: t for n, t in tensors.items() if not n.startswith("model.layers.")}
    write_checkpoint(tmp_path / "a", tensors, llama_config(layers=LAYERS))
    slices = "    slices: [{sources: [{model: {a}, layer_range: [0, 3]}]}]\n"
    recipe = "merge_method: passthrough\nbase_model: {a}\nmodules:\n  default:\n" + slices
    errors = refused(tmp_path, recipe, capsys)
    assert any(
        "both, so layers cannot be rearranged" in line or "counts as many" in line
        for line in errors
    )


@pytest.mark.parametrize(
    ("slices", "sound"),
    [
        ([("a", 0, 3), ("a", 2, 4)], True),
        ([("a", 0, 1), ("a", 0, 4)], False),
        ([("a", 1, 4)], False),
    ],
)
def test_as_few_first_layers_as_explain_the_inputs(
    tmp_path: Path, slices: list[tuple[str, int, int]], sound: bool
) -> None:
    """ModernBERT's first layer has no norm. Layers 0 and 2 are of one kind, so that `the first two of that kind` would
    explain it as well, and let layer 0 stand second."""
    kinds = ["full_attention", "sliding_attention"] * 2
    write(tmp_path / "a", 0, having=[1, 2, 3], layer_types=kinds)
    path = write_recipe(tmp_path, stack(*slices))
    if sound:
        assert jmerge.plan(path).config["num_hidden_layers"] == 5
    else:
        with pytest.raises(PlanError, match="by their place"):
            jmerge.plan(path)


@pytest.mark.parametrize(
    ("extra", "said"),
    [
        ({f"model.layer_norms.{i}.weight": (8,) for i in range(LAYERS)}, "numbers 'model.layer_norms'"),
        ({f"model.conv_layers.{i}.weight": (8, 2) for i in range(LAYERS - 1)}, "numbers 'model.conv_layers'"),
        ({"model.contact_head.weight": (1, 4 * LAYERS)}, "has 4 entries for each layer"),
        ({"model.between": (LAYERS - 1, 1, 5, 8)}, "'model.between' has an entry for each layer"),
        ({"model.each": (LAYERS, 1, 5, 8)}, "'model.each' has an entry for each layer"),
        ({"model.patches.weight": (LAYERS, 8, 2, 2), "model.table.weight": (LAYERS, 8)}, ""),
        ({f"model.adapters.{i}.weight": (8,) for i in range(LAYERS - 1)}, ""),
        ({f"model.head.layers.{i}.weight": (8,) for i in range(LAYERS - 1)}, ""),
    ],
)  # fmt: skip
def test_what_is_as_long_as_there_are_layers(
    extra: dict[str, tuple[int, ...]],
    said: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Outside of the layers, for each of them or between each two: it cannot follow them."""
    for seed, name in enumerate("ab"):
        tensors = llama_tensors(seed, layers=LAYERS)
        tensors |= {each: np.full(shape, seed, np.float32) for each, shape in extra.items()}
        write_checkpoint(tmp_path / name, tensors, llama_config(layers=LAYERS))
    recipe = stack(("a", 0, 3), ("b", 2, 4))
    if said:
        (error,) = refused(tmp_path, recipe, capsys)
        assert said in error and error.endswith("so layers cannot be rearranged")
    else:
        assert jmerge.plan(write_recipe(tmp_path, recipe)).changes


@pytest.mark.parametrize(("width", "sound"), [(8, False), (6, True)])
def test_layers_that_another_list_has_too(
    width: int, sound: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Whatever the other list is called: it is of layers of the same kind, and no key of its own counts it."""
    tensors = llama_tensors(0, layers=LAYERS)
    tensors |= {f"net.steps.{i}.scalar": np.full(width, i, np.float32) for i in range(LAYERS)}
    tensors |= {f"net.steps.{i}.more": np.full(3, i, np.float32) for i in range(LAYERS)}
    inner = {n: t for n, t in tensors.items() if ".layers." in n}
    tensors = {n: t for n, t in tensors.items() if n not in inner}
    for i in range(LAYERS):
        tensors[f"model.layers.{i}.scalar"] = np.full(8, i, np.float32)
    write_checkpoint(tmp_path / "a", tensors, llama_config(layers=LAYERS))
    recipe = stack(("a", 0, 4), ("a", 2, 4))
    if sound:
        assert jmerge.plan(write_recipe(tmp_path, recipe)).changes
    else:
        (error,) = refused(tmp_path, recipe, capsys)
        assert "numbers 'net.steps' like 'model.layers'" in error
