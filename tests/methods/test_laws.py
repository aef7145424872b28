"""Every law of `jmerge.testing.laws` for every registered method, from the table in rows.py."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import references
from rows import ROWS

from jmerge.methods import REGISTRY, PerModel, Shared, Switch, merge_method
from jmerge.methods.combine import weighted_sum
from jmerge.testing.examples import Row
from jmerge.testing.laws import LAWS, cases
from jmerge.testing.ways import forget_kernels


def test_every_method_has_a_row() -> None:
    assert set(ROWS) >= set(REGISTRY)


# What a package that adds a method does: a function, a reference, a row.


def softened(delta: jax.Array, *, weight: jax.Array, power: jax.Array, flat: bool) -> jax.Array:
    """delta [models, *shape], weight [models], power scalar -> a weighted mean that is drawn towards zero."""
    mean = weighted_sum(weight, delta) / jnp.sum(weight)
    return power * mean if flat else power * mean / jnp.sqrt(1 + mean * mean)


def softened_reference(
    models: np.ndarray, base: np.ndarray | None, hyperparameters: Mapping[str, Any]
) -> np.ndarray:
    """The same in numpy."""
    weight = references.each(hyperparameters["weight"], models)
    origin = np.zeros_like(models[0]) if base is None else base
    mean = (weight * (models - origin)).sum(axis=0) / weight.sum()
    soft = mean if hyperparameters.get("flat", False) else mean / np.sqrt(1 + mean**2)
    return origin + hyperparameters.get("lambda", 1.0) * soft


THEIRS = Row(
    method="softened",
    reference=softened_reference,
    hyperparameters=({"weight": (0.3, 0.5)}, {"weight": (0.3, 0.5), "lambda": 0.7, "flat": True}),
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


@pytest.mark.xdist_group("softened")
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
        ("compiles", "passthrough", {"hyperparameters": ({}, {"scale": (0.0,)})}),
    ],
)
def test_a_law_with_nothing_to_try_fails(law: str, method: str, changes: Mapping[str, Any]) -> None:
    """It never passes for want of an example; the row has to opt out and say why."""
    with pytest.raises(AssertionError, match="no example|not a delta method"):
        LAWS[law](dataclasses.replace(ROWS[method], **changes))


# Their statistics are those of others, of which the default suite cuts tensors in every way: `della`, `dare_ties`,
# `breadcrumbs_ties`, and `localize_stitch` for thresholds of whole models.
CUT_AS_OTHERS = ("della_linear", "dare_linear", "breadcrumbs", "pcb")


def _slow(row: Row, law: str) -> list[pytest.MarkDecorator]:
    """Conditions differ in a formula alone, so one of them, with LiNeS, is tried by the default suite. So are bundles
    of few methods, see `test_bundles`, and eager functions of few: the others are compared under `jit` alone."""
    conditioned = "(" in row.method and row.method != "equalize(lines(ties))"
    rarely = law == "bundles" or (law == "jit" and row.method not in ("linear", "slerp", "ties"))
    cut_as_others = law == "chunks" and row.method in CUT_AS_OTHERS
    return [pytest.mark.slow] if rarely or conditioned or cut_as_others else []


@pytest.mark.parametrize(
    ("row", "law"),
    [
        pytest.param(
            row,
            law,
            id=f"{row.method}-{law}",
            marks=[pytest.mark.xdist_group(row.method), *_slow(row, law)],
        )
        for row, law in cases(ROWS.values())
    ],
)
def test_law(row: Row, law: str) -> None:
    LAWS[law](row)
