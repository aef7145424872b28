"""Rows of decoders of text with one dense stack of layers."""

from __future__ import annotations

from typing import Any

import numpy as np
import transformers
from familykit import (
    FULL,
    HEADS,
    HIDDEN,
    INNER,
    LLAMA_PART,
    SLIDING,
    TIED,
    TIED_PART,
    VOCAB,
    Family,
    Part,
    Tensors,
    depth,
    plain,
    text_inputs,
    weight_and_bias,
)
from transformers import PretrainedConfig

# Buffers of older files: which positions a query sees, and rotary frequencies.
CAUSAL = np.tril(np.ones((32, 32), np.float32))[None, None]
FREQUENCIES = np.array([1.0, 0.01], np.float32)
# Heads of a size that does not follow from the number of heads, and fewer of them for keys.
WIDE: dict[str, Any] = {"num_key_value_heads": 2, "head_dim": 8}
GROUPED: dict[str, Any] = {"num_key_value_heads": 2}
# Alternating attention, so that the stack [S, F] + [F, S] follows no rule.
ALTERNATING: dict[str, Any] = {"layer_types": (SLIDING, FULL, SLIDING)}
KEY_BIAS = r".*\.k_proj\.bias"  # adds the same to every score of a query, where nothing turns or norms the keys


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


def gptj_config(stacked: bool) -> PretrainedConfig:
    """So has GPT-J."""
    return transformers.GPTJConfig(
        vocab_size=VOCAB,
        n_embd=HIDDEN,
        n_layer=depth(stacked),
        n_head=HEADS,
        n_positions=32,
        rotary_dim=4,
        bos_token_id=1,
        eos_token_id=2,
    )


def opt_config(stacked: bool) -> PretrainedConfig:
    """Embeddings smaller than the layers, as OPT 350M has them."""
    return transformers.OPTConfig(
        vocab_size=VOCAB,
        hidden_size=HIDDEN,
        ffn_dim=INNER,
        num_hidden_layers=depth(stacked),
        num_attention_heads=HEADS,
        max_position_embeddings=32,
        word_embed_proj_dim=12,
    )


def bloom_config(stacked: bool) -> PretrainedConfig:
    return transformers.BloomConfig(
        vocab_size=VOCAB, hidden_size=HIDDEN, n_layer=depth(stacked), n_head=HEADS
    )


def mpt_config(stacked: bool) -> PretrainedConfig:
    return transformers.MptConfig(
        vocab_size=VOCAB, d_model=HIDDEN, n_layers=depth(stacked), n_heads=HEADS, max_seq_len=32
    )


def store_bare(tensors: Tensors) -> Tensors:
    """GPT-2's files on the Hub: names without the class's own module, and the mask of every layer."""
    masks = {f"h.{i}.attn.bias": CAUSAL for i in range(3)}
    return {name.removeprefix("transformer."): x for name, x in tensors.items()} | masks


def store_pythia(tensors: Tensors) -> Tensors:
    """Pythia's files on the Hub: every layer has a mask of bytes, a number for what is masked, and the frequencies."""
    buffers: Tensors = {
        "attention.bias": CAUSAL.astype(np.uint8),
        "attention.masked_bias": np.array(-1e9, np.float32),
        "attention.rotary_emb.inv_freq": FREQUENCIES,
    }
    prefixes = [f"gpt_neox.layers.{i}." for i in range(3)]
    return tensors | {prefix + name: x for prefix in prefixes for name, x in buffers.items()}


def store_frequencies(tensors: Tensors) -> Tensors:
    """Llama's files before transformers 4.32."""
    name = "model.layers.{}.self_attn.rotary_emb.inv_freq"
    return tensors | {name.format(i): FREQUENCIES for i in range(3)}


def gpt_part(layers: str, before: tuple[str, ...], *after: str) -> Part:
    """Names as in GPT-2 and what came soon after it."""
    return Part(
        layers=f"transformer.{layers}",
        before=tuple(f"transformer.{name}" for name in before),
        after=after,
    )


PYTHIA_PART = Part(
    layers="gpt_neox.layers",
    before=("gpt_neox.embed_in.weight",),
    after=(*weight_and_bias("gpt_neox.final_layer_norm"), "embed_out.weight"),
)

FAMILIES = (
    Family(
        name="llama",
        model=transformers.LlamaForCausalLM,
        config=plain(transformers.LlamaConfig, **GROUPED),
        parts=(LLAMA_PART,),
        inputs=text_inputs,
        quick=True,
    ),
    Family(
        name="mistral",
        model=transformers.MistralForCausalLM,
        config=plain(transformers.MistralConfig, sliding_window=4, **WIDE),
        parts=(LLAMA_PART,),
        inputs=text_inputs,
    ),
    Family(
        name="qwen2",
        model=transformers.Qwen2ForCausalLM,
        config=plain(
            transformers.Qwen2Config,
            {"layer_types": (FULL, SLIDING, SLIDING)},
            use_sliding_window=True,
            sliding_window=4,
            max_window_layers=1,
            tie_word_embeddings=True,
            **GROUPED,
        ),
        parts=(TIED_PART,),
        inputs=text_inputs,
        tied=TIED,
    ),
    Family(
        name="qwen3",
        model=transformers.Qwen3ForCausalLM,
        config=plain(
            transformers.Qwen3Config,
            {"layer_types": (FULL, SLIDING, SLIDING)},
            use_sliding_window=True,
            sliding_window=4,
            max_window_layers=1,
            **WIDE,
        ),
        parts=(LLAMA_PART,),
        inputs=text_inputs,
    ),
    Family(
        name="gemma",
        model=transformers.GemmaForCausalLM,
        config=plain(transformers.GemmaConfig, **WIDE),
        parts=(TIED_PART,),
        inputs=text_inputs,
        tied=TIED,
    ),
    Family(
        name="gemma2",
        model=transformers.Gemma2ForCausalLM,
        config=plain(
            transformers.Gemma2Config,
            ALTERNATING,
            sliding_window=4,
            query_pre_attn_scalar=8,
            **WIDE,
        ),
        parts=(TIED_PART,),
        inputs=text_inputs,
        tied=TIED,
    ),
    Family(
        name="gemma3_text",
        model=transformers.Gemma3ForCausalLM,
        config=plain(transformers.Gemma3TextConfig, ALTERNATING, sliding_window=4, **WIDE),
        parts=(TIED_PART,),
        inputs=text_inputs,
        tied=TIED,
        quick=True,
    ),
    Family(
        name="phi",
        model=transformers.PhiForCausalLM,
        config=plain(transformers.PhiConfig),
        parts=(
            Part(
                layers="model.layers",
                before=("model.embed_tokens.weight",),
                after=weight_and_bias("model.final_layernorm", "lm_head"),
            ),
        ),
        inputs=text_inputs,
    ),
    Family(
        name="phi3",
        model=transformers.Phi3ForCausalLM,
        config=plain(transformers.Phi3Config, **GROUPED),
        parts=(LLAMA_PART,),
        inputs=text_inputs,
    ),
    Family(
        name="stablelm",
        model=transformers.StableLmForCausalLM,
        config=plain(
            transformers.StableLmConfig,
            qk_layernorm=True,  # a norm for each head, by number
            use_qkv_bias=True,
            **GROUPED,
        ),
        parts=(
            Part(
                layers="model.layers",
                before=("model.embed_tokens.weight",),
                after=(*weight_and_bias("model.norm"), "lm_head.weight"),
            ),
        ),
        inputs=text_inputs,
    ),
    Family(
        name="starcoder2",
        model=transformers.Starcoder2ForCausalLM,
        config=plain(transformers.Starcoder2Config, **GROUPED),
        parts=(
            Part(
                layers="model.layers",
                before=("model.embed_tokens.weight",),
                after=weight_and_bias("model.norm"),
            ),
        ),
        inputs=text_inputs,
        tied=TIED,
    ),
    Family(
        name="cohere",
        model=transformers.CohereForCausalLM,
        config=plain(transformers.CohereConfig, use_qk_norm=True, **GROUPED),
        parts=(TIED_PART,),
        inputs=text_inputs,
        tied=TIED,
    ),
    Family(
        name="cohere2",
        model=transformers.Cohere2ForCausalLM,
        config=plain(transformers.Cohere2Config, ALTERNATING, sliding_window=4, **GROUPED),
        parts=(TIED_PART,),
        inputs=text_inputs,
        tied=TIED,
    ),
    Family(
        name="olmo2",
        model=transformers.Olmo2ForCausalLM,
        config=plain(transformers.Olmo2Config, **GROUPED),
        parts=(LLAMA_PART,),
        inputs=text_inputs,
    ),
    Family(
        name="granite",
        model=transformers.GraniteForCausalLM,
        config=plain(transformers.GraniteConfig, **GROUPED),
        parts=(LLAMA_PART,),
        inputs=text_inputs,
    ),
    Family(
        name="glm4",
        model=transformers.Glm4ForCausalLM,
        config=plain(transformers.Glm4Config, attention_bias=True, **WIDE),
        parts=(LLAMA_PART,),
        inputs=text_inputs,
    ),
    Family(
        name="exaone4",
        model=transformers.Exaone4ForCausalLM,
        config=plain(transformers.Exaone4Config, ALTERNATING, sliding_window=4, **WIDE),
        parts=(LLAMA_PART,),
        inputs=text_inputs,
    ),
    Family(
        name="smollm3",
        model=transformers.SmolLM3ForCausalLM,
        # layers without positions are those with full attention
        config=plain(
            transformers.SmolLM3Config,
            {"no_rope_layers": (1, 0, 1)} | ALTERNATING,
            use_sliding_window=True,
            sliding_window=4,
            **GROUPED,
        ),
        parts=(TIED_PART,),
        inputs=text_inputs,
        tied=TIED,
    ),
    Family(
        name="helium",
        model=transformers.HeliumForCausalLM,
        config=plain(transformers.HeliumConfig, num_key_value_heads=2, head_dim=HIDDEN // HEADS),
        parts=(LLAMA_PART,),
        inputs=text_inputs,
    ),
    Family(
        name="lfm2",
        model=transformers.Lfm2ForCausalLM,
        config=plain(
            transformers.Lfm2Config,
            {"layer_types": ("conv", FULL, "conv")},
            block_multiple_of=8,
            conv_bias=True,
            **GROUPED,
        ),
        parts=(
            Part(
                layers="model.layers",
                before=("model.embed_tokens.weight",),
                after=("model.embedding_norm.weight",),
            ),
        ),
        inputs=text_inputs,
        tied=TIED,
        quick=True,
    ),
    Family(
        name="gpt2",
        model=transformers.GPT2LMHeadModel,
        config=gpt2_config,
        parts=(gpt_part("h", ("wte.weight", "wpe.weight"), *weight_and_bias("transformer.ln_f")),),
        inputs=text_inputs,
        tied=("transformer.wte.weight", "lm_head.weight"),
        quick=True,
    ),
    Family(
        name="gpt_neox",
        model=transformers.GPTNeoXForCausalLM,
        config=plain(transformers.GPTNeoXConfig),
        parts=(PYTHIA_PART,),
        inputs=text_inputs,
    ),
    Family(
        name="gptj",
        model=transformers.GPTJForCausalLM,
        config=gptj_config,
        parts=(gpt_part("h", ("wte.weight",), *weight_and_bias("transformer.ln_f", "lm_head")),),
        inputs=text_inputs,
    ),
    Family(
        name="falcon",
        model=transformers.FalconForCausalLM,
        config=plain(
            transformers.FalconConfig,
            num_kv_heads=2,
            new_decoder_architecture=True,
            num_ln_in_parallel_attn=2,  # the model writes it into its config where it is not said
            bias=True,
        ),
        parts=(gpt_part("h", ("word_embeddings.weight",), *weight_and_bias("transformer.ln_f")),),
        inputs=text_inputs,
        tied=("transformer.word_embeddings.weight", "lm_head.weight"),
    ),
    Family(
        name="opt",
        model=transformers.OPTForCausalLM,
        config=opt_config,
        parts=(
            Part(
                layers="model.decoder.layers",
                before=(
                    "model.decoder.embed_tokens.weight",
                    "model.decoder.embed_positions.weight",
                    "model.decoder.project_in.weight",
                ),
                after=(
                    *weight_and_bias("model.decoder.final_layer_norm"),
                    "model.decoder.project_out.weight",
                ),
            ),
        ),
        inputs=text_inputs,
        silent=KEY_BIAS,
        tied=("model.decoder.embed_tokens.weight", "lm_head.weight"),
    ),
    Family(
        name="bloom",
        model=transformers.BloomForCausalLM,
        config=bloom_config,
        parts=(
            gpt_part(
                "h",
                (
                    "word_embeddings.weight",
                    *weight_and_bias("word_embeddings_layernorm"),
                ),
                *weight_and_bias("transformer.ln_f"),
            ),
        ),
        inputs=text_inputs,
        tied=("transformer.word_embeddings.weight", "lm_head.weight"),
    ),
    Family(
        name="mpt",
        model=transformers.MptForCausalLM,
        config=mpt_config,
        parts=(gpt_part("blocks", ("wte.weight",), "transformer.norm_f.weight"),),
        inputs=text_inputs,
        tied=("transformer.wte.weight", "lm_head.weight"),
    ),
    Family(
        name="gpt2-hub",
        model=transformers.GPT2LMHeadModel,
        config=gpt2_config,
        parts=(
            Part(layers="h", before=("wte.weight", "wpe.weight"), after=weight_and_bias("ln_f")),
        ),
        inputs=text_inputs,
        stored=store_bare,
        copied=r".*\.attn\.bias",
        tied=("transformer.wte.weight", "lm_head.weight"),
    ),
    Family(
        name="pythia-hub",
        model=transformers.GPTNeoXForCausalLM,
        config=plain(transformers.GPTNeoXConfig),
        parts=(PYTHIA_PART,),
        inputs=text_inputs,
        stored=store_pythia,
        copied=r".*\.attention\.(bias|masked_bias|rotary_emb\.inv_freq)",
    ),
    Family(
        name="llama-frequencies",
        model=transformers.LlamaForCausalLM,
        config=plain(transformers.LlamaConfig, **GROUPED),
        parts=(LLAMA_PART,),
        inputs=text_inputs,
        stored=store_frequencies,
        copied=r".*\.inv_freq",
    ),
)
