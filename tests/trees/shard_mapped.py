"""Run with eight devices by test_trees_shards: methods (those named) inside of `jax.shard_map` take statistics over all
shards of a leaf, and draw for each shard."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P
from treecases import NUMBERS

import jmerge
from jmerge.methods import find_method

MESH = jax.make_mesh((4, 2), ("x", "y"), axis_types=(AxisType.Auto,) * 2)
SPECS = {"rows": P("x"), "both": P("x", "y"), "alike": P()}
NEIGHBOURS = {
    "arcee_fusion",
    "cabs",
}  # look at rows or blocks, of which a shard knows its own parts alone
RANDOM = {"dare_linear", "dare_ties", "della", "della_linear"}


def tree(seed: int) -> dict[str, jax.Array]:
    """Changes of few magnitudes, so that which of equal ones are kept depends on all shards."""
    rng = np.random.default_rng(seed)
    return {
        "rows": jnp.asarray(rng.integers(-4, 4, (64, 40)) / 4, jnp.float32),
        "both": jnp.asarray(rng.standard_normal((16, 30)), jnp.float32),
        "alike": jnp.asarray(rng.standard_normal((5, 6)), jnp.float32),
    }


def main(names: Sequence[str]) -> None:
    assert jax.device_count() == 8
    base = tree(0)
    for name in names:
        method = find_method(name)
        models = [tree(seed) for seed in range(1, 1 + (method.counts[1] or 3))]
        origin = None if method.base == "input" else base
        for exact in (True, False):

            def merge(models: Any, origin: Any, exact: bool = exact, name: str = name) -> Any:
                return jmerge.merge_trees(
                    models, method=name, base=origin, exact=exact, **NUMBERS[name]
                )

            several = method.per_model_output
            mapped = jax.shard_map(
                merge,
                mesh=MESH,
                in_specs=([SPECS] * len(models), None if origin is None else SPECS),
                out_specs=[SPECS] * len(models) if several else SPECS,
            )
            found, wanted = jax.jit(mapped)(models, origin), merge(models, origin)
            if not several:
                found, wanted = [found], [wanted]
            for one, two in zip(found, wanted, strict=True):
                compare(name, one, two)
    check_draws(base)
    check_refused(base)


def compare(name: str, found: dict[str, jax.Array], wanted: dict[str, jax.Array]) -> None:
    """To rounding, and but for what equal changes are kept, which depends on how shards lie."""
    for leaf, array in found.items():
        if name in RANDOM or (name in NEIGHBOURS and leaf == "both"):
            continue
        off = np.abs(np.asarray(array - wanted[leaf])) > 1e-5
        assert off.mean() <= (0.0 if leaf == "alike" else 0.02), (name, leaf, off.mean())


def check_draws(base: dict[str, jax.Array]) -> None:
    """Every shard has a mask of its own, what lies on all has one."""
    ones = {leaf: jnp.ones((32, 64)) for leaf in base}

    def drop(ones: Any) -> Any:
        zeros = jax.tree.map(jnp.zeros_like, ones)
        return jmerge.dare_linear([ones], base=zeros, density=0.5, rescale=False)

    found = jax.shard_map(drop, mesh=MESH, in_specs=(SPECS,), out_specs=SPECS)(ones)
    parts = np.asarray(found["rows"]).reshape(4, 8, 64)
    blocks = np.asarray(found["both"]).reshape(4, 8, 2, 32).swapaxes(1, 2).reshape(8, 8, 32)
    for masks in (parts, blocks):
        assert len({mask.tobytes() for mask in masks}) == len(masks)
        assert abs(np.corrcoef(masks.reshape(len(masks), -1))[0, 1:]).max() < 0.25
    np.testing.assert_array_equal(found["alike"], drop(ones)["alike"])


def check_refused(base: dict[str, jax.Array]) -> None:
    """With `check_vma` off nobody knows which shards differ."""

    def mapped(merge: Any) -> Any:
        run = jax.shard_map(merge, mesh=MESH, in_specs=(SPECS,), out_specs=SPECS, check_vma=False)
        return run(base)

    jax.block_until_ready(mapped(lambda tree: jmerge.linear([tree, tree])))
    for merge in (
        lambda tree: jmerge.ties([tree], base=tree),
        lambda tree: jmerge.dare_linear([tree], base=tree, rescale=False),
    ):
        try:
            mapped(merge)
        except TypeError as error:
            assert "check_vma" in str(error)
        else:
            raise AssertionError("merged what nobody can know")


if __name__ == "__main__":
    main(sys.argv[1:])
