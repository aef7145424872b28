"""The compiled programs of a step: pieces of the inputs in their own dtypes -> a piece of the result in its dtype.

A kernel sees flat pieces of one of a few fixed lengths, so it is compiled once for each of those, whatever the
shapes of the tensors. Each input comes as a window, `ALIGNMENT` bytes longer than the piece, with the number of
elements to skip at its start (int32 [inputs]): so the piece may lie anywhere in a file, while memory is aligned.
Everything between the two casts is float32 (float64 for float64 tensors).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import cache
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jmerge.ckpt.dtypes import NONFINITE_BITS, NUMPY
from jmerge.ckpt.safetensors import ALIGNMENT
from jmerge.methods.combine import sum_models
from jmerge.methods.cuts import magnitude_keys
from jmerge.methods.reduce import BLOCK, block_pairs
from jmerge.methods.wrap import find_method
from jmerge.plan.steps import COPY, Step

INSIDE, ABOVE = 1, 2  # a bracket
LANES = 1024  # width of the check for NaN


class KernelKey(NamedTuple):
    """Everything that makes one compiled program differ from another, but for the length of the pieces."""

    method: str
    inputs: tuple[str, ...]  # dtypes
    output: str  # dtype
    base: int | None
    switches: tuple[tuple[str, bool | int], ...]
    unset: tuple[str, ...]  # numbers that have no value
    view: tuple[int, ...]  # the shape in which a piece is seen; -1: as many rows as it has
    compute: np.dtype[Any]  # of the arithmetic

    def precision(self) -> AbstractContextManager[Any]:
        """Under this, JAX computes in the dtype of the arithmetic; for the thread that enters it."""
        return jax.enable_x64(True) if self.compute == np.float64 else nullcontext()

    @property
    def word(self) -> np.dtype[Any]:
        """The dtype of its bits."""
        return np.dtype(f"u{self.compute.itemsize}")


class Piece(NamedTuple):
    """What a kernel gives back."""

    values: jax.Array  # [elements] in the output dtype
    bits: jax.Array  # [LANES] bool: a NaN or infinity among inputs or values


def kernel_key(step: Step) -> KernelKey:
    """The key of the program that `step` runs."""
    switches = tuple(
        (name, value) for name, value in step.numbers.items() if isinstance(value, int)
    )
    unset = tuple(name for name, value in step.numbers.items() if value is None)
    dtypes = tuple(item.spec.dtype for item in step.inputs)
    return KernelKey(
        method=step.method,
        inputs=dtypes,
        output=step.spec.dtype,
        base=step.base,
        switches=switches,
        unset=unset,
        view=view_of(step),
        compute=step.arithmetic,
    )


def view_of(step: Step) -> tuple[int, ...]:
    """The shape in which the method sees a piece of the step's tensors; -1: as many rows as the piece has."""
    unit = "element" if step.method == COPY else find_method(step.method).unit(step.numbers)
    shape = step.spec.shape
    if unit == "element" or step.spec.size == 0:
        return (-1,)
    if unit == "slab":
        return (-1, *(shape[1:] or shape or (1,)))
    return shape if unit == "whole" else (-1, *(shape[-1:] or (1,)))


def is_plain_copy(step: Step) -> bool:
    """Whether the bytes of the result are the bytes of the input, so that no program is needed."""
    if any(item.spec.dtype != step.spec.dtype for item in step.inputs):
        return False
    return step.method == COPY or find_method(step.method).copies(step.numbers)


def combine(key: KernelKey) -> Callable[..., Piece]:
    """The function (pieces, arguments of the method by name) -> Piece."""

    def make(pieces: Sequence[jax.Array], arguments: Mapping[str, Any]) -> Piece:
        wide = _widen(key, pieces)
        result = _apply(key, wide, arguments)
        if key.method != COPY and not find_method(key.method).carries_nan:
            # so that a look at the result is enough: zero times what is not finite is NaN
            result = jnp.where(sum_models([each * 0 for each in wide]) == 0, result, jnp.nan)
        values = result.astype(NUMPY[key.output])
        return Piece(values.reshape(-1), _nonfinite(values.astype(key.compute)))

    return make


@cache
def combine_kernel(key: KernelKey) -> Callable[..., Piece]:
    """The jitted program (windows, skips, arguments) -> Piece."""
    make = combine(key)
    return jax.jit(lambda windows, skips, arguments: make(_cut_out(windows, skips), arguments))


@cache
def sums_kernel(key: KernelKey, statistic: int) -> Callable[..., jax.Array]:
    """The jitted program (windows, skips, arguments) -> pairs [sums, blocks, 2] of the statistic's terms by block, or
    of rows that stay together [sums, rows] what the terms say of each."""
    terms = terms_of(key, statistic)

    def add(pieces: Sequence[jax.Array], arguments: Mapping[str, Any]) -> jax.Array:
        flat = [each.reshape(-1) for each in terms(pieces, arguments)]
        if key.view != (-1,):
            return jnp.stack(flat)
        # an empty tensor is seen flat, also by a method whose terms are a number for each row
        return block_pairs([jnp.pad(each, (0, -each.size % BLOCK)) for each in flat])

    def nothing(*inputs: Any) -> jax.Array:
        found = jax.eval_shape(add, *inputs)
        return jnp.zeros(found.shape, found.dtype)

    def sums(
        windows: Sequence[jax.Array], skips: jax.Array, arguments: Mapping[str, Any]
    ) -> jax.Array:
        # XLA fuses nothing across a branch, whose condition always holds: cut out in the loop that adds, at a place it
        # does not know, elements would be read one by one, which takes six times as long.
        pieces = _cut_out(windows, skips)
        found: jax.Array = jax.lax.cond(jnp.all(skips >= 0), add, nothing, pieces, arguments)
        return found

    return jax.jit(sums)


@cache
def keys_kernel(key: KernelKey, statistic: int) -> Callable[..., list[jax.Array]]:
    """The jitted program (windows, skips, arguments) -> each of the statistic's terms: unsigned keys [elements]."""
    terms = terms_of(key, statistic)

    def keys(
        windows: Sequence[jax.Array], skips: jax.Array, arguments: Mapping[str, Any]
    ) -> list[jax.Array]:
        return [each.reshape(-1) for each in terms(_cut_out(windows, skips), arguments)]

    return jax.jit(keys)


def terms_of(key: KernelKey, statistic: int) -> Callable[..., Sequence[jax.Array]]:
    """(pieces, arguments) -> the terms of one of the method's statistics, in the shape of the pieces' view."""
    function = find_method(key.method).statistics[statistic].terms
    assert function is not None

    def terms(pieces: Sequence[jax.Array], arguments: Mapping[str, Any]) -> Sequence[jax.Array]:
        arrays = _arrays(key, _widen(key, pieces))
        found: Sequence[jax.Array] = function(*arrays, **_keywords(key, arguments))
        return found

    return terms


@cache
def magnitude_kernel() -> Callable[..., jax.Array]:
    """The jitted program (base, model, factor) -> `change_bits` [elements]."""
    return jax.jit(change_bits)


@cache
def bracket_kernel() -> Callable[..., list[jax.Array]]:
    """The jitted program (windows and skips of base and models; factors, low, high [models]) -> for each model,
    uint8 [elements]: 0 where the magnitude of its change times the factor is below the bracket [low, high] of bits,
    else `INSIDE` or `ABOVE`."""

    def bracket(
        windows: Sequence[jax.Array],
        skips: jax.Array,
        factors: jax.Array,
        low: jax.Array,
        high: jax.Array,
    ) -> list[jax.Array]:
        base, *models = _cut_out(windows, skips)
        bits = [change_bits(base, model, factors[i]) for i, model in enumerate(models)]
        return [
            (each >= low[i]).astype(jnp.uint8) + (each > high[i]).astype(jnp.uint8)
            for i, each in enumerate(bits)
        ]

    return jax.jit(bracket)


def change_bits(base: jax.Array, model: jax.Array, factor: jax.Array) -> jax.Array:
    """Bits of the magnitudes of a model's changes times a factor, in whose dtype they are computed."""
    return magnitude_keys(factor * (model.astype(factor.dtype) - base.astype(factor.dtype)))


def _cut_out(windows: Sequence[jax.Array], skips: jax.Array) -> list[jax.Array]:
    """The piece of every window."""
    pieces = []
    for i, window in enumerate(windows):
        length = window.size - ALIGNMENT // window.dtype.itemsize
        pieces.append(jax.lax.dynamic_slice(window, (skips[i],), (length,)))
    return pieces


def _widen(key: KernelKey, inputs: Sequence[jax.Array]) -> list[jax.Array]:
    return [item.astype(key.compute).reshape(key.view) for item in inputs]


def _arrays(key: KernelKey, inputs: list[jax.Array]) -> tuple[jax.Array, ...]:
    """The arrays a method is called with."""
    if key.base is None:
        return (jnp.stack(inputs),)
    base = inputs[key.base]
    models = [item for i, item in enumerate(inputs) if i != key.base]
    if find_method(key.method).takes == "delta":
        return (jnp.stack([model - base for model in models]),)
    return base, jnp.stack(models)


def _keywords(key: KernelKey, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """The keyword arguments a method is called with."""
    known = find_method(key.method).keywords
    values = {**arguments, **dict(key.switches), **dict.fromkeys(key.unset)}
    return {known.get(name, name): value for name, value in values.items()}


def _apply(key: KernelKey, inputs: list[jax.Array], arguments: Mapping[str, Any]) -> jax.Array:
    if key.method == COPY:
        return inputs[0]
    method = find_method(key.method)
    result: jax.Array = method.function(*_arrays(key, inputs), **_keywords(key, arguments))
    return inputs[key.base] + result if method.takes == "delta" and key.base is not None else result


def _nonfinite(values: jax.Array) -> jax.Array:
    """Whether any element is NaN or infinite, by lanes: integer arithmetic on the bits, which vectorises."""
    mask, value = NONFINITE_BITS[{4: "F32", 8: "F64"}[values.dtype.itemsize]]
    bits = jax.lax.bitcast_convert_type(values, np.dtype(f"u{values.dtype.itemsize}"))
    hit = (bits & bits.dtype.type(mask)) == bits.dtype.type(value)
    padded = jnp.pad(hit.reshape(-1), (0, -hit.size % LANES))
    return jnp.any(padded.reshape(-1, LANES), axis=0)
