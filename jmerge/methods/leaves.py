"""The leaves of several trees side by side: which are merged, and what becomes of the others."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jmerge.methods.by_path import Leaf
from jmerge.methods.prefixes import Path, choose_merged, layer_axes
from jmerge.methods.streams import Stream, layer_of, path_depth, path_name, streams

Otherwise = Literal["base", "first", "error"]
OTHERWISE = ("base", "first", "error")


class Row(NamedTuple):
    """A leaf that is merged: one array of every model, and of the base last where there is one."""

    number: int  # among all leaves of the tree
    name: str
    arrays: list[Any]
    axis: int | None  # that counts layers
    stream: Stream  # of its random numbers
    places: tuple[Leaf, ...]  # of it, or of each of its layers

    @property
    def shape(self) -> tuple[int, ...]:
        """Of what is merged at a time: the leaf, or a layer of it."""
        shape: tuple[int, ...] = self.arrays[-1].shape
        return shape if self.axis is None else (*shape[: self.axis], *shape[self.axis + 1 :])


class Table(NamedTuple):
    """The leaves of trees of one structure."""

    treedef: Any
    rows: list[Row]
    kept: dict[int, Any]  # by their numbers, leaves that are not merged


def tabulate(
    models: Sequence[Any], base: Any, *, layers: Any, where: Any, otherwise: Otherwise
) -> Table:
    """The leaves of some models, and of their base (None: there is none).

    Raises:
      ValueError: structures or shapes differ, or leaves that cannot be merged, and `otherwise` says nothing of them.
      TypeError: an argument is none of what it can be.
    """
    if otherwise not in OTHERWISE:
        raise ValueError(f"otherwise: expected one of {', '.join(OTHERWISE)}; found {otherwise!r}")
    if otherwise == "base" and base is None:
        raise ValueError("otherwise='base', but there is no base; 'first' takes the first model's")
    names = [f"models[{i}]" for i in range(len(models))] + ["base"] * (base is not None)
    trees = [as_tree(tree) for tree in (*models, *([] if base is None else [base]))]
    paths, columns, treedef = _columns(trees, names)
    chosen = choose_merged(where, paths, columns[0])
    axes = layer_axes(layers, paths, columns[0])
    texts = [path_name(path) for path in paths]
    named = streams(texts, [path_depth(path) for path in paths])
    counts = _layers(texts)
    rows, kept = [], {}
    for i, leaf in enumerate(zip(*columns, strict=True)):
        text = texts[i] or "the array"
        if chosen[i] and _is_merged(leaf, text, otherwise):
            _check_shapes(leaf, text, names)
            found = layer_of(texts[i])
            depth = 0.0 if found is None else _depth(found[1], counts[found[0]])
            places: tuple[Leaf, ...] = (Leaf(texts[i], depth),)
            if (axis := axes[i]) is not None:
                length = leaf[0].shape[axis]
                places = tuple(Leaf(texts[i], _depth(n, length)) for n in range(length))
            arrays = [as_array(each) for each in leaf]
            rows.append(Row(i, texts[i], arrays, axis, named[i], places))
        else:
            kept[i] = _kept(leaf, text, otherwise, base is not None, chosen[i])
    return Table(treedef, rows, kept)


def as_tree(tree: Any) -> Any:
    """A tree as JAX knows it: a mapping that is none, as an opened checkpoint, as a dict of its arrays."""
    if isinstance(tree, Mapping) and jax.tree_util.all_leaves([tree]):
        return {name: tree[name] for name in tree}
    return tree


def as_array(leaf: Any) -> Any:
    """A leaf with a shape and a dtype, as an array of JAX."""
    return leaf if isinstance(leaf, jax.Array) else jnp.asarray(leaf)


def _columns(trees: Sequence[Any], names: Sequence[str]) -> tuple[list[Path], list[list[Any]], Any]:
    """The paths, the leaves of every tree, and the structure, which is that of the first."""
    flat, structure = jax.tree_util.tree_flatten_with_path(trees[0])
    treedef: Any = structure
    paths = [path for path, _ in flat]
    columns = []
    for tree, name in zip(trees, names, strict=True):
        leaves, other = jax.tree.flatten(tree)
        if other != treedef:
            raise ValueError(
                f"{name} and {names[0]} have different structures: {_difference(tree, trees[0], name, names[0])}"
            )
        columns.append(leaves)
    return paths, columns, treedef


def _difference(tree: Any, other: Any, name: str, beside: str) -> str:
    own, known = (
        [path_name(path) for path, _ in jax.tree_util.tree_flatten_with_path(each)[0]]
        for each in (tree, other)
    )
    for first, second, who in ((own, known, name), (known, own, beside)):
        odd = next((each for each in first if each not in second), None)
        if odd is not None:
            more = len(set(first) - set(second)) - 1
            return f"'{odd}'{f' and {more} more' if more else ''} is in {who} only"
    kinds = [type(each).__name__ for each in (tree, other)]
    if kinds[0] != kinds[1]:
        return f"one is a {kinds[0]}, the other a {kinds[1]}"
    texts = [str(jax.tree.structure(each)) for each in (tree, other)]
    at = next((i for i, (a, b) in enumerate(zip(*texts, strict=False)) if a != b), 0)
    return " and ".join("..." + text[max(0, at - 40) : at + 40] + "..." for text in texts)


def _check_shapes(leaf: Sequence[Any], text: str, names: Sequence[str]) -> None:
    for array, name in zip(leaf, names, strict=True):
        if array.shape != leaf[-1].shape:
            raise ValueError(
                f"'{text}' is {array.shape} in {name} and {leaf[-1].shape} in {names[-1]}"
            )


def _is_array(leaf: Any) -> bool:
    return isinstance(leaf, jax.Array | np.ndarray | np.generic)


def _is_merged(leaf: Sequence[Any], text: str, otherwise: Otherwise) -> bool:
    """Whether all are arrays of floats; ValueError where only some are, and nothing is said of such leaves."""
    floating = [_is_array(each) and jnp.issubdtype(each.dtype, jnp.floating) for each in leaf]
    if any(floating) and not all(floating) and otherwise == "error":
        kind = next(
            str(each.dtype) if _is_array(each) else type(each).__name__
            for each, is_float in zip(leaf, floating, strict=True)
            if not is_float
        )
        raise ValueError(
            f"'{text}' is a float in one tree and {kind} in another; "
            "otherwise='base' or 'first' says whose to keep"
        )
    return all(floating)


def _kept(leaf: Sequence[Any], text: str, otherwise: Otherwise, based: bool, chosen: bool) -> Any:
    """The leaf that comes back, as it is."""
    if otherwise == "base":
        return leaf[-1]
    if otherwise == "first":
        return leaf[0]
    usual = leaf[-1] if based else leaf[0]
    if all(each is usual for each in leaf):
        return usual
    kind = str(usual.dtype) if _is_array(usual) else f"a {type(usual).__name__}"
    why = f"{kind}, which cannot be merged" if chosen else "not to be merged (where=)"
    remedy = (
        "otherwise='base' or 'first' says whose to keep"
        if based
        else "otherwise='first' keeps the first"
    )
    if any(isinstance(each, jax.core.Tracer) for each in leaf):
        raise ValueError(
            f"'{text}' is {why}, and whether all are equal cannot be seen in a traced function; {remedy}"
        )
    if not all(_equal(each, usual) for each in leaf):
        raise ValueError(f"'{text}' is {why}, and differs; {remedy}")
    return usual


def _equal(one: Any, other: Any) -> bool:
    if one is other:
        return True
    if _is_array(one) and _is_array(other):
        if one.dtype != other.dtype or one.shape != other.shape:
            return False
        if jnp.issubdtype(one.dtype, jax.dtypes.prng_key):
            one, other = jax.random.key_data(one), jax.random.key_data(other)
        return np.asarray(one).tobytes() == np.asarray(other).tobytes()
    try:
        return type(one) is type(other) and bool(one == other)
    except Exception:  # objects that cannot be compared are not known to be equal
        return False


def _layers(names: Sequence[str]) -> dict[str, int]:
    """How many layers each stack has."""
    counts: dict[str, int] = {}
    for name in names:
        if (found := layer_of(name)) is not None:
            counts[found[0]] = max(counts.get(found[0], 0), found[1] + 1)
    return counts


def _depth(layer: int, layers: int) -> float:
    """Where a layer lies, as recipes count it."""
    return layer / (layers - 1) if layers > 1 else 1.0
