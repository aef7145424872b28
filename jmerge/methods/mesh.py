"""Arrays that lie on several devices: how to deal them out anew, so that what belongs together lies together."""

from __future__ import annotations

import math
from collections.abc import Sequence

import jax
from jax.sharding import AbstractMesh, AxisType, NamedSharding
from jax.sharding import PartitionSpec as P


def axis_to_deal(shape: tuple[int, ...], axes: Sequence[int], devices: int) -> int:
    """The last of the axes that falls to the devices in equal parts, or else to the most of them."""
    return max(axes, key=lambda i: (shape[i] % devices == 0, min(shape[i], devices), i))


def mesh_of(arrays: Sequence[jax.Array]) -> AbstractMesh:
    """The mesh that the first of the arrays to lie on one lies on, else one of no axes."""
    meshes: list[AbstractMesh] = [jax.typeof(array).sharding.mesh for array in arrays]
    return next((mesh for mesh in meshes if not mesh.empty), meshes[0])


def _axes(mesh: AbstractMesh) -> tuple[str, ...]:
    """The axes of a mesh along which the compiler may deal out arrays."""
    named = zip(mesh.axis_names, mesh.axis_types, strict=True)
    return tuple(name for name, kind in named if kind == AxisType.Auto)


def devices_of(mesh: AbstractMesh) -> int:
    """How many devices there are to deal arrays out to."""
    return math.prod(mesh.shape[name] for name in _axes(mesh))


def deal(x: jax.Array, mesh: AbstractMesh, axis: int | None) -> jax.Array:
    """x cut up along one axis over all devices of its mesh; None: all of it on each."""
    if devices_of(mesh) == 1:
        return x
    axes = () if axis is None else (*[None] * axis, _axes(mesh))
    layout = NamedSharding(mesh, P(*axes))
    dealt: jax.Array = jax.lax.with_sharding_constraint(x, layout)
    return dealt


def varying_axes(array: jax.Array) -> frozenset[str]:
    """The axes of `jax.shard_map` along which an array holds different parts; none where `check_vma` is off."""
    known = jax.typeof(array)
    if (kind := getattr(known, "manual_axis_type", None)) is not None:
        return frozenset(kind.varying)
    return frozenset(getattr(known, "vma", ()))  # as JAX called it at first


def hides_shards() -> bool:
    """Whether this is inside of `jax.shard_map` with `check_vma` off, where nobody knows which shards differ."""
    mesh = jax.sharding.get_abstract_mesh()
    manual = [axis for axis in getattr(mesh, "manual_axes", ()) if mesh.shape[axis] > 1]
    return bool(manual) and not any(varying_axes(jax.lax.axis_index(axis)) for axis in manual)
