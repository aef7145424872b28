"""The compiled programs of a step: pieces of the inputs in their own dtypes -> a piece of the result in its dtype.

A kernel sees flat pieces of one of a few fixed lengths, so it is compiled once for each of those, whatever the
shapes of the tensors. Each input comes as a window, `ALIGNMENT` bytes longer than the piece, with the number of
elements to skip at its start (int32 [inputs]): so the piece may lie anywhere in a file, while memory is aligned. What
adds up takes pieces that are aligned themselves: elements in rows at a place that XLA does not know are read one by one.
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

from jmerge.ckpt.safetensors import ALIGNMENT
from jmerge.dtypes import NONFINITE_BITS, NUMPY
from jmerge.methods.combine import sum_models
from jmerge.methods.statistics.fold import Place, Statistic
from jmerge.methods.wrap import find_method
from jmerge.plan.steps import COPY, Step

INSIDE, ABOVE = 1, 2  # a bracket: two bits
IN_A_BYTE = 4  # brackets
CHOSEN = 1 << 15  # keys that are taken out of a piece at a time
NOWHERE = Place(0, 0, 0, np.zeros(2, np.uint32))  # for statistics of single pieces
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
        (name, value) for name, value in step.hyperparameters.items() if isinstance(value, int)
    )
    unset = tuple(name for name, value in step.hyperparameters.items() if value is None)
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
    unit = "element" if step.method == COPY else find_method(step.method).unit(step.hyperparameters)
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
    return step.method == COPY or find_method(step.method).copies(step.hyperparameters)


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

    def combine_piece(
        windows: Sequence[jax.Array], skips: jax.Array, arguments: Mapping[str, Any]
    ) -> Piece:
        return make(_cut_out(windows, skips), arguments)

    return jax.jit(combine_piece)


@cache
def update_kernel(
    key: KernelKey, statistic: int, last: bool
) -> Callable[..., tuple[Any, jax.Array]]:
    """The jitted program (state, pieces, arguments, place) -> the state after one more piece, in the last pass or one
    before it, and something that is ready when that is; the state that it is given is gone."""
    found = update(key, statistic)

    def update_piece(
        state: Any, pieces: Sequence[jax.Array], arguments: Mapping[str, Any], place: Place
    ) -> tuple[Any, jax.Array]:
        return found(state, pieces, arguments, place, last), place.start.sum()

    return jax.jit(update_piece, donate_argnums=0)


def update(key: KernelKey, statistic: int) -> Callable[..., Any]:
    """The function (state, pieces, arguments, place, last) -> the state after these pieces."""
    terms = terms_of(key, statistic)
    fold = find_method(key.method).statistics[statistic]

    def program(
        state: Any,
        pieces: Sequence[jax.Array],
        arguments: Mapping[str, Any],
        place: Place,
        last: bool,
    ) -> Any:
        return fold.update(state, terms(pieces, arguments), place, last=last)

    return program


@cache
def close_kernel(kind: type[Statistic]) -> Callable[..., Any]:
    """The jitted program (states of all devices, number of the tensor) -> the state after a whole tensor."""

    def close(states: Sequence[Any], tensor: jax.Array) -> Any:
        return kind.close(kind.join(states), tensor)

    return jax.jit(close)


@cache
def finish_kernel(kind: type[Statistic], last: bool) -> Callable[..., Any]:
    """The jitted program (state after a pass) -> the value of a statistic, or before the last pass `Again`."""

    def finish(state: Any) -> Any:
        return kind.finish(state, last=last)

    return jax.jit(finish)


@cache
def keys_kernel(key: KernelKey, statistic: int) -> Callable[..., list[jax.Array]]:
    """The jitted program (windows, skips, arguments) -> each of the statistic's terms [elements]."""
    terms = piece_kernel(key, statistic)
    return jax.jit(lambda *inputs: [each.reshape(-1) for each in terms(*inputs)])


@cache
def piece_kernel(key: KernelKey, statistic: int) -> Callable[..., Sequence[jax.Array]]:
    """The jitted program (windows, skips, arguments) -> the statistic's terms."""
    terms = terms_of(key, statistic)

    def of_piece(
        windows: Sequence[jax.Array], skips: jax.Array, arguments: Mapping[str, Any]
    ) -> Sequence[jax.Array]:
        return terms(_cut_out(windows, skips), arguments)

    return jax.jit(of_piece)


@cache
def chosen_kernel(key: KernelKey, statistic: int) -> Callable[..., list[jax.Array]]:
    """The jitted program (indices int32 [CHOSEN], windows, skips, arguments) -> each of the statistic's terms there."""
    keys = keys_kernel(key, statistic)
    return jax.jit(lambda indices, *inputs: [each[indices] for each in keys(*inputs)])


@cache
def bracket_kernel(key: KernelKey, statistic: int, of_term: tuple[int, ...]) -> Callable[..., Any]:
    """The jitted program (low, high [thresholds], windows, skips, arguments) -> uint8 [elements] for every `IN_A_BYTE`
    thresholds, which look for keys of the terms `of_term`: of each threshold `INSIDE` where the key is in its
    bracket [low, high] and `ABOVE` where it is above that, moved by two bits for each before it."""
    keys = keys_kernel(key, statistic)

    def bracket(low: jax.Array, high: jax.Array, *inputs: Any) -> list[jax.Array]:
        terms = keys(*inputs)
        places = []
        for first in range(0, len(of_term), IN_A_BYTE):
            byte = jnp.zeros(terms[0].shape, jnp.uint8)
            for i, term in enumerate(of_term[first : first + IN_A_BYTE], first):
                above = terms[term] > high[i]
                inside = (terms[term] >= low[i]) & ~above
                place = jnp.where(above, ABOVE, jnp.where(inside, INSIDE, 0))
                byte = byte | (place.astype(jnp.uint8) << (2 * (i - first)))
            places.append(byte)
        return places

    return jax.jit(bracket)


def terms_of(key: KernelKey, statistic: int) -> Callable[..., Sequence[jax.Array]]:
    """(pieces, arguments) -> the terms of one of the method's statistics, in the shape of the pieces' view."""

    def terms(pieces: Sequence[jax.Array], arguments: Mapping[str, Any]) -> Sequence[jax.Array]:
        method = find_method(key.method)
        arrays = _arrays(key, _widen(key, pieces))
        keywords = _keywords(key, arrays, arguments, statistic)
        found: Sequence[jax.Array] = method.statistics[statistic].terms(*arrays, **keywords)
        return found

    return terms


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


def _keywords(
    key: KernelKey,
    arrays: Sequence[jax.Array],
    arguments: Mapping[str, Any],
    until: int | None = None,
) -> dict[str, Any]:
    """The keyword arguments the method is called with, or the terms of its statistic number `until`."""
    method = find_method(key.method)
    values = {**arguments, **dict(key.switches), **dict.fromkeys(key.unset)}
    keywords = {method.keywords.get(name, name): value for name, value in values.items()}
    for statistic in method.statistics[:until]:
        missing = statistic.scope == "piece" and statistic.keyword not in keywords
        if missing and statistic.when(values):
            terms = statistic.terms(*arrays, **keywords)
            keywords[statistic.keyword] = statistic.finish(statistic.update(None, terms, NOWHERE))
    return keywords


def _apply(key: KernelKey, inputs: list[jax.Array], arguments: Mapping[str, Any]) -> jax.Array:
    if key.method == COPY:
        return inputs[0]
    method = find_method(key.method)
    arrays = _arrays(key, inputs)
    result: jax.Array = method.function(*arrays, **_keywords(key, arrays, arguments))
    return inputs[key.base] + result if method.takes == "delta" and key.base is not None else result


def _nonfinite(values: jax.Array) -> jax.Array:
    """Whether any element is NaN or infinite, by lanes: integer arithmetic on the bits, which vectorises."""
    mask, value = NONFINITE_BITS[{4: "F32", 8: "F64"}[values.dtype.itemsize]]
    bits = jax.lax.bitcast_convert_type(values, np.dtype(f"u{values.dtype.itemsize}"))
    hit = (bits & bits.dtype.type(mask)) == bits.dtype.type(value)
    padded = jnp.pad(hit.reshape(-1), (0, -hit.size % LANES))
    return jnp.any(padded.reshape(-1, LANES), axis=0)


# what compiles programs, each for every length
KERNELS = (
    combine_kernel,
    update_kernel,
    close_kernel,
    finish_kernel,
    keys_kernel,
    piece_kernel,
    chosen_kernel,
    bracket_kernel,
)
