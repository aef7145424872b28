"""Sums, thresholds and random numbers of tensors on eight devices: the bits of one device, and no device holds a tensor.

The tests of this process run on one device, so a child with eight compiles and runs everything once.
"""

from __future__ import annotations

import json
import math
import os
import re
import subprocess
import sys
from typing import Any

import pytest

# one child for all of them; the default suite has test_trees' sharded trees
pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("sharded")]

CHILD = """
import json
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from jmerge.methods.random import uniform
from jmerge.methods.reduce import along, total
from jmerge.methods.statistics.fold import take
from jmerge.methods.statistics.topk import TopK
from jmerge.methods.statistics.thresholds import change_keys, kept_changes

jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")
auto = AxisType.Auto
meshes = {
    "8": jax.make_mesh((8,), ("d",), axis_types=(auto,)),
    "2 x 4": jax.make_mesh((2, 4), ("a", "b"), axis_types=(auto, auto)),
}

keep = TopK(
    keyword="keep",
    terms=change_keys,
    counts=lambda hyperparameters, size, found: [[size // 3], [size // 5]],
)

def threshold(x):
    delta = jnp.stack([x, jnp.round(x)])  # the second is full of ties
    found = take(keep, [change_keys(delta)], {}, {}, x.dtype)
    return found, kept_changes(delta, found)

functions = {
    "total": lambda x: total([x * x, x]),
    "total of a batch": lambda x: jax.vmap(lambda y: total([y, y * y]))(jnp.stack([x, -x, x])),
    "gradient of total": jax.grad(lambda x: total([x * x])[0]),
    "along rows": lambda x: along(x, -1),
    "along columns": lambda x: along(x, 0),
    "threshold": threshold,
    "uniform": lambda x: x + uniform(jnp.asarray([5, 7], jnp.uint32), x.shape),
}

def same(found, wanted):
    pairs = zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True)
    return all(np.asarray(a).tobytes() == np.asarray(b).tobytes() for a, b in pairs)

alone = {}
results = []
for name, shape, mesh, spec in json.loads(input()):
    function = functions[name]
    x = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    layout = P(*[tuple(axes) if isinstance(axes, list) else axes for axes in spec])
    laid = jax.device_put(x, NamedSharding(meshes[mesh], layout))
    compiled = jax.jit(function).lower(laid).compile()
    if (name, *shape) not in alone:
        alone[name, *shape] = jax.jit(function)(x)
    results.append([same(compiled(laid), alone[name, *shape]), compiled.as_text()])
print(json.dumps(results))
"""

LAYOUTS: list[tuple[tuple[int, ...], str, list[object]]] = [
    ((1024, 768), "8", ["d", None]),
    ((1024, 768), "8", [None, "d"]),
    ((1024, 768), "2 x 4", ["a", "b"]),
    ((1024, 768), "2 x 4", ["b", "a"]),
    ((1024, 768), "2 x 4", [None, ["b", "a"]]),
    ((120, 4096), "8", [None, "d"]),
    ((1000, 760), "8", ["d", None]),  # a device's rows are no whole blocks
    ((1000, 760), "8", [None, "d"]),
    ((1001, 768), "8", [None, "d"]),  # rows that do not fall to the devices in equal parts
    ((24, 64, 512), "2 x 4", [None, "a", "b"]),  # layers in a stack
    ((3, 512, 512), "8", [None, "d", None]),  # the first axis is too short for eight devices
    ((1 << 19,), "8", ["d"]),
]
ROWS, COLUMNS, BOTH, TURNED = LAYOUTS[:4]
CASES = [
    *[("total", *layout) for layout in LAYOUTS],
    *[("total of a batch", *layout) for layout in (ROWS, COLUMNS)],
    *[("gradient of total", *layout) for layout in (ROWS, COLUMNS)],
    *[("along rows", *layout) for layout in LAYOUTS if len(layout[0]) > 1],
    *[("along columns", *layout) for layout in (ROWS, COLUMNS, BOTH, TURNED)],
    *[("threshold", *layout) for layout in (ROWS, COLUMNS, BOTH, *LAYOUTS[-3:])],
    *[("uniform", *layout) for layout in (ROWS, COLUMNS, BOTH, *LAYOUTS[-3:])],
]
STACK = {
    "total of a batch": 3,
    "threshold": 2,
}  # arrays as large as the tensor that a case works on at once


@pytest.fixture(scope="module")
def results() -> list[Any]:
    """For every case whether it gave the bytes of one device, and its program."""
    flags = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
    done = subprocess.run(
        [sys.executable, "-c", CHILD],
        input=json.dumps(CASES),
        env=os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return list(json.loads(done.stdout))


@pytest.mark.parametrize("case", range(len(CASES)), ids=[str(case) for case in CASES])
def test_bits_of_one_device_and_no_gather(results: list[Any], case: int) -> None:
    """No program brings more than a few parts in a hundred of a tensor together, or has an array beyond a share."""
    same, program = results[case]
    name, shape, *_ = CASES[case]
    size = math.prod(shape)
    assert same
    gathered = [elements(text) for text in re.findall(r"= (.*?) all-gather(?:-start)?\(", program)]
    assert max(gathered, default=0) <= 0.05 * size
    # equal shares, and at the end of each what makes up whole rows and blocks
    assert elements(program) <= STACK.get(name, 1) * (size / 8 + 8 * 4096)


def test_the_check_can_fail() -> None:
    """It sees the arrays of a program."""
    assert elements("%g = (f32[8,1024]{1,0}, u32[]) all-gather(f32[8,128]{1,0} %x)") == 8192


def elements(program: str) -> int:
    """How many elements the largest array in the text of a program has."""
    shapes = re.findall(r"\b(?:pred|[a-z]+\d+)\[([\d,]*)\]", program)
    return max(math.prod(int(length) for length in shape.split(",") if length) for shape in shapes)
