"""Ways to merge arrays, which the laws compare: the function called by hand, and recipes through the engine.

By hand a function is called on whole arrays: under `jit`, like a kernel of the engine and with the same bits; compiled
quickly (`quick`), which takes about a quarter of the time and agrees to rounding; or not compiled at all (`eager`).
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from functools import cache
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import yaml

from jmerge.api.merge import merge
from jmerge.api.plan import plan as make_plan
from jmerge.ckpt.open import open_checkpoint
from jmerge.dtypes import NUMPY
from jmerge.engine.kernel import KERNELS
from jmerge.engine.run import run
from jmerge.engine.schedule import PIECE, make_schedule
from jmerge.engine.small import ROWS
from jmerge.methods import Method, apply, find_method
from jmerge.methods.random import make_key
from jmerge.methods.spec import Required
from jmerge.methods.streams import stream_of
from jmerge.plan.steps import Plan
from jmerge.testing.tiny import write_checkpoint

Hyperparameters = Mapping[str, Any]  # by their names in recipes, a tuple for one number a model
Way = Literal["jit", "quick", "eager"]

TENSOR = "tensor"  # the name of a tensor that needs none of its own; random numbers depend on it

# Options of the compiler that give up speed and bits of the result, nothing else: XLA's old code generator, and LLVM
# without optimisation and with all of a program at once. The rewriting of the program itself is the usual one.
QUICK = {
    "xla_cpu_use_fusion_emitters": False,
    "xla_backend_optimization_level": 0,
    "xla_cpu_parallel_codegen_split_count": 1,
}


class Inputs(NamedTuple):
    """What one tensor is merged from."""

    models: tuple[np.ndarray, ...]  # without the base
    base: np.ndarray | None

    def map(self, change: Callable[[np.ndarray], np.ndarray]) -> Inputs:
        """The same `change` made to models and base."""
        base = None if self.base is None else change(self.base)
        return Inputs(tuple(change(model) for model in self.models), base)


def keys_of(method: Method, models: int, tensor: str) -> np.ndarray | None:
    """The keys uint32 [models, 2] of a random method under seed 0; None for another."""
    if "keys" not in method.reserved:
        return None
    stream = stream_of(tensor)
    return np.asarray([make_key(0, stream, model) for model in range(models)], np.uint32)


# The function called by hand


def by_hand(
    method: Method,
    inputs: Inputs,
    hyperparameters: Hyperparameters,
    *,
    way: Way = "jit",
    tensor: str = TENSOR,
) -> np.ndarray:
    """What research code gets: the function on whole arrays in float32 (float64 for float64 arrays)."""
    wide = any(array.dtype == np.float64 for array in inputs.models)
    dtype = np.dtype(np.float64 if wide else np.float32)
    with jax.enable_x64(True) if wide else nullcontext():
        models = [jnp.asarray(model.astype(dtype)) for model in inputs.models]
        base = None if inputs.base is None else jnp.asarray(inputs.base.astype(dtype))
        hyperparameters = filled_in(method, hyperparameters, len(models))
        drawn = keys_of(method, len(models), tensor)
        keys = None if drawn is None else jnp.asarray(drawn)
        traced = {k: v for k, v in hyperparameters.items() if is_traced_in(method, k, v)}
        static = tuple((k, v) for k, v in hyperparameters.items() if k not in traced)
        program = _program(method, static, way)
        traced = {name: jnp.asarray(value, dtype) for name, value in traced.items()}
        if method.per_model_output:
            tasks = [{**traced, "task": jnp.asarray(i, dtype)} for i in range(len(models))]
            return np.stack([np.asarray(program(models, base, each, keys)) for each in tasks])
        return np.asarray(program(models, base, traced, keys))


def is_traced_in(method: Method, name: str, value: Any) -> bool:
    """Whether a number is an argument of the program by hand; what counts follow from is not, to be exact as in recipes."""
    declared = method.parameters[name]
    return declared.kind == "float" and declared.given and value is not None


def filled_in(method: Method, hyperparameters: Hyperparameters, models: int) -> dict[str, Any]:
    """The hyperparameters of a recipe, unset ones at their defaults, a tuple for one number a model."""
    unknown = set(hyperparameters) - set(method.settable)
    assert not unknown, f"{method.name} has no parameter {unknown}"
    found: dict[str, Any] = {}
    for name, declared in method.settable.items():
        value = hyperparameters.get(name, declared.default)
        assert not isinstance(value, Required), f"{method.name} needs {name!r}"
        if declared.per_model and value is not None and not isinstance(value, tuple):
            value = (value,) * models
        found[name] = value
    return found


@cache
def _program(method: Method, static: tuple[tuple[str, Any], ...], way: Way) -> Callable[..., Any]:
    """One program for all numbers, as in research code."""

    def program(
        models: list[jax.Array],
        base: jax.Array | None,
        traced: dict[str, jax.Array],
        keys: jax.Array | None,
    ) -> Any:
        hyperparameters = {**traced, **dict(static)}
        if base is None:
            return apply(method, (jnp.stack(models),), hyperparameters, keys=keys)
        if method.takes == "delta":
            delta = jnp.stack([model - base for model in models])
            change = apply(method, (delta,), hyperparameters, keys=keys)
            return jnp.broadcast_to(base, change.shape) + change
        return apply(method, (base, jnp.stack(models)), hyperparameters, keys=keys)

    if way == "eager":
        return program
    return jax.jit(program, compiler_options=quick_options() if way == "quick" else None)


@cache
def quick_options() -> dict[str, Any] | None:
    """Options for `jax.jit` of what has to hold to rounding: those of `QUICK`; None where they mean nothing, on another
    device or to another version of XLA."""
    if jax.default_backend() != "cpu":
        return None
    try:
        jax.jit(jnp.negative, compiler_options=QUICK)(jnp.float32(0))
    except jax.errors.JaxRuntimeError:
        return None
    return QUICK


# The engine


@contextmanager
def recipe_of(
    method: str, tensors: Mapping[str, Inputs], hyperparameters: Hyperparameters, base_at: int = 0
) -> Iterator[Path]:
    """A recipe file that merges `tensors` with these numbers, its base as the source number `base_at`, and tiny
    checkpoints to go with it, in a folder that is gone afterwards."""
    declared = find_method(method).parameters
    names = [f"model{i}" for i in range(len(next(iter(tensors.values())).models))]
    has_base = next(iter(tensors.values())).base is not None
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        sources: list[dict[str, Any]] = []
        for i, model in enumerate(names):
            write_checkpoint(
                folder / model, {name: each.models[i] for name, each in tensors.items()}
            )
            own = {
                name: value[i]
                for name, value in hyperparameters.items()
                if declared[name].per_model and isinstance(value, tuple)
            }
            sources.append({"model": str(folder / model), "parameters": own})
        shared = {
            name: value
            for name, value in hyperparameters.items()
            if not isinstance(value, tuple) and value is not None and not name.startswith("lines.")
        }
        recipe: dict[str, Any] = {**_unwrapped(method, hyperparameters), "parameters": shared}
        if has_base:
            bases = {name: each.base for name, each in tensors.items() if each.base is not None}
            write_checkpoint(folder / "base", bases)
            sources.insert(base_at, {"model": str(folder / "base")})
            recipe["base_model"] = str(folder / "base")
        file = folder / "recipe.yml"
        file.write_text(yaml.safe_dump({**recipe, "models": sources}))
        yield file


def _unwrapped(method: str, hyperparameters: Hyperparameters) -> dict[str, Any]:
    """The keys of a recipe that name a method and its wrappers."""
    find_method(method)  # refuses what recipes cannot say
    wrappers = method.split("(")
    recipe: dict[str, Any] = {"merge_method": wrappers.pop().rstrip(")")}
    if wrappers:
        recipe["wrap"] = {"condition": next((each for each in wrappers if each != "lines"), "none")}
    if "lines" in wrappers:
        own = {name: value for name, value in hyperparameters.items() if name.startswith("lines.")}
        recipe["wrap"]["lines"] = {name.removeprefix("lines."): own[name] for name in own}
    return recipe


def from_recipe(
    method: str,
    tensors: Mapping[str, Inputs],
    hyperparameters: Hyperparameters,
    *,
    base_at: int = 0,
) -> dict[str, np.ndarray]:
    """What `jmerge --config recipe.yml --out merged` writes, in this process; results of several checkpoints [models,
    *shape], as the function gives them."""
    with recipe_of(method, tensors, hyperparameters, base_at) as recipe:
        merge(recipe, recipe.parent / "merged")
        merged = recipe.parent / "merged"
        if not find_method(method).per_model_output:
            checkpoint = open_checkpoint(merged)
            return {name: checkpoint[name].copy() for name in tensors}
        models = range(len(next(iter(tensors.values())).models))
        outputs = [open_checkpoint(merged / f"model{i}") for i in models]
        return {name: np.stack([output[name] for output in outputs]) for name in tensors}


def streamed(
    method: str,
    tensors: Mapping[str, Inputs],
    hyperparameters: Hyperparameters,
    *,
    base_at: int = 0,
    piece: int = PIECE,
) -> dict[str, np.ndarray]:
    """What the engine makes when it works on `piece` elements at a time."""
    with recipe_of(method, tensors, hyperparameters, base_at) as recipe:
        plan = make_plan(recipe)
        sink = Memory(plan)
        run(plan, make_schedule(plan, piece), sink)
        found = sink.arrays()
        if not find_method(method).per_model_output:
            return found
        models = range(len(next(iter(tensors.values())).models))
        return {name: np.stack([found[f"model{i}/{name}"] for i in models]) for name in tensors}


class Memory:
    """A sink that keeps every tensor in memory; bytes that nothing is written to are all ones (a NaN)."""

    def __init__(self, plan: Plan) -> None:
        self.specs = plan.outputs
        self.bytes = {name: bytearray(b"\xff" * spec.nbytes) for name, spec in self.specs.items()}

    def write(self, tensor: str, start: int, data: memoryview) -> None:
        """Put `data` at byte `start` of a tensor."""
        self.bytes[tensor][start : start + len(data)] = data

    def arrays(self) -> dict[str, np.ndarray]:
        """The tensors by name."""
        return {
            name: np.frombuffer(self.bytes[name], NUMPY[spec.dtype]).reshape(spec.shape)
            for name, spec in self.specs.items()
        }


# What was compiled


def forget_kernels() -> None:
    """Make the engine compile its programs again; needed, too, when a method's function was replaced."""
    for kernel in (*KERNELS, *ROWS):
        kernel.cache_clear()


_COMPILED: list[str] = []


@cache
def _listen() -> None:
    def listener(event: str, duration_secs: float, **facts: str | int) -> None:
        if "/compile/" in event:
            _COMPILED.append(f"{event} of {facts.get('fun_name', 'a program')}")

    jax.monitoring.register_event_duration_secs_listener(listener)
    jax.jit(lambda: jnp.zeros(()))()
    assert _COMPILED, "JAX does not tell what it compiles, so nothing can be said of it"


@contextmanager
def compilations() -> Iterator[list[str]]:
    """A list that holds, after the block, what JAX traced, lowered or compiled in it."""
    _listen()
    found: list[str] = []
    start = len(_COMPILED)
    yield found
    found += _COMPILED[start:]
