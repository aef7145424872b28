"""The leaves of several trees side by side: which are merged, and what becomes of the others."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jmerge.methods.streams import Stream, layer_of, streams
from jmerge.trees.by_path import Leaf
from jmerge.trees.paths import Path, choose_merged, is_array, layer_axes, path_depth, path_name

Otherwise = Literal["base", "first", "error"]


class Row(NamedTuple):
    """A leaf that is merged."""

    number: int  # among all leaves of the tree
    models: list[Any]  # one array of every model
    arrays: list[Any]  # the same, and the base's last where there is one
    axis: int | None  # that counts layers
    stream: Stream  # of its random numbers
    places: tuple[Leaf, ...]  # of it, or of each of its layers

    @property
    def shape(self) -> tuple[int, ...]:
        """Of what is merged at a time: the leaf, or a layer of it."""
        shape: tuple[int, ...] = self.arrays[-1].shape
        return shape if self.axis is None else (*shape[: self.axis], *shape[self.axis + 1 :])

    @property
    def layers(self) -> Sequence[int | None]:
        """The numbers of its layers; one None where it holds none."""
        return (None,) if self.axis is None else range(len(self.places))

    def stream_of(self, layer: Any) -> Stream:
        """The stream of a layer, or of the leaf."""
        numbers = () if layer is None else (layer,)
        return self.stream._replace(numbers=(*numbers, *self.stream.numbers))


class Table(NamedTuple):
    """The leaves of trees of one structure."""

    treedef: Any
    paths: list[Path]
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
    if otherwise == "base" and base is None:
        raise ValueError("otherwise='base', but there is no base; 'first' takes the first model's")
    trees = {f"models[{i}]": _as_tree(model) for i, model in enumerate(models)}
    if base is not None:
        trees["base"] = _as_tree(base)
    paths, columns, treedef = _columns(trees)
    chosen = choose_merged(where, paths, columns[0])
    axes = layer_axes(layers, paths, columns[0])
    names = [path_name(path) for path in paths]
    named = streams(names, [path_depth(path) for path in paths])
    stacks = _stacks(names)
    rows, kept = [], {}
    for i, leaf in enumerate(zip(*columns, strict=True)):
        text = names[i] or "the array"
        if not (chosen[i] and _is_merged(leaf, text, otherwise)):
            kept[i] = _kept(leaf, text, otherwise, base is not None, chosen[i])
            continue
        _check_arrays(leaf, text, list(trees))
        found, axis = layer_of(names[i]), axes[i]
        if axis is None:
            depth = 0.0 if found is None else _depth(found[1], stacks[found[0]])
            places = [Leaf(i, names[i], depth)]
        else:
            count = leaf[0].shape[axis]
            places = [Leaf(i, names[i], _depth(n, count), n, count) for n in range(count)]
        arrays = [each if isinstance(each, jax.Array) else jnp.asarray(each) for each in leaf]
        rows.append(Row(i, arrays[: len(models)], arrays, axis, named[i], tuple(places)))
    return Table(treedef, paths, rows, kept)


def _as_tree(tree: Any) -> Any:
    """A tree as JAX knows it: a mapping that is none, as an opened checkpoint, as a dict of its arrays."""
    if isinstance(tree, Mapping) and jax.tree_util.all_leaves([tree]):
        return {name: tree[name] for name in tree}
    return tree


def _columns(trees: Mapping[str, Any]) -> tuple[list[Path], list[list[Any]], Any]:
    """The paths, the leaves of every tree, and the structure, which is that of the first."""
    (beside, one), *others = trees.items()
    flat, structure = jax.tree_util.tree_flatten_with_path(one)
    treedef: Any = structure
    columns = [[leaf for _, leaf in flat]]
    for name, tree in others:
        leaves, other = jax.tree.flatten(tree)
        if other != treedef:
            raise ValueError(
                f"{name} and {beside} have different structures: {_difference(tree, one, name, beside)}"
            )
        columns.append(leaves)
    return [path for path, _ in flat], columns, treedef


def _difference(tree: Any, other: Any, name: str, beside: str) -> str:
    own, known = (
        [path_name(path) for path, _ in jax.tree_util.tree_flatten_with_path(each)[0]]
        for each in (tree, other)
    )
    for first, second, who in ((own, known, name), (known, own, beside)):
        odd = [each for each in first if each not in second]
        if odd and "" not in (*own, *known):  # the name of a tree that is one leaf
            more = f" and {len(odd) - 1} more" if len(odd) > 1 else ""
            return f"'{odd[0]}'{more} is in {who} only"
    kinds = [type(each).__name__ for each in (tree, other)]
    if kinds[0] != kinds[1]:
        return f"one is of type {kinds[0]}, the other of type {kinds[1]}"
    texts = [str(jax.tree.structure(each)) for each in (tree, other)]
    at = next((i for i, (a, b) in enumerate(zip(*texts, strict=False)) if a != b), 0)
    return " and ".join("..." + text[max(0, at - 40) : at + 40] + "..." for text in texts)


def _check_arrays(leaf: Sequence[Any], text: str, names: Sequence[str]) -> None:
    for array, name in zip(leaf, names, strict=True):
        there = isinstance(array, jax.Array) and not isinstance(array, jax.core.Tracer)
        if there and array.is_deleted():
            raise ValueError(f"'{text}' of {name} was freed, as donate=True does; load it again")
        if array.shape != leaf[-1].shape:
            raise ValueError(
                f"'{text}' is {array.shape} in {name} and {leaf[-1].shape} in {names[-1]}"
            )


def _kind(leaf: Any) -> str:
    return str(leaf.dtype) if is_array(leaf) else f"a value of type {type(leaf).__name__}"


def _is_merged(leaf: Sequence[Any], text: str, otherwise: Otherwise) -> bool:
    """Whether all are arrays of floats; ValueError where only some are, and nothing is said of such leaves."""
    floating = [is_array(each) and jnp.issubdtype(each.dtype, jnp.floating) for each in leaf]
    if any(floating) and not all(floating) and otherwise == "error":
        raise ValueError(
            f"'{text}' is a float in one tree and {_kind(leaf[floating.index(False)])} in another; "
            "otherwise='base' or 'first' says whose to keep"
        )
    return all(floating)


def _kept(leaf: Sequence[Any], text: str, otherwise: Otherwise, based: bool, chosen: bool) -> Any:
    """The leaf that comes back, as it is."""
    if otherwise != "error":
        return leaf[-1] if otherwise == "base" else leaf[0]
    usual = leaf[-1] if based else leaf[0]
    if all(each is usual for each in leaf):
        return usual
    why = f"{_kind(usual)}, which cannot be merged" if chosen else "not to be merged (where=)"
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
    if is_array(one) and is_array(other):
        if one.dtype != other.dtype or one.shape != other.shape:
            return False
        if jnp.issubdtype(one.dtype, jax.dtypes.prng_key):
            one, other = jax.random.key_data(one), jax.random.key_data(other)
        return np.asarray(one).tobytes() == np.asarray(other).tobytes()
    try:
        return type(one) is type(other) and bool(one == other)
    except Exception:  # objects that cannot be compared are not known to be equal
        return False


def _stacks(names: Sequence[str]) -> dict[str, int]:
    """How many layers each stack has."""
    counts: dict[str, int] = {}
    for name in names:
        if (found := layer_of(name)) is not None:
            counts[found[0]] = max(counts.get(found[0], 0), found[1] + 1)
    return counts


def _depth(layer: int, layers: int) -> float:
    """Where a layer lies, as recipes count it."""
    return layer / (layers - 1) if layers > 1 else 1.0
