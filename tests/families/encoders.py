"""Rows of encoders, and of encoders with a decoder."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
import transformers
from familykit import (
    HEADS,
    HIDDEN,
    INNER,
    VOCAB,
    Family,
    Inputs,
    Part,
    Tensors,
    both_sides,
    plain,
    token_ids,
    weight_and_bias,
)
from transformers import PretrainedConfig


def t5_config(stacked: bool, **rest: Any) -> PretrainedConfig:
    """Encoder and decoder of equal depth; stacked they have 4 layers and 2."""
    return transformers.T5Config(
        vocab_size=VOCAB,
        d_model=HIDDEN,
        d_kv=HIDDEN // HEADS,
        d_ff=INNER,
        num_layers=4 if stacked else 3,
        num_decoder_layers=2 if stacked else 3,
        num_heads=HEADS,
        relative_attention_num_buckets=8,
        decoder_start_token_id=0,
        **rest,
    )


def bert_inputs() -> Inputs:
    """Two segments in each row."""
    return {"input_ids": token_ids(), "token_type_ids": torch.tensor([[0] * 5 + [1] * 7] * 2)}


def store_copies(tensors: Tensors) -> Tensors:
    """T5 files as they were once written: each use of the shared table is stored by its name."""
    copies = ("encoder.embed_tokens.weight", "decoder.embed_tokens.weight", "lm_head.weight")
    return tensors | {name: tensors["shared.weight"].copy() for name in copies}


T5_PARTS = (
    Part(module="shared", before=("shared.weight",)),
    Part(module="encoder", layers="encoder.block", after=("encoder.final_layer_norm.weight",)),
    Part(
        module="decoder",
        layers="decoder.block",
        after=("decoder.final_layer_norm.weight",),
        ranges=((0, 1), (2, 3)),
    ),
)
T5_TIED = (
    "shared.weight",
    "encoder.embed_tokens.weight",
    "decoder.embed_tokens.weight",
    "lm_head.weight",
)

FAMILIES = (
    Family(
        name="bert",
        model=transformers.BertForMaskedLM,
        config=plain(transformers.BertConfig),
        parts=(
            Part(
                layers="bert.encoder.layer",
                before=(
                    "bert.embeddings.word_embeddings.weight",
                    "bert.embeddings.position_embeddings.weight",
                    "bert.embeddings.token_type_embeddings.weight",
                    *weight_and_bias("bert.embeddings.LayerNorm"),
                ),
                after=(
                    "cls.predictions.bias",
                    *weight_and_bias(
                        "cls.predictions.transform.dense", "cls.predictions.transform.LayerNorm"
                    ),
                ),
            ),
        ),
        inputs=bert_inputs,
        silent=r".*\.key\.bias",  # adds the same to every score of a query
        tied=("bert.embeddings.word_embeddings.weight", "cls.predictions.decoder.weight"),
        quick=True,
    ),
    Family(
        name="t5",
        model=transformers.T5ForConditionalGeneration,
        config=t5_config,
        parts=T5_PARTS,
        inputs=both_sides,
        tied=T5_TIED,
        quick=True,
    ),
    Family(
        name="t5-copies",
        model=transformers.T5ForConditionalGeneration,
        config=partial(t5_config, feed_forward_proj="gated-gelu"),
        parts=(
            Part(module="shared", before=("shared.weight", "lm_head.weight")),
            Part(
                module="encoder",
                layers="encoder.block",
                before=("encoder.embed_tokens.weight",),
                after=("encoder.final_layer_norm.weight",),
            ),
            Part(
                module="decoder",
                layers="decoder.block",
                before=("decoder.embed_tokens.weight",),
                after=("decoder.final_layer_norm.weight",),
                ranges=((0, 1), (2, 3)),
            ),
        ),
        inputs=both_sides,
        stored=store_copies,
        tied=T5_TIED,
    ),
)
