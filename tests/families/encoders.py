"""Rows of encoders, and of encoders with a decoder."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
import transformers
from familykit import (
    FULL,
    HEADS,
    HIDDEN,
    INNER,
    SLIDING,
    VOCAB,
    Family,
    Inputs,
    Part,
    Tensors,
    both_sides,
    depth,
    pixels,
    plain,
    text_inputs,
    text_sizes,
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


def distilbert_config(stacked: bool) -> PretrainedConfig:
    """DistilBERT has names of its own for most sizes."""
    return transformers.DistilBertConfig(
        vocab_size=VOCAB,
        dim=HIDDEN,
        hidden_dim=INNER,
        n_layers=depth(stacked),
        n_heads=HEADS,
        max_position_embeddings=32,
    )


def modernbert_config(stacked: bool) -> PretrainedConfig:
    """Full attention around a window; the first layer has no norm before its attention."""
    return transformers.ModernBertConfig(
        **text_sizes(depth(stacked)),
        layer_types=[FULL, SLIDING, SLIDING, FULL] if stacked else [FULL, SLIDING, FULL],
        local_attention=4,
        cls_token_id=1,
        sep_token_id=2,
        norm_bias=True,
        attention_bias=True,
        mlp_bias=True,
    )


def sides(stacked: bool) -> dict[str, Any]:
    """The sizes of BART and Whisper: encoder and decoder of equal depth; stacked they have 4 layers and 2."""
    return {
        "vocab_size": VOCAB,
        "d_model": HIDDEN,
        "encoder_layers": 4 if stacked else 3,
        "decoder_layers": 2 if stacked else 3,
        "encoder_ffn_dim": INNER,
        "decoder_ffn_dim": INNER,
        "encoder_attention_heads": HEADS,
        "decoder_attention_heads": HEADS,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 0,
        "decoder_start_token_id": 2,
    }


def bart_config(stacked: bool) -> PretrainedConfig:
    """Text on both sides."""
    return transformers.BartConfig(**sides(stacked), max_position_embeddings=32)


def whisper_config(stacked: bool) -> PretrainedConfig:
    """Sound in, text out."""
    return transformers.WhisperConfig(
        **sides(stacked),
        num_mel_bins=8,
        max_source_positions=10,
        max_target_positions=16,
        begin_suppress_tokens=None,
    )


def whisper_inputs() -> Inputs:
    """A spectrum twice as long as the encoder's output."""
    return {"input_features": pixels(2, 8, 20), "decoder_input_ids": token_ids(7, seed=1)}


def xlm_config(stacked: bool) -> PretrainedConfig:
    """XLM has names of its own for every size."""
    return transformers.XLMConfig(
        vocab_size=VOCAB,
        emb_dim=HIDDEN,
        n_layers=depth(stacked),
        n_heads=HEADS,
        max_position_embeddings=32,
        n_langs=1,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=2,
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
        name="roberta",
        model=transformers.RobertaForMaskedLM,
        config=plain(transformers.RobertaConfig, type_vocab_size=2),
        parts=(
            Part(
                layers="roberta.encoder.layer",
                before=(
                    "roberta.embeddings.word_embeddings.weight",
                    "roberta.embeddings.position_embeddings.weight",
                    "roberta.embeddings.token_type_embeddings.weight",
                    *weight_and_bias("roberta.embeddings.LayerNorm"),
                ),
                after=(
                    "lm_head.bias",
                    *weight_and_bias("lm_head.dense", "lm_head.layer_norm"),
                ),
            ),
        ),
        inputs=bert_inputs,
        silent=r".*\.key\.bias",  # as in BERT
        tied=("roberta.embeddings.word_embeddings.weight", "lm_head.decoder.weight"),
    ),
    Family(
        name="distilbert",
        model=transformers.DistilBertForMaskedLM,
        config=distilbert_config,
        parts=(
            Part(
                layers="distilbert.transformer.layer",
                before=(
                    "distilbert.embeddings.word_embeddings.weight",
                    "distilbert.embeddings.position_embeddings.weight",
                    *weight_and_bias("distilbert.embeddings.LayerNorm"),
                ),
                after=(
                    "vocab_projector.bias",
                    *weight_and_bias("vocab_transform", "vocab_layer_norm"),
                ),
            ),
        ),
        inputs=text_inputs,
        silent=r".*\.k_lin\.bias",  # as in BERT
        tied=("distilbert.embeddings.word_embeddings.weight", "vocab_projector.weight"),
    ),
    Family(
        name="modernbert",
        model=transformers.ModernBertForMaskedLM,
        config=modernbert_config,
        parts=(
            Part(
                layers="model.layers",
                before=(
                    "model.embeddings.tok_embeddings.weight",
                    *weight_and_bias("model.embeddings.norm"),
                ),
                after=(
                    *weight_and_bias("model.final_norm", "head.norm"),
                    "head.dense.weight",
                    "decoder.bias",
                ),
            ),
        ),
        inputs=text_inputs,
        tied=("model.embeddings.tok_embeddings.weight", "decoder.weight"),
    ),
    Family(
        name="deberta_v2",
        model=transformers.DebertaV2ForMaskedLM,
        config=plain(
            transformers.DebertaV2Config,
            type_vocab_size=2,
            relative_attention=True,
            position_buckets=4,
            norm_rel_ebd="layer_norm",
            pos_att_type=["p2c", "c2p"],
            share_att_key=False,
            conv_kernel_size=3,
            conv_act="gelu",
            legacy=False,
        ),
        parts=(
            Part(
                layers="deberta.encoder.layer",
                before=(
                    "deberta.embeddings.word_embeddings.weight",
                    "deberta.embeddings.position_embeddings.weight",
                    "deberta.embeddings.token_type_embeddings.weight",
                    *weight_and_bias("deberta.embeddings.LayerNorm"),
                ),
                after=(
                    "deberta.encoder.rel_embeddings.weight",
                    *weight_and_bias(
                        "deberta.encoder.LayerNorm",  # of the relative embeddings
                        "deberta.encoder.conv.conv",
                        "deberta.encoder.conv.LayerNorm",
                        "lm_predictions.lm_head.dense",
                        "lm_predictions.lm_head.LayerNorm",
                    ),
                    "lm_predictions.lm_head.bias",
                ),
            ),
        ),
        inputs=bert_inputs,
        silent=r".*\.pos_key_proj\.bias",  # as in BERT
        tied=("deberta.embeddings.word_embeddings.weight",),
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
    Family(
        name="bart",
        model=transformers.BartForConditionalGeneration,
        config=bart_config,
        parts=(
            Part(module="shared", before=("model.shared.weight",)),
            Part(module="final_logits_bias", after=("final_logits_bias",)),
            Part(
                module="encoder",
                layers="model.encoder.layers",
                before=(
                    "model.encoder.embed_positions.weight",
                    *weight_and_bias("model.encoder.layernorm_embedding"),
                ),
            ),
            Part(
                module="decoder",
                layers="model.decoder.layers",
                before=(
                    "model.decoder.embed_positions.weight",
                    *weight_and_bias("model.decoder.layernorm_embedding"),
                ),
                ranges=((0, 1), (2, 3)),
            ),
        ),
        inputs=both_sides,
        noise=2.0,
        silent=r".*\.k_proj\.bias",  # as in BERT
        tied=("model.shared.weight", "lm_head.weight"),
    ),
    Family(
        name="whisper",
        model=transformers.WhisperForConditionalGeneration,
        config=whisper_config,
        parts=(
            Part(
                module="encoder",
                layers="model.encoder.layers",
                before=(
                    *weight_and_bias("model.encoder.conv1", "model.encoder.conv2"),
                    "model.encoder.embed_positions.weight",
                ),
                after=weight_and_bias("model.encoder.layer_norm"),
            ),
            Part(
                module="decoder",
                layers="model.decoder.layers",
                before=(
                    "model.decoder.embed_tokens.weight",
                    "model.decoder.embed_positions.weight",
                ),
                after=weight_and_bias("model.decoder.layer_norm"),
                ranges=((0, 1), (2, 3)),
            ),
        ),
        inputs=whisper_inputs,
        noise=2.0,
        tied=("model.decoder.embed_tokens.weight", "proj_out.weight"),
    ),
    Family(
        name="wav2vec2",
        model=transformers.Wav2Vec2ForCTC,
        config=plain(
            transformers.Wav2Vec2Config,
            num_feat_extract_layers=2,
            conv_dim=(8, 8),
            conv_stride=(2, 2),
            conv_kernel=(3, 3),
            feat_extract_norm="layer",
            num_conv_pos_embeddings=4,
            num_conv_pos_embedding_groups=2,
        ),
        parts=(
            Part(
                module="feature_extractor",  # convolutions of other shapes in every layer
                before=tuple(
                    f"wav2vec2.feature_extractor.conv_layers.{i}.{name}"
                    for i in range(2)
                    for name in ("conv.weight", *weight_and_bias("layer_norm"))
                ),
            ),
            Part(module="masked_spec_embed", before=("wav2vec2.masked_spec_embed",)),
            Part(
                module="feature_projection",
                before=weight_and_bias(
                    "wav2vec2.feature_projection.layer_norm",
                    "wav2vec2.feature_projection.projection",
                ),
            ),
            Part(
                module="encoder",
                layers="wav2vec2.encoder.layers",
                before=(
                    "wav2vec2.encoder.pos_conv_embed.conv.bias",
                    "wav2vec2.encoder.pos_conv_embed.conv.parametrizations.weight.original0",
                    "wav2vec2.encoder.pos_conv_embed.conv.parametrizations.weight.original1",
                ),
                after=weight_and_bias("wav2vec2.encoder.layer_norm"),
            ),
            Part(module="lm_head", after=weight_and_bias("lm_head")),
        ),
        inputs=lambda: {"input_values": pixels(2, 64)},
        silent=r".*\.k_proj\.bias|.*\.masked_spec_embed",  # as in BERT; where training hides sounds
    ),
    Family(
        name="albert",
        model=transformers.AlbertForMaskedLM,
        config=plain(transformers.AlbertConfig, embedding_size=8),
        parts=(Part(layers="albert.encoder.albert_layer_groups"),),
        inputs=bert_inputs,
        silent=r".*\.key\.bias",  # as in BERT
        tied=("albert.embeddings.word_embeddings.weight", "predictions.decoder.weight"),
        no_stack="all layers share one set of weights",
    ),
    Family(
        name="xlm",
        model=transformers.XLMWithLMHeadModel,
        config=xlm_config,
        parts=(Part(layers="transformer.attentions"),),
        inputs=text_inputs,
        silent=r".*\.k_lin\.bias",  # as in BERT
        tied=("transformer.embeddings.weight", "pred_layer.proj.weight"),
        no_stack="attention, norms and MLP of its layers are in lists of their own",
    ),
)
