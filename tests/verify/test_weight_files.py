"""Models whose files lie in other ways than usual: `verify` sees those that transformers loads."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from jmerge.ckpt.source import LocalSource
from jmerge.testing.tiny import llama_config, llama_tensors, write_checkpoint
from jmerge.verify.checks import verify

INDEX = "model.safetensors.index.json"
NORM = "model.norm.weight"


def found(folder: Path) -> list[str]:
    """Everything that is said of a folder, with `!` before problems."""
    (model,) = verify(LocalSource(folder))
    return [
        f"{'' if each.warning else '!'}{check.name}: {each.message}"
        for check in model.checks
        for each in check.findings
    ]


def shards(folder: Path, files: dict[str, dict[str, np.ndarray]], where: dict[str, str]) -> None:
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(llama_config()))
    for file, tensors in files.items():
        (folder / file).parent.mkdir(exist_ok=True)
        write_checkpoint(folder / "made", tensors)
        (folder / "made" / "model.safetensors").rename(folder / file)
    (folder / "made").rmdir()
    total = sum(array.nbytes for array in llama_tensors(0).values())
    index = {"metadata": {"total_size": total}, "weight_map": where}
    (folder / INDEX).write_text(json.dumps(index))


@pytest.mark.parametrize("start", ["./", "weights/"])
def test_paths_of_an_index(start: str, tmp_path: Path) -> None:
    file = f"{start}x.safetensors"
    shards(tmp_path, {file: llama_tensors(0)}, dict.fromkeys(llama_tensors(0), file))
    assert found(tmp_path) == []


def test_an_index_with_paths_that_lacks_a_tensor(tmp_path: Path) -> None:
    file = "weights/x.safetensors"
    where = dict.fromkeys(llama_tensors(0), file)
    del where[NORM]
    shards(tmp_path, {file: llama_tensors(0)}, where)
    assert found(tmp_path) == [f"!index: is in {file}; the index does not name it"]


@pytest.mark.parametrize(
    ("file", "change", "said"),
    [
        ("model-overlay.safetensors", 1, "duplicates: is in m.safetensors too, which the index"),
        ("a.safetensors", 0, "duplicates: is in m.safetensors too, and equal"),
        ("a.safetensors", 1, "!duplicates: is in m.safetensors too, with other values, which tr"),
    ],
)
def test_copies(file: str, change: float, said: str, tmp_path: Path) -> None:
    """Only what transformers loads otherwise than the index means is a problem."""
    tensors = llama_tensors(0)
    where = dict.fromkeys(tensors, "m.safetensors") | {NORM: file}
    files = {"m.safetensors": tensors, file: {NORM: tensors[NORM] + np.float32(change)}}
    shards(tmp_path, files, where)
    (line,) = found(tmp_path)
    assert line.startswith(said)


def test_shards_beside_the_file_that_is_loaded(tmp_path: Path) -> None:
    """What is said to be no part of the model is never what transformers loads."""
    file = "model-00001-of-00001.safetensors"
    shards(tmp_path, {file: llama_tensors(1)}, dict.fromkeys(llama_tensors(0), file))
    write_checkpoint(tmp_path, llama_tensors(0))
    (model,) = verify(LocalSource(tmp_path))
    assert model.folder.files == ["model.safetensors"]
    (stale,) = (check for check in model.checks if check.name == "stale")
    assert {each.file for each in stale.findings} == {file, INDEX}
