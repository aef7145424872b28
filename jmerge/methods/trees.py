"""Merging pytrees of arrays in one call: what research code uses, under `jit`, `vmap`, `grad` and on sharded arrays."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from numbers import Real
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from jmerge.methods.cuts import cut_terms
from jmerge.methods.draws import model_keys, place_tag, seed_words
from jmerge.methods.positions import split_position
from jmerge.methods.reduce import total_of_leaves
from jmerge.methods.spec import REGISTRY, Method, Parameter, Required
from jmerge.methods.streams import path_depth, path_name, streams
from jmerge.methods.wrap import find_method
from jmerge.names import did_you_mean

Leaf = list[jax.Array]  # one array of every model
Keywords = dict[str, Any]
LINES_DEPTH = "lines_depth"  # the keyword that `depth` fills in, leaf by leaf


def merge_trees(
    trees: Sequence[Any],
    *,
    method: str,
    base: Any = None,
    seed: Any = 0,
    key: Any = None,
    **numbers: Any,
) -> Any:
    """Merge pytrees of one structure, leaf by leaf, by a registered method.

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

    Args:
      trees: the models: dicts, Flax params, `nnx.State` or any other pytrees, all of one structure and of equal
        shapes. Floating leaves are merged in float32 (float64 if any is, where JAX has 64 bits enabled) and come back in the dtype to which those of
        the models (and the base) promote; other leaves must be equal everywhere, and are given back.
      method: a name of `jmerge methods`, or one in wrappers, as `equalize(ties)` (see `jmerge.methods.wrap`).
      base: a tree like the others, for methods that have a base.
      seed: of random methods, an integer, which may be traced. Leaves are told apart by their paths, and draw what a
        recipe draws for the tensor of that name.
      key: in place of a seed, a typed key of `jax.random.key`, which may be traced.
      numbers: the method's parameters, by their names in recipes or in Python (`scale` for `lambda`). Those of each
        model are a number for all, a sequence or an array [models]. Continuous ones may be traced; flags, densities
        and others that counts follow from have to be plain numbers. `lines` takes `depth`, a tree like the others that says
        where each leaf lies, from 0 to 1.

    Returns:
      A tree like the others; for a method that makes a checkpoint for each model (`emr`), a list of trees. Arrays
      that are sharded stay so: each device merges what it holds, and exchanges no more than the tensor's own size.

    Raises:
      KeyError: there is no such method; ValueError: its wrappers do not go around it.
      TypeError: a number is unknown or missing, or a base is missing or has no place in the method.
      ValueError: structures, shapes, or leaves that cannot be merged differ; the message names the leaf.
    """
    chosen = _find(method)
    models = list(trees)
    _check_models(chosen, len(models), base)
    everything = models if base is None else [*models, base]
    paths, depths_of, leaves, treedef = _flatten(everything, names=_names(models, base))
    keywords, static = _arguments(chosen, len(models), numbers)
    floating = [i for i, leaf in enumerate(leaves) if _is_floating(leaf, paths[i])]
    call = _Call(chosen, base is not None, tuple(static.items()))
    outputs = len(models) if chosen.per_model_output else 1
    depths = _depths(chosen, numbers.get("depth"), treedef, len(leaves))
    # others are given back as they came: a 64-bit integer would not survive a conversion
    chosen_leaves = [[jnp.asarray(array) for array in leaves[i]] for i in floating]
    named = streams(paths, depths_of)
    keys: list[jax.Array | None] = [None] * len(floating)
    words = seed_words(seed, "seed") if key is None else seed_words(key, "key")
    if "keys" in chosen.reserved:
        for number, i in enumerate(floating):
            tag = place_tag(words, chosen_leaves[number], "seed" if key is None else "key")
            keys[number] = model_keys(words, named[i], tag, len(models))
    if meshes := [sharding.mesh for leaf in chosen_leaves if (sharding := _explicit(leaf))]:
        # on a mesh of explicit axes the compiler places what happens within, and results lie as the inputs do
        whole = NamedSharding(meshes[0], PartitionSpec())  # type: ignore[no-untyped-call]
        out = [[_explicit(leaf) or whole] * outputs for leaf in chosen_leaves]
        merge = jax.sharding.auto_axes(partial(_merge_leaves, call), out_sharding=out)
    else:
        merge = partial(_merge_leaves, call)
    merged = merge(chosen_leaves, keywords, keys, [depths[i] for i in floating]) if floating else []
    found: list[list[Any]] = [[leaf[-1] for leaf in leaves] for _ in range(outputs)]
    for i, results in zip(floating, merged, strict=True):
        for output, result in zip(found, results, strict=True):
            output[i] = result
    results = [jax.tree.unflatten(treedef, output) for output in found]
    return results if chosen.per_model_output else results[0]


def _find(name: str) -> Method:
    """The method of a name; KeyError with the nearest one."""
    try:
        return find_method(name)
    except KeyError:
        hint = did_you_mean(name, sorted(REGISTRY), show=40)
        raise KeyError(f"'{name}' is not a merge method{hint}") from None


class _Call(NamedTuple):
    """What a call of a method is but for its arrays; it hashes."""

    method: Method
    has_base: bool
    static: tuple[tuple[str, Any], ...]

    def __hash__(self) -> int:
        return hash((self.method.name, self.has_base, self.static))

    def keywords(self, traced: Keywords, leaf: Leaf) -> Keywords:
        """The keyword arguments of the method for a leaf."""
        own = {name: value.astype(leaf[0].dtype) for name, value in traced.items()}
        return own | dict(self.static)

    def arrays(self, leaf: Leaf) -> tuple[jax.Array, ...]:
        """The positional arguments of the method."""
        models = leaf[:-1] if self.has_base else leaf
        if not self.has_base:
            return (jnp.stack(models),)
        if self.method.takes == "delta":
            return (jnp.stack([model - leaf[-1] for model in models]),)
        return leaf[-1], jnp.stack(models)


@partial(jax.jit, static_argnums=0)
def _merge_leaves(
    call: _Call,
    leaves: list[Leaf],
    keywords: Keywords,
    keys: list[jax.Array | None],
    depths: list[jax.Array | None],
) -> list[list[jax.Array]]:
    """For every leaf the results, one or one a model, in the dtype its arrays promote to."""
    wide = _widen(leaves, together=call.method.of_model)
    found = _survey(call, wide, keywords)
    merged = []
    offset = 0
    for number, leaf in enumerate(wide):
        more = call.keywords(keywords, leaf) | found
        if "start" in call.method.reserved and call.method.counts_through:
            more["start"] = jnp.asarray(split_position(offset), jnp.uint32)
        if keys[number] is not None:
            more["keys"] = keys[number]
        if depths[number] is not None:
            more[LINES_DEPTH] = jnp.asarray(depths[number], leaf[0].dtype)
        result = call.method.function(*call.arrays(leaf), **more)
        if call.method.takes == "delta" and call.has_base:
            result = jnp.broadcast_to(leaf[-1], result.shape) + result
        results = list(result) if call.method.per_model_output else [result]
        dtype = _common([array.dtype for array in leaves[number]])
        merged.append([each.astype(dtype) for each in results])
        offset += leaf[0].size
    return merged


def _survey(call: _Call, leaves: list[Leaf], keywords: Keywords) -> Keywords:
    """The statistics of whole models, by keyword."""
    found: Keywords = {}
    numbers = {
        name: {**keywords, **dict(call.static)}[keyword]
        for name, keyword in call.method.keywords.items()
        if not call.method.parameters[name].planned
    }
    for statistic in call.method.statistics:
        if statistic.scope != "model" or not statistic.when(numbers):
            continue
        terms: Callable[..., Sequence[jax.Array]] | None = statistic.terms
        assert terms is not None
        of_leaves = [
            terms(*call.arrays(leaf), **(call.keywords(keywords, leaf) | found)) for leaf in leaves
        ]
        if statistic.kind == "sums":
            found[statistic.keyword] = total_of_leaves(of_leaves)
        else:
            assert statistic.counts is not None
            size = sum(leaf[0].size for leaf in leaves)
            found[statistic.keyword] = cut_terms(of_leaves, statistic.counts(numbers, size, found))
    return found


def _explicit(leaf: Leaf) -> NamedSharding | None:
    """How a leaf lies on a mesh whose axes are explicit; None on another, or on one device."""
    sharding = jax.typeof(leaf[-1]).sharding
    return sharding if AxisType.Explicit in sharding.mesh.axis_types else None


def _widen(leaves: list[Leaf], *, together: bool) -> list[Leaf]:
    """The leaves in the dtype of the arithmetic, each in its own or all in one."""
    wide = [_wide([array.dtype for array in leaf]) for leaf in leaves]
    if together:
        wide = [_wide(wide)] * len(wide)
    return [
        [array.astype(dtype) for array in leaf] for leaf, dtype in zip(leaves, wide, strict=True)
    ]


def _wide(dtypes: Sequence[np.dtype[Any]]) -> np.dtype[Any]:
    return np.dtype(np.float64 if np.dtype(np.float64) in dtypes else np.float32)


def _common(dtypes: Sequence[np.dtype[Any]]) -> np.dtype[Any]:
    """The dtype of the result: that of all, or what is wide enough for them."""
    return dtypes[0] if len(set(dtypes)) == 1 else _wide(dtypes)


# What was handed over


def _check_models(method: Method, count: int, base: Any) -> None:
    if method.base == "needed" and base is None:
        raise TypeError(f"'{method.name}' needs a base; pass base=")
    if method.base == "input" and base is not None:
        raise TypeError(f"'{method.name}' takes no base; put that tree among the others")
    low, high = method.counts
    if count < low or (high is not None and count > high):
        raise TypeError(f"'{method.name}' merges {method.counts_text()}; found {count}")
    if count == 0 and base is None:
        raise TypeError("there is nothing to merge")


def _names(models: Sequence[Any], base: Any) -> list[str]:
    names = [f"trees[{i}]" for i in range(len(models))]
    return names if base is None else [*names, "base"]


def _flatten(
    trees: Sequence[Any], names: Sequence[str]
) -> tuple[list[str], list[int], list[Leaf], Any]:
    """The paths of the leaves, the arrays of each, and the structure; ValueError where trees differ."""
    flat, structure = jax.tree_util.tree_flatten_with_path(trees[-1])
    treedef: Any = structure
    paths = [path_name(path) for path, _ in flat]
    depths = [path_depth(path) for path, _ in flat]
    columns = []
    for tree, name in zip(trees, names, strict=True):
        leaves, other = jax.tree.flatten(tree)
        if other != treedef:
            own = {path_name(path) for path, _ in jax.tree_util.tree_flatten_with_path(tree)[0]}
            odd = sorted(own ^ set(paths))
            where = f"'{odd[0]}' is in one only" if odd else f"{other} and {treedef}"
            raise ValueError(f"{name} and {names[-1]} have different structures: {where}")
        columns.append(
            [leaf if isinstance(leaf, jax.Array) else np.asarray(leaf) for leaf in leaves]
        )
    for path, row in zip(paths, zip(*columns, strict=True), strict=True):
        for array, name in zip(row, names, strict=True):
            if array.shape != row[-1].shape:
                raise ValueError(
                    f"'{path}' is {array.shape} in {name} and {row[-1].shape} in {names[-1]}"
                )
    return paths, depths, [list(row) for row in zip(*columns, strict=True)], treedef


def _is_floating(leaf: Leaf, path: str) -> bool:
    """Whether a leaf is merged; ValueError where it can be neither merged nor given back."""
    floating = [jnp.issubdtype(array.dtype, jnp.floating) for array in leaf]
    if all(floating):
        return True
    if any(floating):
        raise ValueError(f"'{path}' is a float in one tree and not in another")
    if any(isinstance(array, jax.core.Tracer) for array in leaf):
        raise ValueError(
            f"'{path}' is {leaf[-1].dtype}, and whether all are equal cannot be seen in a traced "
            "function; leave it out of the trees"
        )
    for array in leaf:
        if array.dtype != leaf[-1].dtype or not bool((array == leaf[-1]).all()):
            raise ValueError(f"'{path}' is {leaf[-1].dtype}, which cannot be merged, and differs")
    return False


def _arguments(
    method: Method, models: int, numbers: Mapping[str, Any]
) -> tuple[Keywords, Keywords]:
    """The keywords of the method, traced and static."""
    given = dict(numbers)
    traced: Keywords = {}
    static: Keywords = {}
    concrete: dict[str, Any] = {}  # as plain numbers, by their names in recipes
    for name, declared in method.settable.items():
        keyword = method.keywords[name]
        if keyword != name and keyword in given and name in given:
            raise TypeError(f"'{keyword}' and '{name}' are the same parameter; pass one of them")
        value = given.pop(keyword, given.pop(name, declared.default))
        if isinstance(value, Required):
            raise TypeError(f"'{method.name}' needs '{name}': {declared.doc}")
        if declared.per_model and value is not None:
            value = _of_each(value, models, name)
        if not any(isinstance(each, jax.core.Tracer) for each in jax.tree.leaves(value)):
            concrete[name] = _checked(value, declared, name)
        if value is None:
            static[keyword] = None
        elif declared.kind == "float" and not declared.count and not declared.concrete:
            traced[keyword] = jnp.asarray(value, _wide([jnp.asarray(value).dtype]))
        else:
            static[keyword] = _plain(value, declared.kind, name)
    if concrete.keys() == method.settable.keys() and (problem := method.check(concrete)):
        raise ValueError(f"{method.name}: {problem}")
    if LINES_DEPTH in method.keywords.values():
        given.pop("depth", None)
    if given:
        known = dict.fromkeys(
            [*(method.keywords[name] for name in method.settable), *method.settable]
        )
        hint = did_you_mean(next(iter(given)), known, show=30)
        raise TypeError(f"'{next(iter(given))}' is not a parameter of '{method.name}'{hint}")
    return traced, static


def _checked(value: Any, declared: Parameter, name: str) -> Any:
    """A value in plain numbers; ValueError where one is out of its range, or no number at all."""
    plain = value
    if isinstance(value, jax.Array | np.ndarray):
        plain = tuple(np.ravel(value).tolist()) if np.ndim(value) else float(value)
    for each in plain if isinstance(plain, tuple) else (plain,):
        if isinstance(each, Real) and (problem := declared.problem(float(each))):
            raise ValueError(f"{name}: {problem}")
    return plain


def _of_each(value: Any, models: int, name: str) -> Any:
    """A number for each model: as an array, or as a tuple where all are plain numbers."""
    if isinstance(value, int | float):
        return (float(value),) * models
    if isinstance(value, Sequence):
        value = tuple(value)
        if any(isinstance(each, jax.Array) for each in value):
            value = jnp.stack([jnp.asarray(each) for each in value])
    elif np.ndim(value) == 0:
        arrays = jnp if isinstance(value, jax.Array) else np
        value = arrays.broadcast_to(value, (models,))
    if np.ndim(value) != 1 or len(value) != models:
        raise ValueError(
            f"{name}: expected a number for each of {models} models, found {np.shape(value)}"
        )
    return value


def _plain(value: Any, kind: str, name: str) -> Any:
    """A value that the compiled program depends on, as Python numbers."""
    try:
        if isinstance(value, tuple | np.ndarray | jax.Array) and np.ndim(value):
            return tuple(float(each) for each in value)
        if kind == "bool" and (isinstance(value, str) or value not in (False, True)):
            raise TypeError(f"'{name}' is True or False; found {value!r}")
        return {"bool": bool, "int": int, "float": float}[kind](value)
    except jax.errors.ConcretizationTypeError as error:
        raise TypeError(
            f"'{name}' decides about counts, shapes or the program, so it has to be a plain number"
        ) from error


def _depths(method: Method, depth: Any, treedef: Any, leaves: int) -> list[Any]:
    """The depth of every leaf, for methods that want it."""
    if LINES_DEPTH not in method.keywords.values():
        return [None] * leaves
    if depth is None:
        raise TypeError("'lines' needs depth=: a tree like the others of numbers from 0 to 1")
    if jax.tree.structure(depth) != treedef:
        raise ValueError("depth has another structure than the trees")
    return jax.tree.leaves(depth)
