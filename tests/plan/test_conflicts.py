"""Inputs whose config.json disagree: told, refused, or allowed, each with where it stands."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from partialkit import SOUP, refused, run

from jmerge.testing.tiny import llama_config, llama_tensors, write_checkpoint


def write(folder: Path, **configs: dict[str, Any]) -> None:
    """A model for each name, whose config has these fields besides."""
    for seed, (name, fields) in enumerate(configs.items()):
        write_checkpoint(folder / name, llama_tensors(seed), llama_config() | fields)


def test_told(tmp_path: Path) -> None:
    """What bounds training or names tokens: the donor's, in one line a model; the ledger has it too."""
    b = {"max_position_embeddings": 128, "eos_token_id": [2, 7], "sliding_window": 16}
    write(tmp_path, a={"sliding_window": None}, b=b)
    made = run(tmp_path, SOUP)
    assert made.config == llama_config() | {"sliding_window": None}
    assert [each.replace(f"{tmp_path}/", "") for each in made.ledger["warnings"]] == [
        "x.yml:5: models[1].model: config.json differs from that of a, which the output has: "
        "max_position_embeddings 128 (output: 64), eos_token_id [2, 7] (output: 2) [JM212]"
    ]


def test_generation(tmp_path: Path) -> None:
    """Tokens that end a text are told of generation_config.json too; how to sample is nobody's conflict."""
    write(tmp_path, a={}, b={})
    for name, ends in (("a", "[2]"), ("b", "[2, 7]")):
        text = f'{{"eos_token_id": {ends}, "temperature": {len(ends)}}}'
        (tmp_path / name / "generation_config.json").write_text(text)
    made = run(tmp_path, SOUP)
    assert [each.replace(f"{tmp_path}/", "") for each in made.ledger["warnings"]] == [
        "x.yml:5: models[1].model: generation_config.json differs from that of a, which the output "
        "has: eos_token_id [2, 7] (output: [2]) [JM212]"
    ]


def test_refused_and_allowed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Every conflict of every model at once, each with both values and the line that allows all of them, which works."""
    write(
        tmp_path,
        a={"hidden_act": "silu", "rope_theta": 1e4, "head_dim": 2},
        b={"hidden_act": "gelu", "rope_theta": 1e6, "head_dim": 2},
        c={"rope_parameters": {"rope_theta": 1e4, "rope_type": "linear", "factor": 4.0}},
    )
    recipe = SOUP + "  - {model: {c}, parameters: {weight: 0}}\n"
    allow = "allow_conflicts: [hidden_act, rope_theta, rope_scaling]"
    assert refused(tmp_path, recipe, capsys) == [
        "error: x.yml:5: models[1].model: hidden_act is gelu in b and silu in a; the weights after "
        f"the activation were trained for its output. To merge nevertheless, with a's: '{allow}'",
        "error: x.yml:5: models[1].model: rope_theta is 1000000.0 in b and 10000.0 in a; queries "
        "and keys are rotated by angles that the weights were trained for. To merge nevertheless, "
        f"with a's: '{allow}'",
        "error: x.yml:7: models[2].model: rope_parameters is {'rope_type': 'linear', 'factor': 4.0} "
        "in c and rope_scaling None in a; queries and keys are rotated by angles that the weights "
        f"were trained for. To merge nevertheless, with a's: '{allow}'",
    ]
    made = run(tmp_path, recipe + allow + "\n")
    for name, array in made.tensors.items():
        a, b = (llama_tensors(seed)[name] for seed in (0, 1))
        np.testing.assert_allclose(array, (a + 3 * b) / 4, rtol=1e-6)
    assert made.config["hidden_act"] == "silu" and made.config["rope_theta"] == 1e4
    assert len(made.ledger["warnings"]) == 2 and "hidden_act gelu" in made.ledger["warnings"][0]


def test_some_allowed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """By any spelling of the field; what is not allowed is refused still."""
    write(
        tmp_path,
        a={"hidden_act": "silu", "rope_theta": 1e4},
        b={"hidden_act": "relu", "rope_theta": 1},
    )
    for key in ("hidden_act", "activation_function"):
        lines = refused(tmp_path, SOUP + f"allow_conflicts: {key}\n", capsys)
        (error,) = [line for line in lines if line.startswith("error")]
        assert "rope_theta is 1 in b and 10000.0 in a" in error


def test_names_of_fields(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A misspelt field is an error; one that is only told, or in which nothing differs, has no effect."""
    write(tmp_path, a={}, b={})
    (error,) = refused(tmp_path, SOUP + "allow_conflicts: [rope_teta]\n", capsys)
    assert error == (
        "error: x.yml:7: allow_conflicts[0]: 'rope_teta' is not a field that is compared; "
        "did you mean 'rope_theta'?"
    )
    made = run(
        tmp_path, SOUP + "allow_conflicts: [eos_token_id, rope_theta, max_position_embeddings]\n"
    )
    assert [each.split(": ", 2)[2] for each in made.ledger["warnings"]] == [
        "has no effect: models may differ in 'eos_token_id' anyway [JM019]",
        "has no effect: models may differ in 'max_position_embeddings' anyway [JM019]",
        "has no effect: no model differs in 'rope_theta' [JM019]",
    ]


STACK = """\
merge_method: passthrough
{base}slices:
  - sources: [{model: {b}, layer_range: [0, 1]}]
  - sources: [{model: {b}, layer_range: [0, 2]}]
"""


def test_one_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A stack of one model has no conflict, unless another gives the config that its weights would be read with."""
    write(tmp_path, a={"rope_theta": 1e4}, b={"rope_theta": 1e6})
    made = run(tmp_path, STACK.replace("{base}", ""))
    assert made.ledger["warnings"] == [] and made.config["rope_theta"] == 1e6
    (error,) = refused(tmp_path, STACK.replace("{base}", "base_model: {a}\n"), capsys)
    assert error.startswith("error: x.yml:4: slices[0].sources[0].model: rope_theta is")


def test_lists_of_layers_that_moved(tmp_path: Path) -> None:
    """In slices, per-layer lists follow the layers, so they are not compared."""
    write(tmp_path, a={"layer_types": ["x", "y"]}, b={"layer_types": ["y", "y"]})
    recipe = STACK.replace("{base}", "").replace(
        "{model: {b}, layer_range: [0, 1]}", "{model: {a}, layer_range: [0, 1]}"
    )
    made = run(tmp_path, recipe)
    assert made.config["layer_types"] == ["x", "y", "y"] and made.ledger["warnings"] == []


def vision(seed: int, text: dict[str, Any], tower: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    tensors = llama_tensors(seed) | {
        f"visual.blocks.{i}.norm.weight": np.full(6, seed, np.float32) for i in range(3)
    }
    config = llama_config() | {"architectures": ["Qwen2VLForConditionalGeneration"], **text}
    return tensors, config | {"vision_config": {"depth": 3, **tower}}


def test_parts_that_are_not_merged(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A tower's config matters when tensors of the tower are merged."""
    write_checkpoint(tmp_path / "a", *vision(0, {}, {"num_heads": 2, "hidden_act": "gelu"}))
    write_checkpoint(tmp_path / "b", *vision(1, {}, {"num_heads": 3, "hidden_act": "gelu"}))
    (error,) = refused(tmp_path, SOUP, capsys)
    assert "vision_config.num_heads is 3 in b and 2 in a" in error
    made = run(tmp_path, SOUP + "except: ['visual.*']\n")
    assert made.ledger["warnings"] == []


def test_a_mapped_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A text model is compared with the config of the decoder it goes into; that it is of another type is no news."""
    tensors, config = vision(0, {}, {})
    text = {
        key: config.pop(key) for key in ("rms_norm_eps", "num_attention_heads", "num_hidden_layers")
    }
    config["text_config"] = text | {"rope_theta": 1e6}
    config["model_type"] = "qwen2_vl"
    renamed = {name.replace("model.", "model.language_model.", 1): t for name, t in tensors.items()}
    write_checkpoint(tmp_path / "a", renamed, config)
    write(tmp_path, b={"rope_theta": 1e4, "rms_norm_eps": 1e-6})
    recipe = SOUP.replace("{b}\n", "{b}\n    map: {model.: model.language_model.}\n")
    lines = refused(tmp_path, recipe, capsys)
    assert [line.split("; ")[0] for line in lines if "error" in line] == [
        "error: x.yml:5: models[1].model: rope_theta is 10000.0 in b and text_config.rope_theta 1000000.0 in a"
    ]
    made = run(tmp_path, recipe + "allow_conflicts: rope_theta\n")
    (warning,) = made.ledger["warnings"]
    assert "rms_norm_eps 1e-06 (output: 1e-05), rope_theta 10000.0 (output: 1000000.0)" in warning
    assert "model_type" not in warning


def test_another_class_is_a_change(tmp_path: Path) -> None:
    """`override_architecture` is a changed field like any other."""
    write(tmp_path, a={}, b={})
    recipe = SOUP.replace("{a}", "{model: {a}, override_architecture: MistralForCausalLM}")
    made = run(tmp_path, recipe)
    assert made.config["architectures"] == ["MistralForCausalLM"]
    (change,) = made.ledger["config"]
    assert change["key"] == "architectures" and change["old"] == ["LlamaForCausalLM"]
