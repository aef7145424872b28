"""Rows of dense decoders of text."""

from __future__ import annotations

import transformers
from familykit import (
    FULL,
    HEADS,
    HIDDEN,
    LLAMA_PART,
    SLIDING,
    TIED,
    TIED_PART,
    VOCAB,
    Family,
    Part,
    depth,
    plain,
    text_inputs,
    text_sizes,
    weight_and_bias,
)
from transformers import PretrainedConfig


def qwen3_config(stacked: bool) -> PretrainedConfig:
    """Full attention first, then a sliding window: [F, S, S] and [F, S] + [S, S]."""
    return transformers.Qwen3Config(
        **text_sizes(depth(stacked)),
        num_key_value_heads=2,
        head_dim=8,
        use_sliding_window=True,
        sliding_window=4,
        max_window_layers=1,
        layer_types=[FULL, SLIDING, SLIDING, SLIDING] if stacked else [FULL, SLIDING, SLIDING],
    )


def gemma3_config(stacked: bool) -> PretrainedConfig:
    """Alternating attention, so that the stack [S, F] + [F, S] follows no rule."""
    return transformers.Gemma3TextConfig(
        **text_sizes(depth(stacked)),
        num_key_value_heads=2,
        head_dim=8,
        sliding_window=4,
        layer_types=[SLIDING, FULL, FULL, SLIDING] if stacked else [SLIDING, FULL, SLIDING],
    )


def gpt2_config(stacked: bool) -> PretrainedConfig:
    """GPT-2 has names of its own for every size."""
    return transformers.GPT2Config(
        vocab_size=VOCAB,
        n_embd=HIDDEN,
        n_layer=depth(stacked),
        n_head=HEADS,
        n_positions=32,
        bos_token_id=1,
        eos_token_id=2,
    )


FAMILIES = (
    Family(
        name="llama",
        model=transformers.LlamaForCausalLM,
        config=plain(transformers.LlamaConfig, num_key_value_heads=2),
        parts=(LLAMA_PART,),
        inputs=text_inputs,
        quick=True,
    ),
    Family(
        name="qwen3",
        model=transformers.Qwen3ForCausalLM,
        config=qwen3_config,
        parts=(LLAMA_PART,),
        inputs=text_inputs,
    ),
    Family(
        name="gemma3_text",
        model=transformers.Gemma3ForCausalLM,
        config=gemma3_config,
        parts=(TIED_PART,),
        inputs=text_inputs,
        tied=TIED,
        quick=True,
    ),
    Family(
        name="gpt2",
        model=transformers.GPT2LMHeadModel,
        config=gpt2_config,
        parts=(
            Part(
                layers="transformer.h",
                before=("transformer.wte.weight", "transformer.wpe.weight"),
                after=weight_and_bias("transformer.ln_f"),
            ),
        ),
        inputs=text_inputs,
        tied=("transformer.wte.weight", "lm_head.weight"),
        quick=True,
    ),
    Family(
        name="gpt_neox",
        model=transformers.GPTNeoXForCausalLM,
        config=plain(transformers.GPTNeoXConfig),
        parts=(
            Part(
                layers="gpt_neox.layers",
                before=("gpt_neox.embed_in.weight",),
                after=(*weight_and_bias("gpt_neox.final_layer_norm"), "embed_out.weight"),
            ),
        ),
        inputs=text_inputs,
    ),
    Family(
        name="olmo2",
        model=transformers.Olmo2ForCausalLM,
        config=plain(transformers.Olmo2Config, num_key_value_heads=2),
        parts=(LLAMA_PART,),
        inputs=text_inputs,
    ),
)
