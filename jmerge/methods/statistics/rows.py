"""Of single pieces: masks, and ranks among neighbours (sorted rows, the largest elements of each; a row lies in one piece)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

from jmerge.methods.mesh import axis_to_deal, deal, devices_of, mesh_of
from jmerge.methods.statistics.fold import Extent, Found, Hyperparameters, Place, Scope, Statistic


@dataclass(frozen=True, kw_only=True)
class OfPiece(Statistic):
    """The terms of every piece anew, as they are."""

    scope: Scope = "piece"

    def init(self, extent: Extent, hyperparameters: Hyperparameters, found: Found) -> None:
        """Nothing: pieces have nothing in common."""

    def update(
        self, state: object, terms: Sequence[jax.Array], place: Place | None, *, last: bool = True
    ) -> list[jax.Array]:
        """What is made of the piece."""
        return list(terms)

    def on_host(self, terms: Sequence[np.ndarray]) -> list[np.ndarray]:
        """The same by NumPy."""
        return list(terms)

    @staticmethod
    def finish(state: list[jax.Array], *, last: bool = True) -> list[jax.Array]:
        """What was made of the piece."""
        return state


@dataclass(frozen=True, kw_only=True)
class Masks(OfPiece):
    """Which elements a method keeps: its terms, of bool. Other statistics of single pieces, declared before it, serve it
    alone, so what goes over pieces more than once may keep the masks and make nothing of that anew."""


@dataclass(frozen=True, kw_only=True)
class SortedRows(OfPiece):
    """The keys of each term sorted along axis 1, the smallest first."""

    def update(
        self, state: object, terms: Sequence[jax.Array], place: Place | None, *, last: bool = True
    ) -> list[jax.Array]:
        """The sorted keys of the piece."""
        return [sort_rows(each) for each in terms]

    def on_host(self, terms: Sequence[np.ndarray]) -> list[np.ndarray]:
        """The same by NumPy, which is better at it than XLA on CPU."""
        return [np.sort(each, axis=1) for each in terms]


def sort_rows(keys: jax.Array, axis: int = 1) -> jax.Array:
    """Unsigned keys [*shape] sorted along an axis, the smallest first."""
    return jnp.sort(deal_rows(keys, axis), axis=axis)


def deal_rows(values: jax.Array, axis: int = 1, *, beside: jax.Array | None = None) -> jax.Array:
    """Values [*shape] whose rows along an axis are dealt out as wholes, where they, or an array `beside`, lie on several
    devices."""
    mesh = mesh_of([values] if beside is None else [beside])
    others = [i for i in range(values.ndim) if i != axis]
    if devices_of(mesh) > 1 and others:
        return deal(values, mesh, axis_to_deal(values.shape, others, devices_of(mesh)))
    return values


def largest_of_rows(keys: jax.Array, count: jax.Array) -> jax.Array:
    """Which of the `count` (uint32 scalar) largest of its row an element of unsigned keys [*shape] is: bool [*shape].

    Rows run along the last axis; of equal keys the first count. The least key that is kept is found bit by bit, which
    takes no sort and leaves rows where they lie.
    """
    top = 8 * keys.dtype.itemsize - 1

    def lower_bit(i: jax.Array, least: jax.Array) -> jax.Array:
        bit = jnp.ones_like(least) << (top - jnp.asarray(i)).astype(least.dtype)
        enough = jnp.sum(keys >= (least | bit), axis=-1, keepdims=True, dtype=jnp.uint32) >= count
        higher: jax.Array = jnp.where(enough, least | bit, least)
        return higher

    # of the keys' own values, so that it lies on devices as they do
    none = jax.lax.slice_in_dim(keys, 0, 1, axis=keys.ndim - 1) * 0 if keys.shape[-1] else keys
    least = jax.lax.fori_loop(0, top + 1, lower_bit, none)
    above, equal = keys > least, keys == least
    left = count - jnp.sum(above, axis=-1, keepdims=True, dtype=jnp.uint32)
    first = jnp.cumsum(equal, axis=-1, dtype=jnp.uint32) <= left
    kept: jax.Array = (above | (equal & first)) & (count > 0)
    return kept
