"""What is said of the leaves of a tree by patterns, by a function, or by a tree that ends above the leaves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any

import jax
import numpy as np

from jmerge.names import nearest

Path = tuple[Any, ...]


def path_name(path: Path) -> str:
    """The name of a leaf: the keys on its path joined by dots; a box of Flax around an array adds nothing to it."""
    return jax.tree_util.keystr(_unboxed(path), simple=True, separator=".")


def path_depth(path: Path) -> int:
    """Of how many keys `path_name` is joined."""
    return len(_unboxed(path))


def _unboxed(path: Path) -> Path:
    boxed = len(path) > 1 and path[-1] == jax.tree_util.GetAttrKey("value")
    return path[:-1] if boxed else path


def matches(pattern: str, name: str) -> bool:
    """Whether a pattern, in which `*` and `?` stand for others, is all of a name."""
    return fnmatchcase(name, pattern)


def is_array(value: Any) -> bool:
    """Whether a value is an array, of JAX or NumPy, which one number of NumPy's is too."""
    return isinstance(value, jax.Array | np.ndarray | np.generic)


def is_tree(value: Any) -> bool:
    """Whether a value is a tree of several values, not one itself."""
    return not jax.tree_util.all_leaves([value]) and value is not None


def spread(
    prefix: Any, paths: Sequence[Path], where: str, *, lists: bool = True, partly: bool = False
) -> list[Any]:
    """For each path of a tree what a tree of which it is one end, or goes on below one, has there.

    lists: whether lists are parts of the tree, and not values; partly: whether it may leave out paths, which get None.

    Raises:
      ValueError: a path or a key of the prefix is in one only; the message calls the prefix `where`.
    """

    def is_value(each: Any) -> bool:
        return each is None or (not lists and isinstance(each, list | tuple))

    flat, _ = jax.tree_util.tree_flatten_with_path(prefix, is_leaf=is_value)
    ends = {_keys(path): (value, path_name(path)) for path, value in flat}
    found, used = [], set()
    for path in paths:
        keys = _keys(path)
        end = next((keys[:n] for n in range(len(keys) + 1) if keys[:n] in ends), None)
        if end is None and not partly:
            raise ValueError(
                f"{where} is a tree that says nothing of '{path_name(path)}'; for some leaves alone use jmerge.by_path"
            )
        used.add(end)
        found.append(None if end is None else ends[end][0])
    for end, (_, name) in ends.items():
        if end not in used:
            raise ValueError(f"{where} has '{name}', which the models have not")
    return found


def _keys(path: Path) -> tuple[str, ...]:
    """The keys of a path, so that those of other containers are the same."""
    return tuple(jax.tree_util.keystr((key,), simple=True) for key in path)


def choose_merged(where: Any, paths: Sequence[Path], leaves: Sequence[Any]) -> list[bool]:
    """For each leaf whether `where` (patterns, a function of name and leaf, or a tree of bools) wants it merged.

    Raises:
      TypeError: `where` is none of them or says something else than True or False.
      ValueError: a pattern matches no leaf, or the tree does not fit.
    """
    names = [path_name(path) for path in paths]
    if where is None:
        return [True] * len(paths)
    patterns = [where] if isinstance(where, str) else where
    if callable(where) and not is_tree(where):
        found = [where(name, leaf) for name, leaf in zip(names, leaves, strict=True)]
    elif isinstance(patterns, list | tuple | set | frozenset) and all(
        isinstance(each, str) for each in patterns
    ):
        _check_patterns(patterns, names, "where")
        found = [any(matches(pattern, name) for pattern in patterns) for name in names]
    else:
        found = spread(where, paths, "where")
    for name, each in zip(names, found, strict=True):
        if not isinstance(each, bool | np.bool_):
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
    if layers is None or isinstance(layers, int):
        found = [layers] * len(paths)
    elif callable(layers) and not is_tree(layers):
        found = [layers(name) for name in names]
    elif isinstance(layers, Mapping) and any("*" in str(key) or "?" in str(key) for key in layers):
        _check_patterns(layers, names, "layers")
        found = [next((layers[each] for each in layers if matches(each, n)), None) for n in names]
    elif is_tree(layers):
        found = spread(layers, paths, "layers", partly=True)
    else:
        raise TypeError(
            "layers: expected an axis, patterns with axes, a function of a leaf's name, or a tree of axes; "
            f"found {layers!r}"
        )
    return [
        _axis_of(axis, name, leaf) for axis, name, leaf in zip(found, names, leaves, strict=True)
    ]


def _axis_of(axis: Any, name: str, leaf: Any) -> int | None:
    if axis is not None and (isinstance(axis, bool) or not isinstance(axis, int)):
        raise TypeError(f"layers: expected an axis or None for '{name}', found {axis!r}")
    if axis is None or not hasattr(leaf, "ndim"):
        return None
    if not -leaf.ndim <= axis < leaf.ndim:
        raise ValueError(
            f"layers: '{name}' has no axis {axis}, its shape is {leaf.shape}; "
            "name the axis by path, as layers={'*layers*': 0}"
        )
    return axis % int(leaf.ndim)


def _check_patterns(patterns: Any, names: Sequence[str], where: str) -> None:
    """ValueError where a pattern matches no name; `where` is the argument that has it."""
    for pattern in patterns:
        if not isinstance(pattern, str):
            raise TypeError(f"{where}: a pattern is a string; found {pattern!r}")
        if any(matches(pattern, name) for name in names):
            continue
        core = pattern.strip("*.")
        if not names:
            hint = "there are no leaves"
        elif core and any(core in name for name in names):
            hint = f"it has to match the whole of a name; did you mean '*{core}*'?"
        else:
            hint = f"one leaf is '{nearest(core, names, 0.4) or names[0]}'"
        raise ValueError(f"{where}: '{pattern}' matches no leaf; {hint}")
