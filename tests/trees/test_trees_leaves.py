"""Leaves that no method merges, and trees of all kinds: what comes back, and what is said where trees differ."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jmerge
from jmerge.testing.close import assert_same_bytes


def soup(trees: Any, **rest: Any) -> Any:
    return jmerge.merge_trees(trees, method="linear", weight=0.5, **rest)


def pair(one: Any, two: Any) -> list[dict[str, Any]]:
    return [{"w": jnp.zeros(2), "x": one}, {"w": jnp.ones(2), "x": two}]


class Layer(NamedTuple):
    """A model as some libraries have them: arrays beside a function and a number."""

    kernel: jax.Array
    activation: Any
    width: int


@pytest.mark.parametrize(
    "leaf",
    [3, 0.1, "relu", jnp.tanh, np.array([2**40]), np.array(["a"]), jax.random.key(0), object(), True, 1j],
    ids=lambda leaf: type(leaf).__name__,
)  # fmt: skip
def test_other_leaves_are_the_very_objects(leaf: Any) -> None:
    merged = soup(pair(leaf, leaf))
    assert merged["x"] is leaf
    np.testing.assert_array_equal(merged["w"], 0.5)


def test_equal_ones_need_not_be_the_same() -> None:
    for one, two in (
        (np.arange(3), np.arange(3)),
        ("a" * 300, "a" * 300),
        (jax.random.key(1), jax.random.key(1)),
    ):
        assert soup(pair(one, two))["x"] is one
    assert (
        soup(
            pair(
                np.asarray([np.nan], np.float32).view(np.int32),
                np.asarray([np.nan], np.float32).view(np.int32),
            )
        )["x"].dtype
        == np.int32
    )


def test_a_module_runs_after_it_was_merged() -> None:
    models = [Layer(jnp.full((2, 2), float(i)), jnp.tanh, 2) for i in (1, 2)]
    merged = soup(models)
    assert isinstance(merged, Layer) and merged.width == 2
    np.testing.assert_allclose(merged.activation(merged.kernel @ jnp.ones(2)), np.tanh(3.0))


@pytest.mark.parametrize(("one", "two"), [(1, 2), ("a", "b"), (len, max), (1, 1.0), (True, 1)])
def test_others_that_differ(one: Any, two: Any) -> None:
    with pytest.raises(
        ValueError, match="'x' is a .*, and differs; otherwise='first' keeps the first"
    ):
        soup(pair(one, two))
    assert soup(pair(one, two), otherwise="first")["x"] is one
    base = {"w": jnp.zeros(2), "x": two}
    hyperparameters: dict[str, Any] = {"method": "task_arithmetic", "base": base, "weight": 1.0}
    assert jmerge.merge_trees(pair(one, one), **hyperparameters, otherwise="base")["x"] is two
    with pytest.raises(ValueError, match="'base' or 'first' says whose"):
        jmerge.merge_trees(pair(one, one), **hyperparameters)


def test_traced_integers() -> None:
    """Nobody can see whether they are equal, so what becomes of them has to be said."""
    trees = pair(jnp.arange(3), jnp.arange(3) + 1)
    with pytest.raises(ValueError, match="cannot be seen in a traced function; otherwise='first'"):
        jax.jit(soup)(trees)
    merged = jax.jit(lambda trees: soup(trees, otherwise="first"))(trees)
    np.testing.assert_array_equal(merged["x"], np.arange(3))
    same = jax.jit(lambda trees, x: soup([{**tree, "x": x} for tree in trees]))(
        [{"w": tree["w"]} for tree in trees], jnp.arange(3)
    )
    np.testing.assert_array_equal(same["x"], np.arange(3))


def test_a_float_beside_an_integer() -> None:
    with pytest.raises(
        ValueError, match="'x' is a float in one tree and int32 in another; otherwise="
    ):
        soup(pair(jnp.ones(2), jnp.arange(2)))
    merged = soup(pair(jnp.ones(2), jnp.arange(2)), otherwise="first")
    np.testing.assert_array_equal(merged["x"], 1)


# Which are merged


@pytest.mark.parametrize(
    "where",
    ["*w", ["*w"], {"*w"}, lambda name, leaf: name == "w", {"w": True, "x": False}, lambda name, leaf: np.bool_(leaf.ndim == 1)],
)  # fmt: skip
@pytest.mark.parametrize("compiled", [False, True])
def test_where(where: Any, compiled: bool) -> None:
    def merge(trees: Any) -> Any:
        return soup(trees, where=where, otherwise="first")

    merged = (jax.jit(merge) if compiled else merge)(pair(jnp.zeros((2, 2)), jnp.ones((2, 2))))
    np.testing.assert_array_equal(merged["w"], 0.5)
    np.testing.assert_array_equal(merged["x"], 0)


@pytest.mark.parametrize(
    ("error", "message", "keywords"),
    [
        (ValueError, "'x' is not to be merged .where=., and differs; otherwise='first'", {"where": "w"}),
        (ValueError, "where: 'wx' matches no leaf; one leaf is", {"where": ["wx"]}),
        (TypeError, "where: expected True or False for 'w', found 1", {"where": lambda name, leaf: 1}),
        (ValueError, "where is a tree that says nothing of 'x'", {"where": {"w": True}}),
        (ValueError, "otherwise: expected 'base', 'first' or 'error'; found 'last'", {"otherwise": "last"}),
        (ValueError, "there is no base; 'first'", {"otherwise": "base"}),
        (ValueError, "nonfinite: expected 'propagate' or 'ignore'; found 'nan'", {"nonfinite": "nan"}),
        (ValueError, "nonfinite: expected 'propagate' or 'ignore'; found array", {"nonfinite": np.zeros(0)}),
        (TypeError, "exact: expected True or False; found 1", {"exact": 1}),
        (TypeError, "layers: expected an axis, patterns .* found 0.5", {"layers": 0.5}),
        (ValueError, "layers: 'w' has no axis 1, its shape is .2,.", {"layers": 1}),
        (TypeError, "did you mean 'otherwise'", {"otherwize": "first"}),
    ],
)  # fmt: skip
def test_mistakes(error: type[Exception], message: str, keywords: dict[str, Any]) -> None:
    with pytest.raises(error, match=message):
        soup(pair(jnp.zeros((2, 2)), jnp.ones((2, 2))), **keywords)


@pytest.mark.parametrize(
    ("message", "models", "keywords"),
    [
        ("models is a list of trees; found one dict", {"w": jnp.ones(2)}, {}),
        ("models is a list of trees; found one ", jnp.ones((2, 2)), {}),
        ("models is a list of trees; found one NoneType", None, {}),
        ("models is a list of trees; found one Layer", Layer(jnp.ones((2, 2)), jnp.tanh, 2), {}),
        ("models is a list of trees; found one bytes", b"model", {}),
        ("at least 1 model; found 0", [], {}),
        ("there are no models", [], {"method": "ties", "base": {"w": jnp.ones(2)}}),
        ("weight: expected a number, a list .* found '0.3'", [{"w": jnp.ones(2)}], {"weight": "0.3"}),
        ("weight: expected a number, a list .* found None", [{"w": jnp.ones(2)}], {"weight": None}),
        ("weight: expected .* found <function", [{"w": jnp.ones(2)}], {"weight": lambda: 1}),
        ("weight: expected .* found True", [{"w": jnp.ones(2)}], {"weight": True}),
        ("method is a name, as 'ties', or a function; found 3", [{"w": jnp.ones(2)}], {"method": 3}),
        ("'wieght' is not a parameter of 'linear'; did you mean 'weight'", [{"w": jnp.ones(2)}], {"wieght": 1.0}),
        ("seed is an integer or a key of jax.random.key; found 1.5", [{"w": jnp.ones(2)}], {"seed": 1.5}),
    ],
)  # fmt: skip
def test_wrong_kinds(message: str, models: Any, keywords: dict[str, Any]) -> None:
    hyperparameters: dict[str, Any] = {
        "method": "linear",
        **({} if "wieght" in keywords else {"weight": 1.0}),
    }
    with pytest.raises(TypeError, match=message):
        jmerge.merge_trees(models, **{**hyperparameters, **keywords})


def test_structures_that_differ() -> None:
    w = jnp.ones(2)
    for other, message in (
        ({"w": w, "v": w}, "models.1. and models.0. have different structures: 'v' is in models.1. only"),
        ({}, "'w' is in models.0. only"),
        (Layer(w, w, 1), "structures"),
        ([("w", w)], "structures"),
        (w, "structures: one is of type ArrayImpl, the other of type dict"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=message):
            soup([{"w": w}, other])


# Trees of all kinds


def test_an_array_is_a_tree() -> None:
    np.testing.assert_array_equal(soup([jnp.zeros(3), jnp.ones(3)]), 0.5)
    np.testing.assert_array_equal(soup([np.zeros(3, np.float32), jnp.ones(3)]), 0.5)
    with pytest.raises(ValueError, match="'the array' is .3,. in models.0. and .2,. in models.1."):
        soup([jnp.zeros(3), jnp.ones(2)])


def test_a_mapping_is_a_tree() -> None:
    read: list[str] = []

    class Opened(Mapping[str, np.ndarray]):
        """As an opened checkpoint is."""

        def __getitem__(self, name: str) -> np.ndarray:
            read.append(name)
            return np.full(3, float(len(name)), np.float32)

        def __iter__(self) -> Any:
            return iter(["a", "abc"])

        def __len__(self) -> int:
            return 2

    merged = soup([Opened(), {"a": jnp.zeros(3), "abc": jnp.zeros(3)}])
    assert sorted(read) == ["a", "abc"]  # once
    assert {name: float(array[0]) for name, array in merged.items()} == {"a": 0.5, "abc": 1.5}
    with pytest.raises(TypeError, match="found one Opened"):
        soup(Opened())


# Freeing


def test_donated_models_are_freed_and_others_are_not() -> None:
    """Arrays that are several leaves, of one model or of several, are merged before they go; the base stays."""
    base = jnp.arange(4.0)
    tied, one, shared, step = (jnp.ones(4) * i for i in (1, 2, 3, 4))
    trees = [
        {"a": tied, "b": tied, "c": shared, "d": base, "n": step.astype(int)},
        {"a": one, "b": tied, "c": shared, "d": one, "n": step.astype(int)},
    ]
    origin = dict.fromkeys("abcd", base) | {"n": step.astype(int)}
    wanted = jmerge.merge_trees(trees, method="task_arithmetic", base=origin, weight=0.5)
    found = jmerge.merge_trees(
        trees, method="task_arithmetic", base=origin, weight=0.5, donate=True
    )
    for name, array in wanted.items():
        assert_same_bytes(np.asarray(found[name]), np.asarray(array))
    assert tied.is_deleted() and one.is_deleted() and shared.is_deleted()
    assert not base.is_deleted() and not found["n"].is_deleted()


def test_a_freed_array_is_named() -> None:
    trees = [{"w": jnp.ones(3) * 1}, {"w": jnp.ones(3) * 2}]
    soup(trees, donate=True)
    with pytest.raises(ValueError, match="'w' of models.0. was freed, as donate=True does"):
        soup(trees)


def test_an_array_that_is_kept_elsewhere_is_not_freed() -> None:
    tied, other = jnp.ones(3) * 1, jnp.ones(3) * 2
    trees = [{"a": tied, "b": tied}, {"a": other, "b": tied}]
    found = soup(trees, where="a", donate=True)
    np.testing.assert_array_equal(found["b"], 1)
    assert other.is_deleted() and not tied.is_deleted()


@pytest.mark.parametrize("method", ["passthrough", "linear"])
def test_a_result_that_is_an_input_stays(method: str) -> None:
    model = {"a": jnp.ones(3), "b": jnp.ones(3)}
    hyperparameters: dict[str, Any] = {"weight": 1.0} if method == "linear" else {}
    found = jmerge.merge_trees([model], method=method, donate=True, **hyperparameters)
    np.testing.assert_array_equal(found["a"], 1)
    with pytest.raises(TypeError, match="donate_argnums"):
        jax.jit(lambda tree: jmerge.merge_trees([tree], method="passthrough", donate=True))(found)
