"""Tensors of 16 bits are merged in float32 and rounded once: nearer to the truth than arithmetic in 16 bits."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest
from rows import ROWS

from jmerge.dtypes import NUMPY
from jmerge.methods import REGISTRY
from jmerge.methods.reduce import BLOCK
from jmerge.testing.examples import Row, settings, wanted_of
from jmerge.testing.ways import TENSOR, by_hand, keys_of

# With the first numbers of their rows these round nothing, in any dtype; arithmetic in 16 bits may choose other elements.
COPYING = {
    "passthrough": "without a scale the model comes back as it is",
    "arcee_fusion": "each element is the base's or the model's",
}


class Rounded(np.ndarray):
    """A float64 array whose values are those of a dtype of 16 bits, as is every array made of it.

    Each operation and each function of numpy is computed in float64 and its result rounded: so a sum is rounded once,
    which is kinder than adding in 16 bits.
    """

    storage: np.dtype[Any]

    def __array_finalize__(self, other: Any) -> None:
        """Take over the dtype from the array that this is a view of."""
        self.storage = getattr(other, "storage", np.dtype(np.float64))

    def __array_ufunc__(self, ufunc: np.ufunc, method: str, *inputs: Any, **rest: Any) -> Any:
        """What the ufunc makes of plain arrays, rounded."""
        return self._call(getattr(ufunc, method), inputs, rest)

    def __array_function__(self, function: Any, types: Any, args: Any, kwargs: Any) -> Any:
        """What the function makes of plain arrays, rounded."""
        return self._call(function, args, kwargs)

    def _call(self, function: Callable[..., Any], args: Any, kwargs: Mapping[str, Any]) -> Any:
        # small numbers become zero in 16 bits, and large ones infinite
        with np.errstate(all="ignore"):
            plain = {name: _plain(value) for name, value in kwargs.items()}
            return self._round(function(*_plain(args), **plain))

    def _round(self, found: Any) -> Any:
        if isinstance(found, tuple | list):
            return type(found)(map(self._round, found))
        is_float = getattr(found, "dtype", None) == np.float64
        return rounded(np.asarray(found), self.storage) if is_float else found


def rounded(values: np.ndarray, dtype: np.dtype[Any]) -> Rounded:
    """Values rounded to a dtype."""
    found = values.astype(dtype).astype(np.float64).view(Rounded)
    found.storage = dtype
    return found


def _plain(value: Any) -> Any:
    if isinstance(value, tuple | list):
        return type(value)(map(_plain, value))
    return value.view(np.ndarray) if isinstance(value, Rounded) else value


def squared_error(found: np.ndarray, wanted: np.ndarray) -> float:
    """The mean squared error."""
    return float(np.mean((found.astype(np.float64) - wanted) ** 2))


@pytest.mark.parametrize(
    "row",
    [pytest.param(ROWS[name], id=name, marks=pytest.mark.xdist_group(name)) for name in REGISTRY],
)
@pytest.mark.parametrize("dtype", ["BF16", "F16"])
def test_nearer_than_arithmetic_in_16_bits(row: Row, dtype: str) -> None:
    """And nearly as near as any result of 16 bits.

    Ours is a program that the laws compile, too. Theirs is the reference with every intermediate result rounded: JAX
    would take a minute to compile all methods in 16 bits, and some work with the bits of 32 or 64 only.
    """
    first = next(setting for setting in settings(row) if setting.first)
    inputs, method = first.draw((BLOCK,), dtype=dtype), REGISTRY[row.method]
    wanted = wanted_of(row, inputs, first.hyperparameters)
    ours = by_hand(method, inputs, first.hyperparameters, way="quick").astype(NUMPY[dtype])
    keys = keys_of(method, len(inputs.models), TENSOR)
    theirs = row.reference(
        rounded(np.stack(inputs.models), NUMPY[dtype]),
        None if inputs.base is None else rounded(inputs.base, NUMPY[dtype]),
        first.hyperparameters,
        **({} if keys is None else {"keys": keys}),
    )
    error, their_error = squared_error(ours, wanted), squared_error(np.asarray(theirs), wanted)
    if row.method in COPYING:
        assert error == 0
    else:
        assert error < their_error
        assert error < 1.001 * squared_error(wanted.astype(NUMPY[dtype]), wanted)


def test_what_is_made_of_rounded_arrays_is_rounded() -> None:
    a = rounded(np.array([[1.0, 2.0], [3.0, 5.0]]), NUMPY["BF16"])
    made = (a / 3, (a / 3).sum(axis=0), np.where(a > 2, a / 3, 0), np.stack([a / 3]), 1 / (a * 3))
    for each in (*made, np.mean(a / 3), (a / 7).clip(0, 1), np.sqrt(a)[:1], np.zeros(2) + a / 3):
        assert isinstance(each, Rounded)
        assert np.array_equal(each, np.asarray(each).astype(NUMPY["BF16"]).astype(np.float64))
