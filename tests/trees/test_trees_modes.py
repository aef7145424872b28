"""`merge_trees` where JAX is set up otherwise, at sizes beyond 32 bits, and on inputs that are not finite."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from treecases import NUMBERS, OF_EACH_KIND

import jmerge
from jmerge.methods import find_method
from jmerge.testing.ways import compilations

Tree = dict[str, Any]
SLOW = pytest.mark.slow
EACH_METHOD = pytest.mark.parametrize(
    "method", [pytest.param(m, marks=() if m in OF_EACH_KIND else SLOW) for m in NUMBERS]
)


def inputs(method: str, dtype: Any = jnp.float32) -> tuple[list[Tree], Tree | None]:
    """As many models as the method merges, and a base if it has one."""
    declared, rng = find_method(method), np.random.default_rng(0)
    base = rng.standard_normal((6, 40))
    near = [
        {"w": jnp.asarray(base + 0.1 * rng.standard_normal(base.shape), dtype)}
        for _ in range(declared.counts[1] or 3)
    ]
    return near, None if declared.base == "input" else {"w": jnp.asarray(base, dtype)}


def merge(method: str, models: Any, base: Any, **rest: Any) -> Any:
    return jmerge.merge_trees(models, method=method, base=base, **{**NUMBERS[method], **rest})


# What is not finite


@EACH_METHOD
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_what_is_not_finite_stays_so(method: str, bad: float) -> None:
    """In any model and in the base, at its element; the command stops there."""
    models, base = inputs(method)
    sources = [*models, *([] if base is None else [base])]
    for number, source in enumerate(sources):
        spoilt = [dict(each) for each in sources]
        spoilt[number] = {"w": source["w"].at[2, 5].set(bad)}
        origin = None if base is None else spoilt[-1]
        found = merge(method, spoilt[: len(models)], origin)
        for tree in found if method == "emr" else [found]:
            assert not np.isfinite(np.asarray(tree["w"])[2, 5]), number


def test_the_rest_of_the_tensor_is_merged() -> None:
    models = [{"w": jnp.array([jnp.nan, 1.0, 2.0, 3.0])}, {"w": jnp.array([1.0, 1.0, 2.0, 3.0])}]
    hyperparameters: dict[str, Any] = {"base": {"w": jnp.zeros(4)}, "density": 0.5}
    for run in (lambda f: f, jax.jit):
        found = run(lambda models: jmerge.ties(models, **hyperparameters))(models)
        np.testing.assert_array_equal(found["w"], [np.nan, 0, 2, 3])
        ignored = run(lambda models: jmerge.ties(models, **hyperparameters, nonfinite="ignore"))(
            models
        )
        np.testing.assert_array_equal(ignored["w"], [0, 0, 2, 3])


# Other settings of JAX


MODES: dict[str, Callable[[], Any]] = {
    "64 bits": lambda: jax.enable_x64(True),
    "strict": lambda: jax.numpy_dtype_promotion("strict"),
    "no NaN": lambda: jax.debug_nans(True),
    "not compiled": lambda: jax.disable_jit(),
}


@pytest.mark.parametrize(
    "method",
    [
        pytest.param(m, marks=() if m in ("linear", "ties", "dare_linear") else SLOW)
        for m in NUMBERS
    ],
)
@pytest.mark.parametrize("mode", MODES)
def test_other_settings_of_jax(method: str, mode: str) -> None:
    """The same to rounding, and but for runs that are not compiled the same bits; float32 stays so."""
    models, base = inputs(method)
    wanted = jax.tree.leaves(merge(method, models, base))
    with MODES[mode]():
        found = jax.tree.leaves(merge(method, models, base))
        if mode != "not compiled":
            traced = jax.jit(lambda models, base: merge(method, models, base))(models, base)
            for one, two in zip(found, jax.tree.leaves(traced), strict=True):
                assert_traced(method, two, one)
    for one, two in zip(found, wanted, strict=True):
        assert one.dtype == jnp.float32
        if mode == "not compiled":
            np.testing.assert_allclose(one, two, rtol=1e-5, atol=1e-6)
        else:
            np.testing.assert_array_equal(one, two)


def assert_traced(method: str, found: jax.Array, wanted: jax.Array) -> None:
    """The same bits, but for `consensus`: LLVM multiplies before it selects where it knows the factor, and contracts
    where it does not, which may be the last bit of an element."""
    if method == "consensus":
        np.testing.assert_allclose(found, wanted, rtol=2e-7, atol=2e-7)
    else:
        np.testing.assert_array_equal(found, wanted)


@EACH_METHOD
def test_a_program_makes_what_leaf_by_leaf_is_made(method: str) -> None:
    """Leaves of one shape, mapped over or called one after the other, and numbers that the compiler could look into."""
    models, base = inputs(method)

    def several(tree: Tree | None) -> Any:
        return None if tree is None else {"a": tree["w"], "b": tree["w"][::-1], "c": tree["w"][0]}

    trees, origin = [several(model) for model in models], several(base)
    found = merge(method, trees, origin)
    traced = jax.jit(lambda trees, origin: merge(method, trees, origin))(trees, origin)
    for one, two in zip(jax.tree.leaves(traced), jax.tree.leaves(found), strict=True):
        assert_traced(method, one, two)


@pytest.mark.parametrize("method", sorted(OF_EACH_KIND))
def test_a_new_number_compiles_nothing(method: str) -> None:
    models, base = inputs(method)
    hyperparameters = {k: v for k, v in NUMBERS[method].items() if k != "epsilon"}
    merge(method, models, base)
    others = {
        key: [each * 0.9 for each in value] if isinstance(value, list) else value * 0.9
        for key, value in hyperparameters.items()
    }
    with compilations() as compiled:
        merge(method, models, base, **others)
    assert compiled == []


# Sizes


@EACH_METHOD
def test_leaves_beyond_32_bits(method: str) -> None:
    """The weights of a scanned model of 70 billion parameters, in one array."""
    models, base = inputs(method)
    whole = {"w": jax.ShapeDtypeStruct((80, 8192, 28672), jnp.bfloat16)}
    shapes = jax.eval_shape(
        lambda models, base: merge(method, models, base),
        [whole] * len(models),
        None if base is None else whole,
    )
    assert {leaf.shape for leaf in jax.tree.leaves(shapes)} == {whole["w"].shape}


def test_models_beyond_32_bits_of_many_leaves() -> None:
    """Positions count through all leaves, in whichever of them they are."""
    whole = {f"layers.{i}": jax.ShapeDtypeStruct((8192, 28672), jnp.bfloat16) for i in range(40)}
    for method in ("localize_stitch", "pcb"):
        shapes = jax.eval_shape(lambda m, b: getattr(jmerge, method)([m], base=b), whole, whole)  # noqa: B023
        assert len(jax.tree.leaves(shapes)) == 40
