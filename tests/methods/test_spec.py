"""The decorator, registration by installed packages, and methods as plain functions under grad and vmap."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jmerge
from jmerge.errors import PluginWarning, RecipeError
from jmerge.methods import REGISTRY, PerModel, Shared, Switch, apply, merge_method
from jmerge.methods.linear import linear
from jmerge.methods.slerp import slerp_sums
from jmerge.methods.spec import BROKEN, register_installed
from jmerge.methods.statistics.counts import kept_count
from jmerge.methods.statistics.sums import BlockSum
from jmerge.methods.statistics.thresholds import Threshold, change_keys, kept_changes
from jmerge.methods.statistics.topk import TopK
from jmerge.methods.task_arithmetic import task_arithmetic
from jmerge.report.methods import method_text
from jmerge.testing.close import assert_close


@pytest.fixture(autouse=True)
def registry() -> Iterator[None]:
    """What a test registers is gone after it."""
    before = dict(REGISTRY)
    yield
    REGISTRY.clear()
    REGISTRY.update(before)
    BROKEN.clear()


def mean(models: jax.Array, *, weight: jax.Array, power: jax.Array, strict: bool) -> jax.Array:
    """A function of the right form for the declarations below."""
    return models[0]


DECLARED: dict[str, Any] = {
    "weight": PerModel(),
    "power": Shared(1.0, yaml="lambda"),
    "strict": Switch(False),
}


# Declaring


def test_the_function_comes_back_unchanged_and_is_registered() -> None:
    assert merge_method("mean", takes="models", **DECLARED)(mean) is mean
    assert REGISTRY["mean"].function is mean


def test_parameters_go_by_their_names_in_recipes() -> None:
    merge_method("mean", takes="models", **DECLARED)(mean)
    method = REGISTRY["mean"]
    assert list(method.parameters) == ["weight", "lambda", "strict"]
    assert method.keywords == {"weight": "weight", "lambda": "power", "strict": "strict"}
    assert method.parameters["lambda"].default == 1.0
    assert (method.title, method.base, method.counts) == ("mean", "input", (1, None))


@pytest.mark.parametrize(
    "declared",
    [
        {name: DECLARED[name] for name in ("weight", "power")},
        {**DECLARED, "density": PerModel(1.0)},
        {**{name: DECLARED[name] for name in ("weight", "power")}, "stritc": Switch(False)},
        {},
    ],
    ids=["one too few", "one too many", "misspelt", "none"],
)
def test_declared_names_must_be_the_keyword_only_names(declared: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="mean: declared .* keyword-only arguments are"):
        merge_method("mean", takes="models", **declared)(mean)
    assert "mean" not in REGISTRY


def test_a_parameter_that_can_be_passed_by_position_is_not_declared() -> None:
    def loose(models: jax.Array, weight: jax.Array) -> jax.Array:
        return models[0]

    with pytest.raises(ValueError, match="keyword-only"):
        merge_method("loose", takes="models", weight=PerModel())(loose)


def test_a_statistic_needs_a_keyword_and_the_keyword_needs_a_statistic() -> None:
    def with_sums(models: jax.Array, *, sums: jax.Array) -> jax.Array:
        return models[0]

    def without(models: jax.Array) -> jax.Array:
        return models[0]

    found = [BlockSum(keyword="sums", terms=slerp_sums)]
    with pytest.raises(ValueError, match="declared"):
        merge_method("summed", takes="models")(with_sums)
    with pytest.raises(ValueError, match="declared"):
        merge_method("summed", takes="models", statistics=found)(without)
    merge_method("summed", takes="models", statistics=found)(with_sums)
    assert REGISTRY["summed"].statistics[0].terms is slerp_sums


def test_a_parameter_that_only_statistics_use_is_no_keyword() -> None:
    """The function sees what they make of it, and is not given the number."""

    def largest(models: jax.Array, *, keep: Threshold) -> jax.Array:
        return jnp.where(kept_changes(models, keep)[0], models[0], 0)

    def with_share(models: jax.Array, *, keep: Threshold, share: jax.Array) -> jax.Array:
        return models[0]

    keep = TopK(
        keyword="keep",
        terms=change_keys,
        counts=lambda hyperparameters, size, found: [[kept_count(hyperparameters["share"], size)]],
    )
    unseen, seen = Shared(0.5, given=False), Shared(0.5)
    with pytest.raises(ValueError, match="declared .'keep', 'share'."):
        merge_method("largest", takes="models", statistics=[keep], share=seen)(largest)
    with pytest.raises(ValueError, match="declared .'keep'."):
        merge_method("largest", takes="models", statistics=[keep], share=unseen)(with_share)
    merge_method("largest", takes="models", statistics=[keep], share=unseen)(largest)
    models = jnp.asarray([[1.0, -3.0, 2.0, -0.5]], jnp.float32)
    found = [merged("largest", models, share=share).tolist() for share in (0.5, 0.25)]
    assert found == [[0, -3, 2, 0], [0, -3, 0, 0]]


def test_statistics_that_are_known_are_not_found_again() -> None:
    """As those of whole models; and one that the numbers make needless is not found at all."""
    models = tensors(2).astype(jnp.float32)
    sums = jnp.float32([1, 1, 0])
    found = merged("slerp", models[0], models[1:], found={"sums": sums}, t=0.5)
    wanted = REGISTRY["slerp"].function(models[0], models[1:], t=jnp.float32(0.5), sums=sums)
    assert_close(np.asarray(found), np.asarray(wanted))
    assert abs(found - merged("slerp", models[0], models[1:], t=0.5)).max() > 0.01
    for rescale in (False, True):
        needed = REGISTRY["ties"].needed({"rescale": rescale})
        assert [each.keyword for each in needed] == ["keep", *["sums"] * rescale]


def test_a_name_is_given_once() -> None:
    merge_method("mean", takes="models", **DECLARED)(mean)
    with pytest.raises(ValueError, match="'mean' is already registered"):
        merge_method("mean", takes="models", **DECLARED)(
            lambda models, *, weight, power, strict: models[0]
        )
    with pytest.raises(ValueError, match="'linear' is already registered"):
        merge_method("linear", takes="models", **DECLARED)(mean)
    assert REGISTRY["linear"].function is linear


# Installed packages


def install(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    """Pretend that a package declares `value` under the entry point group."""
    group = "jmerge.methods"
    points = [importlib.metadata.EntryPoint(name="theirs", value=value, group=group)]
    monkeypatch.setattr(
        importlib.metadata,
        "entry_points",
        lambda **kwargs: points if kwargs == {"group": group} else [],
    )


def test_an_installed_module_registers_itself(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "their_methods.py").write_text(
        "from jmerge.methods import PerModel, merge_method\n"
        "@merge_method('theirs', takes='models', weight=PerModel())\n"
        "def theirs(models, *, weight):\n"
        "    return models[0]\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    install(monkeypatch, "their_methods")
    register_installed()
    assert REGISTRY["theirs"].function.__module__ == "their_methods"


@pytest.mark.parametrize(
    "body", ["import no_such_module", "1 / 0", "from jmerge.methods import nothing", "x = ("]
)
def test_an_installed_module_that_fails_is_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, body: str
) -> None:
    """Their mistake is one line that names the method and where it comes from, whatever the error was."""
    (tmp_path / "their_broken_methods.py").write_text(body + "\n")
    monkeypatch.syspath_prepend(tmp_path)
    install(monkeypatch, "their_broken_methods")
    words = "'theirs' of their_broken_methods cannot be loaded: "
    with pytest.warns(PluginWarning, match=words) as warned:
        register_installed()
    assert "\n" not in str(warned[0].message)
    # and a merge by it says so, one by another method nothing
    for method, told in (("theirs", words), ("their", words), ("linear", None)):
        models = [{"model": {"x": np.ones(2)}}] * 2
        recipe = {"merge_method": method, "models": models, "parameters": {"weight": 1}}
        if told is None:
            assert set(jmerge.plan(recipe).outputs) == {"x"}
        else:
            with pytest.raises(RecipeError, match=told):
                jmerge.plan(recipe)
    with pytest.raises(ValueError, match=words):
        method_text("theirs")


def notebook_cell(factor: float) -> None:
    """Define a method, as running a cell of a notebook does."""
    text = f"def scaled(models):\n    return models[0] * {factor}\n"
    space: dict[str, Any] = {"__name__": "__main__"}
    exec(text, space)
    merge_method("scaled", takes="models")(space["scaled"])


def test_a_cell_that_is_run_again_replaces_its_method() -> None:
    """In recipes too, whose programs are compiled once for each method."""
    recipe = {"merge_method": "scaled", "models": [{"model": {"x": np.ones(3, np.float32)}}]}
    for factor in (2.0, 3.0):
        notebook_cell(factor)
        np.testing.assert_array_equal(jmerge.merge(recipe)["x"], factor)


# Under grad and vmap

SHAPE = (3, 5)


def tensors(models: int) -> jax.Array:
    """Seeded normal models [models, *SHAPE], in the default float dtype."""
    values = np.random.default_rng(models).standard_normal((models, *SHAPE))
    return jnp.asarray(values, jnp.result_type(float))


def loss(merged: jax.Array) -> jax.Array:
    """A smooth number that depends on every element."""
    probe = jnp.asarray(np.random.default_rng(9).standard_normal(SHAPE), merged.dtype)
    return jnp.sum(probe * merged) + jnp.sum(merged**2)


def merged(name: str, *arrays: jax.Array, found: Any = None, **hyperparameters: Any) -> jax.Array:
    """The result of a method for whole arrays."""
    return apply(REGISTRY[name], arrays, hyperparameters, found=found)


def slerp(base: jax.Array, models: jax.Array, *, t: Any) -> jax.Array:
    """Slerp with the sums of these tensors."""
    return merged("slerp", base, models, t=t)


def colinear() -> tuple[jax.Array, jax.Array]:
    base = tensors(1)[0]
    return base, 1.5 * base[None]


CURVES: dict[str, tuple[Callable[[Any], jax.Array], Any]] = {
    "linear": (lambda x: linear(tensors(3), weight=x, normalize=True), [0.3, 0.5, 0.33]),
    "linear, summed": (lambda x: linear(tensors(3), weight=x, normalize=False), [0.3, -0.5, 0.3]),
    "slerp": (lambda x: slerp(tensors(2)[0], tensors(2)[1:], t=x), 0.3),
    "slerp, outside": (lambda x: slerp(tensors(2)[0], tensors(2)[1:], t=x), 1.4),
    "slerp, colinear": (lambda x: slerp(*colinear(), t=x), 0.3),
    "slerp, zeros": (lambda x: slerp(0 * tensors(1)[0], 0 * tensors(1), t=x), 0.3),
    "task_arithmetic, weight": (
        lambda x: task_arithmetic(tensors(2), weight=x, scale=jnp.asarray(0.7), normalize=True),
        [1.0, -0.4],
    ),
    "task_arithmetic, lambda": (
        lambda x: task_arithmetic(
            tensors(2), weight=jnp.asarray([1.0, -0.4]), scale=x, normalize=False
        ),
        0.7,
    ),
}


@pytest.mark.parametrize(("curve", "at"), CURVES.values(), ids=CURVES.keys())
def test_gradient_in_the_numbers_agrees_with_finite_differences(
    curve: Callable[[Any], jax.Array], at: Any
) -> None:
    with jax.enable_x64(True):
        at = jnp.asarray(at, jnp.float64)
        found = np.asarray(jax.jit(jax.grad(lambda x: loss(curve(x))))(at))
        steps = 1e-5 * np.eye(at.size).reshape(-1, *at.shape)
        wanted = [
            float(loss(curve(at + jnp.asarray(step))) - loss(curve(at - jnp.asarray(step)))) / 2e-5
            for step in steps
        ]
    assert found.dtype == np.float64
    np.testing.assert_allclose(found.reshape(-1), wanted, rtol=1e-7, atol=1e-7)


KARCHER = {"max_iter": 10, "tol": 1e-5}
ARRAYS: dict[str, tuple[Callable[[jax.Array], jax.Array], int]] = {
    "linear": (lambda x: linear(x, weight=jnp.asarray([0.3, 0.5]), normalize=True), 2),
    "slerp": (lambda x: slerp(x[0], x[1:], t=jnp.asarray(0.3)), 2),
    "task_arithmetic": (
        lambda x: task_arithmetic(
            x, weight=jnp.asarray([0.3, 0.5]), scale=jnp.asarray(0.7), normalize=True
        ),
        2,
    ),
    "karcher": (lambda x: merged("karcher", x, **KARCHER), 3),
    "karcher, one step": (lambda x: merged("karcher", x, max_iter=1, tol=1e-5), 2),
    "karcher, one is zero": (
        lambda x: merged("karcher", x.at[1].set(0), **KARCHER),
        3,
    ),
    "multislerp": (
        lambda x: merged(
            "multislerp", x, weight=jnp.asarray([0.3, 0.5]), normalize_weights=True, eps=1e-8
        ),
        2,
    ),
    "nuslerp": (
        lambda x: merged(
            "nuslerp",
            x,
            weight=jnp.asarray([0.3, 0.5]),
            nuslerp_flatten=True,
            nuslerp_row_wise=False,
        ),
        2,
    ),
    "model_stock": (lambda x: merged("model_stock", x, filter_wise=False), 3),
}


@pytest.mark.parametrize(("method", "models"), ARRAYS.values(), ids=ARRAYS.keys())
def test_gradient_in_the_tensors_agrees_with_finite_differences(
    method: Callable[[jax.Array], jax.Array], models: int
) -> None:
    """Learning through a merge: the sums, and the steps that follow from them, are differentiated too."""
    with jax.enable_x64(True):
        at = tensors(models)
        direction = jnp.asarray(np.random.default_rng(5).standard_normal(at.shape))
        value = jax.jit(lambda x: loss(method(x)))
        found = jnp.vdot(jax.jit(jax.grad(value))(at), direction)
        ahead, behind = value(at + 1e-5 * direction), value(at - 1e-5 * direction)
        np.testing.assert_allclose(float(found), float(ahead - behind) / 2e-5, rtol=1e-7)


ALIKE: dict[str, Callable[[jax.Array], jax.Array]] = {
    "equal": lambda x: jnp.broadcast_to(x[0], x.shape),
    "nearly equal": lambda x: x[:1] + 1e-7 * x,
    "of one direction": lambda x: jnp.stack([x[0], 2 * x[0], 3 * x[0]]),
    "zeros": lambda x: 0 * x,
    "all but one zero": lambda x: x.at[1:].set(0),
    "one of them zero": lambda x: x.at[1].set(0),
    "opposite": lambda x: jnp.stack([x[0], -x[0], x[0]]),
}


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_gradients_of_karcher_are_finite(dtype: type) -> None:
    """Also where directions agree, cancel, or are none; where they agree, each model counts the same."""
    with jax.enable_x64(dtype is np.float64):
        drawn = tensors(3).astype(dtype)
        gradient = jax.jit(jax.grad(lambda x: loss(merged("karcher", x, **KARCHER))))
        found = {name: np.asarray(gradient(alike(drawn))) for name, alike in ALIKE.items()}
        for name, each in found.items():
            assert np.isfinite(each).all(), name
        own = np.asarray(jax.grad(loss)(drawn[0]))  # of the mean, of which each is a third
        np.testing.assert_allclose(found["equal"].sum(axis=0), own, rtol=1e-3, atol=1e-3)


WEIGHTINGS = np.random.default_rng(3).uniform(0.1, 1, (50, 3)).astype(np.float32)
MAPPED: dict[str, Callable[[jax.Array], jax.Array]] = {
    "linear": lambda x: linear(tensors(3), weight=x, normalize=True),
    "slerp": lambda x: slerp(tensors(2)[0], tensors(2)[1:], t=x[0]),
    "task_arithmetic": lambda x: task_arithmetic(
        tensors(3), weight=x, scale=jnp.float32(0.7), normalize=True
    ),
}


@pytest.mark.parametrize("method", MAPPED.values(), ids=MAPPED.keys())
def test_vmap_over_many_weightings_is_one_after_the_other(
    method: Callable[[jax.Array], jax.Array],
) -> None:
    found = np.asarray(jax.jit(jax.vmap(method))(jnp.asarray(WEIGHTINGS)))
    one = jax.jit(method)
    assert found.shape == (len(WEIGHTINGS), *SHAPE)
    for row, weighting in zip(found, WEIGHTINGS, strict=True):
        assert_close(row, np.asarray(one(jnp.asarray(weighting))))


@pytest.mark.parametrize("weight", [(1.0, -1.0), (0.1, 0.2, -0.3), (1e8, 1.0, -1e8)])
def test_weights_that_vanish_in_float32_have_no_mean(weight: tuple[float, ...]) -> None:
    """The check while planning adds up weights as the function does, in float32."""
    check = REGISTRY["linear"].check
    assert "sum to zero" in (check({"weight": weight, "normalize": True}) or "")
    assert check({"weight": weight, "normalize": False}) is None
    assert check({"weight": (*weight, 0.5), "normalize": True}) is None
