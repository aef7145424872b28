"""Rows of models that see."""

from __future__ import annotations

from typing import Any

import torch
import transformers
from familykit import (
    FULL,
    HEADS,
    HIDDEN,
    IMAGE_TOKEN,
    INNER,
    SLIDING,
    Family,
    Inputs,
    Part,
    depth,
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


def vit_sizes(layers: int, patch: int = 4) -> dict[str, Any]:
    """The sizes that most towers for pictures of 8 x 8 spell alike."""
    return {
        "hidden_size": HIDDEN,
        "intermediate_size": INNER,
        "num_hidden_layers": layers,
        "num_attention_heads": HEADS,
        "image_size": 8,
        "patch_size": patch,
    }


def vit_config(stacked: bool) -> PretrainedConfig:
    """A tower with a classifier of five classes."""
    return transformers.ViTConfig(**vit_sizes(depth(stacked)), num_labels=5)


def clip_config(stacked: bool) -> PretrainedConfig:
    """Text and vision of equal depth; stacked they have 4 layers and 2."""
    return transformers.CLIPConfig(
        text_config=text_sizes(4 if stacked else 3) | {"projection_dim": 12},
        vision_config=vit_sizes(2 if stacked else 3) | {"projection_dim": 12},
        projection_dim=12,
    )


def siglip_config(stacked: bool) -> PretrainedConfig:
    """As CLIP."""
    return transformers.SiglipConfig(
        text_config=text_sizes(4 if stacked else 3),
        vision_config=vit_sizes(2 if stacked else 3),
    )


def gemma3_config(stacked: bool) -> PretrainedConfig:
    """Alternating attention in the text, and SigLIP's tower."""
    return transformers.Gemma3Config(
        text_config=text_sizes(4 if stacked else 3)
        | {
            "num_key_value_heads": 2,
            "head_dim": 8,
            "sliding_window": 4,
            "layer_types": [SLIDING, FULL, FULL, SLIDING] if stacked else [SLIDING, FULL, SLIDING],
        },
        vision_config=vit_sizes(2 if stacked else 3, patch=2)
        | {"model_type": "siglip_vision_model", "vision_use_head": False},
        mm_tokens_per_image=4,
        image_token_index=IMAGE_TOKEN,
        boi_token_index=IMAGE_TOKEN - 1,
        eoi_token_index=IMAGE_TOKEN - 2,
    )


QWEN_TOKENS: dict[str, Any] = {
    "image_token_id": IMAGE_TOKEN,
    "video_token_id": IMAGE_TOKEN - 1,
    "vision_start_token_id": IMAGE_TOKEN - 2,
    "vision_end_token_id": IMAGE_TOKEN - 3,
}


def qwen2_vl_config(stacked: bool) -> PretrainedConfig:
    """Three kinds of positions, and a tower that merges four patches into one token."""
    return transformers.Qwen2VLConfig(
        text_config=text_sizes(4 if stacked else 3)
        | {
            "num_key_value_heads": 2,
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 1e4,
                "mrope_section": [1, 0, 1],
            },
        },
        vision_config={
            "depth": 2 if stacked else 3,
            "embed_dim": HIDDEN,
            "hidden_size": HIDDEN,
            "num_heads": HEADS,
            "patch_size": 2,
            "mlp_ratio": 2,
        },
        **QWEN_TOKENS,
    )


def qwen3_vl_config(stacked: bool) -> PretrainedConfig:
    """As Qwen2-VL; of the tower's first and last layer the text gets features at once."""
    return transformers.Qwen3VLConfig(
        text_config=text_sizes(4 if stacked else 3)
        | {
            "num_key_value_heads": 2,
            "head_dim": 8,
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 1e4,
                "mrope_section": [2, 1, 1],
            },
        },
        vision_config={
            "depth": 2 if stacked else 3,
            "hidden_size": HIDDEN,
            "intermediate_size": INNER,
            "num_heads": HEADS,
            "patch_size": 2,
            "out_hidden_size": HIDDEN,
            "num_position_embeddings": 16,
            "deepstack_visual_indexes": [0, 1] if stacked else [0, 2],
        },
        **QWEN_TOKENS,
    )


def picture() -> torch.Tensor:
    """Two of them."""
    return pixels(2, 3, 8, 8)


def ids_around_a_picture() -> torch.Tensor:
    """Four tokens of a picture in the middle of each row."""
    ids = token_ids()
    ids[:, 3:7] = IMAGE_TOKEN
    return ids


def picture_inputs() -> Inputs:
    """For a tower alone."""
    return {"pixel_values": picture()}


def pair_inputs() -> Inputs:
    """Texts that end, and pictures: several, as all that shows of a model is how alike they are."""
    ids = torch.cat([token_ids(seed=seed) for seed in range(4)])
    ids[:, -2:] = 2
    return {"input_ids": ids, "pixel_values": pixels(8, 3, 8, 8)}


def llava_inputs() -> Inputs:
    """A picture in the middle of each row."""
    return {"input_ids": ids_around_a_picture(), "pixel_values": picture()}


def qwen_inputs() -> Inputs:
    """Pictures of 4 x 4 patches in the middle of each row, two frames deep."""
    ids = ids_around_a_picture()
    return {
        "input_ids": ids,
        "mm_token_type_ids": (ids == IMAGE_TOKEN).int(),
        "pixel_values": pixels(2 * 16, 3 * 2 * 2 * 2),
        "image_grid_thw": torch.tensor([[1, 4, 4]] * 2),
    }


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
    Family(
        name="vit",
        model=transformers.ViTForImageClassification,
        config=vit_config,
        parts=(
            Part(
                layers="vit.encoder.layer",
                before=(
                    "vit.embeddings.cls_token",
                    "vit.embeddings.position_embeddings",
                    *weight_and_bias("vit.embeddings.patch_embeddings.projection"),
                ),
                after=weight_and_bias("vit.layernorm", "classifier"),
            ),
        ),
        inputs=picture_inputs,
        noise=2.0,
        silent=r".*\.k_proj\.bias",  # adds the same to every score of a query
    ),
    Family(
        name="clip",
        model=transformers.CLIPModel,
        config=clip_config,
        parts=(
            Part(
                module="text_model",
                layers="text_model.encoder.layers",
                before=(
                    "text_model.embeddings.token_embedding.weight",
                    "text_model.embeddings.position_embedding.weight",
                ),
                after=weight_and_bias("text_model.final_layer_norm"),
            ),
            Part(
                module="vision_model",
                layers="vision_model.encoder.layers",
                before=(
                    "vision_model.embeddings.class_embedding",
                    "vision_model.embeddings.patch_embedding.weight",
                    "vision_model.embeddings.position_embedding.weight",
                    *weight_and_bias("vision_model.pre_layrnorm"),
                ),
                after=weight_and_bias("vision_model.post_layernorm"),
                ranges=((0, 1), (2, 3)),
            ),
            Part(module="text_projection", after=("text_projection.weight",)),
            Part(module="visual_projection", after=("visual_projection.weight",)),
            Part(module="logit_scale", after=("logit_scale",)),
        ),
        inputs=pair_inputs,
        outputs=("logits_per_image", "text_embeds", "image_embeds"),
        silent=r".*\.k_proj\.bias",
    ),
    Family(
        name="siglip",
        model=transformers.SiglipModel,
        config=siglip_config,
        parts=(
            Part(
                module="text_model",
                layers="text_model.encoder.layers",
                before=(
                    "text_model.embeddings.token_embedding.weight",
                    "text_model.embeddings.position_embedding.weight",
                ),
                after=weight_and_bias("text_model.final_layer_norm", "text_model.head"),
            ),
            Part(
                module="vision_model",
                layers="vision_model.encoder.layers",
                before=(
                    *weight_and_bias("vision_model.embeddings.patch_embedding"),
                    "vision_model.embeddings.position_embedding.weight",
                ),
                after=(
                    *weight_and_bias(
                        "vision_model.post_layernorm",
                        "vision_model.head.attention.out_proj",
                        "vision_model.head.layernorm",
                        "vision_model.head.mlp.fc1",
                        "vision_model.head.mlp.fc2",
                    ),
                    "vision_model.head.attention.in_proj_weight",
                    "vision_model.head.attention.in_proj_bias",
                    "vision_model.head.probe",
                ),
                ranges=((0, 1), (2, 3)),
            ),
            Part(module="logit_scale", after=("logit_scale",)),
            Part(module="logit_bias", after=("logit_bias",)),
        ),
        inputs=pair_inputs,
        outputs=("logits_per_image", "text_embeds", "image_embeds"),
        silent=r".*\.k_proj\.bias",
    ),
    Family(
        name="gemma3_vision",
        model=transformers.Gemma3ForConditionalGeneration,
        config=gemma3_config,
        parts=(
            Part(
                module="text_decoder",
                layers="language_model.model.layers",
                before=("language_model.model.embed_tokens.weight",),
                after=("language_model.model.norm.weight",),
            ),
            Part(
                module="vision_tower",
                layers="vision_tower.encoder.layers",
                before=(
                    *weight_and_bias("vision_tower.embeddings.patch_embedding"),
                    "vision_tower.embeddings.position_embedding.weight",
                ),
                after=weight_and_bias("vision_tower.post_layernorm"),
                ranges=((0, 1), (2, 3)),
            ),
            Part(
                module="multi_modal_projector",
                after=(
                    "multi_modal_projector.mm_input_projection_weight",
                    "multi_modal_projector.mm_soft_emb_norm.weight",
                ),
            ),
        ),
        inputs=llava_inputs,
        silent=r".*\.k_proj\.bias",
        tied=("model.language_model.embed_tokens.weight", "lm_head.weight"),
    ),
    Family(
        name="qwen2_vl",
        model=transformers.Qwen2VLForConditionalGeneration,
        config=qwen2_vl_config,
        parts=(
            Part(
                module="text_decoder",
                layers="model.layers",
                before=("model.embed_tokens.weight",),
                after=("model.norm.weight", "lm_head.weight"),
            ),
            Part(
                module="vision_tower",
                layers="visual.blocks",
                before=("visual.patch_embed.proj.weight",),
                ranges=((0, 1), (2, 3)),
            ),
            Part(
                module="multi_modal_projector",
                after=weight_and_bias(
                    "visual.merger.ln_q", "visual.merger.mlp.0", "visual.merger.mlp.2"
                ),
            ),
        ),
        inputs=qwen_inputs,
    ),
    Family(
        name="qwen3_vl",
        model=transformers.Qwen3VLForConditionalGeneration,
        config=qwen3_vl_config,
        parts=(
            Part(
                module="text_decoder",
                layers="model.language_model.layers",
                before=("model.language_model.embed_tokens.weight",),
                after=("model.language_model.norm.weight", "lm_head.weight"),
            ),
            Part(
                module="vision_tower",
                layers="model.visual.blocks",
                before=(
                    *weight_and_bias("model.visual.patch_embed.proj"),
                    "model.visual.pos_embed.weight",
                ),
                ranges=((0, 1), (2, 3)),
            ),
            Part(
                module="multi_modal_projector",
                after=(
                    *weight_and_bias(
                        *(
                            f"model.visual.{merger}.{part}"
                            for merger in (
                                "merger",
                                "deepstack_merger_list.0",
                                "deepstack_merger_list.1",
                            )
                            for part in ("norm", "linear_fc1", "linear_fc2")
                        )
                    ),
                ),
            ),
        ),
        inputs=qwen_inputs,
    ),
)
