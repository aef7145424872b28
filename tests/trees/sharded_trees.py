"""Run with eight devices by test_trees: methods (those named, or all) on sharded trees gives the bytes of the unsharded ones, leaves
results sharded like the inputs, and its program never brings a tensor together on one device."""

from __future__ import annotations

import math
import re
import sys
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P
from treecases import NUMBERS, merge

from jmerge.methods import find_method

SHAPE = (256, 512)
LAYOUTS = {
    "rows": (AxisType.Auto, P("x", None)),
    "columns": (AxisType.Auto, P(None, "x")),
    "explicit rows": (AxisType.Explicit, P("x", None)),
}


def gathered(program: str) -> list[int]:
    """The elements of every array that the program gathers on all devices."""
    found = []
    for line in program.splitlines():
        if re.search(r" all-gather(-start)?\(", line):
            shapes = re.findall(
                r"[a-z0-9]+\[([\d,]*)\]", line.split("= ", 1)[1].split(" all-gather")[0]
            )
            found += [math.prod(int(n) for n in shape.split(",") if n) for shape in shapes]
    return found


def jitted(name: str, hyperparameters: dict[str, Any]) -> Any:
    """The merge of a list of trees and a base, which is compiled for each sharding."""
    return jax.jit(lambda trees, origin: merge(name, origin, trees, hyperparameters))


def main(names: Sequence[str]) -> None:
    assert jax.device_count() == 8
    rng = np.random.default_rng(0)
    base = rng.standard_normal(SHAPE).astype(np.float32)
    models = [(base + 0.1 * rng.standard_normal(SHAPE)).astype(np.float32) for _ in range(3)]
    for name in names or NUMBERS:
        method, hyperparameters = find_method(name), NUMBERS[name]
        chosen = models[: method.counts[1] or 3]
        plain = jax.tree.leaves(
            jitted(name, hyperparameters)(
                [{"w": model} for model in chosen],
                None if method.base == "input" else {"w": base},
            )
        )
        for layout, (kind, spec) in LAYOUTS.items():
            mesh = jax.make_mesh((8,), ("x",), axis_types=(kind,))
            sharding = NamedSharding(mesh, spec)
            trees = [{"w": jax.device_put(model, sharding)} for model in chosen]
            origin = None
            if method.base != "input":
                origin = {"w": jax.device_put(base, sharding)}
            program = jitted(name, hyperparameters).lower(trees, origin).compile()
            largest = max(gathered(program.as_text()), default=0)
            assert largest <= base.size // 8, f"{name}, {layout}: gathers {largest} elements"
            found = jax.tree.leaves(program(trees, origin))
            for ours, wanted in zip(found, plain, strict=True):
                assert ours.sharding.is_equivalent_to(sharding, 2), (
                    f"{name}, {layout}: {ours.sharding}"
                )
                assert np.asarray(ours).tobytes() == np.asarray(wanted).tobytes(), (
                    f"{name}, {layout}"
                )


if __name__ == "__main__":
    main(sys.argv[1:])
