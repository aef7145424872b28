"""The compiled programs of a step: pieces of the inputs in their own dtypes -> a piece of the result in its dtype.

A kernel sees flat pieces of one of a few fixed lengths, so it is compiled once for each of those, whatever the
shapes of the tensors. Everything between the two casts is float32 (float64 for float64 tensors).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jmerge.ckpt.dtypes import NONFINITE_BITS, NUMPY
from jmerge.methods.reduce import block_pairs
from jmerge.methods.spec import REGISTRY
from jmerge.plan.steps import COPY, Step

LANES = 1024  # width of the check for NaN; every length of piece is a multiple


class KernelKey(NamedTuple):
    """Everything that makes one compiled program differ from another, but for the length of the pieces."""

    method: str
    inputs: tuple[str, ...]  # dtypes
    output: str  # dtype
    base: int | None
    switches: tuple[tuple[str, bool], ...]
    unset: tuple[str, ...]  # numbers that have no value

    @property
    def compute(self) -> np.dtype[Any]:
        """The dtype of the arithmetic."""
        return np.dtype(np.float64 if "F64" in (*self.inputs, self.output) else np.float32)


class Piece(NamedTuple):
    """What a kernel gives back."""

    values: jax.Array  # [elements] in the output dtype
    bits: jax.Array  # [LANES] bool: a NaN or infinity among inputs or values


def kernel_key(step: Step) -> KernelKey:
    """The key of the program that `step` runs."""
    switches = tuple(
        (name, value) for name, value in step.numbers.items() if isinstance(value, bool)
    )
    unset = tuple(name for name, value in step.numbers.items() if value is None)
    dtypes = tuple(item.spec.dtype for item in step.inputs)
    return KernelKey(step.method, dtypes, step.spec.dtype, step.base, switches, unset)


def is_plain_copy(step: Step) -> bool:
    """Whether the bytes of the result are the bytes of the input, so that no program is needed."""
    if any(item.spec.dtype != step.spec.dtype for item in step.inputs):
        return False
    return step.method == COPY or REGISTRY[step.method].copies(step.numbers)


@cache
def combine_kernel(key: KernelKey) -> Callable[..., Piece]:
    """The jitted program (inputs, arguments of the method by name) -> Piece."""

    def combine(inputs: Sequence[jax.Array], arguments: Mapping[str, Any]) -> Piece:
        values = _apply(key, _widen(key, inputs), arguments).astype(NUMPY[key.output])
        if key.method == COPY or REGISTRY[key.method].carries_nan:
            return Piece(
                values, _nonfinite([values], [key.output])
            )  # a look at the result is enough
        return Piece(values, _nonfinite([*inputs, values], [*key.inputs, key.output]))

    return jax.jit(combine)


@cache
def sums_kernel(key: KernelKey) -> Callable[..., jax.Array]:
    """The jitted program (inputs, arguments) -> the pairs [sums, blocks, 2] of the method's terms over each block."""
    method = REGISTRY[key.method]
    assert method.sums is not None

    def sums(inputs: Sequence[jax.Array], arguments: Mapping[str, Any]) -> jax.Array:
        arrays = _arrays(key, _widen(key, inputs))
        return block_pairs(method.sums(*arrays, **_keywords(key, arguments)))  # type: ignore[misc]

    return jax.jit(sums)


@cache
def magnitude_kernel(dtype: np.dtype[Any]) -> Callable[..., jax.Array]:
    """The jitted program (base, model) -> the magnitudes of the model's change [elements] in `dtype`."""

    def magnitude(base: jax.Array, model: jax.Array) -> jax.Array:
        return jnp.abs(model.astype(dtype) - base.astype(dtype))

    return jax.jit(magnitude)


def _widen(key: KernelKey, inputs: Sequence[jax.Array]) -> list[jax.Array]:
    return [item.astype(key.compute) for item in inputs]


def _arrays(key: KernelKey, inputs: list[jax.Array]) -> tuple[jax.Array, ...]:
    """The arrays a method is called with."""
    if key.base is None:
        return (jnp.stack(inputs),)
    base = inputs[key.base]
    models = [item for i, item in enumerate(inputs) if i != key.base]
    if REGISTRY[key.method].takes == "delta":
        return (jnp.stack([model - base for model in models]),)
    return base, jnp.stack(models)


def _keywords(key: KernelKey, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """The keyword arguments a method is called with."""
    known = REGISTRY[key.method].keywords
    values = {**arguments, **dict(key.switches), **dict.fromkeys(key.unset)}
    return {known.get(name, name): value for name, value in values.items()}


def _apply(key: KernelKey, inputs: list[jax.Array], arguments: Mapping[str, Any]) -> jax.Array:
    if key.method == COPY:
        return inputs[0]
    method = REGISTRY[key.method]
    result: jax.Array = method.function(*_arrays(key, inputs), **_keywords(key, arguments))
    return inputs[key.base] + result if method.takes == "delta" and key.base is not None else result


def _nonfinite(arrays: list[jax.Array], dtypes: list[str]) -> jax.Array:
    """Whether any element is NaN or infinite, by lanes: integer arithmetic on the bits, which vectorises."""
    found = jnp.zeros((LANES,), jnp.bool_)
    for array, dtype in zip(arrays, dtypes, strict=True):
        mask, value = NONFINITE_BITS[dtype]
        bits = jax.lax.bitcast_convert_type(array, np.dtype(f"u{array.dtype.itemsize}"))
        wanted = bits.dtype.type(value)
        hit = (bits & bits.dtype.type(mask)) == wanted
        found = found | jnp.any(hit.reshape(-1, LANES), axis=0)
    return found
