"""Models of every kind, as transformers saves them, are found sound: a check that cries wolf is not looked at."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from goldens import CONFORMANCE

from jmerge.ckpt.safetensors import encode_header
from jmerge.ckpt.source import LocalSource
from jmerge.dtypes import TensorSpec
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
    assert [each for check in found.checks for each in check.problems] == []
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


def staged(*blocks: int) -> dict[str, tuple[int, ...]]:
    """Stages of so many blocks each, and a module behind all but the last."""
    inside = [layers(f"encoder.stages.{i}.layers", count) for i, count in enumerate(blocks)]
    ends = {f"encoder.stages.{i}.downsample.fc.weight": (16, 16) for i in range(len(blocks) - 1)}
    return {name: shape for each in inside for name, shape in each.items()} | ends


def pyramid(width: int, *stages: tuple[int, int]) -> dict[str, tuple[int, ...]]:
    """Stages of one block each, from `width` to others, through bottlenecks."""
    shapes: dict[str, tuple[int, ...]] = {}
    for i, (narrow, wide) in enumerate(stages):
        block = f"encoder.stages.{i}.layers.0"
        shapes[f"{block}.conv1.weight"] = (narrow, width, 1, 1)
        shapes[f"{block}.conv2.weight"] = (narrow, narrow, 3, 3)
        shapes[f"{block}.conv3.weight"] = (wide, narrow, 1, 1)
        shapes[f"{block}.norm2.weight"] = (narrow,)
        width = wide
    return shapes


FOLDED = ((64, 12), (64, 64), (64, 256), (6144, 128), (48, 6144))

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
    "layers of stages, and a count that no stage reads": (
        staged(2, 1, 3), {"architectures": ["GroupViTVisionModel"], "num_hidden_layers": 5, "depths": [2, 1, 3]},
    ),
    "stages that get wider, the last three with one bottleneck": (
        pyramid(24, (8, 32), (16, 40), (16, 48), (16, 56)), {"architectures": ["BitModel"], "hidden_sizes": [32, 40, 48, 56]},
    ),
    "layers that fold pixels into channels": (
        {f"encoder_layers.{i}.projection.weight": shape for i, shape in enumerate(FOLDED)}
        | {f"encoder_layers.{i}.layer_norm.weight": shape[:1] for i, shape in enumerate(FOLDED[:-1])},
        {"architectures": ["InklingVisionModel"], "num_hidden_layers": 5, "text_hidden_size": 48},
    ),
    "a sequence with a function between its weights": (
        layers("model.layers", 5)
        | {f"resampler.linear.{i}.weight": shape for i, shape in ((0, (16, 16)), (2, (16, 16)), (3, (16,)))}
        | {f"resampler.linear.{i}.bias": (16,) for i in (0, 2, 3)},
        {"architectures": ["ErnieModel"], "num_hidden_layers": 5},
    ),
    "a table of values beside a tied one of tokens": (
        {"model.embed_tokens.word_embeddings.weight": (77, 24), "model.value_embeddings.weight": (77, 32)} | layers("model.layers", 4),
        {"architectures": ["NeoMMEForMaskedLM"], "hidden_size": 16, "embedding_rank": 24, "embedding_dim": 32, "vocab_size": 77, "num_hidden_layers": 4, "tie_word_embeddings": True},
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", ODD)
def test_what_few_models_have_is_sound(kind: str, tmp_path: Path) -> None:
    shapes, config = ODD[kind]
    tensors = {name: np.ones(shape, np.float32) for name, shape in shapes.items()}
    write_checkpoint(tmp_path, tensors, config)
    (found,) = verify(LocalSource(tmp_path))
    assert [each for check in found.checks for each in check.findings] == []


# A problem in one of these, and what the line about it says
DAMAGED: dict[str, tuple[str, Callable[[dict[str, tuple[int, ...]], dict[str, Any]], Any], str]] = {
    "a width that no other tensor of its layer has": (
        "layers that fold pixels into channels",
        lambda shapes, config: shapes.update({"encoder_layers.3.layer_norm.weight": (32,)}),
        "has shape [32]",
    ),
    "a width of the layer, in one more dimension": (
        "stages that get wider, the last three with one bottleneck",
        lambda shapes, config: shapes.update({"encoder.stages.0.layers.0.norm2.weight": (8, 8)}),
        "has shape [8, 8]",
    ),
    "a width of another layer": (
        "stages that get wider, the last three with one bottleneck",
        lambda shapes, config: shapes.update({"encoder.stages.1.layers.0.norm2.weight": (8,), "encoder.stages.0.layers.0.norm2.weight": (16,)}),
        "has shape [8]",
    ),
    "a block that the list counts and the weights lack": (
        "layers of stages, and a count that no stage reads",
        lambda shapes, config: config.update(depths=[2, 2, 3]),
        "num_hidden_layers is 5",
    ),
    "a layer gone, of layers with modules": (
        "a sequence with a function between its weights",
        lambda shapes, config: [shapes.pop(name) for name in [*shapes] if ".layers.2." in name],
        "nothing of 'model.layers.2'",
    ),
    "a head of another width than the table it is tied to": (
        "a table of values beside a tied one of tokens",
        lambda shapes, config: shapes.update({"lm_head.weight": (77, 40)}),
        "the head is F32[77, 40]",
    ),
}  # fmt: skip


@pytest.mark.parametrize("problem", DAMAGED)
def test_a_problem_in_one_of_them_is_found(problem: str, tmp_path: Path) -> None:
    kind, damage, line = DAMAGED[problem]
    shapes, config = (dict(each) for each in ODD[kind])
    damage(shapes, config)
    write_checkpoint(tmp_path, {n: np.ones(s, np.float32) for n, s in shapes.items()}, config)
    (found,) = verify(LocalSource(tmp_path))
    assert [
        each.message for check in found.checks for each in check.problems if line in each.message
    ]


def test_a_chain_reads_and_gives_what_it_likes(tmp_path: Path) -> None:
    """The first of a few plain modules may read another width, the last may give one; one between them may not."""
    sizes = dict.fromkeys(range(12), (24, 24)) | {0: (24, 2), 11: (3, 24)}

    def told() -> list[str]:
        tensors = {f"mlp.layers.{i}.weight": np.ones(size, np.float32) for i, size in sizes.items()}
        config = {"architectures": ["Model"], "mlp_num_layers": 12}
        write_checkpoint(tmp_path, tensors, config)
        (found,) = verify(LocalSource(tmp_path))
        shapes = next(check for check in found.checks if check.name == "shapes")
        return [each.tensor or "" for each in shapes.problems]

    assert told() == []
    sizes[2] = (24, 3)
    assert told() == ["mlp.layers.2.weight"]
