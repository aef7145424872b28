"""The ledger: every tensor accounted for, every byte checksummed, nothing about the run."""

from __future__ import annotations

import datetime
import json
import re
import socket
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import jmerge
from jmerge.ckpt.writer import LEDGER
from jmerge.testing.tiny import (
    llama_config,
    llama_tensors,
    write_checkpoint,
    write_llama,
)

Ledger = dict[str, Any]


def merge(folder: Path, recipe: str, **options: Any) -> Ledger:
    """The ledger of a recipe over the models in `folder`, whose names it writes as {name}."""
    models = {path.name: path for path in folder.iterdir() if path.is_dir()}
    (folder / "x.yml").write_text(recipe.format(**models))
    jmerge.merge(folder / "x.yml", folder / "out", **options)
    loaded: Ledger = json.loads((folder / "out" / LEDGER).read_text())
    return loaded


def linear(*names: str, extra: str = "") -> str:
    models = "".join(f"- model: '{{{n}}}'\n  parameters: {{{{weight: 1}}}}\n" for n in names)
    return f"merge_method: linear\nmodels:\n{models}{extra}"


# Recipes that use their inputs in different ways; each writes its models and gives a recipe


def plain(folder: Path) -> str:
    write_llama(folder / "a", 0)
    write_llama(folder / "b", 1)
    return linear("a", "b")


def slices(folder: Path) -> str:
    """Layers left out, repeated, and taken from one model only."""
    for seed, name in enumerate("abc"):
        write_llama(folder / name, seed, layers=4)
    return (
        "merge_method: passthrough\nslices:\n"
        "- sources: [{{model: '{a}', layer_range: [0, 2]}}]\n"
        "- sources: [{{model: '{b}', layer_range: [1, 3]}}]\n"
        "- sources: [{{model: '{b}', layer_range: [1, 2]}}]\n"
        "- sources: [{{model: '{c}', layer_range: [3, 4]}}]\n"
    )


def tied(folder: Path) -> str:
    """One model ties its head, the other has its own."""
    write_llama(folder / "a", 0, tied=True)
    write_llama(folder / "b", 1)
    return linear("a", "b")


def tied_away(folder: Path) -> str:
    """The donor stores no head; the other stores a copy of its embedding, which is left out."""
    write_llama(folder / "a", 0, tied=True)
    tensors = llama_tensors(1)
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"]
    write_checkpoint(folder / "b", tensors, llama_config(tied=True))
    return linear("a", "b")


def donor_only(folder: Path) -> str:
    """The base gives names, config and files, and takes no part."""
    write_llama(folder / "a", 0)
    write_llama(folder / "b", 1)
    return (
        "merge_method: passthrough\nbase_model: '{a}'\nslices:\n"
        "- sources: [{{model: '{b}', layer_range: [0, 2]}}]\n"
    )


def extras(folder: Path) -> str:
    """A tensor that only one model has, an integer buffer, and a float buffer in both."""
    for seed, name in enumerate("ab"):
        tensors = llama_tensors(seed)
        tensors["model.position_ids"] = np.arange(8)
        for layer in range(2):
            key = f"model.layers.{layer}.self_attn.rotary_emb.inv_freq"
            tensors[key] = np.linspace(1, 2, 2, dtype=np.float32)
        if name == "b":
            tensors["model.extra.weight"] = np.ones((3, 3), np.float32)
        write_checkpoint(folder / name, tensors, llama_config())
    return linear("a", "b")


def vision(folder: Path) -> str:
    """Two modules, of which the recipe merges one."""
    for seed, name in enumerate("ab"):
        language = {f"language_model.{key}": value for key, value in llama_tensors(seed).items()}
        rng = np.random.default_rng(seed)
        tower = {
            f"vision_tower.encoder.layers.{layer}.{part}.weight": rng.standard_normal(
                (4, 4)
            ).astype(np.float32)
            for layer in range(3)
            for part in ("fc1", "fc2")
        }
        config = {
            "architectures": ["Gemma3ForConditionalGeneration"],
            "model_type": "gemma3",
            "text_config": llama_config(),
            "vision_config": {"num_hidden_layers": 3},
        }
        write_checkpoint(folder / name, language | tower, config)
    return (
        "merge_method: linear\nmodules:\n  text_decoder:\n    models:\n"
        "    - model: '{a}'\n      parameters: {{weight: 1}}\n"
        "    - model: '{b}'\n      parameters: {{weight: 1}}\n"
    )


CASES = (plain, slices, tied, tied_away, donor_only, extras, vision)


@pytest.mark.parametrize("case", CASES)
def test_every_tensor_is_accounted_for(case: Callable[[Path], str], tmp_path: Path) -> None:
    """Each tensor of each input is a source or unused with a reason, and never both."""
    ledger = merge(tmp_path, case(tmp_path))
    out = jmerge.open_checkpoint(tmp_path / "out")
    assert list(ledger["tensors"]) and set(ledger["tensors"]) == set(out)
    used: set[tuple[str, str]] = set()
    for name, entry in ledger["tensors"].items():
        assert (entry["dtype"], tuple(entry["shape"])) == tuple(out.index[name].spec)
        assert entry["file"] == out.index[name].file
        assert entry["sources"], name
        used |= {(source["model"], source["tensor"]) for source in entry["sources"]}
    unused = {(item["model"], item["tensor"]): item["reason"] for item in ledger["unused"]}
    assert len(unused) == len(ledger["unused"]), "said twice"
    assert all(reason.strip() for reason in unused.values())
    there = {
        (item["model"], name)
        for item in ledger["inputs"]
        for name in jmerge.open_checkpoint(item["path"])
    }
    assert used | set(unused) == there
    assert not used & set(unused)


@pytest.mark.parametrize("case", CASES)
def test_checksums_are_of_the_bytes(case: Callable[[Path], str], tmp_path: Path) -> None:
    ledger = merge(tmp_path, case(tmp_path), shard_size=1000)
    out = jmerge.open_checkpoint(tmp_path / "out")
    for name, entry in ledger["tensors"].items():
        assert re.fullmatch("[0-9a-f]{8}", entry["crc32"])
        assert int(entry["crc32"], 16) == zlib.crc32(out[name].tobytes())


def reasons(ledger: Ledger, model: Path) -> dict[str, str]:
    return {
        item["tensor"]: item["reason"] for item in ledger["unused"] if item["model"] == str(model)
    }


def test_reasons_for_what_slices_leave_out(tmp_path: Path) -> None:
    ledger = merge(tmp_path, slices(tmp_path))
    of_a, of_b = reasons(ledger, tmp_path / "a"), reasons(ledger, tmp_path / "b")
    assert "layer_range" in of_a["model.layers.3.mlp.up_proj.weight"]
    assert "first slice" in of_b["model.embed_tokens.weight"]
    assert "last slice" in of_a["model.norm.weight"]
    assert "model.layers.0.mlp.up_proj.weight" not in of_a
    assert ledger["tensors"]["model.layers.4.mlp.up_proj.weight"]["sources"] == [
        {"model": str(tmp_path / "b"), "tensor": "model.layers.1.mlp.up_proj.weight"}
    ]


def test_reasons_for_ties_and_donors(tmp_path: Path) -> None:
    (tmp_path / "1").mkdir()
    (tmp_path / "2").mkdir()
    ledger = merge(tmp_path / "1", tied_away(tmp_path / "1"))
    assert "tied" in reasons(ledger, tmp_path / "1" / "b")["lm_head.weight"]
    ledger = merge(tmp_path / "2", donor_only(tmp_path / "2"))
    assert len(reasons(ledger, tmp_path / "2" / "a")) == len(llama_tensors(0))
    assert "only names" in reasons(ledger, tmp_path / "2" / "a")["model.norm.weight"]


def test_a_tied_model_lends_its_embedding(tmp_path: Path) -> None:
    ledger = merge(tmp_path, tied(tmp_path))
    assert ledger["tensors"]["lm_head.weight"]["sources"] == [
        {"model": str(tmp_path / "a"), "tensor": "model.embed_tokens.weight"},
        {"model": str(tmp_path / "b"), "tensor": "lm_head.weight"},
    ]
    assert any("lm_head.weight" in warning for warning in ledger["warnings"])
    changed = {change["key"]: change for change in ledger["config"]}
    assert changed["tie_word_embeddings"]["old"] is True
    assert changed["tie_word_embeddings"]["new"] is False


def test_entries_say_how_a_tensor_was_made(tmp_path: Path) -> None:
    write_llama(tmp_path / "a", 0)
    write_llama(tmp_path / "b", 1)
    ledger = merge(
        tmp_path,
        "merge_method: slerp\nbase_model: '{a}'\nmodels:\n- model: '{b}'\n- model: '{a}'\n"
        "parameters: {{t: [0, 1]}}\ndtype: bfloat16\n",
        seed=7,
    )
    entry = ledger["tensors"]["model.layers.1.mlp.up_proj.weight"]
    assert entry["method"] == "slerp" and entry["dtype"] == "BF16"
    assert entry["hyperparameters"] == {"t": 1.0}
    assert entry["sources"][entry["base"]]["model"] == str(tmp_path / "a")
    assert ledger["seed"] == 7 and ledger["method"] == "slerp"
    assert ledger["recipe"] == (tmp_path / "x.yml").read_text()


def test_odd_tensors_carry_a_note(tmp_path: Path) -> None:
    ledger = merge(tmp_path, extras(tmp_path))
    assert str(tmp_path / "a") in ledger["tensors"]["model.extra.weight"]["note"]
    assert "not floating point" in ledger["tensors"]["model.position_ids"]["note"]
    buffer = "model.layers.0.self_attn.rotary_emb.inv_freq"
    assert "buffer" in ledger["tensors"][buffer]["note"]
    assert "buffer" in reasons(ledger, tmp_path / "b")[buffer]
    assert "note" not in ledger["tensors"]["model.norm.weight"]


def test_config_changes_are_listed(tmp_path: Path) -> None:
    ledger = merge(tmp_path, slices(tmp_path) + "dtype: bfloat16\n")
    donor = json.loads((tmp_path / "a" / "config.json").read_text())
    made = json.loads((tmp_path / "out" / "config.json").read_text())
    changed = {change["key"]: (change["old"], change["new"]) for change in ledger["config"]}
    assert changed == {
        key: (donor.get(key), made.get(key))
        for key in donor | made
        if donor.get(key) != made.get(key)
    }
    assert changed["num_hidden_layers"] == (4, 6)
    assert changed["torch_dtype"] == ("float32", "bfloat16")
    assert all(change["reason"] for change in ledger["config"])
    assert list(made) == list(donor), "an edit, not a rewrite"


def test_an_unchanged_config_is_no_change(tmp_path: Path) -> None:
    ledger = merge(tmp_path, plain(tmp_path))
    assert ledger["config"] == []
    assert json.loads((tmp_path / "out" / "config.json").read_text()) == llama_config()


def test_inputs_are_identified(tmp_path: Path) -> None:
    ledger = merge(tmp_path, plain(tmp_path))
    assert [item["model"] for item in ledger["inputs"]] == [str(tmp_path / n) for n in "ab"]
    for item in ledger["inputs"]:
        checkpoint = jmerge.open_checkpoint(item["path"])
        assert item["files"] == {
            file.name: {"size": file.size, "header_sha256": file.sha256}
            for file in checkpoint.files
        }


def test_files_of_the_output_are_listed_with_their_sizes(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "tokenizer.json").write_text("{}")
    ledger = merge(tmp_path, plain(tmp_path), shard_size=1000)
    assert ledger["files"] == {
        path.name: path.stat().st_size
        for path in (tmp_path / "out").iterdir()
        if path.name != LEDGER
    }
    assert "tokenizer.json" in ledger["files"]
    assert len([name for name in ledger["files"] if name.startswith("model-0")]) > 2


def test_versions_are_there(tmp_path: Path) -> None:
    import jax

    ledger = merge(tmp_path, plain(tmp_path))
    assert ledger["jmerge"] == jmerge.__version__
    assert ledger["jax"] == jax.__version__
    assert re.fullmatch("[0-9a-f]{64}", ledger["plan"])


def test_nothing_about_the_run(tmp_path: Path) -> None:
    """No time, no host, no device, no piece size: keys and values."""
    ledger = merge(tmp_path, plain(tmp_path))
    assert set(ledger) == {
        "jmerge", "jax", "jaxlib", "plan", "method", "seed", "recipe", "inputs", "tensors",
        "unused", "config", "tokens", "warnings", "files", "left_behind",
    }  # fmt: skip
    text = json.dumps(
        {key: value for key, value in ledger.items() if key not in ("recipe", "inputs")}
    )
    text = text.replace(str(tmp_path), "")
    assert socket.gethostname() not in re.split(r"[^\w.-]", text)
    assert not re.search(datetime.date.today().strftime("%Y.?%m.?%d"), text)
    assert not re.search(r"\b\d\d:\d\d(:\d\d)?\b", text)
    words = set(re.findall(r"[a-z]+", text.lower()))
    assert words.isdisjoint(("time", "date", "host", "hostname", "device", "cpu", "gpu", "thread"))


def test_two_runs_are_byte_identical(tmp_path: Path) -> None:
    recipe = slices(tmp_path)
    first = merge(tmp_path, recipe)
    (tmp_path / "out").rename(tmp_path / "first")
    second = merge(tmp_path, recipe)
    assert first == second
    for path in (tmp_path / "first").iterdir():
        assert path.read_bytes() == (tmp_path / "out" / path.name).read_bytes(), path.name


def test_nonfinite_numbers_are_counted(tmp_path: Path) -> None:
    recipe = plain(tmp_path)
    tensors = llama_tensors(1)
    tensors["model.norm.weight"][:3] = np.inf
    write_checkpoint(tmp_path / "b", tensors, llama_config())
    ledger = merge(tmp_path, recipe, allow_nonfinite=True)
    assert ledger["tensors"]["model.norm.weight"]["nonfinite"] == 3
    assert sum("nonfinite" in entry for entry in ledger["tensors"].values()) == 1
    (warning,) = ledger["warnings"]
    assert warning == "NaN or infinity in 3 elements of 1 tensor: model.norm.weight (3 of 8)"
