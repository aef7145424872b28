"""`merge_trees`: the methods on pytrees, traced, batched, differentiated and sharded."""

from __future__ import annotations

import doctest
from collections.abc import Callable
from pathlib import Path
from typing import Any

import flax.nnx as nnx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import references
import yaml
from treecases import NUMBERS, OF_EACH_KIND, merge, on_eight_devices

import jmerge
from jmerge.methods import REGISTRY, find_method
from jmerge.testing.close import assert_close, assert_same_bytes
from jmerge.testing.tiny import write_checkpoint
from jmerge.testing.ways import quick_options
from jmerge.trees import merge as merging

Tree = dict[str, Any]
SHAPES = {"b": (), "layers.0.w": (9, 130), "layers.1.w": (3, 5, 7)}


def draw(models: int, dtype: Any = np.float32) -> tuple[Tree, list[Tree]]:
    """A base and fine-tunes of it."""
    rng = np.random.default_rng(5)
    base = {name: np.asarray(rng.standard_normal(shape)) for name, shape in SHAPES.items()}

    def near() -> Tree:
        return {
            name: jnp.asarray(array + 0.1 * rng.standard_normal(array.shape), dtype)
            for name, array in base.items()
        }

    return {name: jnp.asarray(array, dtype) for name, array in base.items()}, [
        near() for _ in range(models)
    ]


BY_METHOD = pytest.mark.parametrize(
    "method",
    [
        pytest.param(name, marks=() if name in OF_EACH_KIND else pytest.mark.slow)
        for name in NUMBERS
    ],
)
# what no gradient goes through: counts, and whether an element is large enough to count
STEPS = {"density", "gamma", "rho", "select_topk", "n", "m", "epsilon"}
# with other weights other changes win the vote: there the result jumps, so no difference shows the slope
VOTES = {"ties", "dare_ties", "della", "breadcrumbs_ties", "equalize(ties)"}


def inputs_of(method: str, dtype: Any = np.float32) -> tuple[Tree | None, list[Tree]]:
    """A base, if the method has one, and as many models as it merges."""
    declared = find_method(method)
    base, models = draw(declared.counts[1] or 3, dtype)
    return (None if declared.base == "input" else base), models


def quickly(function: Callable[..., Any]) -> Callable[..., Any]:
    """`jax.jit` for tests to rounding, most of whose time compiling takes."""
    return jax.jit(function, compiler_options=quick_options())


def test_every_method_is_tried() -> None:
    assert set(REGISTRY) <= set(NUMBERS)


def test_doctests() -> None:
    found = doctest.testmod(merging)
    assert found.attempted >= 9 and not found.failed


# Against recipes


@BY_METHOD
def test_equals_the_recipe(method: str, tmp_path: Path) -> None:
    """A dict of arrays is merged, to rounding, to what a recipe makes of checkpoints with the same names."""
    base, models = inputs_of(method)
    hyperparameters, declared = NUMBERS[method], find_method(method)
    names = {keyword: name for name, keyword in declared.keywords.items()}
    condition, _, inner = method.rstrip(")").rpartition("(")
    recipe: dict[str, Any] = {"merge_method": inner, "models": [], "parameters": {}}
    if condition:
        recipe["wrap"] = {"condition": condition}
    for i, model in enumerate(models):
        write_checkpoint(tmp_path / f"m{i}", {name: np.asarray(a) for name, a in model.items()})
        own = {
            names.get(key, key): value[i]
            for key, value in hyperparameters.items()
            if isinstance(value, list)
        }
        recipe["models"].append({"model": str(tmp_path / f"m{i}"), "parameters": own})
    for key, value in hyperparameters.items():
        if not isinstance(value, list):
            recipe["parameters"][names.get(key, key)] = value
    if base is not None:
        write_checkpoint(tmp_path / "base", {name: np.asarray(a) for name, a in base.items()})
        recipe["base_model"] = str(tmp_path / "base")
    (tmp_path / "x.yml").write_text(yaml.safe_dump(recipe))
    jmerge.merge(tmp_path / "x.yml", tmp_path / "out")
    found = quickly(lambda models, base: merge(method, base, models, hyperparameters))(models, base)
    folders = [tmp_path / "out"]
    if declared.per_model_output:
        folders = [tmp_path / "out" / f"m{i}" for i in range(len(models))]
    for tree, folder in zip(found if declared.per_model_output else [found], folders, strict=True):
        checkpoint = jmerge.open_checkpoint(folder)
        for name in SHAPES:
            assert_close(np.asarray(tree[name]), checkpoint[name])


@pytest.mark.parametrize("method", ["task_arithmetic", "ties", "emr"])
def test_sixteen_bits_are_merged_in_float32(method: str) -> None:
    """Results are the float32 merge of the widened inputs, rounded once."""
    base, models = inputs_of(method, jnp.bfloat16)
    wide_base, wide = jax.tree.map(lambda array: array.astype(jnp.float32), (base, models))
    found = jax.tree.leaves(merge(method, base, models, NUMBERS[method]))
    wanted = jax.tree.leaves(merge(method, wide_base, wide, NUMBERS[method]))
    for ours, exact in zip(found, wanted, strict=True):
        assert ours.dtype == jnp.bfloat16
        assert_same_bytes(np.asarray(ours), np.asarray(exact.astype(jnp.bfloat16)))


# Transformed


def continuous(method: str) -> dict[str, Any]:
    """The numbers that a gradient goes through."""
    steps = STEPS | ({"weight"} if method in VOTES else set())
    hyperparameters = {"scale": 0.7} if method in VOTES else {}
    return {
        key: jnp.asarray(value, float)
        for key, value in {**NUMBERS[method], **hyperparameters}.items()
        if key not in steps
    }


def objective(method: str) -> Callable[[dict[str, Any]], jax.Array]:
    """A smooth function of the continuous numbers through the merge."""
    base, models = inputs_of(method, float)
    fixed = {key: value for key, value in NUMBERS[method].items() if key not in continuous(method)}

    def loss(hyperparameters: dict[str, Any]) -> jax.Array:
        leaves = jax.tree.leaves(merge(method, base, models, {**fixed, **hyperparameters}))
        return sum((jnp.sum(jnp.sin(leaf)) for leaf in leaves), jnp.asarray(0.0))

    return loss


@pytest.mark.parametrize(
    "method",
    [
        pytest.param(name, marks=() if name in OF_EACH_KIND else pytest.mark.slow)
        for name in NUMBERS
        if continuous(name)
    ],
)
def test_gradients_agree_with_finite_differences(method: str) -> None:
    """In float64, where steps are so small that they cross no kink (nearswap has one at every element near t)."""
    with jax.enable_x64(True):
        loss, hyperparameters = quickly(objective(method)), continuous(method)
        slope = quickly(jax.grad(objective(method)))(hyperparameters)
        for key, value in hyperparameters.items():
            for i in np.ndindex(value.shape):
                step = 1e-6 * max(abs(float(value[i])), 1e-2)
                ends = [
                    float(loss({**hyperparameters, key: value.at[i].add(s)})) for s in (step, -step)
                ]
                estimate = (ends[0] - ends[1]) / (2 * step)
                assert float(slope[key][i]) == pytest.approx(estimate, rel=1e-4, abs=1e-4), key


@pytest.mark.parametrize(
    "method",
    ["linear", "slerp", "ties", "multislerp", pytest.param("pcb", marks=pytest.mark.slow)],
)
def test_many_weightings_at_once(method: str) -> None:
    """A batch under vmap is each of them alone, to rounding."""
    base, models = inputs_of(method)
    fixed = {key: value for key, value in NUMBERS[method].items() if key in STEPS}
    own = {
        key: jnp.asarray(value, jnp.float32)
        for key, value in NUMBERS[method].items()
        if key not in STEPS
    }
    batch = jax.tree.map(lambda value: jnp.stack([value, value * 0.5]), own)
    found = jax.vmap(
        lambda hyperparameters: merge(method, base, models, {**fixed, **hyperparameters})
    )(batch)
    for i in range(2):
        hyperparameters = jax.tree.map(lambda value, i=i: value[i], batch)
        alone = merge(method, base, models, {**fixed, **hyperparameters})
        for many, one in zip(jax.tree.leaves(found), jax.tree.leaves(alone), strict=True):
            assert_close(np.asarray(many[i]), np.asarray(one))


# Trees of all kinds


def test_flax_modules() -> None:
    """The state of an nnx module is a tree like another."""
    models = [nnx.Linear(3, 4, rngs=nnx.Rngs(seed)) for seed in range(2)]
    states: list[Any] = [nnx.state(model, nnx.Param) for model in models]
    mean = (states[0]["kernel"][...] + states[1]["kernel"][...]) / 2
    merged = jmerge.merge_trees(states, method="linear", weight=0.5)
    nnx.update(models[0], merged)
    np.testing.assert_allclose(models[0].kernel[...], mean, rtol=1e-6)


def test_whole_models_are_the_whole_tree() -> None:
    base, models = draw(3)
    found = jmerge.merge_trees(models, method="localize_stitch", base=base, density=0.1)
    stacked = {name: np.stack([np.asarray(m[name], np.float64) for m in models]) for name in SHAPES}
    origin = {name: np.asarray(array, np.float64) for name, array in base.items()}
    wanted = references.of_whole_models(
        references.localize_stitch, stacked, origin, {"density": 0.1}
    )
    for name in SHAPES:
        assert_close(np.asarray(found[name]), wanted[name])


def test_depth_is_a_tree() -> None:
    base, models = draw(2)
    depth = {"b": 0.0, "layers.0.w": 0.0, "layers.1.w": 1.0}
    hyperparameters: dict[str, Any] = {"weight": 0.5, "lines_alpha": 0.25, "lines_beta": 0.5}
    plain = jmerge.merge_trees(models, method="task_arithmetic", base=base, weight=0.5)
    found = jmerge.merge_trees(
        models, method="lines(task_arithmetic)", base=base, depth=depth, **hyperparameters
    )
    for name in SHAPES:
        factor = 0.25 + 0.5 * depth[name]
        wanted = np.asarray(base[name]) + factor * (
            np.asarray(plain[name]) - np.asarray(base[name])
        )
        assert_close(np.asarray(found[name]), wanted)
    over = jmerge.over_layers(0.0, 1.0)
    layered = jmerge.merge_trees(
        models, method="lines(task_arithmetic)", base=base, depth=over, **hyperparameters
    )
    for name in SHAPES:
        assert_same_bytes(np.asarray(layered[name]), np.asarray(found[name]))
    with pytest.raises(ValueError, match="depth: expected a number from 0 to 1, found 2"):
        jmerge.merge_trees(models, method="lines(ties)", base=base, weight=0.5, depth=2.0)
    with pytest.raises(TypeError, match="depth="):
        jmerge.merge_trees(models, method="lines(ties)", base=base, weight=0.5)
    with pytest.raises(ValueError, match="depth is a tree that says nothing of 'layers.0.w'"):
        jmerge.merge_trees(models, method="lines(ties)", base=base, weight=0.5, depth={"b": 1.0})


def test_what_is_not_floating_is_given_back() -> None:
    trees = [{"w": jnp.full(2, float(i)), "step": jnp.arange(3)} for i in range(2)]
    merged = jmerge.merge_trees(trees, method="linear", weight=0.5)
    assert_same_bytes(np.asarray(merged["step"]), np.arange(3, dtype=np.int32))
    trees[1]["step"] = jnp.arange(1, 4)
    with pytest.raises(ValueError, match="'step' is int32, which cannot be merged, and differs"):
        jmerge.merge_trees(trees, method="linear", weight=0.5)
    with pytest.raises(
        ValueError,
        match="'step' is int32, .* whether all are equal cannot be seen .*; otherwise='first'",
    ):
        jax.jit(lambda trees: jmerge.merge_trees(trees, method="linear", weight=0.5))(trees)


ONE, TWO = {"w": jnp.ones(3)}, {"w": jnp.zeros(3)}


@pytest.mark.parametrize(
    ("error", "message", "trees", "keywords"),
    [
        (KeyError, "tize", [ONE], {"method": "tize"}),
        (TypeError, "'ties' needs a base", [ONE, TWO], {"method": "ties", "weight": 1.0}),
        (TypeError, "takes no base", [ONE], {"method": "linear", "base": TWO, "weight": 1.0}),
        (TypeError, "needs 'weight'", [ONE, TWO], {"method": "linear"}),
        (TypeError, "did you mean 'weight'", [ONE], {"method": "linear", "wieght": 1.0, "weight": 1}),
        (TypeError, "exactly 1 model", [ONE, TWO], {"method": "slerp", "base": ONE, "t": 0.5}),
        (ValueError, "for each of 2 models, found 3", [ONE, TWO], {"method": "linear", "weight": [1, 2, 3]}),
        (ValueError, "'w' is .2,. in models.0.", [{"w": jnp.ones(2)}, TWO], {"method": "linear", "weight": 1}),
        (ValueError, "'w' is in models.1. only", [{"v": jnp.ones(3)}, TWO], {"method": "linear", "weight": 1}),
        (ValueError, "is a float in one", [{"w": jnp.arange(3)}, TWO], {"method": "linear", "weight": 1}),
        (ValueError, "from 0 to 1", [ONE], {"method": "dare_ties", "base": TWO, "weight": 1.0, "density": 2.0}),
        (ValueError, "needs an epsilon", [ONE], {"method": "della", "base": TWO, "weight": 1.0, "density": 0.9}),
    ],
)  # fmt: skip
def test_mistakes(
    error: type[Exception], message: str, trees: list[Tree], keywords: dict[str, Any]
) -> None:
    with pytest.raises(error, match=message):
        jmerge.merge_trees(trees, **keywords)


def test_traced_densities_count_as_float32_says() -> None:
    """Alone and many at once; only what decides about the program has to be plain."""
    base, models = draw(2)

    def sparse(density: Any, **rest: Any) -> Any:
        hyperparameters = {"weight": 1.0, "density": density, **rest}
        return jmerge.merge_trees(models, method="ties", base=base, **hyperparameters)

    densities = np.asarray([0.0, 0.3, 1 / 3, 1.0], np.float32)
    found = jax.jit(jax.vmap(sparse))(densities)
    for i, density in enumerate(densities):
        for name, array in sparse(density).items():
            assert_same_bytes(np.asarray(found[name][i]), np.asarray(array))
    with pytest.raises(TypeError, match="'normalize' decides what program there is"):
        jax.jit(lambda yes: sparse(0.5, normalize=yes))(True)


# Sharded

SHARDED = Path(__file__).parent / "sharded_trees.py"


@pytest.mark.parametrize(
    "methods",
    [
        # one of each kind: elementwise, sums, cuts, random ranks, whole models
        ["task_arithmetic", "slerp", "ties", "della", "localize_stitch"],
        pytest.param([], marks=pytest.mark.slow, id="all"),
    ],
)
def test_sharded_trees_stay_sharded(methods: list[str]) -> None:
    """Eight forced devices, in a process of their own."""
    on_eight_devices(SHARDED, *methods)


@pytest.mark.parametrize(
    "method",
    ["equalize(linear)", "lines(emr)", "equalize(equalize(ties))", "lines(equalize(ties))"],
)
def test_wrappers_go_around_what_they_fit(method: str) -> None:
    with pytest.raises(ValueError, match="cannot be wrapped"):
        jmerge.merge_trees([ONE], method=method, base=TWO, weight=1.0)


@pytest.mark.parametrize("method", ["linear", "emr", "pcb", "localize_stitch", "equalize(ties)"])
def test_trees_with_nothing_to_merge(method: str) -> None:
    base = None if method == "linear" else {"step": np.array([2**40])}
    hyperparameters: dict[str, Any] = (
        {"weight": 1.0} if "weight" in find_method(method).settable else {}
    )
    found = jmerge.merge_trees(
        [{"step": np.array([2**40])}], method=method, base=base, **hyperparameters
    )
    tree = found[0] if method == "emr" else found
    assert_same_bytes(tree["step"], np.array([2**40]))
    with pytest.raises(ValueError, match="differs"):
        jmerge.merge_trees(
            [{"step": np.array([2**40])}, {"step": np.array([0])}], method="linear", weight=1.0
        )


def test_plain_numbers_of_all_kinds_under_jit() -> None:
    for density in (np.float32(0.5), np.array(0.5), np.array([0.5, 0.5]), (0.5, 0.5)):
        merge = jax.jit(
            lambda base, density=density: jmerge.merge_trees(
                [ONE, TWO], method="ties", base=base, weight=1.0, density=density
            )
        )
        assert merge(ONE)["w"].shape == (3,)
    with pytest.raises(TypeError, match="same parameter"):
        twice: dict[str, Any] = {"scale": 1.0, "lambda": 2.0}
        jmerge.merge_trees([ONE], method="magmax", base=TWO, **twice)
    with pytest.raises(TypeError, match="scale: expected a number"):  # as it was called
        jmerge.merge_trees([ONE], method="magmax", base=TWO, scale="x")
    with pytest.raises(TypeError, match="'bsae' is not a parameter of 'ties'; did you mean 'base'"):
        jmerge.merge_trees([ONE], method="ties", bsae=TWO)
    with pytest.raises(TypeError, match="is True or False"):
        jmerge.merge_trees([ONE], method="linear", weight=1.0, normalize="false")
    with pytest.raises(KeyError, match="did you mean 'ties'"):
        jmerge.merge_trees([ONE], method="tie", weight=1.0)
