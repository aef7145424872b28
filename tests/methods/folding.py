"""A statistic taken in pieces: padded, on several devices, in any order, as compiled programs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cache, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jmerge.methods.positions import split_position
from jmerge.methods.reduce import BLOCK
from jmerge.methods.statistics.fold import NONE, Again, Extent, Place, Statistic, take
from jmerge.testing.ways import quick_options

Terms = Sequence[np.ndarray]  # of one tensor, flat; of rows [rows], or [rows, elements]


class Cut(NamedTuple):
    """How tensors are cut into pieces."""

    length: int  # elements or rows of most pieces
    devices: int = 1
    start: int = 0  # the position of the first element of all
    row: int = 0  # elements of a row whose number a term has; 0: terms have one for each element
    seed: int | None = None  # pieces come in another order than their own

    def pieces(self, count: int) -> list[tuple[int, int]]:
        """Where the pieces of so many elements begin and end."""
        return [(i, min(i + self.length, count)) for i in range(0, count, self.length)]


@cache
def update_of(statistic: Statistic, last: bool) -> Callable[..., Any]:
    """`update` as a program that is given its state."""
    update = partial(statistic.update, last=last)
    return jax.jit(update, donate_argnums=0, compiler_options=quick_options())


@cache
def finish_of(statistic: Statistic, last: bool) -> Callable[..., Any]:
    """`finish` as a program."""
    finish = partial(statistic.finish, last=last)
    return jax.jit(finish, compiler_options=quick_options())


@cache
def whole_of(
    statistic: Statistic, dtype: np.dtype[Any], label: object = None
) -> Callable[..., Any]:
    """`take` as a program of the terms of each tensor and hyperparameters; label: of what else it depends on."""
    return jax.jit(
        lambda leaves, hyperparameters: take(statistic, leaves, hyperparameters, {}, dtype),
        compiler_options=quick_options(),
    )


def in_pieces(
    statistic: Statistic,
    tensors: Sequence[Terms],
    hyperparameters: Mapping[str, Any],
    dtype: np.dtype[Any],
    cut: Cut,
) -> Any:
    """The value of a statistic of tensors that come in pieces."""
    counts = [len(terms[0]) for terms in tensors]
    pieces = [(t, *ends) for t, count in enumerate(counts) for ends in cut.pieces(count)]
    sizes = tuple(count * max(cut.row, 1) for count in counts)
    offsets = np.cumsum([cut.start, *sizes]).tolist()
    rows = max(counts) if cut.row else 0
    extent = Extent((sizes[0] + cut.start, *sizes[1:]), len(tensors[0]), dtype, len(pieces), rows)

    def fed(state: Any, number: int, last: bool) -> Any:
        tensor, first, end = pieces[number]
        terms = [jnp.asarray(padded(each[first:end], cut.length)) for each in tensors[tensor]]
        place = Place(
            piece=np.uint32(number),
            tensor=np.uint32(tensor),
            block=np.uint32(first if cut.row else first // BLOCK),
            start=np.asarray(split_position(offsets[tensor] + first * max(cut.row, 1)), np.uint32),
            valid=np.uint32(end - first),
        )
        return update_of(statistic, last)(state, terms, place)

    rng = np.random.default_rng(cut.seed)
    began, only = statistic.init(extent, hyperparameters, {}), set[int]()
    passes = statistic.passes(dtype)
    for turn in range(passes):
        state, last = copied(began), turn == passes - 1
        if last and statistic.narrows:  # what is left of the pieces comes in order, on one device
            for number in range(len(pieces)):
                if number // int(began.pieces) in only:
                    state = fed(state, number, last)
        else:
            for tensor in range(len(tensors)):
                states = [state, *(copied(began) for _ in range(cut.devices - 1))]
                own = [number for number, piece in enumerate(pieces) if piece[0] == tensor]
                for i, number in enumerate(own if cut.seed is None else rng.permutation(own)):
                    at = i % cut.devices
                    states[at] = fed(states[at], int(number), last)
                joined = statistic.join(states) if cut.devices > 1 else states[0]
                state = statistic.close(joined, np.uint32(tensor))
        value = finish_of(statistic, last)(state)
        if isinstance(value, Again):
            began, only = value.state, {*np.asarray(value.only).tolist()} - {NONE}
    assert not isinstance(value, Again)
    return value


def copied(state: Any) -> Any:
    """A state of its own, for a program that takes it over."""
    return jax.tree.map(lambda each: jnp.array(each, copy=True), state)


def padded(values: np.ndarray, length: int) -> np.ndarray:
    """Values as long as a piece: behind what counts stand zeros up to a block, then the largest there are."""
    zeros = -len(values) % BLOCK if length % BLOCK == 0 else 0
    found = np.zeros((length, *values.shape[1:]), values.dtype)
    found[: len(values)] = values
    largest = np.iinfo(values.dtype).max if values.dtype.kind == "u" else np.inf
    found[len(values) + zeros :] = largest
    return found
