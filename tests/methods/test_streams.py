"""Which names share a stream of random numbers: none, and the container of a tensor makes no difference."""

from __future__ import annotations

from typing import Any

import flax.linen as linen
import flax.nnx as nnx
import jax
import jax.numpy as jnp
import pytest
from flax.core import freeze

from jmerge.methods.streams import Stream, stream_of, streams
from jmerge.trees.paths import path_depth, path_name


def of_tree(tree: Any) -> dict[str, Stream]:
    """The stream of every leaf of a tree by its key."""
    paths = [path for path, _ in jax.tree_util.tree_flatten_with_path(tree)[0]]
    found = streams([path_name(path) for path in paths], [path_depth(path) for path in paths])
    return dict(zip([jax.tree_util.keystr(path) for path in paths], found, strict=True))


def test_numbers_are_taken_out() -> None:
    """Layers are one text with a number each, in lists, dicts and Flax' names."""
    words = stream_of("layers.w").words
    for name in ("layers.3.w", "layers_3.w", "3.layers.w"):
        assert stream_of(name) == Stream(words, (3,)), name
    assert stream_of("layers.3.experts.12.w") == Stream(
        stream_of("layers.experts.w").words, (3, 12)
    )
    assert stream_of("layers.w") != stream_of("layers.0.w")
    for name in ("layers.03.w", "layers.4294967296.w", "layers.-1.w", "layers.٣.w", "conv1.w"):
        assert stream_of(name).numbers == (), name


W = jnp.ones(2)


@pytest.mark.parametrize(
    "tree",
    [
        {"a": {"0": {"w": W}}},
        {"a": [{"w": W}]},
        {"a.0.w": W},
        {"a": {0: {"w": W}}},
        freeze({"a": {"0": {"w": W}}}),
        {"a": {"0": {"w": linen.LogicallyPartitioned(W, ("x",))}}},
        nnx.State({"a": {0: {"w": nnx.Param(W)}}}),
    ],
    ids=lambda tree: type(tree).__name__,
)
def test_containers_make_no_difference(tree: Any) -> None:
    assert list(of_tree(tree).values()) == [stream_of("a.0.w")]


@pytest.mark.parametrize(
    "tree",
    [
        {"a.b": W, "a": {"b": W}},
        {"a.b.c": W, "a": {"b.c": W, "b": {"c": W}}, "a.b": {"c": W}},
        {"5.a.b": W, "a.5.b": W, "a.b.5": W},
        {"a_5": W, "a.5": W, "a": {"5": W, "_5": W}},
        {"": W, "0": W, "a": {"": W}, "a.": W},
    ],
)
def test_leaves_never_collide(tree: dict[str, Any]) -> None:
    found = of_tree(tree)
    assert len(set(found.values())) == len(found)


def test_of_one_name_the_flat_one_is_as_if_alone() -> None:
    """Whatever the order of the tree is."""
    flat, nested = streams(["a.b", "a.b"], [1, 2])
    assert streams(["a.b", "a.b"], [2, 1]) == [nested, flat]
    assert flat == stream_of("a.b") != nested
    assert streams(["5.a", "a.5"]) == streams(["a.5", "5.a"])[::-1]
