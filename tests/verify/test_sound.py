"""Models of every kind, as transformers saves them, are found sound: a check that cries wolf is not looked at."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from goldens import CONFORMANCE

from jmerge.ckpt.dtypes import TensorSpec
from jmerge.ckpt.safetensors import encode_header
from jmerge.ckpt.source import LocalSource
from jmerge.testing.tiny import write_checkpoint
from jmerge.verify.checks import verify

HEADERS = json.loads((CONFORMANCE / "arch_headers.json").read_text())


@pytest.mark.parametrize("name", HEADERS)
def test_a_model_of_transformers_is_sound(name: str, tmp_path: Path) -> None:
    model = HEADERS[name]
    specs = {key: TensorSpec("F32", tuple(shape)) for key, shape in model["tensors"].items()}
    with (tmp_path / "model.safetensors").open("wb") as file:
        head = encode_header(specs)
        file.write(head)
        file.truncate(len(head) + sum(spec.nbytes for spec in specs.values()))
    (tmp_path / "config.json").write_text(json.dumps(model["config"]))
    (found,) = verify(LocalSource(tmp_path))
    assert [each for check in found.checks for each in check.faults] == []
    # classes that keep the default ids of a large vocabulary at a tiny size
    strange = [each for check in found.checks for each in check.findings]
    assert all("token_id is 50256" in each.message for each in strange)


def test_two_layers_of_two_kinds_are_layers(tmp_path: Path) -> None:
    """Too unlike for a stack, as the first layers of a hybrid are."""
    names = {
        0: ("mamba.in_proj", "mamba.out_proj", "mamba.x_proj", "mamba.dt_proj"),
        1: ("attn.q_proj", "attn.k_proj", "attn.v_proj", "attn.o_proj"),
    }
    tensors = {
        f"model.layers.{i}.{name}.weight": np.ones((8, 8), np.float32)
        for i, each in names.items()
        for name in each
    }
    config = {"architectures": ["HybridModel"], "num_hidden_layers": 2, "hidden_size": 8}
    write_checkpoint(tmp_path, tensors, config)
    (found,) = verify(LocalSource(tmp_path))
    assert [each for check in found.checks for each in check.findings] == []


def layers(prefix: str, count: int, *more: str) -> dict[str, tuple[int, ...]]:
    return {
        f"{prefix}.{i}.mlp.{name}.weight": (16, 16)
        for i in range(count)
        for name in ("up", "down", *more)
    }


# What models of transformers have that others have not: shapes, and what config.json says
ODD: dict[str, tuple[dict[str, tuple[int, ...]], dict[str, Any]]] = {
    "a head that reads two streams": (
        {"reformer.embeddings.word_embeddings.weight": (77, 16), "lm_head.decoder.weight": (77, 32)} | layers("reformer.encoder.layers", 6),
        {"architectures": ["ReformerForMaskedLM"], "hidden_size": 16, "vocab_size": 77, "num_hidden_layers": 6},
    ),
    "one table for text and codes": (
        {"embed_tokens.embed_tokens.weight": (77 + 4 * 20 + 1, 16)} | layers("layers", 6),
        {"architectures": ["KyutaiSpeechToTextModel"], "hidden_size": 16, "vocab_size": 77, "codebook_vocab_size": 20, "num_codebooks": 4, "num_hidden_layers": 6},
    ),
    "a count of passes": (
        {"model.embed_tokens.weight": (77, 16), "lm_head.weight": (77, 16)} | layers("model.H_module.layers", 4) | layers("model.L_module.layers", 4),
        {"architectures": ["HrmTextForCausalLM"], "hidden_size": 16, "vocab_size": 77, "num_layers_per_stack": 4, "H_cycles": 2, "L_cycles": 3, "num_hidden_layers": 32},
    ),
    "a first layer that reads frames": (
        {f"layers.{i}.self_attn.q_proj.weight": (16, 24 if i == 0 else 16) for i in range(8)},
        {"architectures": ["FunAsrNanoEncoder"], "hidden_size": 16, "num_mel_bins": 8, "num_stacked_frames": 3, "num_hidden_layers": 8},
    ),
    "rows for learned prompts": (
        {"cpmant.input_embedding.weight": (77 + 32 * 32, 16)} | layers("cpmant.encoder.layers", 4),
        {"architectures": ["CpmAntModel"], "hidden_size": 16, "vocab_size": 77, "prompt_types": 32, "prompt_length": 32, "num_hidden_layers": 4},
    ),
    "a table in two": (
        {"wte.embedding": (77, 16), "wte.new_embedding": (5, 16)} | layers("blocks", 4),
        {"architectures": ["Molmo2TextModel"], "hidden_size": 16, "vocab_size": 77, "additional_vocab_size": 5, "num_hidden_layers": 4},
    ),
    "a table of another width": (
        {"embed_tokens.word_embeddings.weight": (77, 4), "value_embeddings.weight": (77, 4)} | layers("layers", 4),
        {"architectures": ["NeoMMEModel"], "hidden_size": 16, "embedding_rank": 4, "vocab_size": 77, "num_hidden_layers": 4},
    ),
    "inputs of all layers side by side": (
        {"model.embed_tokens.weight": (77, 16), "model.embed_tokens_per_layer.weight": (77, 4 * 8)} | layers("model.layers", 4),
        {"architectures": ["Gemma4ForCausalLM"], "hidden_size": 16, "hidden_size_per_layer_input": 8, "vocab_size": 77, "num_hidden_layers": 4},
    ),
    "guesses before the first layer": (
        layers("model.decoder.layers", 5), {"architectures": ["Mask2FormerModel"], "decoder_layers": 6},
    ),
    "layers of stages": (
        {f"encoder.stages.{i}.layers.{j}.w.weight": (16, 16) for i in range(3) for j in range(4)},
        {"architectures": ["GroupViTVisionModel"], "num_hidden_layers": 12, "depths": [4, 4, 4]},
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", ODD)
def test_what_few_models_have_is_sound(kind: str, tmp_path: Path) -> None:
    shapes, config = ODD[kind]
    tensors = {name: np.ones(shape, np.float32) for name, shape in shapes.items()}
    write_checkpoint(tmp_path, tensors, config)
    (found,) = verify(LocalSource(tmp_path))
    assert [each for check in found.checks for each in check.findings] == []
