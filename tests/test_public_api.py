"""The public names: all there, documented, lazy, and enough for a merge in five lines."""

from __future__ import annotations

import inspect
import textwrap
from pathlib import Path

import numpy as np
import pytest

import jmerge
from jmerge.testing.close import assert_close
from jmerge.testing.tiny import llama_tensors, write_llama


@pytest.fixture
def recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The name of a recipe in the working directory."""
    monkeypatch.chdir(tmp_path)
    write_llama(tmp_path / "a", 0)
    write_llama(tmp_path / "b", 1)
    models = "".join(f"- model: {name}\n  parameters: {{weight: 1}}\n" for name in "ab")
    (tmp_path / "soup.yml").write_text(f"merge_method: linear\nmodels:\n{models}")
    return "soup.yml"


@pytest.mark.parametrize("name", jmerge.__all__)
def test_every_name_resolves_and_is_documented(name: str) -> None:
    value = getattr(jmerge, name)
    if name == "__version__":
        assert value.count(".") == 2
    else:
        assert inspect.getdoc(value), f"{name} has no docstring"
        assert value is getattr(jmerge, name)


def test_the_example_of_the_package_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Open, merge, save: what it says gives what the recipe that says the same gives."""
    (tmp_path / "configs").symlink_to(Path(__file__).parents[1] / "configs")
    monkeypatch.chdir(tmp_path)
    text = inspect.getdoc(jmerge)
    assert text is not None
    example = textwrap.dedent(text[text.index("    import jmerge") : text.index("The names below")])
    assert len([line for line in example.splitlines() if line]) <= 6
    exec(example, {})
    models = [
        {"model": f"configs/quickstart/{name}", "parameters": {"weight": 0.5, "density": 0.5}}
        for name in ("prose", "code")
    ]
    base = "configs/quickstart/base"
    want = jmerge.merge({"merge_method": "ties", "base_model": base, "models": models})
    made = jmerge.open_checkpoint("merged")
    assert set(made) == set(want)
    for name, array in made.items():
        np.testing.assert_array_equal(array, want[name])
    assert (tmp_path / "merged" / "tokenizer.json").exists()


def test_names_are_listed_once() -> None:
    assert len(jmerge.__all__) == len(set(jmerge.__all__))
    assert dir(jmerge) == sorted(jmerge.__all__)
    namespace: dict[str, object] = {}
    exec("from jmerge import *", namespace)
    assert set(jmerge.__all__) <= set(namespace)


def test_other_names_are_attribute_errors() -> None:
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = jmerge.nothing  # type: ignore[attr-defined]
    assert not hasattr(jmerge, "_private")


def test_errors_are_one_family() -> None:
    kinds = (
        jmerge.RecipeError,
        jmerge.CheckpointError,
        jmerge.PlanError,
        jmerge.NonFiniteError,
    )
    for kind in kinds:
        assert issubclass(kind, jmerge.JmergeError) and issubclass(kind, ValueError)
        assert kind("x").exit_code == 2
    assert not issubclass(jmerge.RunError, ValueError)
    assert jmerge.RunError("x").exit_code == 3


def test_a_merge_in_five_lines(recipe: str) -> None:
    merged = jmerge.merge(recipe, "soup")
    checkpoint = jmerge.open_checkpoint(merged.folder)
    for name, array in checkpoint.items():
        mean = (llama_tensors(0)[name].astype(np.float64) + llama_tensors(1)[name]) / 2
        assert_close(array, mean)
    assert len(checkpoint) == len(merged.plan.outputs) == 21


def test_a_merge_step_by_step_into_memory(recipe: str) -> None:
    """The same plan, into arrays and not a folder."""
    parsed = jmerge.Recipe.from_file(recipe)
    checkpoints = {ref: jmerge.open_checkpoint(ref.path) for ref in parsed.models()}
    plan = jmerge.advanced.build_plan(parsed, checkpoints)
    assert plan == jmerge.plan(recipe)
    arrays = jmerge.advanced.Arrays(plan.outputs)
    outcome = jmerge.advanced.run(plan, jmerge.advanced.make_schedule(plan), arrays)
    written = jmerge.open_checkpoint(jmerge.merge(recipe, "soup").folder)
    assert set(arrays) == set(written) == set(outcome.crc32)
    for name, array in arrays.items():
        assert array.dtype == written[name].dtype
        np.testing.assert_array_equal(array, written[name])


def test_methods_are_functions_of_arrays() -> None:
    """What the engine runs is the plain function, unchanged by its declaration."""
    import jax

    from jmerge.methods.linear import linear

    assert jmerge.methods.REGISTRY["linear"].function is linear
    models = jax.numpy.stack([jax.numpy.zeros(4), jax.numpy.full(4, 2.0)])
    weight = jax.numpy.array([1.0, 3.0])
    np.testing.assert_allclose(linear(models, weight=weight, normalize=True), 1.5)
    slope = jax.grad(lambda w: linear(models, weight=w, normalize=True).sum())(weight)
    np.testing.assert_allclose(slope, [-1.5, 0.5])


def test_plans_are_plain_data(recipe: str) -> None:
    plan, again = jmerge.plan(recipe), jmerge.plan(recipe)
    assert plan == again and plan.sha256() == again.sha256()
    assert plan.sha256() != jmerge.plan(recipe, seed=1).sha256()
    assert plan.to_json() == again.to_json()
