"""Parts and rows of tensors as many families name them."""

from __future__ import annotations

import pytest

from jmerge.arch.infer import infer_layout
from jmerge.arch.parts import parts_of, row_of
from jmerge.dtypes import TensorSpec

# name in a layer -> part, row
LAYERS = {
    "self_attn.q_proj.weight": ("attention", "self_attn.q_proj"),
    "self_attn.q_norm.weight": ("norm", "self_attn.q_norm"),
    "self_attn.sinks": ("attention", "self_attn.sinks"),
    "attn.c_attn.bias": ("attention", "attn.c_attn.bias"),
    "attention.output.dense.weight": ("attention", "attention.output.dense"),
    "attention.output.LayerNorm.weight": ("norm", "attention.output.LayerNorm"),
    "output.dense.weight": ("mlp", "output.dense"),
    "intermediate.dense.weight": ("mlp", "intermediate.dense"),
    "self_attention.query_key_value.weight": ("attention", "self_attention.query_key_value"),
    "layer.0.SelfAttention.q.weight": ("attention", "layer.*.SelfAttention.q"),
    "layer.1.DenseReluDense.wi_0.weight": ("mlp", "layer.*.DenseReluDense.wi_0"),
    "layer.1.layer_norm.weight": ("norm", "layer.*.layer_norm"),
    "ln_1.weight": ("norm", "ln_1"),
    "mlp.c_fc.weight": ("mlp", "mlp.c_fc"),
    "fc1.weight": ("mlp", "fc1"),
    "mlp.gate_proj.weight": ("mlp", "mlp.gate_proj"),
    "mlp.gate.weight": ("router", "mlp.gate"),
    "block_sparse_moe.gate.weight": ("router", "block_sparse_moe.gate"),
    "block_sparse_moe.experts.7.w1.weight": ("experts", "block_sparse_moe.experts.*.w1"),
    "mlp.experts.gate_up_proj": ("experts", "mlp.experts.gate_up_proj"),
    "mlp.shared_expert.up_proj.weight": ("experts", "mlp.shared_expert.up_proj"),
    "mlp.shared_expert_gate.weight": ("router", "mlp.shared_expert_gate"),
    "linear_attn.in_proj_qkvz.weight": ("recurrent", "linear_attn.in_proj_qkvz"),
    "mixer.A_log": ("recurrent", "mixer.A_log"),
    "mamba.in_proj.weight": ("recurrent", "mamba.in_proj"),
    "conv.in_proj.weight": ("recurrent", "conv.in_proj"),
    "feed_forward.w1.weight": ("mlp", "feed_forward.w1"),
    "input_layernorm.weight": ("norm", "input_layernorm"),
    "layer_scalar": ("other", "layer_scalar"),
    "rotary_emb.inv_freq": ("buffer", "rotary_emb.inv_freq"),
}
LOOSE = {
    "model.embed_tokens.weight": ("embedding", (32, 8)),
    "lm_head.weight": ("head", (32, 8)),
    "lm_head.bias": ("head", (32,)),
    "model.norm.weight": ("norm", (8,)),
    "model.position_embeddings.weight": ("embedding", (64, 8)),
    "score.weight": ("head", (2, 8)),
    "projector.dense.weight": ("mlp", (8, 8)),
    "mystery": ("other", (8,)),
}


@pytest.mark.parametrize("name", LAYERS)
def test_in_layers(name: str) -> None:
    names = [f"model.layers.{i}.{name}" for i in range(3)]
    layout = infer_layout({each: TensorSpec("F32", (8, 8)) for each in names}, {})
    assert (parts_of(layout)[names[1]], row_of(layout.roles[names[1]])) == LAYERS[name]


def test_around_layers() -> None:
    layers = {f"model.layers.{i}.mlp.up.weight": TensorSpec("F32", (8, 8)) for i in range(3)}
    specs = layers | {name: TensorSpec("F32", shape) for name, (_, shape) in LOOSE.items()}
    layout = infer_layout(specs, {"vocab_size": 32})
    assert {n: p for n, p in parts_of(layout).items() if n in LOOSE} == {
        n: p for n, (p, _) in LOOSE.items()
    }
    assert row_of(layout.roles["lm_head.weight"]) == "lm_head"
