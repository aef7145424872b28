"""What all statistics have in common, and how one is taken of whole arrays.

    state = statistic.init(extent, hyperparameters, found)
    for number in range(passes := statistic.passes(dtype)):
        last = number == passes - 1
        for every piece of every tensor:
            state = statistic.update(state, terms of the piece, place, last=last)
        value = statistic.finish(state, last=last), or `Again` with the state of the next pass

States are small pytrees of arrays, `update` and `finish` are pure, and how many passes there are follows from the
extent alone; so all of it runs under `jit`, `vmap` and `shard_map`, in pieces of any size, on any number of devices,
and gives the same bits. All passes but the last are alike, so that programs do not grow with their number.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

Scope = Literal["piece", "tensor", "model"]
Hyperparameters = Mapping[str, Any]  # by their names in recipes; plain or traced
Found = Mapping[str, Any]  # statistics by keyword
Terms = Callable[..., Sequence[Any]]


class Extent(NamedTuple):
    """What a statistic is taken of."""

    sizes: tuple[int, ...]  # elements of each tensor
    terms: int  # arrays that the terms of a piece are
    dtype: np.dtype[Any]  # of the arithmetic
    # Pieces in one pass over all tensors; 0: every tensor is one piece, of any shape.
    pieces: int = 0
    # Most rows of a tensor, where terms have a number for each; 0: they have one for each element.
    rows: int = 0

    @property
    def size(self) -> int:
        """Elements of all tensors."""
        return sum(self.sizes)


class Place(NamedTuple):
    """Where a piece lies; any of it may be traced."""

    piece: Any  # its number among all of a pass
    tensor: Any  # the number of its tensor
    block: Any  # its first block of `sums.BLOCK` elements in its tensor, or its first row
    start: Any  # uint32 [2], high and low word of its first element's position in all tensors, one after the other
    # How many of its elements, or rows, count: those before the padding; None: all.
    valid: Any = None


class Again(NamedTuple):
    """One more pass is needed."""

    state: Any
    # uint32 [n]: if that is the last one, it may leave out all pieces but those of these groups (a state says how many
    # make one); `NONE` is no group. None: it needs all.
    only: Any = None


NONE = 0xFFFFFFFF  # no group


@dataclass(frozen=True, kw_only=True)
class Statistic(ABC):
    """A kind of statistic: the base of `BlockSum`, `TopK` and `SortedRows`."""

    keyword: str  # of the method, and of later statistics
    # Called like the method, with the statistics before it: what is looked at of a piece.
    terms: Terms
    scope: Scope = "tensor"
    when: Callable[[Hyperparameters], bool] = lambda hyperparameters: True  # whether it is needed

    @abstractmethod
    def init(self, extent: Extent, hyperparameters: Hyperparameters, found: Found) -> Any:
        """The state before the first piece; of equal shapes for all small tensors (`BLOCK` elements and some more) that
        are one piece."""

    @abstractmethod
    def update(
        self, state: Any, terms: Sequence[jax.Array], place: Place, *, last: bool = True
    ) -> Any:
        """The state after one more piece, in the last pass or one before it."""

    @staticmethod
    def close(state: Any, tensor: Any) -> Any:
        """The state after the last piece of a tensor."""
        return state

    @staticmethod
    def join(states: Sequence[Any]) -> Any:
        """One state of those of different devices, each of which began with `init` or the same pass and saw other
        pieces. Where pieces have nothing in common there is one."""
        (state,) = states
        return state

    def passes(self, dtype: np.dtype[Any]) -> int:
        """How many times `update` goes over the pieces."""
        return 1

    @property
    def narrows(self) -> bool:
        """Whether the last pass, after others, goes over few pieces."""
        return False

    def known(self, extent: Extent, hyperparameters: Hyperparameters, found: Found) -> Any:
        """The value where no element has to be looked at for it, else None."""
        return None

    @staticmethod
    @abstractmethod
    def finish(state: Any, *, last: bool = True) -> Any:
        """The value after the last pass, `Again` after one before it."""


def whole_places(leaves: Sequence[Sequence[jax.Array]]) -> list[Place]:
    """The place of every tensor that is one piece."""
    places, offset = [], 0
    for number, terms in enumerate(leaves):
        start = jnp.asarray(np.asarray([offset >> 32, offset & 0xFFFFFFFF], np.uint32))
        places.append(Place(number, number, 0, start))
        offset += terms[0].size if terms else 0
    return places


def take(
    statistic: Statistic,
    leaves: Sequence[Sequence[jax.Array]],
    hyperparameters: Hyperparameters,
    found: Found,
    dtype: np.dtype[Any],
    sizes: Sequence[int] = (),
) -> Any:
    """The value of a statistic of whole arrays.

    leaves: the terms of each tensor; sizes: its elements, where terms have a number for each row.
    """
    sizes = tuple(sizes) or tuple(terms[0].size if terms else 0 for terms in leaves)
    extent = Extent(sizes, len(leaves[0]), np.dtype(dtype))
    places = whole_places(leaves)

    def seen(state: Any, last: bool) -> Any:
        for terms, place in zip(leaves, places, strict=True):
            state = statistic.close(statistic.update(state, terms, place, last=last), place.tensor)
        return state

    return search(statistic, statistic.init(extent, hyperparameters, found), extent.dtype, seen)


def search(
    statistic: Statistic,
    state: Any,
    dtype: np.dtype[Any],
    seen: Callable[[Any, bool], Any],
) -> Any:
    """The value of a statistic from its first state.

    seen: the function (state, whether it is the last pass) -> the state after all pieces.
    """
    before = statistic.passes(dtype) - 1
    if before:
        state = jax.lax.fori_loop(
            0,
            before,
            lambda _, state: statistic.finish(seen(state, False), last=False).state,
            state,
        )
    return statistic.finish(seen(state, True), last=True)
