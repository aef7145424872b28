"""Time the programs of methods on what lies on the device already, for `tools/bench.py --device`."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from jmerge.api.plan import plan as make_plan
from jmerge.engine.memory import programs_of
from jmerge.engine.schedule import make_schedule
from jmerge.methods import REGISTRY
from jmerge.report.methods import minimal_recipe

CALLS = 32  # handed over before the first is waited for, as the pieces of a merge are


def bench_device(methods: list[str], folder: Path, models: list[Path], repeats: int) -> None:
    """Print a line for each program of each method, which works on a piece as merges cut them: its seconds, and the bytes
    that it is given and gives each second as a share of those of a copy. The first of the models is the base."""
    most = _copied(1 << (24 if jax.default_backend() == "cpu" else 28), repeats)
    print(f"{jax.devices()[0].device_kind}; a copy moves {most / 1e9:.1f} GB/s")
    for name in methods:
        recipe = folder / f"{name}-device.yml"
        base, *others = map(str, models)
        recipe.write_text(minimal_recipe(REGISTRY[name], others, base))
        schedule = make_schedule(make_plan(recipe))
        for program, *shapes in programs_of(schedule.work[0], schedule.rows):
            given = jax.tree.map(lambda each: jnp.ones(each.shape, each.dtype), shapes)
            moved = _bytes(given) + _bytes(jax.eval_shape(program, *given))
            seconds = _seconds(_caller(program, given), repeats) / CALLS
            share = moved / seconds / most
            what = program.__wrapped__.__qualname__.partition(".")[0].removesuffix("_kernel")
            print(
                f"{name:<16} {what:<8} {seconds * 1e3:7.3f} ms  {share:7.1%} of a copy", flush=True
            )


def _copied(count: int, repeats: int) -> float:
    """The bytes that reading and writing so many numbers moves in a second."""
    hyperparameters = [jnp.ones(count, jnp.float32)]
    copy = jax.jit(
        lambda given: given + 1, donate_argnums=0
    )  # where it lies: new memory costs more

    def call() -> jax.Array:
        for _ in range(CALLS):
            hyperparameters[0] = copy(hyperparameters[0])
        return hyperparameters[0]

    return CALLS * 8 * count / _seconds(call, repeats)


def _caller(program: Any, given: list[Any]) -> Callable[[], Any]:
    """A function that calls the program on what it is given many times, and gives its last result; what takes in a
    piece goes on from its state."""

    def call() -> Any:
        for _ in range(CALLS):
            result = program(*given)
            if program.__wrapped__.__name__ == "update_piece":  # its state is gone
                given[0] = result[0]
        return result

    return call


def _seconds(call: Callable[[], Any], repeats: int) -> float:
    """Of the fastest call, after one that compiles."""
    taken = []
    for _ in range(repeats + 1):
        start = time.perf_counter()
        jax.block_until_ready(call())
        taken.append(time.perf_counter() - start)
    return min(taken[1:])


def _bytes(tree: Any) -> int:
    return sum(each.size * each.dtype.itemsize for each in jax.tree.leaves(tree))
