"""Rows of models that see."""

from __future__ import annotations

import transformers
from familykit import (
    HEADS,
    HIDDEN,
    IMAGE_TOKEN,
    INNER,
    Family,
    Inputs,
    Part,
    pixels,
    text_sizes,
    token_ids,
    weight_and_bias,
)
from transformers import PretrainedConfig


def llava_config(stacked: bool) -> PretrainedConfig:
    """Text and vision of equal depth; stacked they have 4 layers and 2."""
    vision = transformers.CLIPVisionConfig(
        hidden_size=HIDDEN,
        intermediate_size=INNER,
        num_hidden_layers=2 if stacked else 3,
        num_attention_heads=HEADS,
        image_size=8,
        patch_size=4,
        projection_dim=HIDDEN,
    )
    return transformers.LlavaConfig(
        text_config=transformers.LlamaConfig(
            **text_sizes(4 if stacked else 3), num_key_value_heads=2
        ),
        vision_config=vision,
        image_token_index=IMAGE_TOKEN,
        image_seq_length=4,
        vision_feature_layer=-1,
    )


def llava_inputs() -> Inputs:
    """An image of four patches in the middle of each row."""
    ids = token_ids()
    ids[:, 3:7] = IMAGE_TOKEN
    return {"input_ids": ids, "pixel_values": pixels(2, 3, 8, 8)}


FAMILIES = (
    Family(
        name="llava",
        model=transformers.LlavaForConditionalGeneration,
        config=llava_config,
        parts=(
            Part(
                module="language_model",
                layers="language_model.model.layers",
                before=("language_model.model.embed_tokens.weight",),
                after=("language_model.model.norm.weight", "language_model.lm_head.weight"),
            ),
            Part(
                module="vision_tower",
                layers="vision_tower.encoder.layers",
                before=(
                    "vision_tower.embeddings.class_embedding",
                    "vision_tower.embeddings.patch_embedding.weight",
                    "vision_tower.embeddings.position_embedding.weight",
                    *weight_and_bias("vision_tower.pre_layrnorm"),  # CLIP's own spelling
                ),
                after=weight_and_bias("vision_tower.post_layernorm"),
                ranges=((0, 1), (2, 3)),
            ),
            Part(
                module="multi_modal_projector",
                after=weight_and_bias(
                    "multi_modal_projector.linear_1", "multi_modal_projector.linear_2"
                ),
            ),
        ),
        inputs=llava_inputs,
        # features are taken before the last norm; key biases add the same to every score
        silent=r"model\.vision_tower\.(post_layernorm\..*|encoder\..*\.k_proj\.bias)",
        quick=True,
    ),
)
