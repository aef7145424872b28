"""Leaves that hold many layers: each layer is merged bit for bit as if it were a leaf of its own."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jmerge
from jmerge.testing.close import assert_same_bytes
from jmerge.trees.pieces import Call

LAYERS = 3
# stacked along the first, a middle and the last axis
AXES = {"w": 0, "v": 1, "s": 0}
SHAPES = {"w": (LAYERS, 9, 70), "v": (5, LAYERS, 3), "s": (LAYERS,)}


def draw(seed: int) -> dict[str, Any]:
    rng = np.random.default_rng(seed)
    stacked = {name: jnp.asarray(rng.standard_normal(s), jnp.float32) for name, s in SHAPES.items()}
    return {"layers": stacked, "embed": jnp.asarray(rng.standard_normal((4, 7)), jnp.float32)}


def unstacked(tree: Any, name: str = "layers") -> dict[str, Any]:
    """The same with a leaf for every layer."""
    layers = [
        {key: jnp.take(array, i, axis=AXES[key]) for key, array in tree["layers"].items()}
        for i in range(LAYERS)
    ]
    if name == "layers":
        return {"layers": layers, "embed": tree["embed"]}
    return {**{f"layers_{i}": layer for i, layer in enumerate(layers)}, "embed": tree["embed"]}


def assert_equal(found: Any, wanted: Any) -> None:
    assert jax.tree.structure(found) == jax.tree.structure(wanted)  # type: ignore[operator]
    for one, two in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
        assert_same_bytes(np.asarray(one), np.asarray(two))


BASE, MODELS = (
    draw(0),
    [jax.tree.map(lambda a, b: a + 0.1 * b, draw(0), draw(seed)) for seed in (1, 2)],
)
BY_PATTERN = {"*layers.v": 1, "*layers.*": 0}
NUMBERS: dict[str, dict[str, Any]] = {
    "linear": {"weight": [0.3, 0.6]},
    "model_stock": {},
    "ties": {"weight": [0.3, 0.6], "density": jmerge.over_layers(0.1, 0.9)},
    "dare_ties": {"weight": [0.3, 0.6], "density": 0.5, "seed": 3, "rescale": False},
    "localize_stitch": {"density": 0.2},
}


def merge(method: str, models: Any, base: Any, **rest: Any) -> Any:
    origin = None if method == "linear" else base
    return jmerge.merge_trees(models, method=method, base=origin, **NUMBERS[method], **rest)


@pytest.mark.parametrize("method", NUMBERS)
def test_layers_are_leaves(method: str) -> None:
    found = merge(method, MODELS, BASE, layers=BY_PATTERN)
    alone = merge(method, [unstacked(model) for model in MODELS], unstacked(BASE))
    assert_equal(unstacked(found), alone)
    traced = jax.jit(lambda models, base: merge(method, models, base, layers=BY_PATTERN))
    assert_equal(traced(MODELS, BASE), found)


def test_names_of_flax_are_layers_too() -> None:
    found = merge("dare_ties", MODELS, BASE, layers=BY_PATTERN)
    flax = [unstacked(tree, "layers_i") for tree in (*MODELS, BASE)]
    assert_equal(unstacked(found, "layers_i"), merge("dare_ties", flax[:-1], flax[-1]))


@pytest.mark.parametrize(
    "layers",
    [
        {"layers": AXES},
        {"layers": {"w": 0, "v": -2, "s": -1}, "embed": None},
        lambda name: AXES.get(name.rpartition(".")[2]),
    ],
    ids=["tree", "negative", "function"],
)
def test_ways_to_say_it(layers: Any) -> None:
    wanted = merge("dare_ties", MODELS, BASE, layers=BY_PATTERN)
    assert_equal(merge("dare_ties", MODELS, BASE, layers=layers), wanted)
    whole = merge("dare_ties", MODELS, BASE)
    assert (whole["layers"]["w"] != wanted["layers"]["w"]).any()
    assert_equal(whole["embed"], wanted["embed"])


def test_an_axis_without_layers() -> None:
    empty = {"w": jnp.zeros((0, 3))}

    def merge_empty(tree: Any) -> Any:
        return jmerge.ties([tree], base=tree, layers=0)

    for each in (merge_empty, jax.jit(merge_empty)):
        assert each(empty)["w"].shape == (0, 3)
    several = jmerge.emr([empty, empty], base=empty, layers=0)
    assert [tree["w"].shape for tree in several] == [(0, 3)] * 2


def test_mistakes() -> None:
    for layers, message in (
        ({"*layer.*": 0}, "layers: '.layer..' matches no leaf"),
        ({"*embed": 2}, "layers: 'embed' has no axis 2"),
        ({"layer": 0}, "layers has 'layer', which the models have not"),
    ):
        with pytest.raises(ValueError, match=message):
            merge("linear", MODELS, BASE, layers=layers)
    with pytest.raises(TypeError, match="expected an axis or None for 'embed', found '0'"):
        merge("linear", MODELS, BASE, layers=lambda name: "0")


def test_programs_are_shared_by_layers_and_grow_with_shapes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Outside of a trace each shape is traced once, inside of one too."""
    traced: list[tuple[int, ...]] = []
    combine = Call.combine

    def counted(self: Call, piece: Any, found: Any) -> Any:
        traced.append(piece.arrays[0].shape)
        return combine(self, piece, found)

    monkeypatch.setattr(Call, "combine", counted)
    tree = {
        f"layers.{i}.{part}": jnp.ones((3, 11, size))
        for i in range(6)
        for part, size in (("a", 2), ("b", 3))
    }
    for run in (soup, jax.jit(soup)):
        run([tree, tree], 0.3)
        assert len(traced) == 2 and set(traced) == {(3, 11, 2), (3, 11, 3)}
        traced.clear()
    soup([tree, tree], [0.1, 0.7])
    assert traced == []  # a new number compiles nothing
    soup([tree, tree], 0.5, layers=0)
    assert sorted(traced) == [(11, 2), (11, 3)]


def soup(models: Any, weight: Any, **rest: Any) -> Any:
    return jmerge.merge_trees(models, method="linear", weight=weight, **rest)
