"""Rows of models of text published since 2025: dense, of experts, and hybrids of these and state spaces."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import transformers
from familykit import (
    FULL,
    HEADS,
    LLAMA_PART,
    SLIDING,
    TIED,
    TIED_PART,
    Family,
    Part,
    plain,
    text_inputs,
    text_sizes,
)
from transformers import PretrainedConfig

LINEAR = "linear_attention"
GROUPED: dict[str, Any] = {"num_key_value_heads": 2, "head_dim": 8}
EXPERTS: dict[str, Any] = {"num_experts_per_tok": 2, "moe_intermediate_size": 8}
DEEPSEEK: dict[str, Any] = {
    "kv_lora_rank": 8,
    "q_lora_rank": 8,
    "qk_rope_head_dim": 4,
    "qk_nope_head_dim": 4,
    "v_head_dim": 4,
}
# linear attention of two heads for keys and four for values, and full attention
DELTA: dict[str, Any] = {
    "linear_key_head_dim": 4,
    "linear_value_head_dim": 4,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
}
HYBRID: dict[str, Any] = {"layer_types": (LINEAR, FULL, LINEAR)}
KEY_BIAS = r".*\.k_proj\.bias"


def part(embedding: str, layers: str, norm: str, *, tied: bool = False, **ranges: Any) -> Part:
    """The part of a model whose embedding, layers and last norm have these names."""
    head = () if tied else ("lm_head.weight",)
    return Part(layers=layers, before=(embedding,), after=(norm, *head), **ranges)


def kinds(
    config: type[PretrainedConfig], key: str, **rest: Any
) -> Callable[[bool], PretrainedConfig]:
    """A config whose layers are counted by the list of their kinds alone."""

    def build(stacked: bool) -> PretrainedConfig:
        sizes = text_sizes(0)
        del sizes["num_hidden_layers"]
        listed = ["linear_attention", "moe", "full_attention", "mlp"]
        return config(**sizes | rest | {key: listed[:3] + listed[1:] if stacked else listed})

    return build


FAMILIES = (
    Family(
        name="olmo3",
        model=transformers.Olmo3ForCausalLM,
        config=plain(
            transformers.Olmo3Config,
            {"layer_types": (SLIDING, FULL, SLIDING)},
            num_key_value_heads=2,
            sliding_window=4,
        ),
        parts=(LLAMA_PART,),
        inputs=text_inputs,
    ),
    Family(
        name="ministral3",
        model=transformers.Ministral3ForCausalLM,
        config=plain(transformers.Ministral3Config, **GROUPED),
        parts=(LLAMA_PART,),
        inputs=text_inputs,
    ),
    Family(
        name="seed_oss",
        model=transformers.SeedOssForCausalLM,
        config=plain(transformers.SeedOssConfig, **GROUPED),
        parts=(LLAMA_PART,),
        inputs=text_inputs,
    ),
    Family(
        name="apertus",
        model=transformers.ApertusForCausalLM,
        config=plain(transformers.ApertusConfig, num_key_value_heads=2),
        parts=(LLAMA_PART,),
        inputs=text_inputs,
        silent=r"model\.layers\.[12]\.mlp\.act_fn\.eps",  # a bound that is seldom reached
    ),
    Family(
        name="arcee",
        model=transformers.ArceeForCausalLM,
        config=plain(transformers.ArceeConfig, **GROUPED),
        parts=(LLAMA_PART,),
        inputs=text_inputs,
    ),
    Family(
        name="glm4_moe",
        model=transformers.Glm4MoeForCausalLM,
        config=plain(
            transformers.Glm4MoeConfig,
            **(EXPERTS | {"num_experts_per_tok": 3}),
            **GROUPED,
            n_routed_experts=4,
            use_qk_norm=True,
            num_mtp_layers=0,
        ),
        parts=(LLAMA_PART,),
        inputs=text_inputs,
    ),
    Family(
        name="deepseek_v32",
        model=transformers.DeepseekV32ForCausalLM,
        config=plain(
            transformers.DeepseekV32Config,
            **EXPERTS,
            **DEEPSEEK,
            num_key_value_heads=HEADS,
            first_k_dense_replace=1,
            n_routed_experts=4,
            n_group=2,
            topk_group=1,
            index_topk=4,
            index_head_dim=8,
            index_n_heads=2,
        ),
        parts=(LLAMA_PART,),
        inputs=text_inputs,
    ),
    Family(
        name="minimax_m2",
        model=transformers.MiniMaxM2ForCausalLM,
        config=plain(
            transformers.MiniMaxM2Config, **GROUPED, num_experts_per_tok=3, num_local_experts=4
        ),
        parts=(LLAMA_PART,),
        inputs=text_inputs,
    ),
    Family(
        name="ernie4_5_moe",
        model=transformers.Ernie4_5_MoeForCausalLM,
        config=plain(
            transformers.Ernie4_5_MoeConfig,
            num_key_value_heads=2,
            moe_intermediate_size=8,
            moe_k=3,
            moe_num_experts=3,
            moe_num_shared_experts=1,
        ),
        parts=(TIED_PART,),
        inputs=text_inputs,
        silent=r".*e_score_correction_bias",  # all experts are chosen whatever it says
        tied=TIED,
    ),
    Family(
        name="hunyuan_v1_moe",
        model=transformers.HunYuanMoEV1ForCausalLM,
        config=plain(transformers.HunYuanMoEV1Config, **GROUPED, num_experts=4, moe_topk=2),
        parts=(LLAMA_PART,),
        inputs=text_inputs,
    ),
    Family(
        name="kimi_linear",
        model=transformers.KimiLinearForCausalLM,
        config=plain(
            transformers.KimiLinearConfig,
            {**HYBRID, "mlp_layer_types": ("dense", "sparse", "sparse")},
            **EXPERTS,
            **(DEEPSEEK | {"q_lora_rank": None}),
            num_key_value_heads=HEADS,
            num_local_experts=4,
            linear_head_dim=4,
            linear_num_heads=4,
        ),
        parts=(LLAMA_PART,),
        inputs=text_inputs,
        noise=1.3,
        tolerance=1e-3,  # as qwen3_next
    ),
    Family(
        name="lfm2_moe",
        model=transformers.Lfm2MoeForCausalLM,
        config=plain(
            transformers.Lfm2MoeConfig,
            {"layer_types": ("conv", FULL, "conv")},
            **EXPERTS,
            num_key_value_heads=2,
            num_experts=4,
            num_dense_layers=1,
        ),
        parts=(
            part(
                "model.embed_tokens.weight",
                "model.layers",
                "model.embedding_norm.weight",
                tied=True,
            ),
        ),
        inputs=text_inputs,
        tied=TIED,
    ),
    Family(
        name="nemotron_h",
        model=transformers.NemotronHForCausalLM,
        config=kinds(
            transformers.NemotronHConfig,
            "layers_block_type",
            **EXPERTS,
            **GROUPED,
            ssm_state_size=4,
            mamba_num_heads=4,
            mamba_head_dim=8,
            n_groups=2,
            chunk_size=4,
            n_routed_experts=4,
            moe_shared_expert_intermediate_size=8,
        ),
        parts=(
            part(
                "backbone.embeddings.weight",
                "backbone.layers",
                "backbone.norm_f.weight",
                ranges=((0, 3), (1, 4)),
            ),
        ),
        inputs=text_inputs,
    ),
    Family(
        name="falcon_h1",
        model=transformers.FalconH1ForCausalLM,
        config=plain(
            transformers.FalconH1Config,
            num_key_value_heads=2,
            mamba_d_ssm=32,
            mamba_n_heads=4,
            mamba_d_head=8,
            mamba_d_state=4,
            mamba_chunk_size=4,
        ),
        parts=(part("model.embed_tokens.weight", "model.layers", "model.final_layernorm.weight"),),
        inputs=text_inputs,
        noise=3.0,
    ),
    Family(
        name="zamba2",
        model=transformers.Zamba2ForCausalLM,
        config=plain(
            transformers.Zamba2Config,
            {"layers_block_type": (LINEAR, "hybrid", LINEAR)},
            num_key_value_heads=HEADS,
            mamba_d_state=4,
            mamba_expand=1,
            n_mamba_heads=4,
            mamba_headdim=4,
            chunk_size=4,
            adapter_rank=4,
        ),
        parts=(
            part(
                "model.embed_tokens.weight",
                "model.layers",
                "model.final_layernorm.weight",
                tied=True,
            ),
        ),
        inputs=text_inputs,
        no_stack="a layer that others share holds an adapter for each of them",
        tied=TIED,
    ),
    Family(
        name="qwen3_5",
        model=transformers.Qwen3_5ForCausalLM,
        config=plain(transformers.Qwen3_5TextConfig, HYBRID, **GROUPED, **DELTA),
        parts=(LLAMA_PART,),
        inputs=text_inputs,
        tolerance=1e-3,  # as qwen3_next
    ),
    Family(
        name="qwen3_5_moe",
        model=transformers.Qwen3_5MoeForCausalLM,
        config=plain(
            transformers.Qwen3_5MoeTextConfig,
            HYBRID,
            **GROUPED,
            **DELTA,
            **EXPERTS,
            num_experts=4,
            shared_expert_intermediate_size=12,
        ),
        parts=(LLAMA_PART,),
        inputs=text_inputs,
        tolerance=1e-3,
    ),
    Family(
        name="gemma4_text",
        model=transformers.Gemma4ForCausalLM,
        config=plain(
            transformers.Gemma4TextConfig,
            {"layer_types": (SLIDING, FULL, FULL)},
            **GROUPED,
            global_head_dim=12,
            sliding_window=4,
            vocab_size_per_layer_input=64,
            hidden_size_per_layer_input=4,
        ),
        parts=(
            Part(
                layers="model.layers",
                before=("model.embed_tokens.weight",),
                after=("model.norm.weight",),
            ),
        ),
        no_stack="one table holds the rows of all layers",
        inputs=text_inputs,
        tied=TIED,
    ),
)
