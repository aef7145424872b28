"""Tensors that only some models have: never merged as if the others had zeros."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from partialkit import refused, run, write

import jmerge
from jmerge.plan.outcomes import made_up
from jmerge.testing.tiny import llama_config, llama_tensors, write_checkpoint

EXTRA = "mtp.fc.weight"


def linear(weights: dict[str, float], method: str = "linear", flag: str = "normalize") -> str:
    """A sum of models that nothing normalises."""
    models = "".join(
        f"  - {{model: {{{name}}}, parameters: {{weight: {weight}}}}}\n"
        for name, weight in weights.items()
    )
    return f"merge_method: {method}\nmodels:\n{models}parameters: {{{flag}: false}}\n"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Models a and b with two tensors more than c and d."""
    for seed, name in enumerate("abcd"):
        rng = np.random.default_rng(seed)
        more = {
            "mtp.fc.weight": rng.standard_normal((8, 8)).astype(np.float32),
            "mtp.norm.weight": rng.standard_normal(8).astype(np.float32),
        }
        extra = more if name in "ab" else {}
        write_checkpoint(tmp_path / name, llama_tensors(seed) | extra, llama_config())
    return tmp_path


# The weights of all models, and of those that have the tensor.
MADE_UP: dict[tuple[tuple[str, float], ...], tuple[float, ...] | None] = {
    (("a", 0.5), ("c", 0.5)): (1.0,),
    (("c", 0.9), ("a", 0.1)): (1.0,),
    (("a", 0.2), ("b", 0.6), ("c", 0.2)): (0.25, 0.75),
    (("a", 1), ("c", -1), ("d", 1)): (1,),  # a, and a change
    (("a", 1), ("c", 1)): (1,),
    (("a", 2), ("b", -1), ("c", 0.5)): (2, -1),
    (("a", 0.5), ("c", 0.7)): None,
    (("a", 0.3), ("b", -0.3), ("c", 1)): None,
    (("a", 0.0), ("c", 1.0)): None,
}


@pytest.mark.parametrize("case", MADE_UP)
def test_weights_of_a_sum(
    folder: Path, case: tuple[tuple[str, float], ...], capsys: pytest.CaptureFixture[str]
) -> None:
    """Its length is that of the other tensors, or it is refused with the key that then works."""
    weights, wanted = dict(case), MADE_UP[case]
    recipe = linear(weights)
    if wanted is None:
        (error,) = refused(folder, recipe, capsys)
        assert "mtp.fc.weight and 1 more: not in c; the weights are not normalised" in error
        plan = jmerge.plan(write(folder, recipe + "except: [mtp.*]\n"))
        assert (EXTRA in plan.outputs) == (next(iter(weights)) == "a")
        return
    plan = jmerge.plan(write(folder, recipe))
    (step,) = (step for step in plan.steps if step.name == EXTRA)
    assert step.hyperparameters["weight"] == pytest.approx(wanted, rel=1e-12)
    assert f"mtp.fc.weight and 1 more: not in {folder / 'c'}" in plan.warnings[0]
    head = next(step for step in plan.steps if step.name == "lm_head.weight")
    assert head.hyperparameters["weight"] == tuple(weights.values())


def test_the_only_model_that_has_it(folder: Path) -> None:
    """Halves of two models, one of which has it, are that model's tensor, bit for bit."""
    made = run(folder, linear({"c": 0.5, "a": 0.5}))
    wanted = np.random.default_rng(0).standard_normal((8, 8)).astype(np.float32)
    np.testing.assert_array_equal(made.tensors[EXTRA], wanted)
    assert "make up for it" in made.ledger["tensors"][EXTRA]["note"]


def test_numbers_that_change_over_layers(tmp_path: Path) -> None:
    """Weights of each layer make up for those of the same layer."""
    name = "model.layers.{}.self_attn.q_proj.bias"
    for seed, model in enumerate("ab"):
        extra = {name.format(i): np.ones(8, np.float32) for i in range(2)} if model == "a" else {}
        write_checkpoint(tmp_path / model, llama_tensors(seed) | extra, llama_config())
    recipe = linear({"a": 0, "b": 0}).replace("weight: 0", "weight: [0.25, 0.75]", 1)
    recipe = recipe.replace("weight: 0}", "weight: [0.75, 0.25]}")
    plan = jmerge.plan(write(tmp_path, recipe))
    found = {step.name: step.hyperparameters["weight"] for step in plan.steps}
    assert [found[name.format(i)] for i in range(2)] == [(1.0,), (1.0,)]
    assert found["model.layers.0.mlp.up_proj.weight"] == (0.25, 0.75)


def test_other_methods(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Multislerp's lengths add up alike; alone a tensor stays as it is; a mean stays a mean; changes are added."""
    flag = "normalize_weights"
    plan = jmerge.plan(write(folder, linear({"a": 0.2, "b": 0.2, "c": 0.6}, "multislerp", flag)))
    found = {step.name: step.hyperparameters for step in plan.steps}
    assert found[EXTRA]["weight"] == pytest.approx((0.5, 0.5))
    plan = jmerge.plan(write(folder, linear({"a": 2, "c": 3}, "multislerp", flag)))
    assert EXTRA in plan.outputs
    mean = linear({"a": 2, "c": 3}).replace("normalize: false", "normalize: true")
    plan = jmerge.plan(write(folder, mean))
    assert {s.name: s.hyperparameters for s in plan.steps}[EXTRA]["weight"] == (2,)
    task = linear({"b": 0.4, "c": 0.4}, "task_arithmetic") + "base_model: {a}\n"
    plan = jmerge.plan(write(folder, task))
    assert {s.name: s.hyperparameters for s in plan.steps}[EXTRA]["weight"] == (0.4,)
    task = linear({"a": 0.4, "b": 0.4}, "task_arithmetic") + "base_model: {c}\n"
    (error,) = refused(folder, task, capsys)
    assert "mtp.fc.weight and 1 more: not in c; the base lacks it" in error
    assert EXTRA not in jmerge.plan(write(folder, task + "except: [mtp.*]\n")).outputs


def test_no_zeros() -> None:
    """For any weights, equal tensors give the same in a sum with all models and in one without some."""
    rng = np.random.default_rng(0)
    for _ in range(200):
        weights = rng.normal(size=4)
        weights /= weights.sum()
        present = sorted(rng.choice(4, rng.integers(1, 4), replace=False).tolist())
        own, verdict = made_up(weights.tolist(), present)
        if verdict.action == "run":
            assert sum(own) == pytest.approx(1)
