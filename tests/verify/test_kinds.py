"""Every kind of wrong result that a merge once published is found in a sound model made wrong in that way, in one line."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from jmerge.ckpt.source import LocalSource
from jmerge.testing.tiny import llama_config, llama_tensors, write_checkpoint
from jmerge.verify.checks import verify

SIZES: dict[str, Any] = {"layers": 4, "hidden": 8, "vocab": 16}
POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n"
Tensors = dict[str, np.ndarray]
Change = Callable[[Tensors, dict[str, Any]], Any]


def array(*shape: int, dtype: Any = np.float32) -> np.ndarray:
    return np.arange(1, 1 + np.prod(shape, dtype=int)).reshape(shape).astype(dtype)


def lines(folder: Path) -> list[tuple[str, str, str]]:
    """What is found: check, 'problem' or 'note', and the line."""
    (found,) = verify(LocalSource(folder))
    return [
        (check.name, "note" if each.warning else "problem", f"{each.tensor}: {each.message}")
        for check in found.checks
        for each in check.findings
    ]


def renamed(tensors: Tensors, old: str, new: str) -> Tensors:
    """The tensors whose names have `old`, under names with `new` instead."""
    return {name.replace(old, new, 1): each for name, each in tensors.items() if old in name}


def move(tensors: Tensors, old: str, new: str) -> None:
    for name in [name for name in tensors if old in name]:
        tensors[name.replace(old, new, 1)] = tensors.pop(name)


def drop(tensors: Tensors, *words: str) -> None:
    for name in [name for name in tensors if any(word in name for word in words)]:
        del tensors[name]


def layer(name: str, value: np.ndarray) -> Tensors:
    """A tensor in every layer."""
    return {f"model.layers.{i}.{name}": value for i in range(SIZES["layers"])}


def codes(t: Tensors, suffix: str, scale: np.ndarray, dtype: Any = np.int8) -> None:
    for name in [name for name in t if name.endswith("_proj.weight")]:
        t[name] = t[name].astype(dtype)
        t[name.removesuffix("weight") + suffix] = scale


def tower(prefix: str) -> Tensors:
    return {f"{prefix}.{i}.attn.{name}.weight": array(6, 6) for i in (0, 1) for name in "qkv"}


# check, a word of the line, what makes a sound model so
PROBLEMS: list[tuple[str, str, Change]] = [
    # two spellings of one model
    ("names", "two spellings", lambda t, c: t.update(renamed(t, ".mlp.", "._orig_mod.mlp."))),
    ("names", "two spellings", lambda t, c: t.update(renamed(t, "q_proj.weight", "q_proj.base_layer.weight"))),
    ("names", "two spellings", lambda t, c: t.update(renamed(t, "model.", "module.model."))),
    ("names", "two spellings", lambda t, c: t.update({"model.conv.weight_g": array(1), "model.conv.weight_v": array(4, 4),
                                                      "model.conv.parametrizations.weight.original0": array(1),
                                                      "model.conv.parametrizations.weight.original1": array(4, 4)})),
    ("names", "two spellings", lambda t, c: t.update(renamed(t, "model.", "transformer."))),
    ("names", "in one place", lambda t, c: t.update(renamed(t, "norm.weight", "norm.scale"))),
    ("names", "in one place", lambda t, c: t.update(renamed(t, "q_proj.weight", "q_proj_weight"))),
    ("names", "in one place", lambda t, c: t.update(renamed(t, "lm_head.weight", "lm_head"))),
    ("places", "adapter's", lambda t, c: t.update(layer("self_attn.q_proj.lora_A.weight", array(2, 8)))),
    ("layers", "nothing of 'model.layers.1'", lambda t, c: (drop(t, "layers.1.", "layers.3."), c.update(num_hidden_layers=3))),
    ("names", "as 'model.layers'", lambda t, c: t.update(renamed(t, "model.", "model.language_model."))),
    ("names", "as 'model.layers'", lambda t, c: t.update(renamed(t, "model.layers.", "model.other.layers."))),
    ("names", "as 'model.layers'", lambda t, c: (t.update(renamed(t, "model.", "thinker.model.")), t.update(tower("visual.blocks")),
                                                 c.update(architectures=["XForConditionalGeneration"], vision_config={"depth": 2}))),
    ("names", "left over", lambda t, c: move(t, "model.", "_orig_mod.model.")),
    ("names", "left over", lambda t, c: move(t, "model.", "module.model.")),
    ("names", "left over", lambda t, c: move(t, "q_proj.weight", "q_proj.base_layer.weight")),
    # tensors without a place
    ("places", "does not describe", lambda t, c: t.update(tower("vision_tower.encoder.layers"))),
    ("places", "classifier", lambda t, c: t.update({"score.weight": array(1, 8)})),
    ("places", "is a head", lambda t, c: c.update(architectures=["LlamaForSequenceClassification"])),
    ("places", "attention_bias is false", lambda t, c: (t.update(layer("self_attn.q_proj.bias", array(8))), c.update(attention_bias=False))),
    ("places", "mlp_bias is false", lambda t, c: (t.update(layer("mlp.up_proj.bias", array(12))), c.update(mlp_bias=False))),
    ("places", "use_bias is false", lambda t, c: (t.update(layer("mlp.up_proj.bias", array(12))), c.update(use_bias=False))),
    ("places", "attn_bias is false", lambda t, c: (t.update(layer("self_attn.q_proj.bias", array(8))), c.update(attn_bias=False))),
    ("places", "use_mlp_bias is false", lambda t, c: (t.update(layer("mlp.up_proj.bias", array(12))), c.update(use_mlp_bias=False))),
    ("places", "no_bias is true", lambda t, c: (t.update(layer("mlp.up_proj.bias", array(12))), c.update(no_bias=True))),
    ("places", "no_bias is false, and there is no bias", lambda t, c: c.update(no_bias=False)),
    ("places", "attention_bias is true", lambda t, c: c.update(attention_bias=True)),
    # heads, tables, norms
    ("shapes", "no embedding", lambda t, c: drop(t, "embed_tokens")),
    ("shapes", "no embedding", lambda t, c: (drop(t, "embed_tokens", "lm_head"), c.update(architectures=["LlamaForSequenceClassification"]))),
    ("layers", "no norm behind", lambda t, c: drop(t, "model.norm")),
    ("ties", "no head", lambda t, c: drop(t, "lm_head")),
    ("ties", "no head", lambda t, c: (drop(t, "lm_head"), c.update(architectures=["XForConditionalGeneration"]))),
    # config.json and the layers
    ("layers", "num_hidden_layers is 6", lambda t, c: c.update(num_hidden_layers=6)),
    ("layers", "text_config.num_hidden_layers is 6", lambda t, c: (
        t.update(tower("visual.blocks")),
        c.update(vision_config={"depth": 2}, text_config=dict(c, num_hidden_layers=6), architectures=["XForConditionalGeneration"]),
        [c.pop(key) for key in ("num_hidden_layers", "hidden_size", "vocab_size")])),
    ("config", "num_layers is 2, num_hidden_layers 4", lambda t, c: c.update(num_layers=2)),
    ("config", "num_blocks is 2, num_hidden_layers 4", lambda t, c: (move(t, "model.norm", "model.last_norm"), c.update(num_blocks=2),
                                                                      [move(t, f"layers.{i}.", f"blocks.{i}.") for i in range(4)])),
    ("config", "layer_types has 3 entries", lambda t, c: c.update(layer_types=["full_attention"] * 3)),
    ("config", "layer_types has 5 entries", lambda t, c: c.update(layer_types=["full_attention"] * 5)),
    ("config", "hybrid_override_pattern has 3 characters", lambda t, c: c.update(hybrid_override_pattern="M*M")),
    ("config", "names layer 5", lambda t, c: c.update(per_layer_config={"1": {"head_dim": 2}, "5": {"head_dim": 2}})),
    ("config", "neither model_type nor architectures", lambda t, c: (c.clear(), c.update(tie_word_embeddings=False))),
    # weights that are no plain numbers
    ("numbers", "sharded training state", lambda t, c: t.update({n: np.zeros(0, np.float32) for n in t if "_proj" in n})),
    ("numbers", "many weights in one", lambda t, c: t.update({"model.norm.flat_param": array(4)})),
    ("numbers", "quantised", lambda t, c: codes(t, "SCB", array(8))),
    ("numbers", "quantised", lambda t, c: codes(t, "weight.absmax", array(8), np.uint8)),
    ("numbers", "is a scale", lambda t, c: codes(t, "weight_scale", array(1), np.float32)),
    ("numbers", "is a scale", lambda t, c: codes(t, "scale_weight", array(1), np.float32)),
]  # fmt: skip
NOTES: list[tuple[str, str, Change]] = [
    ("config", "no such layers", lambda t, c: c.update(num_nextn_predict_layers=1)),
    ("config", "use_mtp is true and num_mtp_modules is 3", lambda t, c: c.update(use_mtp=True, num_mtp_modules=3)),
    ("config", "names layer 7", lambda t, c: c.update(mlp_only_layers=[1, 7])),
    ("config", "names layer 6", lambda t, c: c.update(window_block_indices=[0, 2, 6])),
    ("numbers", "plain numbers", lambda t, c: c.update(quantization_config={"quant_method": "fp8"})),
]  # fmt: skip


@pytest.mark.parametrize(
    ("level", "check", "word", "change"),
    [("problem", *each) for each in PROBLEMS] + [("note", *each) for each in NOTES],
)
def test_one_line_tells_it(
    level: str, check: str, word: str, change: Change, tmp_path: Path
) -> None:
    tensors, config = llama_tensors(0, **SIZES), llama_config(**SIZES)
    write_checkpoint(tmp_path / "sound", tensors, config)
    assert lines(tmp_path / "sound") == []
    change(tensors, config)
    write_checkpoint(tmp_path / "made", tensors, config)
    found = lines(tmp_path / "made")
    assert [each[:2] for each in found] == [(check, level)] and word in found[0][2], found


@pytest.mark.parametrize("file", ["model.safetensors", "tokenizer.json", "spm.model"])
def test_a_pointer_of_lfs(file: str, tmp_path: Path) -> None:
    write_checkpoint(tmp_path, llama_tensors(0, **SIZES), llama_config(**SIZES))
    (tmp_path / file).write_text(POINTER)
    found = lines(tmp_path)
    assert any("git lfs pull" in line and level == "problem" for _, level, line in found), found


def test_a_file_of_the_tokenizer_that_is_named_and_gone(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, llama_tensors(0, **SIZES), llama_config(**SIZES))
    (tmp_path / "vocab.json").write_text("{}")
    (tmp_path / "tokenizer_config.json").write_text('{"source_spm_file": "source.spm"}')
    assert any("source_spm_file is source.spm" in line for _, _, line in lines(tmp_path))


SOUND: list[Change] = [
    lambda t, c: (t.update(layer("self_attn.q_proj.bias", array(8))), c.update(attention_bias=True)),
    lambda t, c: (t.update(layer("self_attn.o_proj.bias", array(8))), c.update(attention_bias=False)),
    lambda t, c: (t.update({"layers.module.weight": array(3, 3)})),
    lambda t, c: c.update(mlp_only_layers=[8, 9], first_k_dense_replace=1),  # a class's own, in a small model
    lambda t, c: (t.update(layer("mlp.up_proj.weight_scale", array(1))), c.update(quantization_config={"quant_method": "fp8"}),
                  [t.update({n: t[n].astype(np.int8)}) for n in list(t) if "up_proj.weight" in n and "scale" not in n]),
    lambda t, c: (drop(t, "lm_head"), c.update(architectures=["LlamaModel"])),
    lambda t, c: (drop(t, "lm_head"), t.update({"score.weight": array(2, 8)}), c.update(architectures=["LlamaForSequenceClassification"])),
    lambda t, c: (t.update(tower("visual.blocks")), c.update(architectures=["XForConditionalGeneration"], vision_config={"depth": 2})),
    lambda t, c: (t.update(renamed(t, "model.layers", "model.again.layers")), c.update(again_config={"num_hidden_layers": 4})),
    lambda t, c: t.update({"model.router.per_expert_scale": array(4)}),
    lambda t, c: (t.update(layer("self_attn.q_proj.bias", array(8))), c.update(conv_bias=False, attention_out_bias=False, use_expert_bias=True)),
    lambda t, c: t.update({"model.prompts.weight": np.zeros(0, np.float32)}),  # made so
    lambda t, c: t.update({f"model.layers.3.adapter.{n}": np.zeros(s, np.float32) for n, s in (("up.weight", (0, 8)), ("norm.weight", 0), ("alpha.weight", 0))}),
    lambda t, c: ([t.update(renamed(t, "model.", f"text_{side}coder.")) for side in ("en", "de")], drop(t, "model.", "lm_head"),
                  c.update(architectures=["XForQuestionAnswering"])),
]  # fmt: skip


@pytest.mark.parametrize("change", SOUND)
def test_what_looks_like_one_of_these_and_is_none(change: Change, tmp_path: Path) -> None:
    tensors, config = llama_tensors(0, **SIZES), llama_config(**SIZES)
    change(tensors, config)
    write_checkpoint(tmp_path, tensors, config)
    assert [each for each in lines(tmp_path) if each[1] == "problem"] == []
