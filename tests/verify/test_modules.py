"""`jmerge verify` of Sentence Transformers models, whose weights lie in folders of their own."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import jmerge
from jmerge.ckpt.source import LocalSource
from jmerge.testing.tiny import llama_config, llama_tensors, write_checkpoint
from jmerge.verify.checks import verify

INDEX = "model.safetensors.index.json"
SHARD = "model-00001-of-00002.safetensors"
HOMES = ("", "0_Transformer/")


def write_model(folder: Path, seed: int, home: str, shard_bytes: int = 0) -> Path:
    """A transformer in `home`, and a Dense module behind it."""
    write_checkpoint(folder / home, llama_tensors(seed), llama_config(), shard_bytes)
    rng = np.random.default_rng(seed)
    dense = {f"linear.{name}": rng.standard_normal((8, 8)).astype(np.float32) for name in "ab"}
    write_checkpoint(folder / "2_Dense", dense, {"in_features": 8}, shard_bytes and 256)
    modules = [
        (home.removesuffix("/"), "Transformer"),
        ("1_Normalize", "Normalize"),
        ("2_Dense", "Dense"),
    ]
    entries = [
        {"path": path, "type": f"sentence_transformers.models.{kind}"} for path, kind in modules
    ]
    (folder / "modules.json").write_text(json.dumps(entries))
    return folder  # fmt: skip


def merged(folder: Path, home: str, method: str = "linear", **flags: Any) -> Path:
    """A merge of three such models, without a word of warning."""
    base, *models = (write_model(folder / name, seed, home) for seed, name in enumerate("oab"))
    text = f"merge_method: {method}\nmodels:\n" + "".join(f"- model: {each}\n" for each in models)
    text += f"base_model: {base}\n" if method == "emr" else "parameters: {weight: 1}\n"
    (folder / "x.yml").write_text(text)
    made = jmerge.merge(folder / "x.yml", folder / "out", **flags)
    assert made.strange == ()
    return folder / "out"


def problems(folder: Path) -> dict[str, list[str]]:
    """Check -> the lines of its problems, over all models of a folder."""
    found: dict[str, list[str]] = {}
    for model in verify(LocalSource(folder), deep=True):
        for check in model.checks:
            for each in check.problems:
                line = f"{each.file}: {each.tensor}: {each.message}"
                found.setdefault(check.name, []).append(line)
    return found


@pytest.mark.parametrize("home", HOMES)
@pytest.mark.parametrize("shard_bytes", [0, 1000])
def test_a_sound_model(home: str, shard_bytes: int, tmp_path: Path) -> None:
    (found,) = verify(LocalSource(write_model(tmp_path, 0, home, shard_bytes)), deep=True)
    assert found.fine and not any(each.findings for each in found.checks)
    assert {"2_Dense/linear.a", "model.norm.weight"} <= found.folder.tensors.keys()
    assert ("index" in {check.name for check in found.checks}) == bool(shard_bytes)


@pytest.mark.parametrize("home", HOMES)
@pytest.mark.parametrize("shard_size", [0, 300])
def test_a_merge_is_sound(home: str, shard_size: int, tmp_path: Path) -> None:
    out = merged(tmp_path, home, shard_size=shard_size)
    assert problems(out) == {}
    (found,) = verify(LocalSource(out), deep=True)
    assert {"ledger", "checksums"} <= {check.name for check in found.checks}


@pytest.mark.parametrize("home", HOMES)
def test_several_models_of_one_merge(home: str, tmp_path: Path) -> None:
    out = merged(tmp_path, home, "emr")
    assert problems(out) == {}
    found = verify(LocalSource(out))
    assert [each.folder.prefix for each in found] == ["a/", "b/"]
    assert all("2_Dense/linear.a" in each.folder.tensors for each in found)
    (out / "b" / "2_Dense" / "config.json").unlink()
    assert list(problems(out)) == ["ledger"]
    shutil.rmtree(out / "b")
    assert any("b/2_Dense/model.safetensors" in line for line in problems(out)["ledger"])


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-1] ^= 0x80
    path.write_bytes(data)


def edit_index(folder: Path) -> None:
    path = folder / "2_Dense" / INDEX
    path.write_text(path.read_text().replace("linear.a", "linear.c"))


# check -> what makes it fail, and it alone, of a merge in several files
DAMAGES: dict[str, list[Callable[[Path], Any]]] = {
    "readable": [
        lambda out: (out / "2_Dense" / SHARD).write_bytes(b"x"),
        lambda out: (out / "modules.json").write_text("{" + " " * (len((out / "modules.json").read_text()) - 1)),
    ],
    "index": [edit_index],
    "stale": [lambda out: shutil.copy(out / "2_Dense" / SHARD, out / "2_Dense" / "model-00001-of-00099.safetensors")],
    "ledger": [lambda out: (out / "modules.json").write_text((out / "modules.json").read_text() + " ")],
    "checksums": [lambda out: flip(out / "2_Dense" / SHARD)],
}  # fmt: skip


@pytest.mark.parametrize("home", HOMES)
@pytest.mark.parametrize(
    ("check", "number"), [(check, i) for check, each in DAMAGES.items() for i in range(len(each))]
)
def test_damage_in_a_module(home: str, check: str, number: int, tmp_path: Path) -> None:
    out = merged(tmp_path, home, shard_size=300)
    DAMAGES[check][number](out)
    found = problems(out)
    if check == "index":  # whose size stays the same
        assert set(found) == {"index", "readable"} or list(found) == ["index"], found
    else:
        assert list(found) == [check], found
    assert any("2_Dense" in line or "modules.json" in line for line in found[check]), found
