"""Rows of mixtures of experts, of state space models and of hybrids of these and attention."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import transformers
from familykit import (
    FULL,
    HEADS,
    HIDDEN,
    LLAMA_PART,
    SLIDING,
    VOCAB,
    Family,
    Part,
    depth,
    plain,
    text_inputs,
    text_sizes,
)
from transformers import PretrainedConfig

LINEAR = "linear_attention"
EXPERTS: dict[str, Any] = {"num_experts_per_tok": 2, "moe_intermediate_size": 8}
BACKBONE_PART = Part(
    layers="backbone.layers",
    before=("backbone.embeddings.weight",),
    after=("backbone.norm_f.weight",),
)
JAMBA_PART = Part(
    layers="model.layers",
    before=("model.embed_tokens.weight",),
    after=("model.final_layernorm.weight", "lm_head.weight"),
    ranges=(
        (0, 2),
        (0, 2),
    ),  # attention every second layer: [0, 2) over [1, 3) would follow no rule
)


def qwen2_moe_config(stacked: bool) -> PretrainedConfig:
    """Experts in every second layer; the stack [dense, experts] + [experts, dense] needs a list of the dense ones."""
    return transformers.Qwen2MoeConfig(
        **text_sizes(depth(stacked)),
        **EXPERTS,
        num_key_value_heads=2,
        num_experts=4,
        shared_expert_intermediate_size=12,
        decoder_sparse_step=1 if stacked else 2,
        mlp_only_layers=[0, 3] if stacked else [],
    )


def qwen3_moe_config(stacked: bool) -> PretrainedConfig:
    """A dense layer between two of experts: layers 1 and 2 of the stack."""
    return transformers.Qwen3MoeConfig(
        **text_sizes(depth(stacked)),
        **EXPERTS,
        num_key_value_heads=2,
        head_dim=8,
        num_experts=4,
        mlp_only_layers=[1, 2] if stacked else [1],
    )


def gpt_oss_config(stacked: bool) -> PretrainedConfig:
    """Alternating attention."""
    return transformers.GptOssConfig(
        **text_sizes(depth(stacked)),
        num_key_value_heads=2,
        head_dim=8,
        num_local_experts=4,
        num_experts_per_tok=2,
        sliding_window=4,
        layer_types=[SLIDING, FULL, FULL, SLIDING] if stacked else [SLIDING, FULL, SLIDING],
    )


def qwen3_next_config(stacked: bool) -> PretrainedConfig:
    """Layers of two kinds of attention, the last one without experts."""
    return transformers.Qwen3NextConfig(
        **text_sizes(depth(stacked)),
        **EXPERTS,
        num_key_value_heads=2,
        head_dim=8,
        num_experts=4,
        shared_expert_intermediate_size=8,
        linear_key_head_dim=4,
        linear_value_head_dim=4,
        linear_num_key_heads=2,
        linear_num_value_heads=4,
        layer_types=[LINEAR, FULL, FULL, LINEAR] if stacked else [LINEAR, FULL, LINEAR],
        mlp_only_layers=[3] if stacked else [2],
    )


def granite_config(stacked: bool) -> PretrainedConfig:
    """State spaces around attention."""
    return transformers.GraniteMoeHybridConfig(
        **text_sizes(depth(stacked)),
        num_key_value_heads=2,
        num_local_experts=4,
        num_experts_per_tok=2,
        shared_intermediate_size=8,
        layer_types=[LINEAR, FULL, FULL, LINEAR] if stacked else [LINEAR, FULL, LINEAR],
        mamba_n_heads=4,
        mamba_d_state=4,
        mamba_d_head=8,
        mamba_chunk_size=4,
    )


def mamba_config(
    config: type[PretrainedConfig], **rest: object
) -> Callable[[bool], PretrainedConfig]:
    """State spaces alone, which have no inner size and no heads of attention."""

    def build(stacked: bool) -> PretrainedConfig:
        return config(
            vocab_size=VOCAB,
            hidden_size=HIDDEN,
            state_size=4,
            num_hidden_layers=depth(stacked),
            conv_kernel=3,
            use_bias=True,
            bos_token_id=1,
            eos_token_id=2,
            pad_token_id=0,
            **rest,
        )

    return build


FAMILIES = (
    Family(
        name="mixtral",
        model=transformers.MixtralForCausalLM,
        config=plain(
            transformers.MixtralConfig,
            num_key_value_heads=2,
            num_local_experts=4,
            num_experts_per_tok=2,
        ),
        parts=(LLAMA_PART,),
        inputs=text_inputs,
        quick=True,
    ),
    Family(
        name="qwen2_moe",
        model=transformers.Qwen2MoeForCausalLM,
        config=qwen2_moe_config,
        parts=(LLAMA_PART,),
        inputs=text_inputs,
    ),
    Family(
        name="qwen3_moe",
        model=transformers.Qwen3MoeForCausalLM,
        config=qwen3_moe_config,
        parts=(LLAMA_PART,),
        inputs=text_inputs,
    ),
    Family(
        name="deepseek_v3",
        model=transformers.DeepseekV3ForCausalLM,
        config=plain(
            transformers.DeepseekV3Config,
            **EXPERTS,
            num_key_value_heads=HEADS,
            first_k_dense_replace=1,
            n_routed_experts=4,
            n_group=2,
            topk_group=1,
            kv_lora_rank=8,
            q_lora_rank=8,
            qk_rope_head_dim=4,
            qk_nope_head_dim=4,
            v_head_dim=4,
            num_mtp_layers=0,
        ),
        parts=(LLAMA_PART,),
        inputs=text_inputs,
    ),
    Family(
        name="gpt_oss",
        model=transformers.GptOssForCausalLM,
        config=gpt_oss_config,
        parts=(LLAMA_PART,),
        inputs=text_inputs,
    ),
    Family(
        name="qwen3_next",
        model=transformers.Qwen3NextForCausalLM,
        config=qwen3_next_config,
        parts=(LLAMA_PART,),
        inputs=text_inputs,
        tolerance=1e-3,  # its linear attention divides by norms of small sums
    ),
    Family(
        name="granitemoehybrid",
        model=transformers.GraniteMoeHybridForCausalLM,
        config=granite_config,
        parts=(LLAMA_PART,),
        inputs=text_inputs,
    ),
    Family(
        name="jamba",
        model=transformers.JambaForCausalLM,
        config=plain(
            transformers.JambaConfig,
            num_key_value_heads=2,
            num_experts=4,
            num_experts_per_tok=2,
            attn_layer_period=2,
            attn_layer_offset=1,
            expert_layer_period=2,
            expert_layer_offset=0,
            mamba_d_state=4,
            mamba_d_conv=2,
            mamba_dt_rank=4,
        ),
        parts=(JAMBA_PART,),
        inputs=text_inputs,
    ),
    Family(
        name="mamba",
        model=transformers.MambaForCausalLM,
        config=mamba_config(transformers.MambaConfig),
        parts=(BACKBONE_PART,),
        inputs=text_inputs,
        tied=("backbone.embeddings.weight", "lm_head.weight"),
    ),
    Family(
        name="mamba2",
        model=transformers.Mamba2ForCausalLM,
        config=mamba_config(
            transformers.Mamba2Config, num_heads=4, head_dim=8, n_groups=2, chunk_size=4
        ),
        parts=(
            Part(
                layers="backbone.layers",
                before=("backbone.embeddings.weight",),
                after=("backbone.norm_f.weight", "lm_head.weight"),
            ),
        ),
        inputs=text_inputs,
    ),
)
