"""MergeKit's own results, method by method: every case of methods_f32.json whose method is registered."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import references
import yaml
from goldens import CONFORMANCE

import jmerge
from jmerge.methods import REGISTRY
from jmerge.testing.close import assert_close, assert_same_bytes
from jmerge.testing.tiny import write_checkpoint
from jmerge.testing.ways import Inputs, by_hand

Case = dict[str, Any]

CASES: list[Case] = [
    case
    for case in json.loads((CONFORMANCE / "methods_f32.json").read_text())["cases"]
    if case["method"] in REGISTRY
]
DECIDED = [case for case in CASES if case.get("differ") or case.get("sensitive")]
REFUSED = [case for case in CASES if isinstance(case["output"], str) and case not in DECIDED]
VALUED = [case for case in CASES if case not in DECIDED and case not in REFUSED]


def each(cases: list[Case]) -> pytest.MarkDecorator:
    """One test for each of the cases."""
    return pytest.mark.parametrize("case", cases, ids=[case["id"] for case in cases])


def array(stored: Any) -> np.ndarray:
    """A tensor as the file stores it; NaN and infinities are text there, which numpy reads."""
    values = [float(value) for value in stored["data"]]
    return np.asarray(values, stored["dtype"]).reshape(stored["shape"])


def inputs_of(case: Case) -> tuple[list[str], Inputs]:
    """The names of the models besides the base, and the tensors."""
    apart = REGISTRY[case["method"]].base != "input"
    names = [name for name in case["model_order"] if not (apart and name == case["base"])]
    base = array(case["inputs"][case["base"]]) if apart and case["base"] else None
    return names, Inputs(tuple(array(case["inputs"][name]) for name in names), base)


def numbers_of(case: Case, names: list[str]) -> dict[str, Any]:
    """The numbers that the method takes of those the case sets."""
    hyperparameters: dict[str, Any] = {}
    for name, declared in REGISTRY[case["method"]].parameters.items():
        own = [case["model_params"].get(model, {}) for model in names]
        if declared.per_model and any(name in each for each in own):
            hyperparameters[name] = tuple(
                each.get(name, case["global_params"].get(name, declared.default)) for each in own
            )
        elif name in case["global_params"]:
            hyperparameters[name] = case["global_params"][name]
    return hyperparameters


def recipe_of(case: Case, folder: Path) -> Path:
    """The case as a recipe file with a checkpoint of one tensor for each input."""
    models = []
    for name in case["model_order"]:
        write_checkpoint(folder / name, {"tensor": array(case["inputs"][name])})
        own = case["model_params"].get(name, {})
        models.append({"model": str(folder / name), "parameters": own})
    recipe = {
        "merge_method": case["method"],
        "models": models,
        "parameters": case["global_params"],
    }
    if case["base"]:
        recipe["base_model"] = str(folder / case["base"])
    file = folder / "recipe.yml"
    file.write_text(yaml.safe_dump(recipe))
    return file


def assert_near(found: np.ndarray, case: Case) -> None:
    """The comparison that the file suggests in its header."""
    wanted = array(case["output"])
    assert found.shape == wanted.shape
    wide = wanted.astype(np.float64)
    allowed = 8 * case["f64_max_abs_diff"] + 4 * np.spacing(np.abs(wanted)).astype(np.float64)
    allowed += 1e-7 * np.abs(wide).max(initial=0)
    assert (np.abs(found.astype(np.float64) - wide) <= allowed).all(), case["note"]


def refused(case: Case, folder: Path) -> None:
    """Planning says that it cannot be merged, and where in the recipe."""
    with pytest.raises(jmerge.JmergeError) as raised:
        jmerge.plan(recipe_of(case, folder))
    assert all("recipe.yml" in str(problem) for problem in raised.value.problems)


def as_reference(case: Case, folder: Path) -> None:
    """The result is that of our own formula."""
    names, inputs = inputs_of(case)
    hyperparameters = numbers_of(case, names)
    wide = inputs.map(lambda tensor: tensor.astype(np.float64))
    wanted = getattr(references, case["method"])(np.stack(wide.models), wide.base, hyperparameters)
    assert_close(by_hand(REGISTRY[case["method"]], inputs, hyperparameters), wanted)


def as_weighted_mean(case: Case, folder: Path) -> None:
    """Directions that cancel have no mean: the result is that of the weights, here nothing but what rounding leaves."""
    names, inputs = inputs_of(case)
    found = by_hand(REGISTRY[case["method"]], inputs, numbers_of(case, names))
    np.testing.assert_allclose(found, np.mean(inputs.models, axis=0), atol=1e-6)


def as_density(case: Case, folder: Path) -> None:
    """A row of one element has no ranks: its chance is the density, as with DARE."""
    names, inputs = inputs_of(case)
    hyperparameters = numbers_of(case, names)
    found = by_hand(REGISTRY[case["method"]], inputs, hyperparameters)
    assert inputs.base is not None and inputs.base.shape[1] == 1
    dare = {
        "weight": hyperparameters["weight"],
        "density": hyperparameters["density"],
        "normalize": True,
    }
    assert_same_bytes(found, by_hand(REGISTRY["dare_ties"], inputs, dare))


# What we do where MergeKit should not be followed, or where rounding decides; a new method's cases must join.
DECISIONS: dict[str, Callable[[Case, Path], None]] = {
    "linear-wsum0/f32": refused,
    "ties-tied-48/f32": as_reference,
    "breadcrumbs-neg-gamma/f32": refused,
    "nuslerp-antipodal/f32": as_reference,
    "model_stock-opposite/f32": as_reference,
    "model_stock-opposite-row-fw/f32": as_reference,
    "karcher-antipodal/f32": as_reference,
    "multislerp-antipodal-3/f32": as_weighted_mean,
    "multislerp-unchanged-3/f32": as_reference,
    "multislerp-wsum0/f32": refused,
    "nearswap-small-t/f32": as_reference,
    "ram-neg-eps/f32": refused,
    "della-row1/f32": as_density,
    "sce-one-topk/f32": as_reference,
    "ramplus_tl-neg-eps/f32": refused,
}


def test_the_file_has_cases_of_every_kind() -> None:
    assert len(VALUED) >= 45 and len(REFUSED) >= 9 and DECIDED


@each([case for case in VALUED if inputs_of(case)[0]])
def test_value(case: Case) -> None:
    names, inputs = inputs_of(case)
    found = by_hand(REGISTRY[case["method"]], inputs, numbers_of(case, names))
    assert_near(found, case)


@each([case for case in VALUED if not inputs_of(case)[0]])
def test_a_base_alone_comes_back(case: Case, tmp_path: Path) -> None:
    merged = jmerge.merge(recipe_of(case, tmp_path), tmp_path / "out")
    assert_near(jmerge.open_checkpoint(merged.folder)["tensor"], case)


@each(REFUSED)
def test_refused(case: Case, tmp_path: Path) -> None:
    refused(case, tmp_path)


@each(DECIDED)
def test_decision(case: Case, tmp_path: Path) -> None:
    DECISIONS[case["id"]](case, tmp_path)
