"""From the leaves and numbers of a call to the groups that are merged, and back; where they are, or as they are traced."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import groupby, product
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from jmerge.methods.mesh import hides_shards
from jmerge.methods.positions import split_position
from jmerge.methods.xla import unknown
from jmerge.trees.hyperparameters import Arguments, Hyperparameters
from jmerge.trees.keys import Draws, keys_there, model_keys, place_tag
from jmerge.trees.passes import Group, Merge
from jmerge.trees.paths import is_array
from jmerge.trees.pieces import Call, Piece, shard_axes
from jmerge.trees.table import Row

Merged = dict[int, list[jax.Array]]  # by the numbers of leaves, one result or one for each model


class Part(NamedTuple):
    """A leaf, or a layer of one."""

    row: Row
    layer: int | None
    call: Call
    hyperparameters: Hyperparameters  # all, by their names in recipes
    start: int  # its first element's position among all parts
    number: int  # among all parts, of which a shard is one
    sizes: tuple[int, ...]  # its elements, of every shard by itself


def make_parts(rows: Sequence[Row], arguments: Arguments, call: Call) -> list[Part]:
    """The parts in the order in which positions count through them: neighbours that hold equally many layers lie
    layer by layer, as the leaves of a tree that does not stack them.

    Raises:
      ValueError, TypeError: a number of a leaf is none that it can be.
    """
    wides = [_wide([array.dtype for array in row.arrays]) for row in rows]
    if call.method.of_model:
        wides = [_wide(wides)] * len(rows)
    parts: list[Part] = []
    start = number = 0
    for layers, run in groupby(range(len(rows)), lambda i: rows[i].layers):
        for layer, i in product(layers, run):
            row = rows[i]
            hyperparameters = (
                arguments.at(row.places[layer or 0]) if arguments.vary else arguments.given
            )
            own = replace(
                call,
                switches=_switches(call, hyperparameters),
                wide=wides[i],
                result=_common(row.arrays),
                axis=row.axis,
            )
            shards = math.prod(jax.lax.axis_size(axis) for axis in shard_axes(row.arrays))
            sizes = (math.prod(row.shape),) * shards
            parts.append(Part(row, layer, own, hyperparameters, start, number, sizes))
            start, number = start + sum(sizes), number + shards
    for name, declared in call.method.settable.items():
        if declared.even and any(
            _differ(each.hyperparameters[name], parts[0].hyperparameters[name]) for each in parts
        ):
            raise ValueError(
                f"'{arguments.said[name]}' is about whole models, so it must be the same for all leaves"
            )
    return parts


def merge_there(
    rows: Sequence[Row], parts: Sequence[Part], call: Call, draws: Draws, donated: Mapping[int, int]
) -> Merged:
    """The results of arrays that are there. Arrays that are `donated`, by their identity, are freed after the leaf of
    this number."""
    laid = {row.number: [_with_auto_axes(each) for each in row.arrays] for row in rows}
    groups: dict[tuple[int, int | None], Group] = {}
    for part in parts:
        row, keys = part.row, None
        if "keys" in call.method.reserved:
            keys = keys_there(draws, row.stream_of(part.layer), len(row.models))
        groups[row.number, part.layer] = _group([part], [laid[row.number]], [keys], there=True)
    merge = Merge(list(groups.values()), there=True)
    known = merge.survey()
    merged: Merged = {}
    for row in rows:
        results = [merge.results(groups[row.number, layer], known)[0] for layer in row.layers]
        found = [_laid_as(each, row.arrays[-1]) for each in _joined(row, results, call)]
        for array in row.models:
            last = donated.get(id(array)) == row.number
            if last and not any(array is result for result in found):
                array.delete()
        merged[row.number] = found
    return merged


def merge_traced(rows: Sequence[Row], parts: Sequence[Part], call: Call, draws: Draws) -> Merged:
    """The results as a program makes them.

    Raises:
      TypeError: the method needs to know which shards differ, and that cannot be seen.
    """
    if call.method.statistics and hides_shards():
        raise TypeError(
            f"'{call.method.name}' looks at whole tensors, and with check_vma=False it cannot be seen which shards "
            "hold different parts of one; leave it on"
        )
    draw = "keys" in call.method.reserved
    keys = {row.number: _traced_keys(row, draws) if draw else None for row in rows}
    hyperparameters = [
        {n: each for n, each in part.hyperparameters.items() if is_array(each)} for part in parts
    ]

    def merge(
        arrays: dict[int, Any], keys: dict[int, Any], hyperparameters: list[Hyperparameters]
    ) -> Merged:
        members: dict[Any, list[Part]] = {}
        for part, own in zip(parts, hyperparameters, strict=True):
            part = part._replace(
                call=replace(part.call, axis=None), hyperparameters={**part.hyperparameters, **own}
            )
            kinds = tuple((each.dtype, shard_axes([each])) for each in arrays[part.row.number])
            kind = (part.call, part.row.shape, kinds, frozenset(own))
            members.setdefault(kind, []).append(part)
        groups = [
            _group(
                own,
                [_layer_of(part, arrays[part.row.number]) for part in own],
                [keys[part.row.number][part.layer or 0] if draw else None for part in own],
                there=False,
            )
            for own in members.values()
        ]
        whole = Merge(groups, there=False)
        known = whole.survey()
        found: dict[tuple[int, int | None], list[jax.Array]] = {}
        for kept, group in zip(members.values(), groups, strict=True):
            places = [(part.row.number, part.layer) for part in kept]
            found |= zip(places, whole.results(group, known), strict=True)
        return {
            row.number: _joined(row, [found[row.number, layer] for layer in row.layers], call)
            for row in rows
        }

    shardings = {row.number: _explicit_sharding(row.arrays[-1]) for row in rows}
    mesh = next((each.mesh for each in shardings.values() if each is not None), None)
    if mesh is not None:
        # on a mesh of explicit axes the compiler places what happens within, and results lie as the inputs do
        anywhere = NamedSharding(mesh, PartitionSpec())
        laid = {n: [each or anywhere] * _outputs(call, rows[0]) for n, each in shardings.items()}
        merge = jax.sharding.auto_axes(merge, out_sharding=laid)
    return merge({row.number: row.arrays for row in rows}, keys, hyperparameters)


def _traced_keys(row: Row, draws: Draws) -> jax.Array:
    """The keys uint32 [layers, models, 2] of a leaf, one layer where it holds none."""
    tag = place_tag(draws.words, row.arrays, draws.name)
    words = jnp.asarray(draws.words)

    def of(layer: Any) -> jax.Array:
        return model_keys(words, row.stream_of(layer), tag, len(row.models))

    if row.axis is None:
        return of(None)[None]
    return jax.vmap(of)(jnp.arange(len(row.layers), dtype=jnp.uint32))


def _layer_of(part: Part, arrays: Sequence[jax.Array]) -> list[jax.Array]:
    if part.row.axis is None:
        return list(arrays)
    cut = partial(jax.lax.index_in_dim, index=part.layer or 0, axis=part.row.axis, keepdims=False)
    return list(map(cut, arrays))


def _group(
    parts: Sequence[Part], arrays: Sequence[Sequence[Any]], keys: Sequence[Any], *, there: bool
) -> Group:
    """Parts of one kind, stacked; one alone as it is, so that it stays where it lies on its devices."""
    call = parts[0].call
    hyperparameters: Hyperparameters = {}
    plain = dict(call.switches)
    for name, first in parts[0].hyperparameters.items():
        if name in plain:
            continue
        values = [part.hyperparameters[name] for part in parts]
        known = not is_array(first)
        if known and not any(_differ(each, first) for each in values):
            plain[name] = first
            if not call.method.parameters[name].given:
                continue
        stacked = _stack([np.asarray(each, call.wide) if known else each for each in values])
        # in a trace too, the program is that of numbers which it is given
        hyperparameters[name] = unknown(stacked) if known and not there else stacked
    piece = Piece(
        tuple(map(_stack, zip(*arrays, strict=True))),
        hyperparameters,
        None if keys[0] is None else _stack(keys),
        _stack([np.asarray(split_position(part.start), np.uint32) for part in parts]),
        _stack([np.asarray(part.number, np.uint32) for part in parts]),
        None if call.axis is None else np.uint32(parts[0].layer or 0),
    )
    return Group(call, piece, plain, tuple(part.number for part in parts), parts[0].sizes)


def _stack(values: Sequence[Any]) -> Any:
    return values[0] if len(values) == 1 else jnp.stack(values)


def _joined(row: Row, layers: Sequence[list[jax.Array]], call: Call) -> list[jax.Array]:
    """The results of a leaf from those of its layers."""
    if row.axis is None:
        return layers[0]
    if not layers:
        return [row.arrays[-1].astype(_common(row.arrays))] * _outputs(call, row)
    return [_stack_layers(list(each), row.axis) for each in zip(*layers, strict=True)]


@partial(jax.jit, static_argnums=1)
def _stack_layers(layers: Sequence[jax.Array], axis: int) -> jax.Array:
    return jnp.stack(layers, axis)


def _outputs(call: Call, row: Row) -> int:
    return len(row.models) if call.method.per_model_output else 1


def _switches(call: Call, hyperparameters: Hyperparameters) -> tuple[tuple[str, Any], ...]:
    """The numbers that decide what program there is."""
    kinds = call.method.parameters
    return tuple(
        (n, each) for n, each in hyperparameters.items() if kinds[n].kind != "float" or each is None
    )


def _differ(one: Any, other: Any) -> bool:
    return one is not other and (is_array(one) or is_array(other) or one != other)


# Dtypes, and where arrays lie


def _wide(dtypes: Sequence[np.dtype[Any]]) -> np.dtype[Any]:
    """The dtype of the arithmetic."""
    return np.dtype(np.float64 if np.dtype(np.float64) in dtypes else np.float32)


def _common(arrays: Sequence[Any]) -> np.dtype[Any]:
    """The dtype of the result: that of all, or what is wide enough for them."""
    dtypes = [array.dtype for array in arrays]
    return np.dtype(dtypes[0]) if len(set(dtypes)) == 1 else _wide(dtypes)


def _explicit_sharding(array: Any) -> NamedSharding | None:
    """How an array lies on a mesh whose axes are explicit; None on another, or on one device."""
    sharding = jax.typeof(array).sharding
    return sharding if AxisType.Explicit in sharding.mesh.axis_types else None


def _with_auto_axes(array: jax.Array) -> jax.Array:
    """The array, on a mesh that leaves it to the compiler where things lie."""
    sharding = array.sharding
    if not isinstance(sharding, NamedSharding) or AxisType.Explicit not in sharding.mesh.axis_types:
        return array
    names = sharding.mesh.axis_names
    mesh = jax.sharding.Mesh(sharding.mesh.devices, names, axis_types=(AxisType.Auto,) * len(names))
    laid = NamedSharding(mesh, sharding.spec, memory_kind=sharding.memory_kind)
    moved: jax.Array = jax.device_put(array, laid)
    return moved


def _laid_as(result: jax.Array, like: jax.Array) -> jax.Array:
    """The result, on the mesh of explicit axes on which `like` lies, if it does."""
    return jax.device_put(result, like.sharding) if _explicit_sharding(like) else result
