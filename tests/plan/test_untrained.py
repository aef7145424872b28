"""Counters and other whole numbers: copies of one model's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from partialkit import SOUP, refused, run, write

import jmerge
from jmerge.testing.tiny import llama_config, llama_tensors, write_checkpoint

BASE = "base_model: {b}\n"
TASK = SOUP.replace("linear", "task_arithmetic") + BASE
NAME = "model.bn.num_batches_tracked"


def models(folder: Path, name: str, *values: Any) -> None:
    for seed, (model, value) in enumerate(zip("ab", values, strict=True)):
        extra = (
            {} if value is None else {name: value, "model.bn.running_mean": np.ones(8, np.float32)}
        )
        write_checkpoint(folder / model, llama_tensors(seed) | extra, llama_config())


@pytest.mark.parametrize(
    "recipe", [SOUP, SOUP.replace("a}", "x}").replace("b}", "a}").replace("x}", "b}"), TASK]
)
def test_counters(tmp_path: Path, recipe: str) -> None:
    """That of the base, or else of the first model, is taken and told, whatever the others have."""
    models(tmp_path, NAME, np.array(5), np.array(9))
    made = run(tmp_path, recipe)
    owner = "b" if recipe != SOUP else "a"
    assert made.tensors[NAME] == {"a": 5, "b": 9}[owner]
    (warning,) = [each for each in made.ledger["warnings"] if "not merged; taken" in each]
    assert warning.endswith(
        f"{NAME}: a counter is not merged; taken from {tmp_path / owner} [JM231]"
    )
    assert "a counter" in made.ledger["tensors"][NAME]["note"]


@pytest.mark.parametrize(
    "pair",
    [
        (np.array([5]), np.array([9])),
        (np.array(5, np.int32), np.array([9])),
        (None, np.array(9)),
        (np.array(5), np.array(9, np.float32)),
    ],
)
def test_kinds_of_counters(tmp_path: Path, pair: tuple[Any, Any]) -> None:
    """One number is a counter whatever its shape and width, and nothing is told where one model has it."""
    models(tmp_path, NAME, *pair)
    plan = jmerge.plan(write(tmp_path, SOUP))
    (step,) = (step for step in plan.steps if step.name == NAME)
    assert (
        len(step.inputs) == 1
        and step.spec.shape == (pair[0] if pair[0] is not None else pair[1]).shape
    )
    told = [each for each in plan.warnings if "not merged; taken" in each]
    assert len(told) == (pair[0] is not None)


def test_other_whole_numbers(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """They have to be equal; the line tells the key that takes one model's, which works."""
    models(tmp_path, "model.table", np.arange(4), np.arange(4)[::-1].copy())
    (error,) = refused(tmp_path, SOUP, capsys)
    assert "model.table: differs between" in error and "'except: [model.table]'" in error
    made = run(tmp_path, SOUP + "except: [model.table]\n")
    np.testing.assert_array_equal(made.tensors["model.table"], np.arange(4))


@pytest.mark.parametrize("kinds", ["F32 U8", "U8 BOOL", "BOOL F32"])
def test_masks_of_two_kinds(tmp_path: Path, kinds: str) -> None:
    """A causal mask is the same whether it is stored as numbers, bytes or flags: the first model's is taken."""
    types: dict[str, Any] = {"F32": np.float32, "U8": np.uint8, "BOOL": np.bool_}
    for seed, (model, kind) in enumerate(zip("ab", kinds.split(), strict=True)):
        mask: dict[str, np.ndarray] = {"h.0.attn.bias": np.tri(4, dtype=types[kind])[None, None]}
        write_checkpoint(tmp_path / model, llama_tensors(seed) | mask, llama_config())
    plan = jmerge.plan(write(tmp_path, SOUP))
    (step,) = (step for step in plan.steps if step.name == "h.0.attn.bias")
    assert step.spec.dtype == kinds.split()[0] and len(step.inputs) == 1


def test_a_float_and_whole_numbers(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One line, however many tensors are so."""
    name = "model.layers.{}.mlp.table"
    for seed, (model, kind) in enumerate(zip("ab", (np.float32, np.int64), strict=True)):
        table = {name.format(i): np.ones((2, 2), kind) for i in range(2)}
        write_checkpoint(tmp_path / model, llama_tensors(seed) | table, llama_config())
    assert refused(tmp_path, SOUP, capsys) == [
        "error: x.yml:1: model.layers.0.mlp.table is a float in one model and not in another: "
        "F32 in a, I64 in b (1 more like it); "
        "to take them from one model, write 'except: [model.layers.*.mlp.table]'"
    ]
    run(tmp_path, SOUP + "except: ['model.layers.*.mlp.table']\n")


@pytest.mark.parametrize("first", [np.int64, np.float32])
def test_one_number_that_is_trained_in_one_model(
    tmp_path: Path, first: type, capsys: pytest.CaptureFixture[str]
) -> None:
    """It is no counter: what is a float somewhere is refused, whatever the order of the models."""
    kinds = [first, np.float32 if first is np.int64 else np.int64]
    models(tmp_path, "model.gain", *(np.ones(1, kind) for kind in kinds))
    (error,) = refused(tmp_path, SOUP, capsys)
    assert "model.gain" in error and "'except: [model.gain]'" in error


@pytest.mark.parametrize(
    "pair",
    [
        ("model.position_ids", np.arange(4)[None], np.arange(4, dtype=np.int32)[None]),
        ("model.position_ids", np.arange(4)[None], np.arange(8)[None]),
        ("h.0.attn.causal_mask", np.tri(4, dtype=np.uint8), np.tri(4, dtype=np.bool_)),
    ],
)
def test_positions_and_masks_stored_otherwise(tmp_path: Path, pair: tuple[str, Any, Any]) -> None:
    """They are computed, so the first model's are as good as the others'."""
    name, *values = pair
    models(tmp_path, name, *values)
    plan = jmerge.plan(write(tmp_path, SOUP))
    (step,) = (step for step in plan.steps if step.name == name)
    assert step.spec.shape == values[0].shape and len(step.inputs) == 1


def test_counters_of_several_places(tmp_path: Path) -> None:
    """What every expert has seen is counted like what a BatchNorm has."""
    name = "model.bn.tokens_per_expert"
    models(tmp_path, name, np.arange(4), 2 * np.arange(4))
    assert (run(tmp_path, SOUP).tensors[name] == np.arange(4)).all()
