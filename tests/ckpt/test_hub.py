"""Models of the Hub: the cache first, then one commit of the Hub, and lines that say what to do."""

from __future__ import annotations

import json
import os
import re
import shutil
from pathlib import Path

import pytest
from said import uncoded
from serverkit import OTHER_SHA, SHA, FileServer, Problem

from jmerge.ckpt.donor import companions
from jmerge.ckpt.find import find_source
from jmerge.ckpt.open import open_checkpoint
from jmerge.ckpt.source import LocalSource
from jmerge.errors import CheckpointError, RunError
from jmerge.recipe.refs import ModelRef, parse_ref
from jmerge.testing.close import assert_same_bytes
from jmerge.testing.tiny import llama_tensors, write_llama

NORM = "model.norm.weight"


@pytest.fixture
def model(hub: FileServer) -> FileServer:
    """A Hub with a tiny llama `org/m`."""
    write_llama(hub.root / "org" / "m", 0)
    (hub.root / "org" / "m" / "tokenizer.json").write_text("{}")
    return hub


def cache(server: FileServer, folder: Path, sha: str = SHA) -> Path:
    """Put the model into the cache as `hf download` does."""
    place = folder / "cache" / "models--org--m"
    snapshot = place / "snapshots" / sha
    shutil.copytree(server.root / "org" / "m", snapshot)
    (place / "refs").mkdir(exist_ok=True)
    (place / "refs" / "main").write_text(sha)
    return snapshot


def refusal(ref: str) -> str:
    """The one line with which a model is refused."""
    with pytest.raises(CheckpointError) as caught:
        open_checkpoint(parse_ref(ref))
    line = uncoded(str(caught.value))
    assert "\n" not in line and "hf_secret" not in line
    return line


@pytest.mark.parametrize(
    "ref", ["org/m", "org/m@main", "hf://org/m", "hf://org/m@main", f"hf://org/m@{SHA}"]
)
def test_a_model_is_read_at_its_commit(ref: str, model: FileServer) -> None:
    """Its name in plans has the commit; only ranges that are needed are fetched, with the user's token."""
    checkpoint = open_checkpoint(parse_ref(ref))
    assert str(checkpoint.path) == f"hf://org/m@{SHA}" and checkpoint.source.revision == SHA
    assert_same_bytes(checkpoint[NORM], llama_tensors(0)[NORM])
    size = (model.root / "org" / "m" / "model.safetensors").stat().st_size
    assert model.total() < size + 1000
    asked = [path for path, _ in model.requests]
    assert sum(path.startswith("/api/models/") for path in asked) == 1, "looked up once"
    files = [headers for path, headers in model.requests if "/resolve/" in path]
    assert files and all(headers["authorization"] == "Bearer hf_secret" for headers in files)


def test_text_and_references_name_the_same(model: FileServer) -> None:
    for each in ("org/m", "org/m@main", ModelRef("org/m", "main"), "hf://org/m@main"):
        assert str(open_checkpoint(each).path) == f"hf://org/m@{SHA}"
    with pytest.raises(CheckpointError, match="write hf://org/name@revision"):
        open_checkpoint(ModelRef("hf://org/m@main", "v1"))


def test_a_branch_that_moves_changes_nothing(model: FileServer) -> None:
    """The fake Hub answers for the first commit alone."""
    checkpoint = open_checkpoint("org/m")
    model.revisions["main"] = OTHER_SHA
    assert_same_bytes(checkpoint[NORM], llama_tensors(0)[NORM])
    assert not any("/resolve/main/" in path for path, _ in model.requests)


def test_redirections_are_remembered_and_renewed(model: FileServer) -> None:
    """A signed URL serves many ranges; when it has run out, the Hub is asked for another."""
    checkpoint = open_checkpoint("org/m")
    for name in checkpoint:
        checkpoint[name]
    asked = [path for path, _ in model.requests if "/resolve/" in path and "safetensors" in path]
    assert len(asked) == 1
    model.problems = [Problem("403")]
    assert_same_bytes(checkpoint[NORM], llama_tensors(0)[NORM])


# The cache


def test_a_cached_model_is_a_local_folder(model: FileServer, tmp_path: Path) -> None:
    snapshot = cache(model, tmp_path)
    for ref in ("org/m", "hf://org/m@main", f"org/m@{SHA}"):
        checkpoint = open_checkpoint(parse_ref(ref))
        assert checkpoint.path == snapshot and checkpoint.source.revision == SHA
    assert model.requests == []


def test_a_cache_without_a_tokenizer_is_completed(model: FileServer, tmp_path: Path) -> None:
    """Weights of it are read where they are, and the rest comes from the Hub."""
    (cache(model, tmp_path) / "tokenizer.json").unlink()
    checkpoint = open_checkpoint("org/m")
    assert str(checkpoint.path) == f"hf://org/m@{SHA}"
    assert_same_bytes(checkpoint[NORM], llama_tensors(0)[NORM])
    assert model.total() == 0
    assert checkpoint.source.read("tokenizer.json") == b"{}"


def test_a_part_of_a_snapshot_is_not_taken_for_a_model(model: FileServer, tmp_path: Path) -> None:
    snapshot = cache(model, tmp_path)
    (snapshot / "model.safetensors").unlink()
    assert open_checkpoint("org/m")[NORM].size > 0
    assert model.total() > 0


def test_offline(model: FileServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The cache alone, even without a tokenizer, and a line that names it."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    line = refusal("org/m")
    assert str(tmp_path / "cache") in line and "HF_HUB_OFFLINE" in line
    snapshot = cache(model, tmp_path)
    (snapshot / "tokenizer.json").unlink()
    assert open_checkpoint("org/m").path == snapshot
    assert "HF_HUB_OFFLINE" in refusal("org/m@v2")
    assert model.requests == []


# What is refused


def test_no_such_model(hub: FileServer) -> None:
    line = refusal("org/nothing")
    assert line.startswith("hf://org/nothing: is not on the Hub, or is private;")
    assert "hf auth login" in line


def test_no_such_revision(model: FileServer) -> None:
    line = refusal("org/m@v9")
    assert line.startswith("hf://org/m@v9: has no revision 'v9';") and "/org/m/tree/main" in line


@pytest.mark.parametrize("mark", ["", "!"])
def test_a_gated_model(mark: str, model: FileServer) -> None:
    """Whether the Hub refuses to say what it holds, or only to send it."""
    model.gated = {f"org/m{mark}"}
    line = refusal("org/m")
    assert "accept" in line and "licence" in line and f"{model.url}/org/m" in line
    assert "hf auth login" in line


def test_a_busy_hub(model: FileServer) -> None:
    model.problems = [Problem("503", end="api/org/m", times=2)]
    assert len(open_checkpoint("org/m")) > 0
    model.problems = [Problem("503", end="api/org/m", times=99)]
    with pytest.raises(
        RunError, match=r"^hf://org/m: the Hub answered 503 [(]5 attempts[)]; run the same"
    ):
        open_checkpoint("org/m")


def test_a_hub_that_is_not_there(hub: FileServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(
        RunError, match=r"^hf://org/m: the Hub cannot be reached .* [(]5 attempts[)]; run"
    ):
        open_checkpoint("org/m")


@pytest.mark.parametrize(
    "text", ["hf://", "hf://org/m/folder", "hf://datasets/org/m", "hf://org/m@a@b"]
)
def test_names_that_are_none(text: str, hub: FileServer) -> None:
    with pytest.raises(CheckpointError, match="write hf://org/name@revision"):
        open_checkpoint(text)


@pytest.mark.parametrize("text", ["a--b/c", "org/" + "x" * 200])
def test_names_that_the_hub_cannot_have(text: str, hub: FileServer) -> None:
    assert refusal(text) == f"{text}: is not a folder, and not a valid model name on the Hub"
    assert hub.requests == []


def test_misspelt_folders_ask_nobody(
    model: FileServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What may be a path of this machine is not looked up, unless nothing like it is here."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "org" / "mm").mkdir(parents=True)
    (tmp_path / "org" / "file").write_text("")
    assert re.search(
        r"org/m: is not a folder; did you mean 'org/mm'\? \(for the model on the Hub write hf://org/m",
        refusal("org/m"),
    )
    assert refusal("org/file").startswith("org/file: is a file, not a folder; name")
    assert model.requests == []
    (tmp_path / "org" / "mm").rename(tmp_path / "org" / "quite-another")
    assert str(open_checkpoint("org/m").path) == f"hf://org/m@{SHA}"
    (tmp_path / "org" / "m").mkdir()
    assert isinstance(find_source("org/m"), LocalSource)


def test_local_folders_have_no_revisions(tmp_path: Path) -> None:
    write_llama(tmp_path / "m", 0)
    assert "has no revision 'main': only models on the Hub have revisions" in refusal(
        f"{tmp_path / 'm'}@main"
    )
    assert os.path.isdir(tmp_path / "m")


# What else a model of the Hub may hold


def test_shards_in_a_folder_of_the_model(model: FileServer) -> None:
    folder = model.root / "org" / "m"
    (folder / "weights").mkdir()
    (folder / "model.safetensors").rename(folder / "weights" / "x.safetensors")
    where = dict.fromkeys(llama_tensors(0), "./weights/x.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": where}))
    assert_same_bytes(open_checkpoint("org/m")[NORM], llama_tensors(0)[NORM])


def test_checkpoints_of_a_run(model: FileServer) -> None:
    """Folders of a model of the Hub have no name in recipes, so it has to be downloaded."""
    folder = model.root / "org" / "m"
    for step in (500, 1500):
        (folder / f"checkpoint-{step}").mkdir()
        shutil.copy(folder / "model.safetensors", folder / f"checkpoint-{step}")
    (folder / "model.safetensors").unlink()
    line = refusal("org/m")
    assert "2 checkpoints of a training run" in line
    assert "the last is checkpoint-1500 (download the model, then name that folder)" in line


def test_what_comes_along_of_a_model_of_the_hub(model: FileServer) -> None:
    folder = model.root / "org" / "m"
    (folder / "voices").mkdir()
    for name in ("voices/a.npy", "spm.model", "optimizer.pt", "README.md"):
        (folder / name).write_text("x")
    source = open_checkpoint("org/m").source
    found = companions(source, (), ["model.safetensors"])
    assert set(found.taken) == {"voices/a.npy", "spm.model", "tokenizer.json"}
    assert set(found.left) == {"optimizer.pt", "README.md"}
