"""Every law of `jmerge.testing.laws` for every registered method, from one table of rows."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import references

from jmerge.methods import REGISTRY, PerModel, Shared, Switch, merge_method
from jmerge.methods.combine import weighted_sum
from jmerge.testing.laws import LAWS, Row, cases, forget_kernels

NO_DELTA = "it takes whole models, not changes from a base"
ONE_MODEL = "it takes one model (besides the base), so there is nothing to reorder"
RANDOM = "its random numbers go by the place of a model"

ROWS = {
    row.method: row
    for row in (
        Row(
            method="linear",
            reference=references.linear,
            numbers=(
                {"weight": (0.3, 0.5, 0.33)},
                {"weight": (0.3, 0.5, 0.33), "normalize": False},
                {"weight": (1.2, -0.3, 0.1), "normalize": True},
                {"weight": (0.7,)},
                {"weight": (0.1, 0.2, 0.3, 0.4, 0.5, 0.6), "normalize": False},
            ),
            identity=(
                {"weight": (0.3, 0.5, 0.33)},
                {"weight": (0.3, 0.6, 0.1), "normalize": False},
                {"weight": (1.5, -0.5), "normalize": False},
            ),
            opt_out={"shift": NO_DELTA},
        ),
        Row(
            method="slerp",
            reference=references.slerp,
            numbers=({"t": 0.3}, {"t": 0.0}, {"t": 1.0}, {"t": -0.25}, {"t": 1.4}),
            identity=({"t": 0.3}, {"t": 1.4}),
            opt_out={"shift": NO_DELTA, "order": ONE_MODEL},
        ),
        Row(
            method="task_arithmetic",
            reference=references.task_arithmetic,
            numbers=(
                {"weight": (0.3, 0.5, 0.33)},
                {"weight": (0.3, 0.5, 0.33), "lambda": 0.7},
                {"weight": (0.3, 0.5, 0.33), "normalize": True},
                {"weight": (1.0, -0.4), "lambda": 1.8, "normalize": True},
                {"weight": (1.0, -1.0), "normalize": True},
                {"weight": (0.7,), "lambda": -0.5, "normalize": False},
            ),
            identity=(
                {"weight": (0.3, 0.6, 0.1)},
                {"weight": (0.3, 0.5, 0.33), "lambda": 1.0, "normalize": True},
            ),
        ),
        Row(
            method="passthrough",
            reference=references.passthrough,
            numbers=({}, {"scale": (0.3,)}, {"scale": (-1.5,)}, {"scale": (0.0,)}),
            identity=({}, {"scale": (1.0,)}),
            opt_out={"shift": NO_DELTA, "order": ONE_MODEL},
        ),
        Row(
            method="ties",
            reference=references.ties,
            numbers=(
                {"weight": (0.3, 0.5, 0.33), "density": (0.4, 0.5, 0.01)},
                {"weight": (0.3, 0.5), "density": (0.4, 0.0), "rescale": True, "lambda": 0.7},
                {"weight": (1.0, -0.4), "density": (0.5, 1.0), "normalize": False},
            ),
            identity=(
                {"weight": (0.3, 0.6, 0.1)},
                {"weight": (0.3, 0.6, 0.1), "normalize": False, "rescale": True},
            ),
        ),
        *(
            Row(
                method=method,
                reference=reference,
                numbers=(
                    {"weight": (0.3, 0.5, 0.33), "density": (0.4, 0.5, 0.01)},
                    {"weight": (0.3, 0.5), "density": (0.4, 0.0), "rescale": False, "lambda": 0.7},
                    {"weight": (1.0, -0.4), "density": (0.5, 1.0), "normalize": True},
                ),
                identity=(
                    {"weight": (0.3, 0.6, 0.1)},
                    {"weight": (0.3, 0.5, 0.33), "normalize": True, "rescale": False},
                ),
                opt_out={"order": RANDOM},
            )
            for method, reference in (
                ("dare_linear", references.dare_linear),
                ("dare_ties", references.dare_ties),
            )
        ),
        *(
            Row(
                method=method,
                reference=reference,
                numbers=(
                    {
                        "weight": (0.3, 0.5, 0.33),
                        "density": (0.4, 0.7, 0.01),
                        "gamma": (0.1, 0.2, 0.5),
                    },
                    {"weight": (0.3, 0.5), "density": (0.4, 0.0), "rescale": True, "lambda": 0.7},
                    {"weight": (1.0, -0.4), "density": (0.5, 1.0), "normalize": True},
                ),
                identity=({"weight": (0.3, 0.6, 0.1)},),
            )
            for method, reference in (
                ("breadcrumbs", references.breadcrumbs),
                ("breadcrumbs_ties", references.breadcrumbs_ties),
            )
        ),
        Row(
            method="nearswap",
            reference=references.nearswap,
            numbers=({"t": 0.3}, {"t": 1e-5}, {"t": -0.2}),
            identity=({"t": 0.3},),
            opt_out={"shift": NO_DELTA, "order": ONE_MODEL},
        ),
        Row(
            method="ram",
            reference=references.ram,
            numbers=({}, {"epsilon": 0.5}),
            identity=({},),
        ),
        Row(
            method="ramplus_tl",
            reference=references.ramplus_tl,
            numbers=({"epsilon": 0.5}, {}, {"r": 0.7, "alpha": 50.0, "epsilon": 1.0}),
            identity=({},),
        ),
        Row(
            method="magmax",
            reference=references.magmax,
            numbers=({}, {"lambda": 0.3}),
            identity=({"lambda": 1.0},),
            opt_out={
                "order": "of equally large changes the last is taken, so only ties depend on it"
            },
        ),
        Row(
            method="negmerge",
            reference=references.negmerge,
            numbers=({}, {"lambda": -0.7}),
            identity=({"lambda": -1.0},),
        ),
        Row(
            method="multislerp",
            reference=references.multislerp,
            numbers=(
                {"weight": (0.3, 0.5, 0.33)},
                {"weight": (0.3, 0.5), "normalize_weights": False},
                {"weight": (0.7,)},
                {"weight": (0.3, 0.5, -0.2), "eps": 0.01},
            ),
            identity=({"weight": (0.3, 0.6, 0.1)}, {"weight": (0.7,)}),
            opt_out={"shift": "without a base it takes whole models"},
        ),
        Row(
            method="karcher",
            reference=references.karcher,
            numbers=({}, {"max_iter": 1.0}, {"tol": 0.01}),
            identity=({},),
            opt_out={"shift": NO_DELTA},
        ),
        Row(
            method="model_stock",
            reference=references.model_stock,
            numbers=({}, {"filter_wise": True}),
            identity=({},),
            opt_out={"compiles": "it has no numbers"},
        ),
        Row(
            method="nuslerp",
            reference=references.nuslerp,
            numbers=(
                {"weight": (0.3, 0.5)},
                {"weight": (0.3, 0.5), "nuslerp_flatten": False},
                {"weight": (1.0, -1.0)},
                {"weight": (1.5, -0.5), "nuslerp_flatten": True},
            ),
            identity=({"weight": (0.3, 0.5)}, {"weight": (0.3, 0.5), "nuslerp_flatten": False}),
            opt_out={
                "shift": "without a base it takes whole models",
                "order": "its two models have parts of their own",
            },
        ),
    )
}


def test_every_method_has_a_row() -> None:
    assert set(ROWS) == set(REGISTRY)


# What a package that adds a method does: a function, a reference, a row.


def softened(delta: jax.Array, *, weight: jax.Array, power: jax.Array, flat: bool) -> jax.Array:
    """delta [models, *shape], weight [models], power scalar -> a weighted mean that is drawn towards zero."""
    mean = weighted_sum(weight, delta) / jnp.sum(weight)
    return power * mean if flat else power * mean / jnp.sqrt(1 + mean * mean)


def softened_reference(
    models: np.ndarray, base: np.ndarray | None, numbers: Mapping[str, Any]
) -> np.ndarray:
    """The same in numpy."""
    weight = references.each(numbers["weight"], models)
    origin = np.zeros_like(models[0]) if base is None else base
    mean = (weight * (models - origin)).sum(axis=0) / weight.sum()
    soft = mean if numbers.get("flat", False) else mean / np.sqrt(1 + mean**2)
    return origin + numbers.get("lambda", 1.0) * soft


THEIRS = Row(
    method="softened",
    reference=softened_reference,
    numbers=({"weight": (0.3, 0.5)}, {"weight": (0.3, 0.5), "lambda": 0.7, "flat": True}),
    identity=({"weight": (0.3, 0.5), "flat": True},),
)


@pytest.fixture
def theirs() -> Iterator[None]:
    """Their method, for one test."""
    merge_method(
        "softened",
        takes="delta",
        base="optional",
        weight=PerModel(),
        power=Shared(1.0, yaml="lambda"),
        flat=Switch(False),
    )(softened)
    yield
    del REGISTRY["softened"]
    forget_kernels()


@pytest.mark.usefixtures("theirs")
@pytest.mark.parametrize("law", LAWS)
def test_law_for_a_method_of_another_package(law: str) -> None:
    """Its base is optional, so every law is tried with and without one."""
    LAWS[law](THEIRS)


# The table itself


@pytest.mark.parametrize(
    "opt_out",
    [{"ordre": "a misspelt law"}, {"order": ""}, {"order": " "}],
    ids=["name", "empty", "blank"],
)
def test_an_opt_out_names_a_law_and_a_reason(opt_out: Mapping[str, str]) -> None:
    with pytest.raises(ValueError, match="linear: opts out of"):
        cases([dataclasses.replace(ROWS["linear"], opt_out=opt_out)])


def test_an_opt_out_leaves_out_that_law_alone() -> None:
    row = dataclasses.replace(ROWS["linear"], opt_out={"order": "for this test"})
    assert [law for _, law in cases([row])] == [law for law in LAWS if law != "order"]


@pytest.mark.parametrize(
    ("law", "method", "changes"),
    [
        ("equal_inputs", "linear", {"identity": ()}),
        ("order", "slerp", {}),
        ("shift", "linear", {}),
        ("compiles", "passthrough", {"numbers": ({}, {"scale": (0.0,)})}),
    ],
)
def test_a_law_with_nothing_to_try_fails(law: str, method: str, changes: Mapping[str, Any]) -> None:
    """It never passes for want of an example; the row has to opt out and say why."""
    with pytest.raises(AssertionError, match="no example|not a delta method"):
        LAWS[law](dataclasses.replace(ROWS[method], **changes))


@pytest.mark.parametrize(
    ("row", "law"),
    [pytest.param(row, law, id=f"{row.method}-{law}") for row, law in cases(ROWS.values())],
)
def test_law(row: Row, law: str) -> None:
    LAWS[law](row)
