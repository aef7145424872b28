"""Sentence Transformers folders: all their modules merged, and written as they lie in the donor."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from partialkit import SOUP, account, refused, run, write
from safetensors.numpy import load_file
from transformers import BertConfig, BertModel

import jmerge
from jmerge.ckpt.open import open_checkpoint
from jmerge.cli import main
from jmerge.report.inspect import inspect_checkpoint
from jmerge.testing.tiny import write_checkpoint

Tensors = dict[str, np.ndarray]

HIDDEN, OUT, LAYERS = 8, 6, 2
SENTENCE = "sentence_transformers.models."
CONFIG = {
    "architectures": ["BertModel"],
    "model_type": "bert",
    "vocab_size": 20,
    "hidden_size": HIDDEN,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 2,
    "intermediate_size": 12,
    "max_position_embeddings": 16,
    "hidden_act": "gelu",
    "layer_norm_eps": 1e-12,
    "torch_dtype": "float32",
    "tie_word_embeddings": True,
}
DENSE = {
    "in_features": HIDDEN,
    "out_features": OUT,
    "bias": True,
    "activation_function": "torch.nn.modules.activation.Tanh",
}
POOLING = {
    "word_embedding_dimension": HIDDEN,
    "pooling_mode_cls_token": False,
    "pooling_mode_mean_tokens": True,
}


def bert_tensors(seed: int) -> Tensors:
    """What transformers stores of a tiny BERT."""
    torch.manual_seed(seed)
    model = BertModel(BertConfig(**{k: v for k, v in CONFIG.items() if k != "torch_dtype"}))
    return {
        name: np.asarray(value.numpy()) + np.float32(0.01 * seed)
        for name, value in model.state_dict().items()
    }


def dense_tensors(seed: int) -> Tensors:
    rng = np.random.default_rng(seed)
    return {
        "linear.weight": rng.standard_normal((OUT, HIDDEN)).astype(np.float32),
        "linear.bias": rng.standard_normal(OUT).astype(np.float32),
    }


def write_sentence(
    folder: Path,
    seed: int,
    *,
    home: str = "",
    dense: str | None = "2_Dense",
    pooling: dict[str, Any] = POOLING,
    told: dict[str, Any] = DENSE,
    shard_bytes: int = 0,
) -> dict[str, Tensors]:
    """A Sentence Transformers folder by hand, and its tensors by folder."""
    place = folder / home
    write_checkpoint(place, bert_tensors(seed), CONFIG, shard_bytes)
    (place / "tokenizer_config.json").write_text('{"model_max_length": 16}')
    (place / "vocab.txt").write_text("[PAD]\n")
    (place / "sentence_bert_config.json").write_text('{"max_seq_length": 16}')
    (folder / "config_sentence_transformers.json").write_text('{"prompts": {}}')
    modules = [(home, "Transformer"), ("1_Pooling", "Pooling")]
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(pooling))
    parts = {home: bert_tensors(seed)}
    if dense is not None:
        modules.append((dense, "Dense"))
        parts[dense] = dense_tensors(seed)
        write_checkpoint(folder / dense, parts[dense], told)
    modules.append(("9_Normalize", "Normalize"))  # has no files, so git and the Hub have no folder
    entries = [
        {"idx": i, "name": str(i), "path": path, "type": SENTENCE + kind}
        for i, (path, kind) in enumerate(modules)
    ]
    (folder / "modules.json").write_text(json.dumps(entries))
    return parts


def names(parts: dict[str, Tensors], home: str = "") -> Tensors:
    """The tensors as a checkpoint calls them."""
    return {
        (name if folder == home else f"{folder}/{name}"): array
        for folder, tensors in parts.items()
        for name, array in tensors.items()
    }


@pytest.mark.parametrize("shard_bytes", [0, 600])
def test_the_whole_folder(tmp_path: Path, shard_bytes: int) -> None:
    """Transformer and Dense merged by one recipe, each file where it was, and nothing left out of the account."""
    a = write_sentence(tmp_path / "a", 1, shard_bytes=shard_bytes)
    b = write_sentence(tmp_path / "b", 2)
    made = run(tmp_path, SOUP)
    out = tmp_path / "out"
    for folder, tensors in a.items():
        found = load_file(out / folder / "model.safetensors")
        assert found.keys() == tensors.keys()
        for name, array in tensors.items():
            if array.dtype.kind != "f":
                np.testing.assert_array_equal(found[name], array)
                continue
            wanted = (array.astype(np.float64) + 3 * b[folder][name]) / 4
            np.testing.assert_allclose(found[name], wanted, rtol=1e-6, atol=1e-7)
    carried = {
        "modules.json",
        "config_sentence_transformers.json",
        "sentence_bert_config.json",
        "tokenizer_config.json",
        "vocab.txt",
        "1_Pooling/config.json",
        "2_Dense/config.json",
    }
    for name in carried:
        assert (out / name).read_bytes() == (tmp_path / "a" / name).read_bytes()
    files = {path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file()}
    assert files == carried | {
        "README.md",
        "config.json",
        "jmerge.lock.json",
        "mergekit_config.yml",
        "model.safetensors",
        "2_Dense/model.safetensors",
    }
    assert made.config == CONFIG
    assert "library_name: sentence-transformers" in (out / "README.md").read_text()
    account(made, {"a": names(a), "b": names(b)})
    assert made.ledger["files"].keys() >= {"2_Dense/config.json", "1_Pooling/config.json"}
    entry = made.ledger["tensors"]["2_Dense/linear.weight"]
    assert entry["file"] == "2_Dense/model.safetensors" and entry["method"] == "linear"


def test_it_computes_what_it_should(tmp_path: Path) -> None:
    """Read as its modules.json says, the output gives the sentence vectors of the merged weights."""
    write_sentence(tmp_path / "a", 1)
    write_sentence(tmp_path / "b", 2)
    run(tmp_path, SOUP)
    ids = torch.tensor([[1, 2, 3]])
    found = encode(tmp_path / "out", ids)
    mixed = {
        folder: {
            name: torch.tensor((array + 3 * other[name]) / 4) for name, array in tensors.items()
        }
        for (folder, tensors), other in zip(
            {"": bert_tensors(1), "2_Dense": dense_tensors(1)}.items(),
            (bert_tensors(2), dense_tensors(2)),
            strict=True,
        )
    }
    model = BertModel(BertConfig(**{k: v for k, v in CONFIG.items() if k != "torch_dtype"})).eval()
    model.load_state_dict(mixed[""])
    wanted = head(model(ids).last_hidden_state, mixed["2_Dense"])
    torch.testing.assert_close(found, wanted)


def encode(folder: Path, ids: torch.Tensor) -> torch.Tensor:
    """The vector of a sentence, by the modules that a folder lists."""
    kinds = {
        each["type"].rpartition(".")[2]: each["path"]
        for each in json.loads((folder / "modules.json").read_text())
    }
    assert list(kinds) == ["Transformer", "Pooling", "Dense", "Normalize"]
    model, info = BertModel.from_pretrained(folder / kinds["Transformer"], output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    dense = load_file(folder / kinds["Dense"] / "model.safetensors")
    with torch.no_grad():
        states = model.eval()(ids).last_hidden_state
    return head(states, {name: torch.tensor(array) for name, array in dense.items()})


def head(states: torch.Tensor, dense: dict[str, torch.Tensor]) -> torch.Tensor:
    mean = states.mean(1)
    made = torch.tanh(mean @ dense["linear.weight"].T + dense["linear.bias"])
    return torch.nn.functional.normalize(made, dim=-1).detach()


def test_the_transformer_in_a_folder(tmp_path: Path) -> None:
    """The layout is the donor's, whatever that of the others; config.json and an index lie with the weights."""
    a = write_sentence(tmp_path / "a", 1, home="0_Transformer")
    b = write_sentence(tmp_path / "b", 2)
    made = run(tmp_path, SOUP + "dtype: float16\n")
    out = tmp_path / "out"
    config = json.loads((out / "0_Transformer" / "config.json").read_text())
    assert config == CONFIG | {"torch_dtype": "float16"} and not (out / "config.json").exists()
    (change,) = made.ledger["config"]
    assert change["file"] == "0_Transformer/config.json"
    found = load_file(out / "0_Transformer" / "model.safetensors")
    key = "encoder.layer.1.output.dense.weight"
    np.testing.assert_allclose(
        found[key], (a["0_Transformer"][key] + 3 * b[""][key]) / 4, rtol=2e-3, atol=1e-3
    )
    assert (out / "0_Transformer" / "vocab.txt").exists()
    account(made, {"a": names(a, "0_Transformer"), "b": names(b)})
    sharded = tmp_path / "sharded"
    jmerge.merge(tmp_path / "x.yml", sharded, shard_size=1500)
    index = json.loads((sharded / "0_Transformer" / "model.safetensors.index.json").read_text())
    assert index["weight_map"].keys() == a["0_Transformer"].keys()
    reread = open_checkpoint(sharded)
    assert set(reread) == names(a, "0_Transformer").keys()
    assert (
        reread["2_Dense/linear.bias"].tobytes()
        == load_file(out / "2_Dense" / "model.safetensors")["linear.bias"].tobytes()
    )


def test_other_methods(tmp_path: Path) -> None:
    """Parameters, patterns and several outputs see the Dense module by its folder's name."""
    parts = {
        name: names(write_sentence(tmp_path / name, i)) for i, name in enumerate(("base", "a", "b"))
    }
    recipe = """\
merge_method: task_arithmetic
base_model: {base}
models:
  - {model: {a}, parameters: {weight: [{filter: 2_Dense/, value: 0.25}, {value: 1}]}}
except: ['*LayerNorm*']
"""
    made = run(tmp_path, recipe)
    for name, weight in {"2_Dense/linear.weight": 0.25, "pooler.dense.weight": 1.0}.items():
        base, a = parts["base"][name], parts["a"][name]
        np.testing.assert_allclose(
            made.tensors[name], base + weight * (a - base), rtol=1e-5, atol=1e-6
        )
    (tmp_path / "out").rename(tmp_path / "old")
    emr = "merge_method: emr\nbase_model: {base}\nmodels:\n- model: {a}\n- model: {b}\n"
    made = run(tmp_path, emr)
    for model in ("a", "b"):
        folder = tmp_path / "out" / model
        assert (folder / "2_Dense" / "config.json").exists() and (folder / "config.json").exists()
        both = {"a", "b"} - {model}
        found = made.tensors[f"{model}/2_Dense/linear.weight"]
        own, other = (parts[each]["2_Dense/linear.weight"] for each in (model, *both))
        base = parts["base"]["2_Dense/linear.weight"]
        # what is given back to a model has the signs of its own change, and nothing where the elected one has others
        assert np.all((found - base) * (own - base) >= -1e-6) and not np.allclose(found, other)


def test_other_folders(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A module that the donor has not is refused, and mapped or left out as other tensors are."""
    a = names(write_sentence(tmp_path / "a", 1))
    b = names(write_sentence(tmp_path / "b", 2, dense="3_Dense"))
    (error,) = refused(tmp_path, SOUP, capsys)
    assert error == (
        "error: x.yml:5: models[1].model: 3_Dense/linear.weight of b is not a tensor of a "
        "(as are 1 more); map it to one, or leave it out with 'except: ['3_Dense/linear.*']'"
    )
    made = run(tmp_path, SOUP.replace("{b}\n", "{b}\n    map: {3_Dense/: 2_Dense/}\n"))
    wanted = (a["2_Dense/linear.bias"] + 3 * b["3_Dense/linear.bias"]) / 4
    np.testing.assert_allclose(made.tensors["2_Dense/linear.bias"], wanted, rtol=1e-6)
    (tmp_path / "out").rename(tmp_path / "old")
    made = run(tmp_path, SOUP + "except: ['3_Dense/*', '2_Dense/*']\n")
    assert made.tensors["2_Dense/linear.bias"].tobytes() == a["2_Dense/linear.bias"].tobytes()
    assert not (tmp_path / "out" / "3_Dense").exists()


def test_a_plain_transformer_beside_it(tmp_path: Path) -> None:
    """A model that is no Sentence Transformers folder gives its share of the transformer."""
    a = names(write_sentence(tmp_path / "a", 1))
    write_checkpoint(tmp_path / "b", bert_tensors(2), CONFIG)
    made = run(tmp_path, SOUP + "otherwise: first\n")
    for name, array in a.items():
        if "/" in name:
            assert made.tensors[name].tobytes() == array.tobytes()
    wanted = (a["pooler.dense.bias"] + 3 * bert_tensors(2)["pooler.dense.bias"]) / 4
    np.testing.assert_allclose(made.tensors["pooler.dense.bias"], wanted, rtol=1e-6)


def test_conflicts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Another pooling or activation is refused; other lengths and prompts are told."""
    write_sentence(tmp_path / "a", 1)
    write_sentence(
        tmp_path / "b",
        2,
        pooling={"pooling_mode": "cls", "include_prompt": True},
        told=DENSE | {"activation_function": "torch.nn.modules.linear.Identity"},
    )
    (tmp_path / "b" / "sentence_bert_config.json").write_text('{"max_seq_length": 8}')
    lines = refused(tmp_path, SOUP, capsys)
    assert [line.split("; ")[0] for line in lines if line.startswith("error")] == [
        "error: x.yml:5: models[1].model: 1_Pooling.pooling_mode is ['cls'] in b and ['mean'] in a",
        "error: x.yml:5: models[1].model: 2_Dense.activation_function is "
        "torch.nn.modules.linear.Identity in b and torch.nn.modules.activation.Tanh in a",
    ]
    made = run(tmp_path, SOUP + "allow_conflicts: [pooling_mode, activation_function]\n")
    (warning,) = made.ledger["warnings"]
    assert "max_seq_length 8 (output: 16)" in warning


def test_inspect(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`jmerge inspect` counts a Dense module by its folder, and the command says how to load the result."""
    write_sentence(tmp_path / "a", 1)
    found = inspect_checkpoint(open_checkpoint(tmp_path / "a"))
    assert found["parts"]["2_Dense"]["parameters"] == OUT * HIDDEN + OUT
    assert found["modules"] == ["default"]
    (tmp_path / "x.yml").write_text(
        f"merge_method: passthrough\nmodels: [{{model: '{tmp_path / 'a'}'}}]\ndtype: float16\n"
    )
    assert main([str(tmp_path / "x.yml"), str(tmp_path / "out"), "--verbose"]) == 0
    out = capsys.readouterr().out
    assert "SentenceTransformer('" in out and "config.json: torch_dtype: " in out


def test_a_static_embedding(tmp_path: Path) -> None:
    """The first module with weights is the model, of whatever kind; here without any config.json."""
    for seed, name in enumerate("ab"):
        table = np.random.default_rng(seed).standard_normal((20, 8)).astype(np.float32)
        write_checkpoint(tmp_path / name / "0_StaticEmbedding", {"embedding.weight": table})
        (tmp_path / name / "0_StaticEmbedding" / "tokenizer.json").write_text("{}")
        entries = [{"path": "0_StaticEmbedding/", "type": SENTENCE + "StaticEmbedding"}]
        (tmp_path / name / "modules.json").write_text(json.dumps(entries))
    jmerge.merge(write(tmp_path, SOUP), tmp_path / "out")
    a, b = (
        load_file(tmp_path / name / "0_StaticEmbedding" / "model.safetensors")["embedding.weight"]
        for name in "ab"
    )
    made = load_file(tmp_path / "out" / "0_StaticEmbedding" / "model.safetensors")
    np.testing.assert_allclose(made["embedding.weight"], (a + 3 * b) / 4, rtol=1e-6)
    assert (tmp_path / "out" / "0_StaticEmbedding" / "tokenizer.json").exists()


# Bad input

BAD = {
    "modules.json": {
        "{": "modules.json: is not valid JSON",
        "{}": "modules.json: is not a list of modules",
        "[]": "modules.json: is not a list of modules",
        '[{"path": ""}]': "modules.json: lists a module without path or type",
        '[{"path": "../x", "type": "m.Dense"}]': "names a folder that is not in the model's: '../x'",
        '[{"path": "/x", "type": "m.Dense"}]': "names a folder that is not in the model's: '/x'",
        '[{"path": "a/b", "type": "m.Dense"}]': "names a folder that is not in the model's: 'a/b'",
        '[{"path": "", "type": "m.Router"}]': "lists a Router, whose branches cannot be merged",
        '[{"path": "", "type": "m.Transformer"}, {"path": "4_Dense", "type": "m.Dense"}]': (
            "4_Dense: holds no model.safetensors"
        ),
    },
    "2_Dense/config.json": {"{": "2_Dense/config.json: is not valid JSON"},
    "2_Dense/model.safetensors": {"{": "2_Dense/model.safetensors: its header claims"},
    "config.json": {"[]": "config.json: is not a JSON object"},
    "config_sentence_transformers.json": {"": "config_sentence_transformers.json: is not valid"},
    "sentence_bert_config.json": {"nul": "sentence_bert_config.json: is not valid JSON"},
    "generation_config.json": {"\x00": "generation_config.json: is not valid JSON"},
}


@pytest.mark.parametrize(("name", "text"), [(name, text) for name in BAD for text in BAD[name]])
def test_bad_input(
    tmp_path: Path, name: str, text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Refused in one line at the model's line of the recipe, with nothing left behind."""
    for seed, model in enumerate("ab"):
        write_sentence(tmp_path / model, seed)
    (tmp_path / "a" / name).write_text(text)
    (error,) = refused(tmp_path, SOUP, capsys)
    assert error.startswith("error: x.yml:3: models[0].model: ") and BAD[name][text] in error


def test_pickled_dense(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Weights of a module that cannot be read are not left out."""
    for seed, model in enumerate("ab"):
        write_sentence(tmp_path / model, seed)
    (tmp_path / "b" / "2_Dense" / "model.safetensors").rename(
        tmp_path / "b" / "2_Dense" / "pytorch_model.bin"
    )
    (error,) = refused(tmp_path, SOUP, capsys)
    assert (
        "2_Dense: has only pickled weights (pytorch_model.bin); convert them to safetensors first"
        in error
    )
