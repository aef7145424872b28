"""In what dtype leaves are merged, where their results lie, and when their arrays are freed."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, NamedSharding

from jmerge.methods.leaves import Row
from jmerge.methods.spec import Method


def arithmetic(rows: Sequence[Row], method: Method) -> dict[int, np.dtype[Any]]:
    """The dtype of the arithmetic of every leaf: its own, or one for all."""
    found = {row.number: _wide([array.dtype for array in row.arrays]) for row in rows}
    if method.of_model and found:
        found = dict.fromkeys(found, _wide(list(found.values())))
    return found


def _wide(dtypes: Sequence[np.dtype[Any]]) -> np.dtype[Any]:
    return np.dtype(np.float64 if np.dtype(np.float64) in dtypes else np.float32)


def common_dtype(arrays: Sequence[Any]) -> np.dtype[Any]:
    """The dtype of the result: that of all, or what is wide enough for them."""
    dtypes = [array.dtype for array in arrays]
    return np.dtype(dtypes[0]) if len(set(dtypes)) == 1 else _wide(dtypes)


def explicit_sharding(array: Any) -> NamedSharding | None:
    """How an array lies on a mesh whose axes are explicit; None on another, or on one device."""
    sharding = jax.typeof(array).sharding
    return sharding if AxisType.Explicit in sharding.mesh.axis_types else None


def with_auto_axes(array: jax.Array) -> jax.Array:
    """The array, on a mesh that leaves it to the compiler where things lie."""
    sharding = array.sharding
    if not isinstance(sharding, NamedSharding) or AxisType.Explicit not in sharding.mesh.axis_types:
        return array
    names = sharding.mesh.axis_names
    mesh = jax.sharding.Mesh(sharding.mesh.devices, names, axis_types=(AxisType.Auto,) * len(names))
    laid = NamedSharding(mesh, sharding.spec, memory_kind=sharding.memory_kind)
    moved: jax.Array = jax.device_put(array, laid)
    return moved


def laid_as(result: jax.Array, like: jax.Array) -> jax.Array:
    """The result, on the mesh of explicit axes on which `like` lies, if it does."""
    return jax.device_put(result, like.sharding) if explicit_sharding(like) else result


@partial(jax.jit, static_argnums=1)
def stack_layers(layers: Sequence[jax.Array], axis: int) -> jax.Array:
    """The layers as one array again."""
    return jnp.stack(layers, axis)


def is_array(value: Any) -> bool:
    """Whether a value is no plain number."""
    return isinstance(value, jax.Array | np.ndarray)


# Freeing


def count_uses(rows: Sequence[Row], has_base: bool, keep: Sequence[Any]) -> dict[int, int]:
    """How often each array of the models is still needed, by its identity; those of `keep` always are."""
    uses: dict[int, int] = {}
    for row in rows:
        for array in row.arrays[: -1 if has_base else None]:
            uses[id(array)] = uses.get(id(array), 0) + 1
    for array in keep:
        uses.pop(id(array), None)
    return uses


def free(row: Row, has_base: bool, uses: dict[int, int], results: Sequence[jax.Array]) -> None:
    """Delete the arrays of the models that nothing needs any more after this leaf."""
    for array in row.arrays[: -1 if has_base else None]:
        if id(array) not in uses:
            continue
        uses[id(array)] -= 1
        if not uses[id(array)] and not any(array is result for result in results):
            array.delete()
