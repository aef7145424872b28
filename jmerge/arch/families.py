"""The small table of what names and shapes cannot tell: the module names that users of some classes write."""

from __future__ import annotations

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
