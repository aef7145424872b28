"""Numbers that differ from leaf to leaf: by patterns of their names, over the layers, and as a tree."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from jmerge.trees.paths import is_array, matches


class Leaf(NamedTuple):
    """Where in its model a leaf lies, or a layer of one."""

    number: int  # among all leaves of the tree
    name: str
    depth: float  # from 0 for the first layer of its stack to 1 for the last; 0 outside of layers
    layer: int | None = None  # which one, where the leaf holds several
    layers: int = 0  # how many it then holds


@dataclass(frozen=True, repr=False, eq=False)
class OverLayers:
    """A number that changes evenly from layer to layer; `over_layers` makes it."""

    values: tuple[Any, ...]

    def __repr__(self) -> str:
        return f"over_layers({', '.join(map(repr, self.values))})"

    def at(self, depth: float) -> Any:
        """The number at a depth from 0 to 1, computed as recipes do."""
        position = depth * (len(self.values) - 1)
        left = int(position)
        right, share = min(len(self.values) - 1, left + 1), position - left
        return (1 - share) * self.values[left] + share * self.values[right]


@dataclass(frozen=True, repr=False, eq=False)
class ByPath:
    """A number for each leaf by its name; `by_path` makes it."""

    values: Mapping[str, Any]
    default: Any

    def __repr__(self) -> str:
        return f"by_path({self.values!r}, default={self.default!r})"

    def of(self, name: str, argument: str) -> Any:
        """The value for the leaf of a name; ValueError, which names the argument, where it has none."""
        found = [value for pattern, value in self.values.items() if matches(pattern, name)]
        if not found and self.default is None:
            patterns = ", ".join(map(repr, self.values))
            raise ValueError(
                f"{argument}: no pattern of by_path matches '{name}' (they are {patterns}); add one, or default="
            )
        return [*found, self.default][0]


class ByLeaf(NamedTuple):
    """A number for each leaf by its place in the tree: what a tree of numbers says."""

    values: Sequence[Any]


def over_layers(first: Any, *others: Any) -> OverLayers:
    """A number that changes evenly with depth: from `first` in the first layer, through any others, to the last in the last.

    Leaves outside layers get the first number, as in recipes; a single layer gets the last. The layer is the first number
    in the name of a leaf (`layers.3.mlp`, or `layers_3.mlp` in Flax), or the index along the axis that `layers=` names.

    Raises:
      TypeError: a value is not a number.
    """
    for value in (first, *others):
        _check(value, "over_layers")
    return OverLayers((first, *others))


def by_path(values: Mapping[str, Any], *, default: Any = None) -> ByPath:
    """A number for each leaf: that of the first pattern that matches its name, or else `default`.

    >>> import jmerge
    >>> jmerge.by_path({"*self_attn*": 0.3, "*mlp*": jmerge.over_layers(0.0, 1.0)}, default=0.5)
    by_path({'*self_attn*': 0.3, '*mlp*': over_layers(0.0, 1.0)}, default=0.5)

    Args:
      values: pattern -> a number, an array, `over_layers`, or a list with one of these for each model. `*` matches any
        text. The name of a leaf is its keys joined with dots, such as `layers.3.mlp.kernel`.
      default: for leaves that no pattern matches; without it, such a leaf is an error.

    Raises:
      TypeError: the patterns are not a mapping, or a value is not a number.
    """
    if not isinstance(values, Mapping):
        raise TypeError(f"by_path takes a mapping of patterns to numbers; found {values!r}")
    for pattern, value in values.items():
        if not isinstance(pattern, str):
            raise TypeError(f"by_path: a pattern is a string; found {pattern!r}")
        _check_each(value, f"by_path: '{pattern}'")
    if default is not None:
        _check_each(default, "by_path: default")
    return ByPath(dict(values), default)


def _check_each(value: Any, where: str) -> None:
    for each in value if isinstance(value, list | tuple) else [value]:
        if not isinstance(each, OverLayers):
            _check(each, where)


def _check(value: Any, where: str) -> None:
    """TypeError where a value is no number, nor an array of them."""
    number = is_array(value) and jnp.issubdtype(value.dtype, jnp.number)
    # a whole number may be too long for arithmetic
    plain = isinstance(value, float) or (isinstance(value, int) and value.bit_length() < 1024)
    if not (number or plain):
        raise TypeError(f"{where}: expected a number, found {value!r}")


def resolve(value: Any, leaf: Leaf, argument: str, *, by_layer: bool) -> Any:
    """The value for a leaf of what may differ from leaf to leaf, or be one for each model of such.

    by_layer: whether an array in a tree is one for each layer of the leaf at its place.
    """
    if isinstance(value, ByPath):
        return resolve(value.of(leaf.name, argument), leaf, argument, by_layer=False)
    if isinstance(value, ByLeaf):
        own = value.values[leaf.number]
        if by_layer and leaf.layer is not None and np.shape(own) == (leaf.layers,):
            own = own[leaf.layer]
        return resolve(own, leaf, argument, by_layer=False)
    if isinstance(value, OverLayers):
        return value.at(leaf.depth)
    if isinstance(value, list | tuple):
        return tuple(resolve(each, leaf, argument, by_layer=by_layer) for each in value)
    return value


def varies(value: Any) -> bool:
    """Whether a value is not the same for all leaves."""
    if isinstance(value, ByPath | OverLayers | ByLeaf):
        return True
    return isinstance(value, list | tuple) and any(map(varies, value))
