"""Numbers by the names of leaves and over layers: what each leaf gets, and that recipes give the same."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jmerge
from jmerge.recipe.settings import gradient
from jmerge.trees.by_path import Leaf, by_path, over_layers
from jmerge.trees.hyperparameters import read_arguments
from jmerge.trees.table import tabulate

ONES = {f"layers.{i}.{part}": jnp.ones(2) for i in range(5) for part in ("attn", "mlp")}
ONES |= {"embed": jnp.ones(2)}
ZEROS = jax.tree.map(jnp.zeros_like, ONES)


def changes(weight: Any, models: int = 1) -> dict[str, float]:
    """By leaf, what a weight makes of a change of one."""
    merged = jmerge.merge_trees(
        [ONES] * models, method="task_arithmetic", base=ZEROS, weight=weight
    )
    return {name: float(array[0]) for name, array in merged.items()}


def test_the_first_pattern_that_matches() -> None:
    found = changes(by_path({"*.0.*": 0.1, "*attn": 0.2, "layers*": 0.3}, default=0.4))
    for name, weight in {
        "layers.0.attn": 0.1, "layers.1.attn": 0.2, "layers.1.mlp": 0.3, "embed": 0.4,
    }.items():  # fmt: skip
        assert found[name] == pytest.approx(weight)


def test_over_layers_is_the_gradient_of_recipes() -> None:
    values = (0.1, 0.7, 0.2)
    found = changes(by_path({"*mlp*": over_layers(*values)}, default=1.0))
    for i in range(5):
        assert found[f"layers.{i}.mlp"] == np.float32(gradient(values, "float", i / 4))
    assert changes(over_layers(0.25, 1.0))["embed"] == 0.25
    assert over_layers(0.0, 1.0).at(1.0) == 1.0


def test_a_number_for_each_model() -> None:
    wanted = {name: 1.5 if "attn" in name else 0.5 for name in ONES}
    weights = by_path({"*attn": 1.0}, default=0.0)
    assert changes([weights, 0.5], models=2) == wanted
    assert changes(by_path({"*attn": [0.5, 1.0]}, default=0.25), models=2) == wanted
    assert (
        changes({**dict.fromkeys(ONES, 0.25), **{n: [0.5, 1] for n in ONES if "attn" in n}}, 2)
        == wanted
    )


def test_trees_may_end_above_the_leaves() -> None:
    tree = {"a": {"b": jnp.ones(2), "c": jnp.ones(2)}, "d": [jnp.ones(2), jnp.ones(2)]}
    merged = jmerge.merge_trees(
        [tree], method="passthrough", scale={"a": 0.5, "d": [0.25, over_layers(2.0)]}
    )
    assert [float(leaf[0]) for leaf in jax.tree.leaves(merged)] == [0.5, 0.5, 0.25, 2.0]


def test_traced_numbers_in_it() -> None:
    def norm(attn: jax.Array) -> jax.Array:
        weight = by_path({"*attn": attn, "*mlp": over_layers(attn, 1.0)}, default=0.0)
        merged = jmerge.merge_trees([ONES], method="task_arithmetic", base=ZEROS, weight=weight)
        return sum((jnp.sum(leaf) for leaf in jax.tree.leaves(merged)), jnp.asarray(0.0))

    # five of attention, and of the other five 1, 3/4 .. 0 of it
    for slope in (jax.grad(norm), jax.jit(jax.grad(norm))):
        assert slope(0.5) == pytest.approx(2 * (5 + 2.5))


def test_densities_by_path_are_those_of_each_leaf_alone() -> None:
    rng = np.random.default_rng(0)
    models = [{name: jnp.asarray(rng.standard_normal(64), jnp.float32) for name in ONES}] * 2
    base = {name: jnp.zeros(64) for name in ONES}
    density = by_path({"*attn": over_layers(0.1, 0.9)}, default=0.5)

    def thin(names: Any, density: Any) -> dict[str, Any]:
        trees = [{name: model[name] for name in names} for model in models]
        own = {name: base[name] for name in names}
        return jmerge.merge_trees(trees, method="ties", base=own, weight=1.0, density=density)

    found = thin(ONES, density)
    for i in range(5):
        name = f"layers.{i}.attn"
        alone = thin([name], gradient((0.1, 0.9), "float", i / 4))
        np.testing.assert_array_equal(found[name], alone[name])


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: by_path({"*": "0.5"}), TypeError, "by_path: '.': expected a number, found '0.5'"),
        (lambda: by_path({"*": None}), TypeError, "found None"),
        (lambda: by_path({1: 0.5}), TypeError, "a pattern is a string"),  # type: ignore[dict-item]
        (lambda: by_path([0.5]), TypeError, "takes a mapping"),  # type: ignore[arg-type]
        (lambda: over_layers(0.1, len), TypeError, "over_layers: expected a number"),
        (lambda: over_layers([0.1, 0.2], 1.0), TypeError, "over_layers: expected a number, found .0.1, 0.2."),
        (lambda: over_layers(object(), 1.0), TypeError, "over_layers: expected a number, found <object"),
        (lambda: over_layers(0.1, 10**400), TypeError, "over_layers: expected a number, found 1000"),
        (lambda: changes(10**400), ValueError, "weight: expected a finite number, found inf"),
        (lambda: changes(jax.random.key(0)), TypeError, "weight: expected numbers, found an array of key"),
        (lambda: changes(np.array([1j])), TypeError, "weight: expected numbers, found an array of complex128"),
        (lambda: changes(by_path({"*attn": 0.5})), ValueError, "weight: no pattern .* matches 'embed'.*default="),
        (lambda: changes(by_path({"*": [1, 2, 3]})), ValueError, "weight: expected a number for each of 1 models, found 3"),
        (lambda: changes({"embed": 0.5}), ValueError, "weight is a tree that says nothing of 'layers.0.attn'.*by_path"),
        (lambda: changes({**dict.fromkeys(ONES, 1.0), "w": 1.0}), ValueError, "weight has 'w', which the models have not"),
        (lambda: changes(dict.fromkeys(ONES, "x")), TypeError, "weight: expected a number.*found 'x'"),
    ],
)  # fmt: skip
def test_mistakes(make: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        make()


def test_numbers_are_checked_for_every_leaf() -> None:
    method = jmerge.methods.find_method("ties")
    table = tabulate([ONES], ZEROS, layers=None, where=None, otherwise="error")
    hyperparameters = {"weight": 1.0, "density": over_layers(0.5, 1.5)}
    arguments = read_arguments(method, 1, hyperparameters, [])
    assert arguments.at(Leaf(0, "a", 0.0))["density"] == (0.5,)
    with pytest.raises(ValueError, match="density: expected a number from 0 to 1, found 1.25"):
        for row in table.rows:
            arguments.at(row.places[0])
