"""Models whose weights cannot be merged: quantised ones and parts of a training state; refused in one line for each."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from partialkit import SOUP, refused, run, write

import jmerge
from jmerge.ckpt.open import open_checkpoint
from jmerge.testing.tiny import llama_config, llama_tensors, write_checkpoint, write_llama

CONFIG = llama_config(vocab=64) | {"torch_dtype": "bfloat16"}
COPY = "merge_method: passthrough\nmodels:\n  - model: {a}\n"
STACK = """\
merge_method: passthrough
slices:
  - sources: [{model: {a}, layer_range: [0, 2]}]
  - sources: [{model: {b}, layer_range: [1, 2]}]
"""


def fp8(seed: int) -> dict[str, np.ndarray]:
    """A model with projections in FP8, each with a scale."""
    tensors = {}
    for name, array in llama_tensors(seed, vocab=64).items():
        if "proj" in name:
            tensors[name] = array.astype(ml_dtypes.float8_e4m3fn)
            tensors[name.replace(".weight", ".scale_weight")] = np.asarray([0.5 + seed], np.float32)
        else:
            tensors[name] = array.astype(ml_dtypes.bfloat16)
    return tensors


def test_one_line_for_each_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """config.json says nothing; two such models, or one beside a plain one, and whatever else differs between them."""
    for seed, name in enumerate("ab"):
        write_checkpoint(tmp_path / name, fp8(seed), CONFIG)
    write_llama(tmp_path / "c", 2)
    line = (
        "its weights are quantised (FP8): model.layers.0.self_attn.q_proj.weight is F8_E4M3 with "
        "scale_weight beside it; merge the unquantised model (only plain passthrough can copy it)"
    )
    assert refused(tmp_path, SOUP + "dtype: bfloat16\n", capsys) == [
        f"error: x.yml:3: models[0].model: 'a': {line}",
        f"error: x.yml:5: models[1].model: 'b': {line}",
    ]
    assert refused(tmp_path, SOUP.replace("{a}", "{c}"), capsys) == [
        f"error: x.yml:5: models[1].model: 'b': {line}"
    ]


def test_copies(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Passthrough copies and stacks codes and scales as they are; a cast, or layers of a plain model, are refused."""
    inputs = {name: fp8(seed) for seed, name in enumerate("ab")}
    for name, tensors in inputs.items():
        write_checkpoint(tmp_path / name, tensors, CONFIG)
    write_llama(tmp_path / "c", 2, vocab=64)
    made = open_checkpoint(jmerge.merge(write(tmp_path, COPY), tmp_path / "copy").folder)
    assert {name: array.tobytes() for name, array in made.items()} == {
        name: array.tobytes() for name, array in inputs["a"].items()
    }
    stacked = jmerge.plan(write(tmp_path, STACK)).outputs
    assert stacked["model.layers.2.mlp.up_proj.weight"].dtype == "F8_E4M3"
    assert stacked["model.layers.2.mlp.up_proj.scale_weight"].dtype == "F32"
    (error,) = refused(tmp_path, COPY + "dtype: float16\n", capsys)
    assert "quantised (FP8)" in error and "remove dtype and out_dtype" in error
    (error,) = refused(tmp_path, STACK.replace("{b}", "{c}"), capsys)
    assert error.startswith("error: x.yml:4: slices[1].sources[0].model: 'a' is quantised and 'c'")


def test_fp8_without_scales_is_a_dtype(tmp_path: Path) -> None:
    """A cast to FP8 makes plain numbers, which are merged."""
    for seed, name in enumerate("ab"):
        tensors = {n: x.astype(ml_dtypes.float8_e4m3fn) for n, x in llama_tensors(seed).items()}
        write_checkpoint(tmp_path / name, tensors, llama_config())
    plan = jmerge.plan(write(tmp_path, SOUP + "dtype: bfloat16\n"))
    assert {step.method for step in plan.steps} == {"linear"}
    assert {spec.dtype for spec in plan.outputs.values()} == {"BF16"}


@pytest.mark.parametrize("recipe", [SOUP, COPY, SOUP.replace("a}", "x}").replace("b}", "a}")])
def test_a_field_that_is_left_over(tmp_path: Path, recipe: str) -> None:
    """config.json that calls plain numbers quantised is no reason to refuse, and the output's does not say it."""
    for seed, name in enumerate("abx"):
        told: dict[str, Any] = (
            {"quantization_config": {"quant_method": "fp8"}} if name == "a" else {}
        )
        write_checkpoint(tmp_path / name, llama_tensors(seed), llama_config() | told)
    plan = jmerge.plan(write(tmp_path, recipe))
    (warning,) = plan.warnings
    assert "quantised (fp8), but they are plain numbers" in warning
    assert "quantization_config" not in plan.config
    donor = "x}" not in recipe
    assert [change.key for change in plan.changes] == ["quantization_config"] * donor
    assert ("the output's says nothing of it" in warning) == donor


# Parts of a training state


def part(seed: int, empty: Any) -> dict[str, np.ndarray]:
    """A model some tensors of which are another process's."""
    none = np.zeros(0, np.float32)
    return {n: none if empty(n) else array for n, array in llama_tensors(seed).items()}


EMPTY = {
    "all matrices": lambda name: "norm" not in name,
    "those of one layer": lambda name: ".1." in name,
    "the embedding": lambda name: "embed" in name,
    "the last norm": lambda name: name == "model.norm.weight",
    "one of a layer": lambda name: name == "model.layers.1.mlp.up_proj.weight",
}


@pytest.mark.parametrize("case", EMPTY)
def test_parts_of_a_training_state(
    tmp_path: Path, case: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Two of them, or one beside a whole model, first or second: the line names the tool for each."""
    for seed, name in enumerate("ab"):
        write_checkpoint(tmp_path / name, part(seed, EMPTY[case]), llama_config())
    write_llama(tmp_path / "c", 2)
    for recipe, found in {
        SOUP: "ab",
        SOUP.replace("{a}", "{c}"): "b",
        SOUP.replace("{b}", "{c}"): "a",
        COPY: "a",
    }.items():
        lines = refused(tmp_path, recipe, capsys)
        assert len(lines) == len(found)
        for name, line in zip(found, lines, strict=True):
            assert f"model: '{name}': " in line and "zero_to_fp32.py" in line
            assert "of its 21 tensors are empty (model." in line


def test_flat_parameters(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """FSDP keeps all weights of a module in one vector, of which each process has a part."""
    for seed, name in enumerate("ab"):
        flat = {"model.layers.0._fsdp_wrapped_module._flat_param": np.ones(99, np.float32)}
        write_checkpoint(tmp_path / name, llama_tensors(seed) | flat, llama_config())
    lines = refused(tmp_path, SOUP, capsys)
    assert len(lines) == 2 and all("merge-weights" in line for line in lines)


def test_told_with_what_else_is_wrong(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A key, a number, a folder that is not there, a part of a model and a quantised one: one round."""
    write_checkpoint(tmp_path / "a", part(0, EMPTY["all matrices"]), llama_config())
    codes: dict[str, np.ndarray] = {
        "x.weight": np.ones((2, 2), np.int8),
        "x.weight_scale": np.ones(2, np.float32),
    }
    write_checkpoint(tmp_path / "b", llama_tensors(1) | codes, llama_config())
    recipe = SOUP.replace("merge_method: linear", "merge_method: ties\nbase_model: {nowhere}")
    lines = refused(tmp_path, recipe + "dtpye: float16\ndtype: int8\n", capsys)
    text = "\n".join(lines)
    for word in (
        "nowhere",
        "dtpye",
        "'int8'",
        "'a': ",
        "zero_to_fp32.py",
        "'b': its weights are quan",
    ):
        assert word in text
    assert len(lines) == 5


def test_tensors_without_elements(tmp_path: Path) -> None:
    """A table without rows, or one vector without elements, in all models alike, is merged like others."""
    for seed, name in enumerate("ab"):
        none = {
            "model.extra.weight": np.zeros((0, 8), np.float32),
            "model.more.weight": np.zeros((8, 0), np.float32),
            "model.prompt": np.zeros(0, np.float32),
            "model.other": np.zeros(0, np.float32),
        }
        write_checkpoint(tmp_path / name, llama_tensors(seed) | none, llama_config())
    made = run(tmp_path, SOUP)
    assert made.tensors["model.extra.weight"].shape == (0, 8)
    assert made.tensors["model.prompt"].shape == (0,)
