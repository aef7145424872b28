"""Recipes written in Python: the same as their YAML, models in them, errors with key paths."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import yaml

from jmerge.errors import RecipeError
from jmerge.recipe.recipe import Recipe
from jmerge.recipe.refs import ModelRef

TEXT = """\
merge_method: ties
base_model: base
models:
- model: a
  parameters:
    weight: [0, 0.5, 1]
    density: 0.25
- model: org/b@main
dtype: bfloat16
only: ['*mlp*']
parameters:
  normalize: true
"""


def given(**keys: Any) -> dict[str, Any]:
    """A recipe of one model with other keys."""
    return {"merge_method": "linear", "models": [{"model": "a"}], **keys}


def test_a_dict_is_its_yaml() -> None:
    recipe = Recipe.from_dict(yaml.safe_load(TEXT))
    assert recipe == Recipe.from_text(TEXT) == Recipe.from_text(recipe.text)
    assert recipe.text == TEXT.replace("[0, 0.5, 1]", "\n    - 0\n    - 0.5\n    - 1").replace(
        "weight: \n", "weight:\n"
    ).replace("only: ['*mlp*']", "only:\n- '*mlp*'")
    assert recipe != Recipe.from_text(TEXT.replace("0.25", "0.5"))


def test_recipes_show_no_lines() -> None:
    assert repr(Recipe.from_text(TEXT)) == "<Recipe: ties of 3 models>"
    later = Recipe.from_text("# a comment\n\n" + TEXT)
    assert later == Recipe.from_text(TEXT)


@pytest.mark.parametrize(
    ("value", "plain"),
    [
        (np.float32(0.5), 0.5),
        (np.float64(0.5), 0.5),
        (np.int64(1), 1),
        (jnp.float32(0.5), 0.5),
        (np.linspace(0, 1, 3), [0.0, 0.5, 1.0]),
        (jnp.linspace(0, 1, 3), [0.0, 0.5, 1.0]),
        ((0, 1), [0, 1]),
        ([{"value": np.float16(0.5), "filter": "mlp"}], [{"value": 0.5, "filter": "mlp"}]),
    ],
)
def test_numbers_of_numpy_and_jax_are_numbers(value: Any, plain: Any) -> None:
    found = Recipe.from_dict(given(parameters={"weight": value}))
    assert found == Recipe.from_dict(given(parameters={"weight": plain}))
    assert yaml.safe_load(found.text)["parameters"]["weight"] == plain


@pytest.mark.parametrize("dtype", [jnp.bfloat16, np.dtype(ml_dtypes.bfloat16), "bf16"])
def test_dtypes_are_words(dtype: Any) -> None:
    assert Recipe.from_dict(given(dtype=dtype)).dtype == "BF16"


def test_paths_are_words() -> None:
    recipe = Recipe.from_dict(given(base_model=Path("x") / "y"))
    assert recipe.base == ModelRef("x/y")


def test_models_stand_in_the_recipe() -> None:
    """One object is one model, however often it stands there; another with equal arrays is another."""
    one, two = ({"w": np.ones(2), "inner": {"b": jnp.ones(2)}} for _ in range(2))
    recipe = Recipe.from_dict(
        {"merge_method": "ties", "base_model": one, "models": [{"model": two}, {"model": one}]}
    )
    names = [ModelRef("memory://1"), ModelRef("memory://2")]
    assert recipe.models() == tuple(names)
    assert [recipe.given[name] is model for name, model in zip(names, (one, two), strict=True)]
    assert "base_model: memory://1\n" in recipe.text


def test_a_reference_in_parts_is_no_model() -> None:
    recipe = Recipe.from_dict(given(base_model={"model": {"path": "a", "revision": "r"}}))
    assert recipe.base == ModelRef("a", "r") and not recipe.given


BROKEN = {
    "unknown": (
        given(parameters={"weight": 1}, merge_metod=1),
        "merge_metod: unknown key",
    ),
    "object": (given(parameters={"weight": object()}), "parameters.weight: expected a number, a"),
    "matrix": (given(parameters={"weight": np.ones((2, 2))}), "found a value of type ndarray"),
    "model": (given(models=[{"model": 1j}]), "models[0].model: expected a path, an opened"),
    "key": (given(parameters={1: 2}), "parameters: a key must be a string, found 1"),
    "nan": (given(parameters={"weight": {"filter": "x"}}), "parameters.weight: a conditional"),
    "missing": ({"models": [{"model": "a"}]}, "the key 'merge_method' is missing"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_errors_name_the_key_path_and_no_line(case: str) -> None:
    recipe, words = BROKEN[case]
    with pytest.raises(RecipeError) as caught:
        Recipe.from_dict(recipe)
    (problem,) = caught.value.problems
    assert str(problem).startswith(words) or words in str(problem)
    assert (problem.file, problem.line) == ("", 0)


def test_all_that_is_wrong_is_told() -> None:
    recipe = given(parameters={"weight": object()}, merge_metod=1, dtype="floaty")
    with pytest.raises(RecipeError) as caught:
        Recipe.from_dict(recipe)
    places = {problem.where for problem in caught.value.problems}
    assert places == {"parameters.weight", "merge_metod", "dtype"}


def test_what_contains_itself_is_refused() -> None:
    recipe = given()
    recipe["parameters"] = {"weight": recipe}
    with pytest.raises(RecipeError, match="contains itself"):
        Recipe.from_dict(recipe)


def test_texts_keep_their_lines() -> None:
    with pytest.raises(RecipeError, match=r"^recipe:3: dtype: "):
        Recipe.from_text("merge_method: linear\nmodels: [{model: a}]\ndtype: floaty\n")


def test_numbers_that_yaml_writes_in_words_come_back() -> None:
    recipe = given(parameters={"weight": -math.inf})
    assert yaml.safe_load(Recipe.from_dict(recipe).text)["parameters"]["weight"] == -math.inf


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Recipe.from_dict([1]), r"^recipe: expected a map of keys, found \[1\]$"),  # type: ignore[arg-type]
        (lambda: Recipe.from_text(None), "^text: expected the YAML text of a recipe, found None$"),  # type: ignore[arg-type]
        (lambda: Recipe.from_file(5), "^path: expected the path of a recipe, found 5$"),  # type: ignore[arg-type]
    ],
)
def test_wrong_types_name_the_argument(make: Any, words: str) -> None:
    with pytest.raises(TypeError, match=words):
        make()
