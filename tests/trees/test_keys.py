"""The keys of leaves: the recipe's, whether the seed is traced or not, and different along axes that transformations hide."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jmerge
from jmerge.methods.random import make_key, uniform
from jmerge.methods.streams import stream_of
from jmerge.trees.keys import model_keys, place_tag, seed_words

STACK = jnp.ones((3, 2, 4))


def keys_of(seed: Any, array: jax.Array, name: str = "layers.w") -> jax.Array:
    """The keys of two models of a leaf."""
    words = seed_words(seed, "seed")
    return model_keys(words, stream_of(name), place_tag(words, [array], "seed"), 2)


def of_host(seed: int, name: str) -> np.ndarray:
    return np.asarray([make_key(seed, stream_of(name), model) for model in range(2)], np.uint32)


@pytest.mark.parametrize("seed", [0, 7, -3, np.int8(-3), np.uint64(2**64 - 3), 2**31, 2**40 + 3])
def test_a_device_mixes_what_the_host_does(seed: Any) -> None:
    wanted = of_host(int(seed), "layers.3.w")
    np.testing.assert_array_equal(keys_of(seed, STACK, "layers.3.w"), wanted)
    with jax.enable_x64(True):
        traced = jax.jit(lambda seed: keys_of(seed, STACK, "layers.3.w"))(seed)
        np.testing.assert_array_equal(traced, wanted)


@pytest.mark.parametrize("seed", [5, -5])
def test_traced_seeds_of_32_bits(seed: int) -> None:
    for dtype in (jnp.int32, jnp.int8, np.int16):
        traced = jax.jit(lambda seed: keys_of(seed, STACK))(np.asarray(seed, dtype))
        np.testing.assert_array_equal(traced, of_host(seed, "layers.w"))


def test_typed_keys() -> None:
    """Of any implementation; the usual one of a small number draws what the number draws."""
    np.testing.assert_array_equal(keys_of(jax.random.key(5), STACK), of_host(5, "layers.w"))
    kinds = [jax.random.key(5, impl=impl) for impl in ("threefry2x32", "rbg", "unsafe_rbg")]
    split = jax.random.split(kinds[0], 3)
    found = {np.asarray(keys_of(key, STACK)).tobytes() for key in (*kinds[:2], *split)}
    assert len(found) == 5
    for key in kinds:
        np.testing.assert_array_equal(jax.jit(keys_of)(key, STACK), keys_of(key, STACK))


@pytest.mark.parametrize(
    ("seed", "message"),
    [
        (1.0, "found 1.0"),
        (True, "found True"),
        ("0", "found '0'"),
        (None, "found None"),
        (jnp.float32(1), "found an array of float32"),
        (np.bool_(True), "found an array of bool"),
        (jax.random.PRNGKey(0), "wrap_key_data"),
        (jnp.arange(3), "vmap"),
        (jax.random.split(jax.random.key(0), 3), "vmap"),
    ],
)
def test_other_seeds_are_refused(seed: Any, message: str) -> None:
    with pytest.raises(TypeError, match=message):
        seed_words(seed, "seed")


# Under transformations


@pytest.mark.parametrize("axis", [0, 1, -1])
@pytest.mark.parametrize("compiled", [False, True])
def test_vmap_over_layers_is_the_layers(axis: int, compiled: bool) -> None:
    draw = jax.vmap(lambda array: keys_of(4, array), in_axes=axis)
    found = (jax.jit(draw) if compiled else draw)(STACK)
    for i, keys in enumerate(found):
        np.testing.assert_array_equal(keys, of_host(4, f"layers.{i}.w"))


def test_nested_vmap_is_the_numbers_in_their_order() -> None:
    found = jax.vmap(jax.vmap(lambda array: keys_of(4, array, "layers.experts.w")))(STACK)
    np.testing.assert_array_equal(found[2, 1], of_host(4, "layers.2.experts.1.w"))
    inner = jax.vmap(lambda array: keys_of(4, array, "layers.experts.1.w"))(STACK)
    np.testing.assert_array_equal(inner[2], found[2, 1])


def test_vmap_over_seeds_is_the_seeds() -> None:
    """Also along one axis with the arrays; keys of what has no axis are the same for all."""
    for axis in (0, None):
        found = jax.vmap(keys_of, in_axes=(0, axis))(jnp.arange(3), STACK)
        for i, keys in enumerate(found):
            np.testing.assert_array_equal(keys, of_host(i, "layers.w"))
    keys = jax.random.split(jax.random.key(0), 3)
    found = jax.vmap(keys_of, in_axes=(0, None))(keys, STACK)
    np.testing.assert_array_equal(found[1], keys_of(keys[1], STACK))
    same = jax.vmap(lambda weight: keys_of(1, STACK) + 0 * weight.astype(jnp.uint32))(jnp.ones(3))
    assert (np.asarray(same) == of_host(1, "layers.w")).all()


def test_gradients_pass_by() -> None:
    def loss(array: jax.Array) -> jax.Array:
        return (array * uniform(keys_of(0, array)[0], array.shape)).sum()

    for change in (jax.grad, lambda f: jax.grad(jax.checkpoint(f)), jax.jacfwd):
        assert change(loss)(STACK).shape == STACK.shape
        assert jax.vmap(change(loss))(STACK).shape == STACK.shape
    slopes = jax.grad(lambda stack: jax.vmap(loss)(stack).sum())(STACK)
    drawn = uniform(jnp.asarray(of_host(0, "layers.1.w")[0]), (2, 4))
    np.testing.assert_array_equal(slopes[1], drawn)


# Whole merges


BASE = {"layers": {"w": jnp.zeros((3, 40, 40))}, "b": jnp.zeros(40)}
MODEL = jax.tree.map(jnp.ones_like, BASE)


def drop(seed: Any, model: Any = MODEL, base: Any = BASE, **rest: Any) -> Any:
    hyperparameters = {"weight": 1.0, "density": 0.5, "rescale": False, "seed": seed, **rest}
    return jmerge.merge_trees([model], method="dare_linear", base=base, **hyperparameters)


def test_masks_of_seeds() -> None:
    eager = [drop(seed)["layers"]["w"] for seed in (0, 1)]
    assert 0.4 < (eager[0] != eager[1]).mean() < 0.6
    traced = jax.jit(drop)
    np.testing.assert_array_equal(traced(1)["layers"]["w"] != 0, eager[1] != 0)
    many = jax.vmap(drop)(jnp.arange(2))["layers"]["w"]
    np.testing.assert_array_equal(many != 0, jnp.stack(eager) != 0)
    keyed = drop(0, key=jax.random.key(1))["layers"]["w"]
    np.testing.assert_array_equal(keyed, eager[1])


def test_masks_of_layers() -> None:
    """vmap over stacked layers draws what they draw as leaves of their own; a scan takes keys along."""
    flat = {f"layers.{i}.w": MODEL["layers"]["w"][i] for i in range(3)}
    alone = drop(0, flat, jax.tree.map(jnp.zeros_like, flat))
    found = jax.vmap(lambda model, base: drop(0, model, base))(
        {"layers": MODEL["layers"]}, {"layers": BASE["layers"]}
    )["layers"]["w"]
    for i in range(3):
        np.testing.assert_array_equal(found[i], alone[f"layers.{i}.w"])
    keys = jax.random.split(jax.random.key(0), 3)
    _, scanned = jax.lax.scan(lambda _, key: (None, drop(0, key=key)["b"]), None, keys)
    assert len({np.asarray(each).tobytes() for each in scanned}) == 3


def test_one_stream_for_all_containers() -> None:
    """A leaf draws what a recipe draws for the tensor of that name."""
    name = "model.layers.1.w"
    for tree in ({name: jnp.ones(64)}, {"model": {"layers": [0, {"w": jnp.ones(64)}]}}):
        merged = jax.tree.leaves(drop(3, tree, jax.tree.map(lambda x: x * 0, tree)))[-1]
        drawn = uniform(jnp.asarray(of_host(3, name)[0]), (64,))
        np.testing.assert_array_equal(merged != 0, drawn < 0.5)
