"""From the leaves and numbers of a call to the pieces that are merged, and back; where they are, or as they are traced."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from jmerge.methods import eager
from jmerge.methods.arguments import Arguments
from jmerge.methods.draws import model_keys, place_tag
from jmerge.methods.leaf import LINES_DEPTH, Call, Nonfinite, Piece, sizes_of
from jmerge.methods.leaves import Row, Table
from jmerge.methods.mesh import hides_shards, varying_axes
from jmerge.methods.placing import (
    arithmetic,
    common_dtype,
    count_uses,
    explicit_sharding,
    free,
    is_array,
    laid_as,
    stack_layers,
    with_auto_axes,
)
from jmerge.methods.positions import split_position
from jmerge.methods.random import make_key
from jmerge.methods.spec import Method
from jmerge.methods.traced import Group, merge_groups

Numbers = dict[str, Any]


class Settings(NamedTuple):
    """What is the same for all leaves."""

    method: Method
    has_base: bool
    nonfinite: Nonfinite
    exact: bool


class Draws(NamedTuple):
    """Where random numbers come from."""

    words: Any  # of a seed or key, which is called `name`
    name: str


class Part(NamedTuple):
    """A leaf, or a layer of one."""

    row: Row
    layer: int | None
    numbers: Numbers  # all, by their names in recipes
    start: int  # its first element's position among all leaves
    tensor: int  # its number among all


def merge_there(
    table: Table,
    settings: Settings,
    arguments: Arguments,
    draws: Draws,
    depths: Sequence[Any] | None,
    *,
    donate: bool,
    keep: Sequence[Any],
) -> dict[int, list[jax.Array]]:
    """The results of every leaf by its number, of arrays that are there."""
    wide = arithmetic(table.rows, settings.method)
    relaid = [
        row._replace(arrays=[with_auto_axes(each) for each in row.arrays]) for row in table.rows
    ]
    by_row = _parts(relaid, arguments, settings.method, depths)
    works = {
        (part.row.number, part.layer): _work(part, settings, draws, wide[part.row.number])
        for part in by_row
    }
    found = dict(zip(works, eager.survey(list(works.values())), strict=True))
    uses = count_uses(table.rows, settings.has_base, keep) if donate else {}
    merged: dict[int, list[jax.Array]] = {}
    for row, laid in zip(table.rows, relaid, strict=True):
        layers = [None] if row.axis is None else range(len(row.places))
        results = [
            eager.merge(works.pop((row.number, layer)), found[row.number, layer])
            for layer in layers
        ]
        stacked = (
            results[0]
            if row.axis is None
            else [stack_layers(list(each), row.axis) for each in zip(*results, strict=True)]
        )
        if row.axis is not None and not results:
            stacked = [row.arrays[-1].astype(common_dtype(row.arrays))]
        merged[row.number] = [laid_as(each, row.arrays[-1]) for each in stacked]
        del laid
        free(row, settings.has_base, uses, merged[row.number])
    return merged


def merge_traced(
    table: Table,
    settings: Settings,
    arguments: Arguments,
    draws: Draws,
    depths: Sequence[Any] | None,
) -> dict[int, list[jax.Array]]:
    """The results of every leaf by its number, as a program makes them."""
    rows = table.rows
    if not rows:
        return {}
    if settings.method.statistics and hides_shards():
        raise TypeError(
            f"'{settings.method.name}' looks at whole tensors, and with check_vma=False it cannot be seen which shards "
            "hold different parts of one; leave it on"
        )
    outputs = len(rows[0].arrays) - settings.has_base if settings.method.per_model_output else 1
    parts = _parts(rows, arguments, settings.method, depths)
    keys = _traced_keys(rows, settings, draws)
    shardings = [explicit_sharding(row.arrays[-1]) for row in rows]
    numbers = [{n: v for n, v in part.numbers.items() if is_array(v)} for part in parts]

    def merge(arrays: Any, keys: Any, numbers: Any) -> Any:
        own = [row._replace(arrays=each) for row, each in zip(rows, arrays, strict=True)]
        by_number = {row.number: row for row in own}
        with_arrays = [
            part._replace(row=by_number[part.row.number], numbers={**part.numbers, **each})
            for part, each in zip(parts, numbers, strict=True)
        ]
        return _merge_parts(own, with_arrays, settings, keys)

    if any(shardings):
        # on a mesh of explicit axes the compiler places what happens within, and results lie as the inputs do
        mesh = next(each.mesh for each in shardings if each is not None)
        whole = NamedSharding(mesh, PartitionSpec())  # type: ignore[no-untyped-call]
        merge = jax.sharding.auto_axes(
            merge, out_sharding=[[each or whole] * outputs for each in shardings]
        )
    merged = merge([row.arrays for row in rows], keys, numbers)
    return {row.number: results for row, results in zip(rows, merged, strict=True)}


# Parts: leaves, and the layers of leaves


def _parts(
    rows: Sequence[Row], arguments: Arguments, method: Method, depths: Sequence[Any] | None
) -> list[Part]:
    """The parts in the order in which positions count through them: neighbours that hold equally many layers lie
    layer by layer, as the leaves of a tree that does not stack them."""
    shared: Numbers | None = None
    by_row: list[list[Part]] = []
    for row in rows:
        own: list[Part] = []
        for layer, place in enumerate(row.places):
            if shared is None or arguments.vary:
                shared = arguments.for_leaf(row.number, place)
            numbers = dict(shared)
            if depths is not None:
                numbers[LINES_DEPTH] = _depth(depths[row.number], row, layer)
            own.append(Part(row, None if row.axis is None else layer, numbers, 0, 0))
        by_row.append(own)
    _check_even(by_row, method)
    ordered: list[Part] = []
    while by_row:
        first = by_row[0]
        run = 1
        if first and first[0].layer is not None:
            while run < len(by_row) and by_row[run] and by_row[run][0].layer is not None:
                if len(by_row[run]) != len(first):
                    break
                run += 1
        ordered += [part for layer in zip(*by_row[:run], strict=True) for part in layer]
        by_row = by_row[run:]
    start = tensor = 0
    placed = []
    for part in ordered:
        placed.append(part._replace(start=start, tensor=tensor))
        shards = sizes_of(Piece(tuple(part.row.arrays), {}))
        size = int(np.prod(part.row.shape, dtype=object))
        start, tensor = start + size * len(shards), tensor + len(shards)
    return placed


def _check_even(by_row: Sequence[Sequence[Part]], method: Method) -> None:
    for name, declared in method.settable.items():
        values = [part.numbers[name] for own in by_row for part in own]
        if declared.even and any(_differs(value, values[0]) for value in values):
            raise ValueError(
                f"'{name}' is about whole models, so it must be the same for all leaves"
            )


def _differs(one: Any, other: Any) -> bool:
    return one is not other and (is_array(one) or is_array(other) or one != other)


def _depth(depth: Any, row: Row, layer: int) -> Any:
    if row.axis is not None and np.ndim(depth) == 1:
        return depth[layer]
    return depth if isinstance(depth, jax.Array | np.ndarray) else float(depth)


def _call(part: Part, settings: Settings, wide: np.dtype[Any]) -> Call:
    continuous = settings.method.parameters
    switches = {
        name: value
        for name, value in part.numbers.items()
        if continuous[name].kind != "float" or value is None
    }
    return Call(
        settings.method,
        settings.has_base,
        tuple(switches.items()),
        settings.nonfinite,
        settings.exact,
        wide,
        common_dtype(part.row.arrays),
    )


def _given(part: Part, call: Call) -> Numbers:
    """The continuous numbers that the function gets."""
    switches = dict(call.switches)
    return {
        name: value
        for name, value in part.numbers.items()
        if name not in switches and call.method.parameters[name].given
    }


def _work(part: Part, settings: Settings, draws: Draws, wide: np.dtype[Any]) -> eager.Work:
    call = _call(part, settings, wide)
    numbers = {name: np.asarray(value, wide) for name, value in _given(part, call).items()}
    keys = None
    if "keys" in settings.method.reserved:
        keys = _keys_there(part, len(part.row.arrays) - settings.has_base, draws)
    start = None
    if settings.method.of_model:
        start = np.asarray(split_position(part.start), np.uint32)
    piece = Piece(tuple(part.row.arrays), numbers, keys, start, np.uint32(part.tensor))
    layer = None if part.layer is None else np.uint32(part.layer)
    return eager.Work(call, piece, part.row.axis, layer, part.numbers)


def _keys_there(part: Part, models: int, draws: Draws) -> np.ndarray:
    words = [int(word) for word in np.asarray(draws.words)]
    stream = part.row.stream
    if part.layer is not None:
        stream = stream._replace(numbers=(part.layer, *stream.numbers))
    return np.asarray([make_key(words, stream, model) for model in range(models)], np.uint32)


# Traced


def _traced_keys(rows: Sequence[Row], settings: Settings, draws: Draws) -> list[Any]:
    """For every leaf the tag of its place under transformations, where the method draws or looks at whole tensors."""
    if "keys" not in settings.method.reserved:
        return [None] * len(rows)
    models = len(rows[0].arrays) - settings.has_base
    words = jnp.asarray(draws.words)
    found = []
    for row in rows:
        tag = place_tag(draws.words, row.arrays, draws.name)
        if row.axis is None:
            found.append(model_keys(words, row.stream, tag, models)[None])
        else:
            layers = jnp.arange(len(row.places), dtype=jnp.uint32)
            found.append(jax.vmap(partial(model_keys, words, row.stream, tag, models))(layers))
    return found


def _merge_parts(
    rows: Sequence[Row], parts: Sequence[Part], settings: Settings, keys: Sequence[Any]
) -> list[list[jax.Array]]:
    """For every leaf its results."""
    wide = arithmetic(rows, settings.method)
    position = {row.number: i for i, row in enumerate(rows)}
    members: dict[Any, list[Part]] = {}
    for part in parts:
        call = _call(part, settings, wide[part.row.number])
        shape = part.row.shape
        kinds = tuple((each.dtype, tuple(sorted(varying_axes(each)))) for each in part.row.arrays)
        plain = tuple(sorted(name for name, value in part.numbers.items() if not is_array(value)))
        members.setdefault(
            (call, shape, kinds, plain, explicit_sharding(part.row.arrays[-1])), []
        ).append(part)
    groups = [_group(own, key[0], keys, position, settings) for key, own in members.items()]
    results = merge_groups(groups)
    found: dict[tuple[int, int | None], list[jax.Array]] = {}
    for own, merged_parts in zip(members.values(), results, strict=True):
        for part, each in zip(own, merged_parts, strict=True):
            found[part.row.number, part.layer] = each
    merged = []
    for row in rows:
        if row.axis is None:
            merged.append(found[row.number, None])
        elif not row.places:
            merged.append([row.arrays[-1].astype(common_dtype(row.arrays))])
        else:
            layers = [found[row.number, layer] for layer in range(len(row.places))]
            merged.append([jnp.stack(list(each), row.axis) for each in zip(*layers, strict=True)])
    return merged


def _group(
    parts: Sequence[Part],
    call: Call,
    keys: Sequence[Any],
    position: dict[int, int],
    settings: Settings,
) -> Group:
    """Parts of one shape, stacked; one alone as it is, so that it stays where it lies on its devices."""

    def stack(values: Sequence[Any]) -> jax.Array:
        own = [jnp.asarray(each, _float_of(each)) for each in values]
        return own[0] if len(own) == 1 else jnp.stack(own)

    models = range(len(parts[0].row.arrays))
    arrays = tuple(stack([_slice_of(part, i) for part in parts]) for i in models)
    switches = dict(call.switches)
    numbers: Numbers = {}
    shared: Numbers = {}
    for name, value in parts[0].numbers.items():
        if name in switches:
            continue
        values = [part.numbers[name] for part in parts]
        if not any(_differs(each, value) for each in values) and not is_array(value):
            shared[name] = value
        else:
            numbers[name] = stack(values)
    own_keys = None
    if "keys" in settings.method.reserved:
        own_keys = stack([keys[position[part.row.number]][part.layer or 0] for part in parts])
    starts = stack([np.asarray(split_position(part.start), np.uint32) for part in parts])
    tensors = stack([np.asarray(part.tensor, np.uint32) for part in parts])
    stacked = Piece(arrays, numbers, own_keys, starts, tensors)
    return Group(call, stacked, shared, tuple(part.tensor for part in parts))


def _slice_of(part: Part, number: int) -> jax.Array:
    array: jax.Array = part.row.arrays[number]
    if part.row.axis is None:
        return array
    return jax.lax.index_in_dim(array, part.layer or 0, part.row.axis, keepdims=False)


def _float_of(value: Any) -> Any:
    return value.dtype if is_array(value) else None
