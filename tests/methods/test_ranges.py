"""Every parameter's range holds wherever a value comes from, and is shown: in recipes, in `merge_trees`, by `methods`."""

from __future__ import annotations

import math
from typing import Any

import jax.numpy as jnp
import pytest

import jmerge
from jmerge.methods import REGISTRY
from jmerge.methods.spec import Method, Required
from jmerge.plan.check import check_recipe
from jmerge.plan.problems import split
from jmerge.recipe.recipe import Recipe
from jmerge.report.methods import method_text

# Whatever method has it.
RANGES = {
    "density": "from 0 to 1",
    "gamma": "from 0 to 1",
    "rho": "from 0 to 1",
    "select_topk": "from 0 to 1",
    "epsilon": "at least 0",
    "eps": "at least 0",
    "alpha": "at least 0",
    "mask": "at least 0",
    "k": "at least 0",
    "tol": "at least 0",
    "max_iter": "at least 1",
    "n": "from 0 to 4096",
    "m": "from 1 to 4096",
    # a negative one means something
    "weight": "",
    "lambda": "",
    "scale": "",
    "t": "",
    "r": "",
}
OWN = {
    name: method
    for name, method in sorted(REGISTRY.items())
    if method.function.__module__.startswith("jmerge.")
}
NUMBERS = [
    (name, key)
    for name, method in OWN.items()
    for key, declared in method.settable.items()
    if declared.kind != "bool"
]


def outside(method: Method, key: str) -> list[float]:
    """Values that the parameter cannot have."""
    declared = method.parameters[key]
    found = [math.nan, math.inf]
    found += [] if declared.low is None else [declared.low - 1]
    return found + ([] if declared.high is None else [declared.high + 1])


@pytest.mark.parametrize(("name", "key"), NUMBERS)
def test_ranges(name: str, key: str) -> None:
    method = OWN[name]
    shown = method.parameters[key].range_text()
    assert shown == RANGES[key]
    line = next(each for each in method_text(name).splitlines() if each.startswith(f"  {key} "))
    assert shown in line
    for value in outside(method, key):
        assert_refused_by_merge_trees(method, key, value)
        assert_refused_in_a_recipe(method, key, value)


def assert_refused_by_merge_trees(method: Method, key: str, value: float) -> None:
    low, _ = method.counts
    trees = [{"w": jnp.ones((2, 2))}] * max(low, 1)
    base: Any = None if method.base == "input" else trees[0]
    hyperparameters: dict[str, Any] = {
        name: 0.5
        for name, declared in method.settable.items()
        if isinstance(declared.default, Required)
    }
    with pytest.raises(ValueError, match=f"^{key}: expected a (finite )?number"):
        jmerge.merge_trees(trees, method=method.name, base=base, **(hyperparameters | {key: value}))


def assert_refused_in_a_recipe(method: Method, key: str, value: float) -> None:
    base = "" if method.base == "input" else "base_model: c\n"
    models = ["{model: a}", "{model: b}"][: method.counts[1]]
    word = ".nan" if math.isnan(value) else ".inf" if math.isinf(value) else f"{value:g}"
    recipe = Recipe.from_text(
        f"merge_method: {method.name}\n{base}models: [{', '.join(models)}]\n"
        f"parameters: {{{key}: [{word}, {word}]}}\n"
    )
    errors, _ = split(recipe, check_recipe(recipe).problems)
    (line,) = {each.text for each in errors}
    assert f"parameters.{key}: expected a " in line and line.endswith(f"found {value:g}")
