"""What is said of the leaves of a tree by a number, patterns, a function, or a tree that ends above the leaves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from jmerge.methods.by_path import check_patterns, matches
from jmerge.methods.streams import path_name

Path = tuple[Any, ...]


def spread(prefix: Any, paths: Sequence[Path], where: str, *, lists: bool = True) -> list[Any]:
    """For each path of a tree what a tree of which it is one end, or goes on below one, has there.

    lists: whether lists are parts of the tree, and not values.

    Raises:
      ValueError: a path or a key of the prefix is in one only; the message calls the prefix `where`.
    """

    def is_value(each: Any) -> bool:
        return each is None or (not lists and isinstance(each, list | tuple))

    flat, _ = jax.tree_util.tree_flatten_with_path(prefix, is_leaf=is_value)
    ends = {_keys(path): value for path, value in flat}
    found, used = [], set()
    for path in paths:
        keys = _keys(path)
        end = next((keys[:n] for n in range(len(keys) + 1) if keys[:n] in ends), None)
        if end is None:
            raise ValueError(
                f"{where} is a tree that says nothing of '{path_name(path)}'; for some leaves alone use jmerge.by_path"
            )
        used.add(end)
        found.append(ends[end])
    for path, _ in flat:
        if _keys(path) not in used:
            raise ValueError(f"{where} has '{path_name(path)}', which the models have not")
    return found


def is_tree(value: Any) -> bool:
    """Whether a value is a tree of several values, not one itself."""
    return not jax.tree_util.all_leaves([value]) and value is not None


def choose_merged(where: Any, paths: Sequence[Path], leaves: Sequence[Any]) -> list[bool]:
    """For each leaf whether `where` (patterns, a function of name and leaf, or a tree of bools) wants it merged.

    Raises:
      TypeError: `where` is none of them or says something else than True or False.
      ValueError: a pattern matches no leaf, or the tree does not fit.
    """
    names = [path_name(path) for path in paths]
    if where is None:
        return [True] * len(paths)
    if isinstance(where, str):
        where = [where]
    if callable(where) and not is_tree(where):
        found = [where(name, leaf) for name, leaf in zip(names, leaves, strict=True)]
    elif isinstance(where, list | tuple | set | frozenset) and all(
        isinstance(each, str) for each in where
    ):
        patterns = sorted(where) if isinstance(where, set | frozenset) else list(where)
        check_patterns(patterns, names, "where")
        found = [any(matches(pattern, name) for pattern in patterns) for name in names]
    else:
        found = spread(where, paths, "where")
    for name, each in zip(names, found, strict=True):
        if not _is_bool(each):
            raise TypeError(f"where: expected True or False for '{name}', found {each!r}")
    return [bool(each) for each in found]


def layer_axes(layers: Any, paths: Sequence[Path], leaves: Sequence[Any]) -> list[int | None]:
    """For each leaf the axis that counts layers, not negative, or None, as `layers` says: an axis for all, axes by
    patterns, a function of the name, or a tree of axes, which may leave out what has none.

    Raises:
      TypeError: it says something else than an axis or None.
      ValueError: a leaf has no such axis, or `layers` does not fit the tree.
    """
    names = [path_name(path) for path in paths]
    found: list[Any]
    if layers is None:
        return [None] * len(paths)
    if isinstance(layers, int):
        found = [layers] * len(paths)
    elif callable(layers) and not is_tree(layers):
        found = [layers(name) for name in names]
    elif isinstance(layers, Mapping) and _are_patterns(layers):
        check_patterns(list(layers), names, "layers")
        found = [
            next((axis for pattern, axis in layers.items() if matches(pattern, name)), None)
            for name in names
        ]
    elif is_tree(layers):
        found = _partly(layers, paths)
    else:
        raise TypeError(
            "layers: expected an axis, patterns with axes, a function of a leaf's name, or a tree of axes; "
            f"found {layers!r}"
        )
    axes: list[int | None] = []
    for name, leaf, axis in zip(names, leaves, found, strict=True):
        if axis is not None and (isinstance(axis, bool) or not isinstance(axis, int)):
            raise TypeError(f"layers: expected an axis or None for '{name}', found {axis!r}")
        if axis is None or not hasattr(leaf, "ndim"):
            axes.append(None)
            continue
        if not -leaf.ndim <= axis < leaf.ndim:
            raise ValueError(
                f"layers: '{name}' has no axis {axis}, its shape is {leaf.shape}; "
                "name the axis by path, as layers={'*layers*': 0}"
            )
        axes.append(axis % leaf.ndim)
    return axes


def _partly(prefix: Any, paths: Sequence[Path]) -> list[Any]:
    """As `spread`, with None for what the prefix says nothing of."""
    flat, _ = jax.tree_util.tree_flatten_with_path(prefix, is_leaf=lambda each: each is None)
    known = {
        _keys(path)
        for path in paths
        if any(_keys(path)[: len(_keys(end))] == _keys(end) for end, _ in flat)
    }
    inside = [path for path in paths if _keys(path) in known]
    values = iter(spread(prefix, inside, "layers"))
    return [next(values) if _keys(path) in known else None for path in paths]


def _are_patterns(mapping: Mapping[Any, Any]) -> bool:
    return any(isinstance(key, str) and ("*" in key or "?" in key) for key in mapping)


def _is_bool(value: Any) -> bool:
    return isinstance(value, bool | np.bool_)


def _keys(path: Path) -> tuple[str, ...]:
    """The keys of a path, so that those of other containers are the same."""
    return tuple(jax.tree_util.keystr((key,), simple=True) for key in path)
