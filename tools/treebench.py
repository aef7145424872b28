"""Time `merge_trees` at real size, for `tools/bench.py --trees`: Llama-3-8B's leaves with every axis divided by 8.

For `--large`, a leaf of 2^32 + 7 numbers in 8 bits is merged.
"""

from __future__ import annotations

import time
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np

import jmerge
from jmerge.methods import REGISTRY
from jmerge.methods.positions import split_position
from jmerge.methods.random import make_key, uniform
from jmerge.methods.spec import Method, Required
from jmerge.methods.streams import stream_of

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
    """Print a line for each method: its first call, what of that the second does not take, the best call, that over
    a jnp loop which adds up the same models, and what the program for one leaf moves, by XLA's account, over the bytes of
    its inputs and results."""
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
    hyperparameters: dict[str, Any] = {
        name: 0.4 for name, each in method.settable.items() if isinstance(each.default, Required)
    }
    hyperparameters |= {name: 0.4 for name in ("density", "select_topk") if name in method.settable}
    base = {} if method.base in ("input", "optional") else {"base": trees[MODELS]}

    def call() -> Any:
        return jmerge.merge_trees(models, method=method.name, **base, **hyperparameters)

    first = _once(call)
    again = _best(call, repeats)
    if "density" in hyperparameters:
        hyperparameters["density"] = 0.3
        other = f"  another density {_once(call):7.3f} s"
    else:
        other = ""
    moved = _moved(method, len(models), bool(base), hyperparameters)
    print(
        f"{method.name:<22} {first:7.3f} s first, {first - again:7.3f} s more than {again:7.3f} s, "
        f"{again / hand:5.1f} x the loop, "
        f"moves {moved:4.1f} x the least{other}",
        flush=True,
    )


def _moved(method: Method, models: int, has_base: bool, hyperparameters: dict[str, Any]) -> float:
    leaf = jnp.zeros(SHAPES["mlp.gate_proj"], jnp.float32)

    def merge(models: Any, base: Any) -> Any:
        return jmerge.merge_trees(models, method=method.name, base=base, **hyperparameters)

    # XLA's account has a loop's body once, so passes are counted one by one
    with mock.patch.object(jax.lax, "fori_loop", _each):
        program = jax.jit(merge).lower([leaf] * models, leaf if has_base else None).compile()
    results = models if method.per_model_output else 1
    least = 4 * leaf.size * (models + has_base + results)
    moved: float = (program.cost_analysis() or {})["bytes accessed"]
    return moved / least


def _each(first: int, end: int, body: Any, state: Any) -> Any:
    for turn in range(first, end):
        state = body(turn, state)
    return state


def bench_large() -> None:
    """Drop numbers of one leaf beyond 2^32 at random, and check that its end draws what is drawn there."""
    size, eight = (1 << 32) + 7, jnp.float8_e4m3fn
    model, base = (jnp.full(size, value, eight) for value in (1, 0))
    start = time.perf_counter()
    merged = jmerge.dare_linear([model], base=base, density=0.5, rescale=False, donate=True)
    jax.block_until_ready(merged)
    took = time.perf_counter() - start
    key = jnp.asarray(make_key(0, stream_of(""), 0), jnp.uint32)
    found = np.asarray(merged) != 0
    for first in (0, 1 << 32):
        position = jnp.asarray(split_position(first), jnp.uint32)
        kept = np.asarray(uniform(key, (7,), position) < 0.5)
        if (found[first : first + 7] != kept).any():
            raise SystemExit(f"positions from {first} on have other random numbers than theirs")
    print(f"{size:,} numbers in 8 bits: {took:.1f} s, {3 * size / took / 1e9:.2f} GB/s")


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
