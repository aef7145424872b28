"""Models that transformers made: a text model into a vision-language model, an encoder into an encoder-decoder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from partialkit import run
from safetensors.numpy import load_file

TEXT: dict[str, Any] = {
    "vocab_size": 64,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "rms_norm_eps": 1e-6,
    "tie_word_embeddings": False,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
ROPE = {"rope_theta": 1e6, "rope_type": "default"}


def save(model: Any, folder: Path) -> dict[str, np.ndarray]:
    """Write a model with weights that are no constants, and return them."""
    with torch.no_grad():
        for value in model.parameters():
            value.add_(0.1 * torch.randn_like(value))
    model.save_pretrained(folder)
    return load_file(folder / "model.safetensors")


def qwen2() -> Any:
    config = transformers.Qwen2VLConfig(
        text_config=TEXT | {"rope_parameters": ROPE | {"mrope_section": [1, 1]}},
        vision_config={"depth": 2, "embed_dim": 8, "hidden_size": 16, "num_heads": 2},
        tie_word_embeddings=False,
    )
    return transformers.Qwen2VLForConditionalGeneration(config)


def qwen3() -> Any:
    config = transformers.Qwen3VLConfig(
        text_config=TEXT | {"head_dim": 8, "rope_parameters": ROPE | {"mrope_section": [2, 1, 1]}},
        vision_config={
            "depth": 2,
            "hidden_size": 8,
            "intermediate_size": 12,
            "out_hidden_size": 16,
            "num_heads": 2,
            "num_position_embeddings": 16,
            "deepstack_visual_indexes": [1],
        },
        tie_word_embeddings=False,
    )
    return transformers.Qwen3VLForConditionalGeneration(config)


def qwen2_text() -> Any:
    config = transformers.Qwen2Config(**TEXT, rope_parameters=ROPE)
    return transformers.Qwen2ForCausalLM(config)


def qwen3_text() -> Any:
    config = transformers.Qwen3Config(**TEXT, head_dim=8, rope_parameters=ROPE)
    return transformers.Qwen3ForCausalLM(config)


# how the two are built, and how the decoder's names begin in the files of the first
FAMILIES = {
    "qwen2": (qwen2, qwen2_text, "model."),
    "qwen3": (qwen3, qwen3_text, "model.language_model."),
}


@pytest.mark.parametrize("method", ["linear", "task_arithmetic"])
@pytest.mark.parametrize("family", FAMILIES)
def test_text_into_a_vision_language_model(tmp_path: Path, family: str, method: str) -> None:
    """The decoder is merged, the tower's bytes are the donor's, the processor's file comes along, and it loads."""
    build, text, prefix = FAMILIES[family]
    torch.manual_seed(0)
    vlm, other = save(build(), tmp_path / "vlm"), save(text(), tmp_path / "text")
    (tmp_path / "vlm" / "preprocessor_config.json").write_text('{"patch_size": 14}')
    rule = "" if prefix == "model." else f"map: {{model.: {prefix}}}"
    base = "base_model: {vlm}\n" if method == "task_arithmetic" else ""
    made = run(
        tmp_path,
        f"""\
merge_method: {method}
{base}models:
  - {{model: {{vlm}}, parameters: {{weight: 0.5}}}}
  - model: {{text}}
    parameters: {{weight: 0.5}}
    {rule}
otherwise: {"base" if base else "first"}
""",
    )
    own = {name.replace("model.", prefix, 1): array for name, array in other.items()}
    assert made.tensors.keys() == vlm.keys() and own.keys() <= vlm.keys()
    for name, array in made.tensors.items():
        if name in own:
            np.testing.assert_allclose(array, (vlm[name] + own[name]) / 2, rtol=1e-5, atol=1e-6)
        else:
            assert array.tobytes() == vlm[name].tobytes() and "visual" in name
    out = tmp_path / "out"
    assert json.loads((out / "preprocessor_config.json").read_text()) == {"patch_size": 14}
    model, info = type(build()).from_pretrained(out, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    ids = torch.tensor([[3, 4, 5, 6]])
    mixed = text()
    mixed.load_state_dict(
        {
            name: torch.tensor((vlm[name.replace("model.", prefix, 1)] + array) / 2)
            for name, array in other.items()
        }
    )
    with torch.no_grad():  # with words alone, the merged decoder is a merged text model
        torch.testing.assert_close(
            model.eval()(input_ids=ids).logits,
            mixed.eval()(input_ids=ids).logits,
            atol=1e-4,
            rtol=1e-4,
        )


def test_encoder_into_t5(tmp_path: Path) -> None:
    """The encoder and the shared table are merged, the decoder is as it was."""
    config = transformers.T5Config(
        vocab_size=64,
        d_model=16,
        d_kv=4,
        d_ff=24,
        num_layers=2,
        num_heads=4,
        tie_word_embeddings=False,
    )
    torch.manual_seed(0)
    whole = save(transformers.T5ForConditionalGeneration(config), tmp_path / "whole")
    encoder = save(transformers.T5EncoderModel(config), tmp_path / "encoder")
    made = run(
        tmp_path,
        """\
merge_method: linear
models:
  - {model: {whole}, parameters: {weight: 0.5}}
  - {model: {encoder}, parameters: {weight: 0.25}}
parameters: {normalize: false}
otherwise: first
""",
    )
    assert made.tensors.keys() == whole.keys()
    for name, array in made.tensors.items():
        if name in encoder:
            wanted = 0.5 * whole[name] + 0.25 * encoder[name]
            np.testing.assert_allclose(array, wanted, rtol=1e-5, atol=1e-6)
        else:
            assert array.tobytes() == whole[name].tobytes()
    _, info = transformers.T5ForConditionalGeneration.from_pretrained(
        tmp_path / "out", output_loading_info=True
    )
    assert not info["missing_keys"] and not info["unexpected_keys"]
