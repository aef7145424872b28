"""`jmerge inspect` and `jmerge methods`: what they say is what the checkpoint and the declarations hold."""

from __future__ import annotations

import json
import textwrap
from pathlib import Path

import numpy as np
import pytest

import jmerge
from jmerge.ckpt.open import open_checkpoint
from jmerge.cli import main
from jmerge.methods import REGISTRY
from jmerge.methods.wrap import CONDITION_DOCS, LINES_PARAMETERS, can_wrap
from jmerge.plan.steps import Plan
from jmerge.recipe.settings import CONDITIONS
from jmerge.report.inspect import inspect_checkpoint, inspect_text
from jmerge.report.methods import WRAP, WRAPPED_RECIPE, method_text, methods_text, minimal_recipe
from jmerge.testing.tiny import llama_config, llama_tensors, write_checkpoint, write_llama


def test_inspect_counts_everything(tmp_path: Path) -> None:
    """Parts and dtypes each add up to the whole."""
    tensors = llama_tensors(0, layers=3)
    tensors["model.norm.weight"] = tensors["model.norm.weight"].astype(np.float16)
    found = inspect_checkpoint(
        open_checkpoint(write_checkpoint(tmp_path, tensors, llama_config(layers=3)))
    )
    for table in (found["parts"], found["dtypes"]):
        assert sum(row["tensors"] for row in table.values()) == len(tensors) == found["tensors"]
        assert sum(row["parameters"] for row in table.values()) == found["parameters"]
        assert sum(row["bytes"] for row in table.values()) == found["bytes"]
    assert found["parameters"] == sum(array.size for array in tensors.values())
    assert found["stacks"] == [
        {"prefix": "model.layers", "layers": 3, "config_keys": ["num_hidden_layers"]}
    ]
    assert found["dtypes"]["F16"]["tensors"] == 1
    assert found["parts"]["model.layers.*.mlp"]["tensors"] == 9
    assert (found["embeddings"], found["heads"]) == (
        {"model.embed_tokens.weight": [16, 8]},
        ["lm_head.weight"],
    )
    assert found["tied"] is False and found["experts"] is None
    assert found["sizes"] == {
        "": {"hidden_size": 8, "context": 64, "heads": 4, "key_value_heads": 2, "head_size": 2}
    }
    assert found["tokenizer"] == {"chat_template": False}


def test_inspect_sees_ties(tmp_path: Path) -> None:
    """A head is tied when it is absent, and when it holds the embedding's bytes."""
    assert inspect_checkpoint(open_checkpoint(write_llama(tmp_path / "a", 0, tied=True)))["tied"]
    tensors = llama_tensors(0)
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"]
    write_checkpoint(tmp_path / "b", tensors, llama_config())
    assert inspect_checkpoint(open_checkpoint(tmp_path / "b"))["tied"]
    tensors["lm_head.weight"] = -tensors["lm_head.weight"]
    write_checkpoint(tmp_path / "c", tensors, llama_config())
    assert not inspect_checkpoint(open_checkpoint(tmp_path / "c"))["tied"]


@pytest.mark.parametrize(
    ("names", "experts"),
    [
        (
            {f"mlp.experts.{i}.up.weight": (4, 8) for i in range(3)},
            {"count": 3, "layout": "a tensor for each"},
        ),
        (
            {"mlp.experts.gate_up_proj": (5, 8, 4)},
            {"count": 5, "layout": "packed in one tensor"},
        ),
    ],
)
def test_inspect_sees_experts(
    names: dict[str, tuple[int, ...]], experts: dict[str, object], tmp_path: Path
) -> None:
    """In either layout."""
    tensors = llama_tensors(0)
    for layer in range(2):
        for name, shape in names.items():
            tensors[f"model.layers.{layer}.{name}"] = np.ones(shape, np.float32)
    write_checkpoint(tmp_path, tensors, llama_config())
    found = inspect_checkpoint(open_checkpoint(tmp_path))
    assert found["experts"] == experts
    assert f"{experts['count']} a layer" in inspect_text(found)


def test_inspect_as_a_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Text for people, JSON for programs, one line for a mistake."""
    folder = write_llama(tmp_path / "a", 0)
    assert main(["inspect", str(folder)]) == 0
    assert "model.layers: 2 layers (num_hidden_layers)" in capsys.readouterr().out
    assert main(["inspect", str(folder), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == inspect_checkpoint(open_checkpoint(folder))
    assert main(["inspect", str(tmp_path / "b")]) == 2
    assert capsys.readouterr().err == f"error: {tmp_path / 'b'}: is not a folder [JM101]\n"
    assert main(["inspect"]) == 2


def test_methods_lists_all(capsys: pytest.CaptureFixture[str]) -> None:
    """Every method has a line; an unknown one is refused with the nearest name."""
    for name in REGISTRY:
        assert any(line.startswith(f"{name} ") for line in methods_text().splitlines())
    assert main(["methods"]) == 0
    assert capsys.readouterr().out == methods_text() + "\n"
    assert main(["methods", "tise"]) == 2
    assert "did you mean 'ties'?" in capsys.readouterr().err


@pytest.mark.parametrize("name", sorted(REGISTRY))
def test_a_method_is_explained(name: str) -> None:
    """Two sentences, a formula, when to use it, and every parameter with its default."""
    method, text = REGISTRY[name], method_text(name)
    assert method.summary.count(". ") == 1 and method.summary.endswith(".")
    assert method.formula in text and method.when in text
    for key, declared in method.parameters.items():
        shown = not declared.planned
        assert declared.doc and (declared.doc in text) == (f"\n  {key} " in text) == shown
    assert ("a folder for each model" in text) == method.per_model_output


def test_what_goes_around_methods_is_explained(capsys: pytest.CaptureFixture[str]) -> None:
    """Every condition and parameter, the methods it goes around, and how to write it; the list says where to look."""
    assert CONDITION_DOCS.keys() == set(CONDITIONS)
    assert f"jmerge methods {WRAP} " in methods_text()
    assert main(["methods", "wrap"]) == 0
    text = capsys.readouterr().out
    for name, (does, paper) in CONDITION_DOCS.items():
        assert f"  {name} " in text and does in text and paper in text
    for key, declared in LINES_PARAMETERS.items():
        assert (declared.doc in text) == (f"\n  {key.removeprefix('lines.')} " in text)
        assert (declared.doc in text) == (not declared.planned)
    wrapped = next(line for line in text.splitlines() if line.startswith("Wraps ")).split()
    assert {word.rstrip(",") for word in wrapped[1:]} == {
        name for name, method in REGISTRY.items() if can_wrap(method)
    }


def plan_of(text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Plan:
    """The plan of a recipe on models of the names that explanations use."""
    monkeypatch.chdir(tmp_path)
    for seed, model in enumerate(("base", "a", "b")):
        write_llama(tmp_path / "models" / model, seed)
    (tmp_path / "x.yml").write_text(text)
    return jmerge.plan("x.yml")


@pytest.mark.parametrize("name", sorted(REGISTRY))
def test_the_recipe_of_a_method_works(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It plans without a warning on models of the names it uses."""
    plan = plan_of(minimal_recipe(REGISTRY[name]), tmp_path, monkeypatch)
    assert {step.method for step in plan.steps} == {name}
    assert plan.warnings == ()


def test_the_recipe_of_wrappers_works(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And uses both."""
    plan = plan_of(WRAPPED_RECIPE, tmp_path, monkeypatch)
    assert plan.method == "equalize(lines(task_arithmetic))"
    assert plan.warnings == ()
    assert WRAPPED_RECIPE in textwrap.dedent(method_text(WRAP).partition("A recipe\n\n")[2] + "\n")
