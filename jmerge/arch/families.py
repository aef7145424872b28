"""The small table of what names and shapes cannot tell: the module names that users of some classes write."""

from __future__ import annotations

from collections.abc import Sequence

# class -> module name -> prefixes of its tensors; the longest prefix that fits a tensor's name decides.
MODULES: dict[str, dict[str, tuple[str, ...]]] = {
    "Gemma3ForConditionalGeneration": {
        "text_decoder": ("language_model.", "model.language_model.", "lm_head."),
        "multi_modal_projector": ("multi_modal_projector.", "model.multi_modal_projector."),
        "vision_tower": ("vision_tower.", "model.vision_tower."),
    },
    "Llama4ForConditionalGeneration": {
        "text_decoder": ("language_model.",),
        "multi_modal_projector": ("multi_modal_projector.",),
        "vision_model": ("vision_model.",),
    },
    "Qwen2VLForConditionalGeneration": {
        "text_decoder": ("model.", "model.language_model.", "lm_head."),
        "multi_modal_projector": ("visual.merger.", "model.visual.merger."),
        "vision_tower": ("visual.", "model.visual."),
    },
    "Qwen3VLForConditionalGeneration": {
        "text_decoder": ("model.language_model.", "lm_head."),
        "multi_modal_projector": ("model.visual.merger.", "model.visual.deepstack_merger_list."),
        "vision_tower": ("model.visual.",),
    },
    "T5ForConditionalGeneration": {
        "encoder": ("encoder.",),
        "decoder": ("decoder.",),
        "shared": ("shared.", "lm_head."),
    },
    "WhisperForConditionalGeneration": {
        "encoder": ("model.encoder.",),
        "decoder": ("model.decoder.", "proj_out."),
    },
}
MODULES["Mistral3ForConditionalGeneration"] = MODULES["Gemma3ForConditionalGeneration"]
MODULES["Qwen2_5_VLForConditionalGeneration"] = MODULES["Qwen2VLForConditionalGeneration"]
MODULES["Qwen3VLMoeForConditionalGeneration"] = MODULES["Qwen3VLForConditionalGeneration"]

# Words for one thing: a module may be called by any of them where it is the only one that a word of the row names.
SYNONYMS = (
    ("text_decoder", "language_model", "text_model", "text"),
    ("vision_tower", "vision_model", "visual", "vision_encoder", "image_encoder"),
    ("multi_modal_projector", "mm_projector", "projector", "connector", "merger"),
    ("audio_tower", "audio_encoder", "audio_model"),
)


def find_module(name: str, modules: Sequence[str]) -> str | None:
    """The one of `modules` that users mean by `name`; None when it is none of them, or could be several."""
    if name in modules:
        return name
    row = next((row for row in SYNONYMS if name in row), ())
    meant = [module for module in modules if module in row]
    return meant[0] if len(meant) == 1 else None
