"""Time `merge_trees` at real size, for `tools/bench.py --trees`: Llama-3-8B's leaves with every axis divided by 8."""

from __future__ import annotations

import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import jmerge
from jmerge.methods import REGISTRY
from jmerge.methods.spec import Method, Required

LAYERS, WIDTH, VOCABULARY, INNER, KEYS = 32, 4096 // 8, 128256 // 8, 14336 // 8, 1024 // 8
SHAPES = {
    "self_attn.q_proj": (WIDTH, WIDTH),
    "self_attn.k_proj": (KEYS, WIDTH),
    "self_attn.v_proj": (KEYS, WIDTH),
    "self_attn.o_proj": (WIDTH, WIDTH),
    "mlp.gate_proj": (INNER, WIDTH),
    "mlp.up_proj": (INNER, WIDTH),
    "mlp.down_proj": (WIDTH, INNER),
    "input_layernorm": (WIDTH,),
    "post_attention_layernorm": (WIDTH,),
}
MODELS = 3


def bench_trees(repeats: int, methods: list[str]) -> None:
    """Print a line for each method: its first call, what of that the second does not take, the best call, and that over
    a jnp loop which adds up the same models."""
    trees = [_tree(seed) for seed in range(MODELS + 1)]
    count = sum(leaf.size for leaf in jax.tree.leaves(trees[0]))
    print(f"{len(trees[0])} leaves, {count:,} numbers in float32, {jax.default_backend()}")
    hand = _best(lambda: _by_hand(trees[:MODELS]), repeats)
    print(f"{'a jnp loop, mean of 3':<22} {hand:7.3f} s")
    for name in methods or sorted(REGISTRY):
        if REGISTRY[name].function.__module__.startswith("jmerge."):
            _time(REGISTRY[name], trees, repeats, hand)


def _time(method: Method, trees: list[Any], repeats: int, hand: float) -> None:
    low, high = method.counts
    models = trees[: max(low, MODELS if high is None else min(high, MODELS))]
    numbers: dict[str, Any] = {
        name: 0.4 for name, each in method.settable.items() if isinstance(each.default, Required)
    }
    numbers |= {name: 0.4 for name in ("density", "select_topk") if name in method.settable}
    base = {} if method.base in ("input", "optional") else {"base": trees[MODELS]}

    def call() -> Any:
        return jmerge.merge_trees(models, method=method.name, **base, **numbers)

    first = _once(call)
    again = _best(call, repeats)
    if "density" in numbers:
        numbers["density"] = 0.3
        other = f"  another density {_once(call):7.3f} s"
    else:
        other = ""
    print(
        f"{method.name:<22} {first:7.3f} s first, {first - again:7.3f} s more than {again:7.3f} s, "
        f"{again / hand:5.1f} x the loop{other}",
        flush=True,
    )


def _tree(seed: int) -> dict[str, jax.Array]:
    rng = np.random.default_rng(seed)
    shapes = {
        f"model.layers.{i}.{name}.weight": shape
        for i in range(LAYERS)
        for name, shape in SHAPES.items()
    }
    ends = {"model.embed_tokens.weight": (VOCABULARY, WIDTH), "model.norm.weight": (WIDTH,)}
    return {
        name: jnp.asarray(rng.standard_normal(shape, np.float32))
        for name, shape in {**ends, **shapes}.items()
    }


_mean = jax.jit(lambda *leaves: sum(leaves[1:], leaves[0]) * np.float32(1 / MODELS))


def _by_hand(trees: list[Any]) -> dict[str, jax.Array]:
    return {name: _mean(*(tree[name] for tree in trees)) for name in trees[0]}


def _once(call: Any) -> float:
    start = time.perf_counter()
    jax.block_until_ready(call())
    return time.perf_counter() - start


def _best(call: Any, repeats: int) -> float:
    call()
    return min(_once(call) for _ in range(max(repeats, 2)))
