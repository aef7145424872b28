"""Tiny checkpoints for tests, made of seeded random numbers or of given arrays."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from jmerge.ckpt.shards import index_json, plan_files
from jmerge.dtypes import SAFETENSORS, TensorSpec


def write_checkpoint(
    folder: Path,
    tensors: Mapping[str, np.ndarray],
    config: Mapping[str, Any] | None = None,
    shard_bytes: int = 0,
) -> Path:
    """Write `tensors` as safetensors files, with config.json when given, and return the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    specs = {
        name: TensorSpec(SAFETENSORS[array.dtype], array.shape) for name, array in tensors.items()
    }
    files = plan_files(specs, shard_bytes)
    for file in files:
        data = b"".join(np.ascontiguousarray(tensors[name]).tobytes() for name in file.starts)
        (folder / file.name).write_bytes(file.header + data)
    index = index_json(files, specs, "test")
    if index is not None:
        (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    if config is not None:
        (folder / "config.json").write_text(json.dumps(config, indent=2))
    return folder


def llama_tensors(
    seed: int,
    *,
    layers: int = 2,
    hidden: int = 8,
    inner: int = 12,
    vocab: int = 16,
    tied: bool = False,
) -> dict[str, np.ndarray]:
    """The tensors of a tiny Llama-shaped model, float32; no tensor is constant, norms included."""
    rng = np.random.default_rng(seed)

    def normal(*shape: int) -> np.ndarray:
        return rng.standard_normal(shape).astype(np.float32)

    tensors = {"model.embed_tokens.weight": normal(vocab, hidden)}
    for i in range(layers):
        prefix = f"model.layers.{i}"
        tensors |= {
            f"{prefix}.input_layernorm.weight": normal(hidden),
            f"{prefix}.self_attn.q_proj.weight": normal(hidden, hidden),
            f"{prefix}.self_attn.k_proj.weight": normal(hidden // 2, hidden),
            f"{prefix}.self_attn.v_proj.weight": normal(hidden // 2, hidden),
            f"{prefix}.self_attn.o_proj.weight": normal(hidden, hidden),
            f"{prefix}.post_attention_layernorm.weight": normal(hidden),
            f"{prefix}.mlp.gate_proj.weight": normal(inner, hidden),
            f"{prefix}.mlp.up_proj.weight": normal(inner, hidden),
            f"{prefix}.mlp.down_proj.weight": normal(hidden, inner),
        }
    tensors["model.norm.weight"] = normal(hidden)
    if not tied:
        tensors["lm_head.weight"] = normal(vocab, hidden)
    return tensors


def llama_config(
    *, layers: int = 2, hidden: int = 8, inner: int = 12, vocab: int = 16, tied: bool = False
) -> dict[str, Any]:
    """The config.json that goes with `llama_tensors`."""
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": hidden,
        "intermediate_size": inner,
        "num_hidden_layers": layers,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "vocab_size": vocab,
        "max_position_embeddings": 64,
        "rms_norm_eps": 1e-5,
        "tie_word_embeddings": tied,
        "torch_dtype": "float32",
        "bos_token_id": 1,
        "eos_token_id": 2,
    }


def write_llama(folder: Path, seed: int, **sizes: Any) -> Path:
    """A tiny Llama-shaped checkpoint; see `llama_tensors` for the sizes."""
    return write_checkpoint(folder, llama_tensors(seed, **sizes), llama_config(**sizes))
