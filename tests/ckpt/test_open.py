"""`open_checkpoint`: which files make a checkpoint, what is refused, and how lazy it is."""

from __future__ import annotations

import json
import mmap
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from jmerge.ckpt.open import open_checkpoint
from jmerge.ckpt.safetensors import encode_header
from jmerge.dtypes import TensorSpec
from jmerge.errors import CheckpointError
from jmerge.testing.close import assert_same_bytes
from jmerge.testing.tiny import llama_tensors, write_checkpoint, write_llama

INDEX = "model.safetensors.index.json"


def tensors(count: int = 3) -> dict[str, np.ndarray]:
    return {f"layer.{i}": np.arange(i, i + 6, dtype=np.float32) for i in range(count)}


def sharded(folder: Path) -> Path:
    """Three tensors in three shards with an index."""
    write_checkpoint(folder, tensors(), {"model_type": "x"}, shard_bytes=24)
    assert len(list(folder.glob("*.safetensors"))) == 3
    return folder


def refusal(folder: Path | str) -> str:
    """The one line with which a folder is refused."""
    with pytest.raises(CheckpointError) as caught:
        open_checkpoint(folder)
    assert len(caught.value.problems) == 1
    assert "\n" not in str(caught.value)
    assert str(folder) in str(caught.value)
    return str(caught.value)


def names(folder: Path) -> list[str]:
    return [file.name for file in open_checkpoint(folder).files]


# What is opened


def test_one_file(tmp_path: Path) -> None:
    written = llama_tensors(0)
    checkpoint = open_checkpoint(write_llama(tmp_path, 0))
    assert names(tmp_path) == ["model.safetensors"]
    assert checkpoint.config["model_type"] == "llama"
    assert len(checkpoint) == len(written) == len(list(checkpoint))
    for name, array in written.items():
        assert_same_bytes(checkpoint[name], array)
    assert "model.norm.weight" in checkpoint and "nothing" not in checkpoint
    assert f"{len(written)} tensors" in repr(checkpoint)


def test_a_path_may_be_text_and_begin_at_home(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_checkpoint(tmp_path / "m", tensors())
    monkeypatch.setenv("HOME", str(tmp_path))
    assert (
        set(open_checkpoint("~/m")) == set(open_checkpoint(str(tmp_path / "m"))) == set(tensors())
    )


def test_shards_with_an_index(tmp_path: Path) -> None:
    checkpoint = open_checkpoint(sharded(tmp_path))
    assert [file.name for file in checkpoint.files] == sorted(
        p.name for p in tmp_path.glob("*.safetensors")
    )
    for name, array in tensors().items():
        assert_same_bytes(checkpoint[name], array)
    for file in checkpoint.files:
        assert file.size == (tmp_path / file.name).stat().st_size
        assert len(file.sha256) == 64


def test_a_checkpoint_iterates_in_file_order(tmp_path: Path) -> None:
    checkpoint = open_checkpoint(sharded(tmp_path))
    order = [(entry.file, entry.start) for entry in checkpoint.index.values()]
    assert order == sorted(order)
    assert list(checkpoint) == list(checkpoint.index)


def test_without_config_the_config_is_empty(tmp_path: Path) -> None:
    assert open_checkpoint(write_checkpoint(tmp_path, tensors())).config == {}


def test_a_stale_index_next_to_a_single_file_is_passed_over(tmp_path: Path) -> None:
    sharded(tmp_path)
    for path in list(tmp_path.glob("*.safetensors"))[1:]:
        path.unlink()
    write_checkpoint(tmp_path, {"new": np.zeros(2, np.int8)})
    assert (tmp_path / INDEX).exists()
    assert names(tmp_path) == ["model.safetensors"]
    assert set(open_checkpoint(tmp_path)) == {"new"}


def test_a_single_file_goes_before_an_index(tmp_path: Path) -> None:
    """As transformers looks for them; whose shards are there too, that is said."""
    sharded(tmp_path)
    write_checkpoint(tmp_path, {"new": np.zeros(2, np.int8)})
    opened = open_checkpoint(tmp_path)
    assert set(opened) == {"new"}
    (note,) = opened.notes
    assert "3 files that model.safetensors.index.json names" in note and "delete" not in note


@pytest.mark.parametrize("text", ["{", "{}", '{"weight_map": {"a": "../x"}}'])
def test_a_broken_index_beside_a_single_file_is_not_read(text: str, tmp_path: Path) -> None:
    write_checkpoint(tmp_path, tensors())
    (tmp_path / INDEX).write_text(text)
    opened = open_checkpoint(tmp_path)
    assert set(opened) == set(tensors()) and opened.notes == ()


def test_a_complete_set_of_parts_needs_no_index(tmp_path: Path) -> None:
    sharded(tmp_path)
    (tmp_path / INDEX).unlink()
    assert len(names(tmp_path)) == 3
    assert set(open_checkpoint(tmp_path)) == set(tensors())


def test_parts_of_different_sets_are_not_mixed(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, tensors(2), shard_bytes=24)
    (tmp_path / INDEX).unlink()
    whole = sorted(path.name for path in tmp_path.glob("*.safetensors"))
    write_checkpoint(tmp_path / "old", {"old": np.zeros(2, np.int8)})
    shutil.copy(
        tmp_path / "old" / "model.safetensors", tmp_path / "model-00002-of-00003.safetensors"
    )
    assert names(tmp_path) == whole == [f"model-0000{i}-of-00002.safetensors" for i in (1, 2)]


@pytest.mark.parametrize("stem", ["consolidated", "diffusion_pytorch_model"])
@pytest.mark.parametrize("kind", ["single", "index", "parts"])
def test_other_stems(stem: str, kind: str, tmp_path: Path) -> None:
    write_checkpoint(tmp_path, tensors(), shard_bytes=0 if kind == "single" else 24)
    for path in list(tmp_path.iterdir()):
        path.rename(tmp_path / path.name.replace("model", stem, 1))
    index = tmp_path / f"{stem}.safetensors.index.json"
    if kind == "index":
        index.write_text(index.read_text().replace('"model-', f'"{stem}-'))
    elif kind == "parts":
        index.unlink()
    assert all(name.startswith(stem) for name in names(tmp_path))
    assert set(open_checkpoint(tmp_path)) == set(tensors())


def test_model_goes_before_consolidated(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, {"old": np.zeros(2, np.int8)})
    (tmp_path / "model.safetensors").rename(tmp_path / "consolidated.safetensors")
    write_checkpoint(tmp_path, tensors())
    assert names(tmp_path) == ["model.safetensors"]


def test_links_are_followed(tmp_path: Path) -> None:
    """The Hub's cache keeps every file of a snapshot as a link."""
    write_checkpoint(tmp_path / "blobs", tensors(), {"model_type": "x"})
    (tmp_path / "snapshot").mkdir()
    for path in (tmp_path / "blobs").iterdir():
        (tmp_path / "snapshot" / path.name).symlink_to(path)
    checkpoint = open_checkpoint(tmp_path / "snapshot")
    assert set(checkpoint) == set(tensors()) and checkpoint.config == {"model_type": "x"}


# What is refused


def test_an_incomplete_set_of_parts(tmp_path: Path) -> None:
    sharded(tmp_path)
    (tmp_path / INDEX).unlink()
    (tmp_path / "model-00002-of-00003.safetensors").unlink()
    assert "missing" in (line := refusal(tmp_path)) and "1 of 3" in line


def test_an_index_with_a_missing_file(tmp_path: Path) -> None:
    sharded(tmp_path)
    (tmp_path / "model-00002-of-00003.safetensors").unlink()
    assert "model-00002-of-00003.safetensors" in refusal(tmp_path)


def test_a_tensor_in_two_shards_without_an_index(tmp_path: Path) -> None:
    sharded(tmp_path)
    (tmp_path / INDEX).unlink()
    write_checkpoint(tmp_path / "x", {"layer.0": np.ones(6, np.float32)})
    (tmp_path / "x" / "model.safetensors").rename(tmp_path / "model-00003-of-00003.safetensors")
    line = refusal(tmp_path)
    assert "layer.0" in line and "write model.safetensors.index.json" in line
    assert "model-00001-of-00003.safetensors" in line and "model-00003-of-00003.safetensors" in line


def edit_index(folder: Path, **changes: str) -> None:
    index = json.loads((folder / INDEX).read_text())
    index["weight_map"] |= {name.replace("_", "."): file for name, file in changes.items()}
    (folder / INDEX).write_text(json.dumps(index))


def test_an_index_naming_a_tensor_that_is_nowhere(tmp_path: Path) -> None:
    sharded(tmp_path)
    edit_index(tmp_path, ghost="model-00001-of-00003.safetensors")
    assert "ghost" in (line := refusal(tmp_path)) and "model-00001-of-00003.safetensors" in line


def test_an_index_naming_the_wrong_file(tmp_path: Path) -> None:
    sharded(tmp_path)
    edit_index(tmp_path, layer_0="model-00002-of-00003.safetensors")
    assert "layer.0" in refusal(tmp_path)


@pytest.mark.parametrize(
    "name", ["../model.safetensors", "/etc/passwd", "sub/../../x", "sub/", "..", ".", "", "a\\b"]
)
def test_an_index_may_not_leave_the_folder(name: str, tmp_path: Path) -> None:
    write_checkpoint(tmp_path, {"outside": np.zeros(3, np.int8)})
    sharded(tmp_path / "m")
    edit_index(tmp_path / "m", layer_1=name)
    assert "outside the folder" in (line := refusal(tmp_path / "m")) and "layer.1" in line


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", "{}", '{"weight_map": []}', '{"weight_map": {"a": 1}}', "\udcff"],
    ids=["empty", "cut off", "a list", "no map", "a list inside", "a number inside", "not UTF-8"],
)
def test_a_broken_index(text: str, tmp_path: Path) -> None:
    sharded(tmp_path)
    (tmp_path / INDEX).write_bytes(text.encode(errors="surrogateescape"))
    assert INDEX in refusal(tmp_path)


@pytest.mark.parametrize("suffix", [".bin", ".pt", ".pth"])
def test_pickles_alone(suffix: str, tmp_path: Path) -> None:
    (tmp_path / f"pytorch_model{suffix}").write_bytes(b"\x80\x02.")
    assert "safetensors" in (line := refusal(tmp_path)) and "convert" in line


def test_an_empty_folder(tmp_path: Path) -> None:
    assert "model.safetensors" in refusal(tmp_path)


def test_no_folder_at_all(tmp_path: Path) -> None:
    assert "not a folder" in refusal(tmp_path / "gone")
    (tmp_path / "file").write_text("x")
    assert "not a folder" in refusal(tmp_path / "file")


def test_a_folder_in_the_place_of_a_file(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").mkdir()
    assert "model.safetensors" in refusal(tmp_path)


@pytest.mark.parametrize(
    "text",
    [b"", b"{", b"[]", b"3", b"\xff\xfe{}", b"[" * 100_000],
    ids=["empty", "cut off", "a list", "a number", "not UTF-8", "deep"],
)
def test_a_broken_config(text: bytes, tmp_path: Path) -> None:
    write_checkpoint(tmp_path, tensors())
    (tmp_path / "config.json").write_bytes(text)
    assert "config.json" in refusal(tmp_path)


def test_one_broken_shard_is_named(tmp_path: Path) -> None:
    sharded(tmp_path)
    path = tmp_path / "model-00002-of-00003.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    assert str(path) in refusal(tmp_path)


# How lazy it is


def mapped(array: np.ndarray) -> bool:
    """Whether the memory of an array is a mapped file."""
    base: Any = array
    while isinstance(base, np.ndarray):
        base = base.base
    return isinstance(base, mmap.mmap)


def test_views_are_read_only_and_mapped(tmp_path: Path) -> None:
    checkpoint = open_checkpoint(write_llama(tmp_path, 0))
    for name in checkpoint:
        view = checkpoint[name]
        assert mapped(view) and not view.flags.writeable and not view.flags.owndata
        with pytest.raises(ValueError, match="read-only"):
            view[...] = 0
    assert np.shares_memory(checkpoint["model.norm.weight"], checkpoint["model.norm.weight"])


def test_a_missing_name_is_a_key_error_with_a_hint(tmp_path: Path) -> None:
    checkpoint = open_checkpoint(write_llama(tmp_path, 0))
    with pytest.raises(KeyError, match="did you mean 'model.norm.weight'"):
        checkpoint["model.norms.weight"]
    with pytest.raises(KeyError) as caught:
        checkpoint["zzz"]
    assert "did you mean" not in str(caught.value)
    assert checkpoint.get("zzz") is None


def test_opening_reads_no_data(tmp_path: Path) -> None:
    """A quarter of a terabyte of holes opens at once, and one element of it can be looked at."""
    spec = TensorSpec("BF16", (1 << 20, 1 << 17))
    head = encode_header({"huge": spec})
    with (tmp_path / "model.safetensors").open("wb") as file:
        file.write(head)
        file.truncate(len(head) + spec.nbytes)
    checkpoint = open_checkpoint(tmp_path)
    assert checkpoint.index["huge"].spec == spec
    assert checkpoint["huge"].shape == spec.shape
    assert checkpoint["huge"][-1, -1] == 0


def test_a_view_shows_what_the_file_holds_now(tmp_path: Path) -> None:
    """No tensor is read before it is asked for, and none is copied."""
    checkpoint = open_checkpoint(write_checkpoint(tmp_path, {"x": np.zeros(8, np.uint8)}))
    start = checkpoint.index["x"].start
    with (tmp_path / "model.safetensors").open("r+b") as file:
        file.seek(start)
        file.write(b"\x07")
    assert checkpoint["x"][0] == 7
