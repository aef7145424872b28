"""Merging pytrees of arrays in one call: what research code uses, under `jit`, `vmap`, `grad` and on sharded arrays."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jmerge.methods.spec import Method, unknown_method
from jmerge.methods.wrap import find_method
from jmerge.trees.hyperparameters import check_names, read_arguments
from jmerge.trees.keys import read_draws
from jmerge.trees.own import method_of
from jmerge.trees.parts import make_parts, merge_there, merge_traced
from jmerge.trees.pieces import Call, Nonfinite
from jmerge.trees.table import Otherwise, tabulate

# what is not about the method, and its default
COMMON: dict[str, Any] = {
    "layers": None,
    "where": None,
    "otherwise": "error",
    "nonfinite": "propagate",
    "exact": True,
    "donate": False,
}


def merge_trees(
    models: Sequence[Any],
    *,
    method: str | Callable[..., Any],
    base: Any = None,
    layers: Any = None,
    where: Any = None,
    otherwise: Otherwise = "error",
    nonfinite: Nonfinite = "propagate",
    exact: bool = True,
    donate: bool = False,
    seed: Any = 0,
    key: Any = None,
    **hyperparameters: Any,
) -> Any:
    """Merge pytrees of the same structure, leaf by leaf, with a merge method.

    >>> import jax
    >>> import jax.numpy as jnp
    >>> import jmerge
    >>> base, one, two = ({"w": jnp.full(4, value)} for value in (1.0, 2.0, 5.0))
    >>> jmerge.merge_trees([one, two], method="linear", weight=[0.25, 0.75])["w"]
    Array([4.25, 4.25, 4.25, 4.25], dtype=float32)
    >>> jmerge.merge_trees([one, two], method="ties", base=base, weight=1.0, density=0.5)["w"]
    Array([3.5, 3.5, 1. , 1. ], dtype=float32)

    It is a pure function of the trees and of continuous numbers, so it can be jitted, batched and differentiated:

    >>> def distance(weight):
    ...     merged = jmerge.merge_trees([one, two], method="linear", weight=weight)
    ...     return jnp.sum((merged["w"] - 3.0) ** 2)
    >>> jax.grad(distance)(jnp.array([0.5, 0.5]))
    Array([-6.,  6.], dtype=float32)
    >>> jax.vmap(distance)(jnp.array([[1.0, 0.0], [0.5, 0.5]]))
    Array([4., 1.], dtype=float32)

    Inside `jax.shard_map`, statistics cover all shards of a leaf, and each shard draws different random numbers. Only the
    rows and blocks that some methods look at (`della`, `cabs`, `arcee_fusion`) are those of each shard. A `lax.scan` over
    layers draws the same numbers for every layer unless it carries a key.

    Outside transformations, leaves are merged one by one with compiled programs that leaves of the same shape share; new
    numbers do not compile again. Memory is that of one leaf, and the result has the same bytes as a merge by recipe.
    Inside transformations, leaves of the same shape are stacked and mapped over.

    Args:
      models: dicts, Flax params, `nnx.State`, opened checkpoints or other pytrees, all with the same structure and shapes.
        Float arrays are merged in float32 (in float64 if one of them is float64 and JAX has 64 bits enabled) and
        returned in the dtype that those of the models (and the base) promote to.
      method: a name from `jmerge methods`; such a name in wrappers, as in `equalize(ties)` (see `jmerge.methods.wrap`); or
        your own function. It is called with the base [*shape] if there is one, models [models, *shape] and the numbers
        as keywords, and returns the result [*shape]. Compiled programs are cached by function, so pass the same object
        each time, not a new `lambda`.
      base: a tree like the others, for methods with a base.
      layers: for leaves that hold many layers, as a scan makes them: the layer axis, given by name patterns
        (`{"*layers*": 0}`), as a tree of axes, as a function of the name, or as one axis for all leaves. Statistics and
        random numbers are then those of each layer, as if it were a separate leaf.
      where: which leaves to merge: name patterns, a function of name and leaf, or a tree of bools.
      otherwise: where leaves that are not merged come from: the "base", the "first" model, or (the default) an "error" if
        the models differ.
      nonfinite: "propagate" makes an element NaN if it is NaN or infinite in any model; "ignore" leaves it to the method,
        and most methods drop such elements.
      exact: whether sums have the same bits however arrays are sharded; False sums on each device first, and moves less.
      donate: free the models' arrays as soon as they are merged.
      seed: the seed of random methods, an integer, which may be traced. A leaf draws the numbers that a recipe draws for
        the tensor of that name, which is its keys joined with dots.
      key: instead of a seed, a typed key from `jax.random.key`, which may be traced.
      hyperparameters: the method's parameters, by their names in recipes or in Python (`scale` for `lambda`). A
        parameter of each model is one number for all, a sequence, or an array [models]. A number may be traced, a
        `jmerge.by_path`, or a tree that is a prefix of the models' tree; flags and whole numbers must be Python
        values. `lines` takes `depth`, a tree like the models with the relative depth of each leaf, from 0 to 1.

    Returns:
      A tree like the models, in which leaves that are not float arrays are unchanged; for a method that makes a
      checkpoint for each model (`emr`), a list of trees. Sharded arrays stay sharded: each device merges its part, and
      exchanges at most the size of the tensor.

    Raises:
      KeyError: there is no such method.
      TypeError: an argument is unknown, missing or has the wrong type, or the method does not take a base.
      ValueError: the structures, the shapes or leaves that cannot be merged differ, a number is out of range, or the
        method cannot be wrapped; the message names the leaf or the argument.
    """
    trees = _list_of(models)
    if callable(method):
        chosen = method_of(method, base is not None, hyperparameters, len(trees))
    else:
        chosen = _find(method)
    draw = ["key", "seed"] if "keys" in chosen.reserved else []
    check_names(chosen, hyperparameters, ["base", *COMMON, *draw])
    _check_models(chosen, len(trees), base)
    _check_words("nonfinite", nonfinite, "propagate", "ignore")
    _check_words("otherwise", otherwise, "base", "first", "error")
    _check_words("exact", exact, True, False)
    _check_words("donate", donate, True, False)
    draws = read_draws(seed, key)
    table = tabulate(trees, base, layers=layers, where=where, otherwise=otherwise)
    rows, kept = table.rows, table.kept
    arguments = read_arguments(chosen, len(trees), hyperparameters, table.paths)
    call = Call(chosen, base is not None, nonfinite, exact)
    parts = make_parts(rows, arguments, call)
    if not _is_traced(
        [row.arrays for row in rows], [part.hyperparameters for part in parts], draws.words
    ):
        donated = {id(array): row.number for row in rows for array in row.models if donate}
        for array in (*jax.tree.leaves(base), *kept.values()):
            donated.pop(id(array), None)
        merged = merge_there(rows, parts, call, draws, donated)
    elif donate:
        raise TypeError(
            "donate=True frees arrays, and in a traced function there are none; use jax.jit's donate_argnums"
        )
    else:
        merged = merge_traced(rows, parts, call, draws)
    results = [
        jax.tree.unflatten(
            table.treedef,
            [kept[i] if i in kept else merged[i][output] for i in range(len(table.paths))],
        )
        for output in range(len(trees) if chosen.per_model_output else 1)
    ]
    return results if chosen.per_model_output else results[0]


def _find(name: Any) -> Method:
    """The method of a name; KeyError with the nearest one."""
    if not isinstance(name, str):
        raise TypeError(f"method is a name, as 'ties', or a function; found {name!r}")
    try:
        return find_method(name)
    except KeyError:
        raise KeyError(unknown_method(name)) from None


def _list_of(models: Any) -> list[Any]:
    """The models; TypeError where it is one tree and no list of them."""
    kinds = (Mapping, str, bytes, jax.Array, np.ndarray)
    named = isinstance(models, tuple) and hasattr(models, "_fields")
    if (
        isinstance(models, kinds)
        or named
        or not hasattr(models, "__iter__")
        or type(models).__module__.startswith("flax")
    ):
        raise TypeError(
            f"models is a list of trees; found one {type(models).__name__}, so write [model] around it"
        )
    return list(models)


def _check_models(method: Method, count: int, base: Any) -> None:
    if method.base == "needed" and base is None:
        raise TypeError(f"'{method.name}' needs a base; pass base=")
    if method.base == "input" and base is not None:
        raise TypeError(f"'{method.name}' takes no base; put that tree among the models")
    low, high = method.counts
    if count < low or (high is not None and count > high):
        raise TypeError(f"'{method.name}' merges {method.counts_text()}; found {count}")
    if count == 0:
        raise TypeError("there are no models to merge")


def _check_words(argument: str, value: Any, *words: str | bool) -> None:
    if type(value) is not type(words[0]) or value not in words:
        known = " or ".join([", ".join(map(repr, words[:-1])), repr(words[-1])])
        error = TypeError if isinstance(words[0], bool) else ValueError
        raise error(f"{argument}: expected {known}; found {value!r}")


def _is_traced(*values: Any) -> bool:
    """Whether any array is known only when a program runs."""
    # inside of `jit` new arrays are too
    return any(
        isinstance(each, jax.core.Tracer) for each in jax.tree.leaves((jnp.zeros(()), values))
    )
