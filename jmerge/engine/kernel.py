"""The compiled program of a step: pieces of the inputs in their own dtypes -> a piece of the result in its dtype.

A kernel sees flat pieces of one of a few fixed lengths, so it is compiled once for each of those, whatever the
shapes of the tensors. Everything between the two casts is float32 (float64 for float64 tensors).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
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
        return np.dtype(np.float64 if "F64" in self.inputs else np.float32)


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
    return KernelKey(
        step.method,
        tuple(item.spec.dtype for item in step.inputs),
        step.spec.dtype,
        step.base,
        switches,
        unset,
    )


def is_plain_copy(step: Step) -> bool:
    """Whether the bytes of the result are the bytes of the input, so that no program is needed."""
    if any(item.spec.dtype != step.spec.dtype for item in step.inputs):
        return False
    return step.method == COPY or REGISTRY[step.method].copies(step.numbers)


def traced_numbers(step: Step, dtype: np.dtype[Any]) -> dict[str, np.ndarray]:
    """The continuous numbers of a step as arrays: [models] each, or scalars."""
    return {
        name: np.asarray(value, dtype)
        for name, value in step.numbers.items()
        if value is not None and not isinstance(value, bool)
    }


@cache
def combine_kernel(key: KernelKey) -> Callable[..., Piece]:
    """The jitted program (inputs, numbers, sums or None) -> Piece."""

    def combine(
        inputs: Sequence[jax.Array], numbers: dict[str, jax.Array], sums: jax.Array | None
    ) -> Piece:
        values = _apply(key, _widen(key, inputs), numbers, sums).astype(NUMPY[key.output])
        if key.method == COPY or REGISTRY[key.method].carries_nan:
            return Piece(
                values, _nonfinite([values], [key.output])
            )  # a look at the result is enough
        return Piece(values, _nonfinite([*inputs, values], [*key.inputs, key.output]))

    return jax.jit(combine)


@cache
def sums_kernel(key: KernelKey) -> Callable[..., jax.Array]:
    """The jitted program inputs -> the pairs [sums, blocks, 2] of the method's terms over each block."""
    method = REGISTRY[key.method]
    assert method.sums is not None

    def sums(inputs: Sequence[jax.Array]) -> jax.Array:
        return block_pairs(method.sums(*_arguments(key, _widen(key, inputs))))  # type: ignore[misc]

    return jax.jit(sums)


def _widen(key: KernelKey, inputs: Sequence[jax.Array]) -> list[jax.Array]:
    return [item.astype(key.compute) for item in inputs]


def _arguments(key: KernelKey, inputs: list[jax.Array]) -> tuple[jax.Array, ...]:
    """The arrays a method is called with."""
    if key.base is None:
        return (jnp.stack(inputs),)
    base = inputs[key.base]
    models = [item for i, item in enumerate(inputs) if i != key.base]
    if REGISTRY[key.method].takes == "delta":
        return (jnp.stack([model - base for model in models]),)
    return base, jnp.stack(models)


def _apply(
    key: KernelKey, inputs: list[jax.Array], numbers: dict[str, jax.Array], sums: jax.Array | None
) -> jax.Array:
    if key.method == COPY:
        return inputs[0]
    method = REGISTRY[key.method]
    arguments: dict[str, Any] = {**numbers, **dict(key.switches), **dict.fromkeys(key.unset)}
    arguments = {method.keywords[name]: value for name, value in arguments.items()}
    if method.sums is not None:
        arguments["sums"] = sums
    result: jax.Array = method.function(*_arguments(key, inputs), **arguments)
    return inputs[key.base] + result if method.takes == "delta" and key.base is not None else result


def _nonfinite(arrays: list[jax.Array], dtypes: list[str]) -> jax.Array:
    """Whether any element is NaN or infinite, by lanes: integer arithmetic on the bits, which vectorises."""
    found = jnp.zeros((LANES,), jnp.bool_)
    for array, dtype in zip(arrays, dtypes, strict=True):
        mask, value = NONFINITE_BITS[dtype]
        bits = jax.lax.bitcast_convert_type(array, np.dtype(f"u{array.dtype.itemsize}"))
        wanted = bits.dtype.type(value)
        found = found | jnp.any(
            ((bits & bits.dtype.type(mask)) == wanted).reshape(-1, LANES), axis=0
        )
    return found
