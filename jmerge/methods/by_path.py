"""Numbers that differ from leaf to leaf: by patterns of their names, and over the layers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any, NamedTuple

from jmerge.names import nearest


class Leaf(NamedTuple):
    """Where in its model a leaf lies, or the slice of one that is a layer."""

    name: str
    depth: float  # from 0 for the first layer of its stack to 1 for the last; 0 outside of layers


class OverLayers:
    """A number that changes evenly from layer to layer; `over_layers` makes it."""

    def __init__(self, values: Sequence[Any]) -> None:
        self.values = tuple(values)

    def __repr__(self) -> str:
        return f"over_layers({', '.join(map(repr, self.values))})"

    def at(self, depth: float) -> Any:
        """The number at a depth from 0 to 1, computed as recipes do."""
        position = depth * (len(self.values) - 1)
        left = int(position)
        right, share = min(len(self.values) - 1, left + 1), position - left
        return (1 - share) * self.values[left] + share * self.values[right]


class ByPath:
    """A number for each leaf by its name; `by_path` makes it."""

    def __init__(self, values: Mapping[str, Any], default: Any) -> None:
        self.values = dict(values)
        self.default = default

    def __repr__(self) -> str:
        return f"by_path({self.values!r}, default={self.default!r})"

    def of(self, name: str, number: str) -> Any:
        """The value for the leaf of a name; ValueError, which calls the number `number`, where it has none."""
        for pattern, value in self.values.items():
            if matches(pattern, name):
                return value
        if self.default is None:
            patterns = ", ".join(map(repr, self.values))
            raise ValueError(
                f"{number}: no pattern of by_path matches '{name}' (they are {patterns}); add one, or default="
            )
        return self.default


def over_layers(first: Any, *others: Any) -> OverLayers:
    """A number that goes evenly from `first` in the first layer, over any others, to the last in the last layer.

    Leaves outside of layers get the first, as in recipes; a single layer gets the last. A layer is the first number
    in the name of a leaf (`layers.3.mlp` or Flax' `layers_3.mlp`), or an index along the axis that `layers=` names.

    Raises:
      TypeError: a value is no number.
    """
    for value in (first, *others):
        _check(value, "over_layers", nested=(ByPath, OverLayers))
    return OverLayers((first, *others))


def by_path(values: Mapping[str, Any], *, default: Any = None) -> ByPath:
    """A number for each leaf: that of the first pattern which matches its name, else `default`.

    >>> import jmerge
    >>> jmerge.by_path({"*self_attn*": 0.3, "*mlp*": jmerge.over_layers(0.0, 1.0)}, default=0.5)
    by_path({'*self_attn*': 0.3, '*mlp*': over_layers(0.0, 1.0)}, default=0.5)

    Args:
      values: by pattern, in which `*` stands for anything, numbers, arrays, `over_layers`, or lists of one for each
        model. The name of a leaf is its keys joined by dots, as `layers.3.mlp.kernel`.
      default: for leaves that no pattern matches; without it they are an error.

    Raises:
      TypeError: the patterns are not in a mapping, or a value is no number.
    """
    if not isinstance(values, Mapping):
        raise TypeError(f"by_path takes a mapping of patterns to numbers; found {values!r}")
    for pattern, value in values.items():
        if not isinstance(pattern, str):
            raise TypeError(f"by_path: a pattern is a string; found {pattern!r}")
        _check(value, f"by_path: '{pattern}'", nested=(ByPath,))
    if default is not None:
        _check(default, "by_path: default", nested=(ByPath,))
    return ByPath(values, default)


def matches(pattern: str, name: str) -> bool:
    """Whether a pattern, in which `*` and `?` stand for others, is all of a name."""
    return fnmatchcase(name, pattern)


def check_patterns(patterns: Sequence[str], names: Sequence[str], where: str) -> None:
    """ValueError where a pattern matches no name; `where` is the argument that has it."""
    for pattern in patterns:
        if not any(matches(pattern, name) for name in names):
            best = nearest(pattern.strip("*"), names, 0.4)
            part = next(
                (n for n in names if pattern.strip("*.") and pattern.strip("*.") in n), None
            )
            hint = "there are no leaves"
            if part is not None:
                hint = (
                    f"it has to match the whole of a name; did you mean '*{pattern.strip('*.')}*'?"
                )
            elif best is not None or names:
                hint = f"one leaf is '{best or names[0]}'"
            raise ValueError(f"{where}: '{pattern}' matches no leaf; {hint}")


def _check(value: Any, where: str, *, nested: tuple[type, ...]) -> None:
    values = value if isinstance(value, list | tuple) else [value]
    for each in values:
        word = isinstance(each, str | bytes | Mapping) or each is None or callable(each)
        if word or isinstance(each, nested):
            raise TypeError(f"{where}: expected a number, found {each!r}")


def resolve(value: Any, leaf: Leaf, number: str) -> Any:
    """The value for a leaf of what may be by path, over layers, or one for each model of such."""
    if isinstance(value, ByPath):
        return resolve(value.of(leaf.name, number), leaf, number)
    if isinstance(value, OverLayers):
        return value.at(leaf.depth)
    if isinstance(value, list | tuple):
        return tuple(resolve(each, leaf, number) for each in value)
    return value


def varies(value: Any) -> bool:
    """Whether a value is not the same for all leaves."""
    if isinstance(value, list | tuple):
        return any(map(varies, value))
    return isinstance(value, ByPath | OverLayers)
