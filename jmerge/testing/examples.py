"""What laws are tried on: rows of the table, their examples, and inputs drawn for these."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from jmerge.dtypes import NUMPY
from jmerge.engine.schedule import PIECE
from jmerge.methods import find_method
from jmerge.methods.reduce import BLOCK
from jmerge.testing.ways import TENSOR, Hyperparameters, Inputs, Way, keys_of, streamed

Shape = tuple[int, ...]

# (models [models, *shape], base [*shape] or None, numbers as the row writes them) -> the merged tensor, in float64;
# for a random method also keys=, two words for each model. It knows the defaults of unset numbers by itself, so that
# a wrong declared default shows.
Reference = Callable[..., np.ndarray]


@dataclass(frozen=True, kw_only=True)
class Row:
    """A method in the table of laws."""

    method: str
    reference: Reference
    hyperparameters: tuple[
        Hyperparameters, ...
    ]  # examples; every switch should be seen in both positions
    identity: tuple[Hyperparameters, ...] = ()  # with weights summing to one, and nothing dropped
    models: int = 3  # how many (without the base) where no example's number says so
    chooses: bool = False  # among elements by magnitude: the reference is tried on equal ones too
    opt_out: Mapping[str, str] = field(default_factory=dict)  # law -> why it cannot hold


# Scalars, one element, none, all ranks, and sizes around the borders of the blocks that sums are made of. Compiling
# takes most of the time, so a law tries many shapes with a row's first numbers and few with the others.
SMALL: tuple[Shape, ...] = ((), (1,), (0,), (3, 0), (3, 5), (2, 3, 4))
SHAPES: tuple[Shape, ...] = (*SMALL, (BLOCK,), (BLOCK + 1,), (3, BLOCK - 1))
FEW: tuple[Shape, ...] = ((2, 3, 4), (3, BLOCK - 1))
IN_FULL: tuple[Shape, ...] = (*FEW, (), (0,))


class Setting(NamedTuple):
    """One of a row's examples, and what it is tried on."""

    hyperparameters: Hyperparameters
    models: int  # without the base
    has_base: bool
    first: bool  # of the row
    base_at: int  # the place of a base among the sources of its recipes

    def draw(self, shape: Shape, spread: float = 1.0, *, dtype: str = "F32") -> Inputs:
        """Inputs for it; see `draw`."""
        return draw(shape, self.models, self.has_base, spread, dtype=dtype)

    def way(self, shape: Shape) -> Way:
        """How to compile it by hand: in full where the law `recipe` needs that anyway, quickly elsewhere."""
        return "jit" if shape in (IN_FULL if self.first else FEW[:1]) else "quick"

    def streamed(
        self, row: Row, tensors: Mapping[str, Inputs], *, piece: int = PIECE
    ) -> dict[str, np.ndarray]:
        """What the engine makes of them; see `ways.streamed`."""
        return streamed(
            row.method, tensors, self.hyperparameters, base_at=self.base_at, piece=piece
        )


def settings(row: Row, examples: Sequence[Hyperparameters] = ()) -> Iterator[Setting]:
    """The row's examples (or those given), without and with a base as the method allows."""
    method = find_method(row.method)
    low, high = method.counts
    usual = max(low, min(row.models, high or row.models))
    bases = {"needed": (True,), "input": (False,), "optional": (False, True)}[method.base]
    for number, hyperparameters in enumerate(examples or row.hyperparameters):
        given = [len(value) for value in hyperparameters.values() if isinstance(value, tuple)]
        for has_base in bases:
            first = number == 0 and has_base == bases[-1]
            models = given[0] if given else usual
            yield Setting(hyperparameters, models, has_base, first, number % (models + 1))


def draw(
    shape: Shape,
    models: int,
    has_base: bool,
    spread: float = 1.0,
    *,
    dtype: str = "F32",
    seed: int = 0,
) -> Inputs:
    """Seeded normal numbers: a base, and `models` of it plus `spread` times a change of their own.

    Without a base they are models of a common origin all the same.
    """
    rng = np.random.default_rng([seed, models, *shape])
    origin, *changes = (np.asarray(rng.standard_normal(shape)) for _ in range(models + 1))
    cast = NUMPY[dtype]
    base = origin.astype(cast) if has_base else None
    return Inputs(tuple((origin + spread * change).astype(cast) for change in changes), base)


def name_of(shape: Shape) -> str:
    """A name for a tensor of this shape."""
    return "x".join([TENSOR, *map(str, shape)])


def plus(inputs: Inputs, shift: np.ndarray) -> Inputs:
    """The inputs, each with `shift` added."""
    return inputs.map(lambda array: array + shift)


def shortened(array: np.ndarray) -> np.ndarray:
    """`array` rounded to multiples of 2^-10."""
    result: np.ndarray = np.round(array * 1024) / array.dtype.type(1024)
    return result


def _opposite(inputs: Inputs) -> Inputs:
    """Every other input is the first one's opposite, the first model the base's."""
    first = inputs.models[0]
    sides = tuple(first if i % 2 else -first for i in range(len(inputs.models)))
    return Inputs(sides, None if inputs.base is None else first)


def spoiled(inputs: Inputs, position: int, value: float) -> Inputs:
    """The last element of one input, the base coming last, set to `value`."""
    arrays = [array.copy() for array in (*inputs.models, inputs.base) if array is not None]
    arrays[position].reshape(-1)[-1] = value
    count = len(inputs.models)
    return Inputs(tuple(arrays[:count]), arrays[count] if len(arrays) > count else None)


def _first(inputs: Inputs, factor: float) -> Inputs:
    """The first model times a factor."""
    first, *others = inputs.models
    return Inputs((first * np.float32(factor), *others), inputs.base)


EXTREME_INPUTS: Mapping[str, Callable[[Inputs], Inputs]] = {
    "zeros": lambda drawn: drawn.map(np.zeros_like),
    "identical": lambda drawn: drawn.map(lambda _: drawn.models[0]),
    "opposite": _opposite,
    "one zero": lambda drawn: _first(drawn, 0),
    "zero base": lambda drawn: Inputs(
        drawn.models, None if drawn.base is None else np.zeros_like(drawn.base)
    ),
    "tiny": lambda drawn: drawn.map(lambda array: array * np.float32(1e-30)),
    "huge": lambda drawn: drawn.map(lambda array: array * np.float32(1e30)),
    "huge opposite": lambda drawn: _opposite(drawn).map(lambda array: array * np.float32(1e30)),
    "one huge": lambda drawn: _first(drawn, 1e30),
}


def other_value(value: Any) -> Any:
    """Another value of a continuous number, nearer to zero; flags, unset numbers and a special one (1) stay."""
    if isinstance(value, tuple):
        return tuple(map(other_value, value))
    return value * 0.75 if isinstance(value, float) and value != 1 else value


def wanted_of(
    row: Row, inputs: Inputs, hyperparameters: Hyperparameters, tensor: str = TENSOR
) -> np.ndarray:
    """What the row's reference makes of the inputs, in float64."""
    wide = inputs.map(lambda array: array.astype(np.float64))
    keys = keys_of(find_method(row.method), len(inputs.models), tensor)
    extra = {} if keys is None else {"keys": keys}
    return np.asarray(row.reference(np.stack(wide.models), wide.base, hyperparameters, **extra))


@contextmanager
def about(setting: Setting, **facts: Any) -> Iterator[None]:
    """Add what was being tried to the error that a law raises."""
    try:
        yield
    except Exception as error:
        facts = {**setting._asdict(), **facts}
        error.add_note(", ".join(f"{name} {value}" for name, value in facts.items()))
        raise
