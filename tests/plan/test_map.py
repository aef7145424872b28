"""`map`: models of another structure merged into the part of the donor that they are like."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from partialkit import Made, account, refused, run

import jmerge
from jmerge.plan.pairing import rename
from jmerge.testing.tiny import llama_config, llama_tensors, write_checkpoint, write_llama

Tensors = dict[str, np.ndarray]


def vlm_tensors(seed: int, **sizes: Any) -> Tensors:
    """A Qwen3-VL-shaped model: a decoder inside, a tower, a head outside."""
    rng = np.random.default_rng(100 + seed)
    tensors = {
        name.replace("model.", "model.language_model.", 1): array
        for name, array in llama_tensors(seed, **sizes).items()
    }
    for i in range(3):
        tensors[f"model.visual.blocks.{i}.attn.qkv.weight"] = rng.standard_normal((18, 6))
        tensors[f"model.visual.blocks.{i}.norm1.weight"] = rng.standard_normal(6)
    tensors["model.visual.merger.linear_fc1.weight"] = rng.standard_normal((8, 6))
    return {name: array.astype(np.float32) for name, array in tensors.items()}


def vlm_config(**sizes: Any) -> dict[str, Any]:
    text = llama_config(**sizes)
    tied = text.pop("tie_word_embeddings")
    del text["architectures"]
    return {
        "architectures": ["Qwen3VLForConditionalGeneration"],
        "model_type": "qwen3_vl",
        "torch_dtype": "float32",
        "tie_word_embeddings": tied,
        "text_config": text,
        "vision_config": {"depth": 3, "hidden_size": 6},
    }


RULE = "map: {model.: model.language_model.}"
INTO_VLM = f"""\
merge_method: linear
models:
  - model: {{vlm}}
    parameters: {{weight: 0.75}}
  - model: {{text}}
    {RULE}
    parameters: {{weight: 0.5}}
parameters: {{normalize: false}}
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A vision-language model and a text model like its decoder."""
    write_checkpoint(tmp_path / "vlm", vlm_tensors(0), vlm_config())
    write_llama(tmp_path / "text", 1)
    return tmp_path


def own(name: str) -> str:
    """The name in the text model."""
    return name.replace("model.language_model.", "model.", 1)


def check_decoder(made: Made, vlm: Tensors, text: Tensors) -> None:
    """The decoder merged 0.75 : 0.5, and all that the text model has not as it was, to the bit."""
    assert made.tensors.keys() == vlm.keys()
    for name, array in made.tensors.items():
        if "visual" in name:
            assert array.tobytes() == vlm[name].tobytes()
            assert made.ledger["tensors"][name]["method"] == "copy"
        else:
            wanted = 0.75 * vlm[name] + 0.5 * text[own(name)]
            np.testing.assert_allclose(array, wanted, rtol=1e-5, atol=1e-6)


def test_text_model_into_a_vision_language_model(folder: Path) -> None:
    """Layers, embedding, norm and head are merged; the tower is not even multiplied by its weight."""
    made = run(folder, INTO_VLM)
    vlm, text = vlm_tensors(0), llama_tensors(1)
    check_decoder(made, vlm, text)
    account(made, {"vlm": vlm, "text": text})
    note = made.ledger["tensors"]["model.visual.merger.linear_fc1.weight"]["note"]
    assert "as in" in note and "not in" in note
    assert made.ledger["warnings"] == [] and made.config == vlm_config()


def test_task_vectors_of_text_models(folder: Path) -> None:
    """The change of a text model is added to a decoder: three models, two of them mapped."""
    write_llama(folder / "tuned", 2)
    made = run(
        folder,
        f"""\
merge_method: linear
models:
  - {{model: {{vlm}}, parameters: {{weight: 1}}}}
  - {{model: {{tuned}}, parameters: {{weight: 1}}, {RULE}}}
  - {{model: {{text}}, parameters: {{weight: -1}}, {RULE}}}
parameters: {{normalize: false}}
""",
    )
    vlm, text, tuned = vlm_tensors(0), llama_tensors(1), llama_tensors(2)
    for name, array in made.tensors.items():
        wanted = vlm[name]
        if "visual" not in name:
            wanted = vlm[name] + tuned[own(name)] - text[own(name)]
        np.testing.assert_allclose(array, wanted, rtol=1e-5, atol=1e-5)


def test_methods_of_changes(folder: Path) -> None:
    """With the vision-language model as the base, methods on changes work alike, and `only` picks layers."""
    made = run(
        folder,
        f"""\
merge_method: task_arithmetic
base_model: {{vlm}}
models:
  - {{model: {{text}}, {RULE}, parameters: {{weight: 0.5}}}}
only: ['model.language_model.layers.1.*']
""",
    )
    vlm, text = vlm_tensors(0), llama_tensors(1)
    for name, array in made.tensors.items():
        wanted = vlm[name]
        if "language_model.layers.1." in name:
            wanted = vlm[name] + 0.5 * (text[own(name)] - vlm[name])
        np.testing.assert_allclose(array, wanted, rtol=1e-5, atol=1e-6)


def test_in_slices_and_modules(folder: Path) -> None:
    """Sources of slices are mapped too; the decoder's slices count the text model's layers."""
    made = run(
        folder,
        f"""\
merge_method: passthrough
modules:
  text_decoder:
    slices:
      - sources: [{{model: {{vlm}}, layer_range: [0, 2]}}]
      - sources: [{{model: {{text}}, layer_range: [1, 2], {RULE}}}]
  vision_tower:
    models: [{{model: {{vlm}}}}]
  multi_modal_projector:
    models: [{{model: {{vlm}}}}]
""",
    )
    vlm, text = vlm_tensors(0), llama_tensors(1)
    added = "model.language_model.layers.2.mlp.up_proj.weight"
    assert made.tensors[added].tobytes() == text["model.layers.1.mlp.up_proj.weight"].tobytes()
    assert made.tensors["lm_head.weight"].tobytes() == text["lm_head.weight"].tobytes()
    assert made.config["text_config"]["num_hidden_layers"] == 3
    account(made, {"vlm": vlm, "text": text})


@pytest.mark.parametrize("who", ["vlm", "text"])
def test_heads(tmp_path: Path, who: str) -> None:
    """Where one of the two ties its head, the output has a head of its own, made of both."""
    vlm, text = vlm_tensors(0, tied=who == "vlm"), llama_tensors(1, tied=who == "text")
    write_checkpoint(tmp_path / "vlm", vlm, vlm_config(tied=who == "vlm"))
    write_checkpoint(tmp_path / "text", text, llama_config(tied=who == "text"))
    made = run(tmp_path, INTO_VLM)
    table = "model.language_model.embed_tokens.weight"
    one = vlm.get("lm_head.weight", vlm[table])
    other = text.get("lm_head.weight", text[own(table)])
    wanted = 0.75 * one + 0.5 * other
    np.testing.assert_allclose(made.tensors["lm_head.weight"], wanted, rtol=1e-5, atol=1e-6)
    assert made.config["tie_word_embeddings"] is False


def test_mapped_heads(tmp_path: Path) -> None:
    """A rule may carry the head along: it is the head all the same."""
    vlm = {
        f"language_model.{name}": array for name, array in llama_tensors(0, tied=True).items()
    } | {"vision_tower.layers.0.norm.weight": np.ones(6, np.float32)}
    vlm["vision_tower.layers.1.norm.weight"] = np.ones(6, np.float32)
    config = {
        "architectures": ["LlavaForConditionalGeneration"],
        "text_config": llama_config(tied=True),
        "vision_config": {"num_hidden_layers": 2},
    }
    write_checkpoint(tmp_path / "vlm", vlm, config)
    write_llama(tmp_path / "text", 1)
    made = run(tmp_path, INTO_VLM.replace(RULE, "map: {'': language_model.}"))
    text, table = llama_tensors(1), vlm["language_model.model.embed_tokens.weight"]
    np.testing.assert_allclose(
        made.tensors["language_model.lm_head.weight"],
        0.75 * table + 0.5 * text["lm_head.weight"],
        rtol=1e-5,
        atol=1e-6,
    )


# An encoder into an encoder-decoder


def t5_tensors(seed: int, decoder: bool = True) -> Tensors:
    rng = np.random.default_rng(seed)
    shapes: dict[str, tuple[int, ...]] = {"shared.weight": (16, 8)}
    for side, layers in {"encoder": 3, **({"decoder": 2} if decoder else {})}.items():
        for i in range(layers):
            shapes[f"{side}.block.{i}.layer.0.SelfAttention.q.weight"] = (8, 8)
            shapes[f"{side}.block.{i}.layer.0.layer_norm.weight"] = (8,)
        shapes[f"{side}.final_layer_norm.weight"] = (8,)
    if decoder:
        shapes["lm_head.weight"] = (16, 8)
    return {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}


T5 = {
    "architectures": ["T5ForConditionalGeneration"],
    "num_layers": 3,
    "num_decoder_layers": 2,
    "vocab_size": 16,
    "tie_word_embeddings": False,
}
ENCODER = T5 | {"architectures": ["T5EncoderModel"]}


@pytest.mark.parametrize("inside", [False, True])
def test_encoder_into_an_encoder_decoder(tmp_path: Path, inside: bool) -> None:
    """Encoder and shared table are merged; decoder and head, which an encoder has not, are as they were."""
    whole, encoder = t5_tensors(0), t5_tensors(1, decoder=False)
    write_checkpoint(tmp_path / "whole", whole, T5)
    prefix = "text_encoder." if inside else ""
    stored = {prefix + name: array for name, array in encoder.items()}
    write_checkpoint(tmp_path / "encoder", stored, ENCODER)
    rule = "map: {text_encoder.: ''}" if inside else ""
    made = run(
        tmp_path,
        f"""\
merge_method: linear
models:
  - model: {{whole}}
    parameters: {{weight: 0.25}}
  - model: {{encoder}}
    parameters: {{weight: 0.5}}
    {rule}
parameters: {{normalize: false}}
otherwise: first
""",
    )
    assert made.tensors.keys() == whole.keys()
    for name, array in made.tensors.items():
        if name in encoder:
            wanted = 0.25 * whole[name] + 0.5 * encoder[name]
            np.testing.assert_allclose(array, wanted, rtol=1e-5, atol=1e-6)
        else:
            assert array.tobytes() == whole[name].tobytes()
    account(made, {"whole": whole, "encoder": stored})


# Problems


def test_without_a_map(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The line that is missing is written out, and does."""
    recipe = INTO_VLM.replace(f"    {RULE}\n", "")
    (error,) = refused(folder, recipe, capsys)
    assert error == (
        "error: x.yml:5: models[1].model: no layer of text is called like one of vlm "
        "(model.layers.0.self_attn.q_proj.weight, "
        "model.language_model.layers.0.self_attn.q_proj.weight); "
        "write 'map: {model.: model.language_model.}' beside the model"
    )


@pytest.mark.parametrize(
    ("rule", "said"),
    {
        "map: {modle.: model.language_model.}": [
            "error: x.yml:6: models[1].map.modle.: no tensor of text starts with 'modle.'; "
            "did you mean 'model.'?",
        ],
        "map: {model.: 5}": [
            "error: x.yml:6: models[1].map: 'model.': expected the start of tensor names, found 5"
        ],
        "map: model.": [
            "error: x.yml:6: models[1].map: expected {prefix: prefix of the output's names, ...}, "
            "found 'model.'"
        ],
        "map: {model.: model.language_model., model.norm.: lm_head.}": [
            "error: x.yml:6: models[1].map: gives two tensors of text one name: lm_head.weight "
            "and model.norm.weight become lm_head.weight"
        ],
        "mpa: {model.: x.}": ["error: x.yml:6: models[1].mpa: unknown key; did you mean 'map'?"],
    }.items(),
)
def test_problems(
    folder: Path, rule: str, said: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert refused(folder, INTO_VLM.replace(RULE, rule), capsys) == said


def test_maps_that_cannot_be(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The donor's names are the output's; one model has one map. Both are said at once."""
    recipe = INTO_VLM.replace("weight: 0.75}", "weight: 1}\n    map: {model.: x.}")
    recipe = recipe.replace(
        "parameters: {normalize",
        "  - {model: {text}, map: {model.: y.}, parameters: {weight: 1}}\nparameters: {normalize",
    )
    lines = [line for line in refused(folder, recipe, capsys) if line.startswith("error")]
    assert lines == [
        "error: x.yml:5: models[0].map: the output has the names of vlm; write the map of the "
        "other models, from their names to its",
        "error: x.yml:9: models[2].map: 'text' has another map elsewhere in the recipe",
    ]


def test_tensors_without_a_counterpart(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What the vision-language model has nothing for is refused with the line that leaves it out, which works."""
    text = llama_tensors(1) | {"score.weight": np.ones((3, 8), np.float32)}
    text |= {f"model.layers.{i}.mlp.gate.bias": np.ones(8, np.float32) for i in range(2)}
    buffer = "model.layers.0.self_attn.rotary_emb.inv_freq"
    write_checkpoint(folder / "text", text | {buffer: np.ones(2, np.float32)}, llama_config())
    (error,) = refused(folder, INTO_VLM, capsys)
    assert error == (
        "error: x.yml:6: models[1].map: model.layers.0.mlp.gate.bias of text, mapped to "
        "model.language_model.layers.0.mlp.gate.bias, is not a tensor of vlm (as are 2 more); "
        "map it to one, or leave it out with "
        "'except: [model.language_model.layers.*.mlp.gate.bias, score.weight]'"
    )
    made = run(folder, f"{INTO_VLM}{error.rsplit(' with ')[1][1:-1]}\n")
    check_decoder(made, vlm_tensors(0), llama_tensors(1))
    reasons = {each["tensor"]: each["reason"] for each in made.ledger["unused"]}
    assert "in 'except'" in reasons["score.weight"] and "a buffer" in reasons[buffer]


def test_otherwise_error(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`error` is for merges that must cover everything."""
    (error,) = refused(folder, INTO_VLM + "otherwise: error\n", capsys)
    assert "model.visual.blocks.0.attn.qkv.weight and 6 more: not in text, so not merged" in error


def test_depths_and_widths(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Other depths are refused with their numbers, other widths with the first shapes, before anything is read."""
    write_llama(folder / "text", 1, layers=4)
    (error,) = refused(folder, INTO_VLM, capsys)
    assert error.endswith(
        "all models need equally many layers, but vlm has 2, text has 4; pick layers with 'slices:'"
    )
    write_llama(folder / "text", 1, layers=4, hidden=16)
    (error,) = refused(folder, INTO_VLM, capsys)
    assert error.endswith(
        "vlm has 2, text has 4, and layers of different sizes cannot be merged "
        "(model.layers.0.input_layernorm.weight is [16] in text and [8] in vlm)"
    )
    write_llama(folder / "text", 1, hidden=16)
    (error,) = refused(folder, INTO_VLM, capsys)
    assert "is [16, 16] in text and [16, 8] in vlm (21 tensors differ)" in error
    assert error.endswith("models of different sizes cannot be merged")


def test_filters_see_the_models_own_names(folder: Path) -> None:
    """Numbers of one model are looked up by its own names."""
    recipe = INTO_VLM.replace(
        "{weight: 0.5}", "{weight: [{filter: model.layers.0.mlp, value: 0}, {value: 0.5}]}"
    )
    (folder / "x.yml").write_text(
        recipe.replace("{vlm}", str(folder / "vlm")).replace("{text}", str(folder / "text"))
    )
    hyperparameters = {
        step.name: step.hyperparameters for step in jmerge.plan(folder / "x.yml").steps
    }
    up = "model.language_model.layers.{}.mlp.up_proj.weight"
    assert hyperparameters[up.format(0)]["weight"] == (0.75, 0.0)
    assert hyperparameters[up.format(1)]["weight"] == (0.75, 0.5)


def test_rules() -> None:
    """The longest prefix decides."""
    rules = {"model.": "a.", "model.layers.": "b.", "": "c."}
    assert rename("model.layers.{}.x", rules) == "b.{}.x"
    assert rename("model.norm", rules) == "a.norm" and rename("head", rules) == "c.head"
    assert rename("head", {"model.": "a."}) == "head"
