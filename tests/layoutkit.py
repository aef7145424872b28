"""One model stored in two ways, made with numpy alone: experts one by one or packed, projections apart or fused.

A row has the tensors of both, and what config.json says of each; `common` are those that have one form.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jmerge.testing.tiny import write_checkpoint

Tensors = dict[str, np.ndarray]
Config = dict[str, Any]

LAYERS, HIDDEN, INNER, EXPERTS, VOCAB = 3, 8, 6, 4, 16


class Stored(NamedTuple):
    """A model in one form."""

    tensors: Tensors
    config: Config

    def write(self, folder: Path) -> Path:
        """As a checkpoint."""
        return write_checkpoint(folder, self.tensors, self.config)


class Row(NamedTuple):
    """A model in two forms."""

    apart: Stored
    together: Stored


def config(kind: str, **more: Any) -> Config:
    """config.json of a small model."""
    return {
        "architectures": ["XForCausalLM"],
        "model_type": kind,
        "hidden_size": HIDDEN,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": 4,
        "vocab_size": VOCAB,
        "torch_dtype": "float32",
        **more,
    }


class Maker:
    """Seeded random tensors."""

    def __init__(self, seed: int) -> None:
        self.rng = np.random.default_rng(seed)

    def __call__(self, *shape: int) -> np.ndarray:
        return self.rng.standard_normal(shape).astype(np.float32)

    def common(self, gate: str = "mlp.gate.weight") -> Tensors:
        """Tables, norms and routers."""
        made = {"model.embed_tokens.weight": self(VOCAB, HIDDEN), "lm_head.weight": self(VOCAB, HIDDEN)}  # fmt: skip
        made["model.norm.weight"] = self(HIDDEN)
        for i in range(LAYERS):
            made[f"model.layers.{i}.input_layernorm.weight"] = self(HIDDEN)
            made[f"model.layers.{i}.{gate}"] = self(EXPERTS, HIDDEN)
        return made

    def experts(self) -> tuple[list[np.ndarray], list[np.ndarray], list[np.ndarray]]:
        """Gates, up-projections, down-projections."""
        count = range(EXPERTS)
        gates, ups = ([self(INNER, HIDDEN) for _ in count] for _ in range(2))
        return gates, ups, [self(HIDDEN, INNER) for _ in count]


def packed(gates: Any, ups: Any, downs: Any) -> tuple[np.ndarray, np.ndarray]:
    """[E, 2I, H] and [E, H, I]."""
    both = [np.concatenate(pair) for pair in zip(gates, ups, strict=True)]
    return np.stack(both), np.stack(downs)


def transposed(gates: Any, ups: Any, downs: Any) -> tuple[np.ndarray, np.ndarray]:
    """[E, H, 2I] and [E, I, H]."""
    both, down = packed(gates, ups, downs)
    return both.transpose(0, 2, 1), down.transpose(0, 2, 1)


def in_turn(gates: Any, ups: Any, downs: Any) -> tuple[np.ndarray, np.ndarray]:
    """[E, H, 2I] with gates in even columns, and [E, I, H]."""
    both = np.empty((EXPERTS, HIDDEN, 2 * INNER), np.float32)
    both[..., ::2] = np.stack([gate.T for gate in gates])
    both[..., 1::2] = np.stack([up.T for up in ups])
    return both, np.stack([down.T for down in downs])


Pack = Callable[..., tuple[np.ndarray, np.ndarray]]


def moe(
    seed: int,
    kind: str,
    pack: Pack = packed,
    *,
    home: str = "mlp",
    names: tuple[str, str, str] = ("gate_proj", "up_proj", "down_proj"),
    other: str = "mlp",
    others: tuple[str, str] = ("experts.gate_up_proj", "experts.down_proj"),
    other_kind: str = "",
) -> Row:
    """Experts one by one, and packed in some way."""
    new = Maker(seed)
    common = new.common(f"{home}.gate.weight")
    apart, together = dict(common), {k.replace(f".{home}.", f".{other}."): v for k, v in common.items()}  # fmt: skip
    for i in range(LAYERS):
        parts = new.experts()
        for name, arrays in zip(names, parts, strict=True):
            for e, array in enumerate(arrays):
                apart[f"model.layers.{i}.{home}.experts.{e}.{name}.weight"] = array
        for name, array in zip(others, pack(*parts), strict=True):
            together[f"model.layers.{i}.{other}.{name}"] = array
    return Row(Stored(apart, config(kind)), Stored(together, config(other_kind or kind)))


def mixtral(seed: int) -> Row:
    return moe(seed, "mixtral", home="block_sparse_moe", names=("w1", "w3", "w2"))


def qwen3_moe(seed: int) -> Row:
    return moe(seed, "qwen3_moe")


def transposed_experts(seed: int) -> Row:
    return moe(seed, "qwen3_vl_moe", transposed)


def two_packed(seed: int) -> Row:
    """Packed and packed-transposed tensors of the same names."""
    return Row(qwen3_moe(seed).together, transposed_experts(seed).together)


def square_gates(seed: int) -> Row:
    """The same where packed gates have one shape in both."""
    row = two_packed(seed)
    stored = []
    for each, axis in ((row.apart, 1), (row.together, 2)):
        tensors = dict(each.tensors)
        for name, array in each.tensors.items():
            if "gate_up" in name:  # 2 I = H
                halves = np.split(array, 2, axis)
                tensors[name] = np.concatenate(
                    [half.take(range(HIDDEN // 2), axis) for half in halves], axis
                )
            elif "experts.down" in name:
                tensors[name] = array.take(range(HIDDEN // 2), 3 - axis)
        stored.append(Stored(tensors, each.config))
    return Row(*stored)


def granitemoe(seed: int) -> Row:
    """As saved by transformers, and with the names that it has in memory."""
    home = "block_sparse_moe"
    names = ("input_linear.weight", "output_linear.weight")
    row = moe(seed, "granitemoe", home=home, other=home, others=names)
    tensors = {
        name.replace("input_linear.weight", "experts.gate_up_proj").replace(
            "output_linear.weight", "experts.down_proj"
        ): array
        for name, array in row.together.tensors.items()
    }
    return Row(Stored(tensors, row.together.config), row.together)


def privacy_filter(seed: int) -> Row:
    """Like gpt_oss, but for its columns."""
    return moe(seed, "openai_privacy_filter", transposed)


def gpt_oss(seed: int) -> Row:
    """With biases."""
    row = moe(seed, "gpt_oss", in_turn)
    new = Maker(seed + 1000)
    for i in range(LAYERS):
        gates, ups = new(EXPERTS, INNER), new(EXPERTS, INNER)
        downs = new(EXPERTS, HIDDEN)
        at = f"model.layers.{i}.mlp.experts"
        both = np.empty((EXPERTS, 2 * INNER), np.float32)
        both[:, ::2], both[:, 1::2] = gates, ups
        row.together.tensors[f"{at}.gate_up_proj_bias"] = both
        row.together.tensors[f"{at}.down_proj_bias"] = downs
        for e in range(EXPERTS):
            row.apart.tensors[f"{at}.{e}.gate_proj.bias"] = gates[e]
            row.apart.tensors[f"{at}.{e}.up_proj.bias"] = ups[e]
            row.apart.tensors[f"{at}.{e}.down_proj.bias"] = downs[e]
    return row


def nemotron_h(seed: int) -> Row:
    """Experts without gates."""
    new = Maker(seed)
    common = new.common("mixer.gate.weight")
    apart, together = dict(common), dict(common)
    for i in range(LAYERS):
        _, ups, downs = new.experts()
        at = f"model.layers.{i}.mixer.experts"
        together |= {f"{at}.up_proj": np.stack(ups), f"{at}.down_proj": np.stack(downs)}
        for e in range(EXPERTS):
            apart |= {f"{at}.{e}.up_proj.weight": ups[e], f"{at}.{e}.down_proj.weight": downs[e]}
    return Row(Stored(apart, config("nemotron_h")), Stored(together, config("nemotron_h")))


def deepseek_v3(seed: int) -> Row:
    """A dense layer first, shared experts in the others, fused in neither."""
    row = moe(seed, "deepseek_v3")
    new = Maker(seed + 1000)
    for stored in row:
        for name in [n for n in stored.tensors if n.startswith("model.layers.0.mlp.")]:
            del stored.tensors[name]
        stored.config["first_k_dense_replace"] = 1
    for i in range(LAYERS):
        at = f"model.layers.{i}.mlp" + (".shared_experts" if i else "")
        more = {
            f"{at}.gate_proj.weight": new(INNER, HIDDEN),
            f"{at}.up_proj.weight": new(INNER, HIDDEN),
            f"{at}.down_proj.weight": new(HIDDEN, INNER),
        }
        for stored in row:
            stored.tensors.update(more)
    return row


def attention(
    seed: int,
    kind: str,
    fused: str,
    join: Callable[..., np.ndarray],
    *,
    queries: int = 4,
    keys: int = 4,
    bias: bool = False,
    mlp: bool = False,
    home: str = "self_attn",
    **told: Any,
) -> Row:
    """Queries, keys and values apart and fused; with `mlp` gates and up-projections too."""
    new, size = Maker(seed), HIDDEN // queries
    common = new.common()
    apart, together = dict(common), dict(common)
    for i in range(LAYERS):
        at = f"model.layers.{i}.{home}"
        for suffix in ("weight", "bias") if bias else ("weight",):
            width = (HIDDEN,) if suffix == "weight" else ()
            rows = [new(count * size, *width) for count in (queries, keys, keys)]
            for name, array in zip(("q_proj", "k_proj", "v_proj"), rows, strict=True):
                apart[f"{at}.{name}.{suffix}"] = array
            together[f"{at}.{fused}.{suffix}"] = join(*rows, keys, size)
        if mlp:
            gate, up = new(INNER, HIDDEN), new(INNER, HIDDEN)
            at = f"model.layers.{i}.mlp"
            apart |= {f"{at}.gate_proj.weight": gate, f"{at}.up_proj.weight": up}
            together[f"{at}.gate_up_proj.weight"] = np.concatenate([gate, up])
    heads = {"num_key_value_heads": keys, "head_dim": size}
    return Row(Stored(apart, config("llama", **heads)), Stored(together, config(kind, **told)))


def rows(q: Any, k: Any, v: Any, _keys: int, _size: int) -> np.ndarray:
    """Queries above keys above values."""
    return np.concatenate([q, k, v])


def per_head(q: np.ndarray, k: np.ndarray, v: np.ndarray, keys: int, size: int) -> np.ndarray:
    """Each key and value behind the queries that use it."""
    cut = [array.reshape(keys, -1, size, *array.shape[1:]) for array in (q, k, v)]
    return np.concatenate(cut, axis=1).reshape(-1, *q.shape[1:])


def phi3(seed: int) -> Row:
    told: dict[str, Any] = {"num_key_value_heads": 2}
    return attention(seed, "phi3", "qkv_proj", rows, keys=2, mlp=True, **told)


def glm4(seed: int) -> Row:
    """Gates and up-projections alone are fused."""
    row = phi3(seed)
    tensors = {n: a for n, a in row.together.tensors.items() if "qkv" not in n}
    tensors |= {n: a for n, a in row.apart.tensors.items() if "self_attn" in n}
    return Row(row.apart, Stored(tensors, config("glm4", num_key_value_heads=2)))


def baichuan(seed: int) -> Row:
    return attention(seed, "baichuan", "W_pack", rows)


def chatglm(seed: int) -> Row:
    told: dict[str, Any] = {
        "multi_query_attention": True,
        "multi_query_group_num": 2,
        "kv_channels": HIDDEN // 4,
    }
    return attention(seed, "chatglm", "query_key_value", rows, keys=2, bias=True, **told)


def gpt_neox(seed: int) -> Row:
    return attention(seed, "gpt_neox", "query_key_value", per_head, bias=True, home="attention")


def bloom(seed: int) -> Row:
    row = attention(seed, "bloom", "query_key_value", per_head, bias=True)
    del row.together.config["num_attention_heads"]
    row.together.config["n_head"] = 4
    return row


def falcon(seed: int) -> Row:
    """The newer classes, with groups of heads."""
    told: dict[str, Any] = {
        "new_decoder_architecture": True,
        "num_kv_heads": 2,
        "multi_query": True,
    }
    return attention(seed, "falcon", "query_key_value", per_head, keys=2, **told)


def old_falcon(seed: int) -> Row:
    """The older ones, with one key and value for all heads."""
    told: dict[str, Any] = {"new_decoder_architecture": False, "multi_query": True}
    return attention(seed, "falcon", "query_key_value", rows, keys=1, **told)


ROWS: dict[str, Callable[[int], Row]] = {
    each.__name__: each
    for each in (
        *(mixtral, qwen3_moe, deepseek_v3, transposed_experts, two_packed, square_gates),
        *(
            granitemoe,
            gpt_oss,
            privacy_filter,
            nemotron_h,
            phi3,
            glm4,
            baichuan,
            chatglm,
            gpt_neox,
            bloom,
        ),
        *(falcon, old_falcon),
    )
}
