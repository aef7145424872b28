"""Time what leans on XLA, for `tools/bench.py --xla`."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax

from jmerge.testing.leaning import ELEMENTS, NAMES, example


def bench_xla(repeats: int) -> None:
    """Print a line for each example: medians of processor time and memory, with the function and without it."""
    print(f"jax {jax.__version__}, {jax.default_backend()}", end="; ")
    print(f"{ELEMENTS} elements, float32")
    for name in NAMES:
        case = example(name)
        arguments = jax.device_put(case.arguments)
        ways = [_compile(way, arguments) for way in (case.leaning, case.plain)]
        taken: list[list[float]] = [[], []]
        for _ in range(10 * repeats):  # in turns
            for way, seconds in zip(ways, taken, strict=True):
                seconds.append(_seconds(way, arguments))
        told = []
        for way, seconds in zip(ways, taken, strict=True):
            memory = way.memory_analysis().temp_size_in_bytes / 1e6
            told.append(f"{statistics.median(seconds) * 1e3:6.3f} ms {memory:5.1f} MB")
        print(f"{name:<16} with {told[0]}   without {told[1]}", flush=True)


def _compile(function: Callable[..., jax.Array], arguments: Sequence[Any]) -> Any:
    compiled = jax.jit(lambda *given: function(*given)).lower(*arguments).compile()
    compiled(*arguments).block_until_ready()
    return compiled


def _seconds(program: Callable[..., jax.Array], arguments: Sequence[Any]) -> float:
    """Of the processor, or of the clock where a device computes."""
    clock = time.process_time if jax.default_backend() == "cpu" else time.perf_counter
    start = clock()
    program(*arguments).block_until_ready()
    return clock() - start
