"""Models in object stores: S3 as moto plays it, Google's as a small fake does."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
from said import uncoded
from serverkit import Bucket, FileServer, GoogleBucket, Problem

from jmerge.ckpt.buckets import BucketSource
from jmerge.ckpt.open import open_checkpoint
from jmerge.errors import CheckpointError, RunError
from jmerge.testing.close import assert_same_bytes
from jmerge.testing.tiny import llama_tensors, write_llama

NORM = "model.norm.weight"


@pytest.fixture(params=["s3", "gs"])
def bucket(request: pytest.FixtureRequest, tmp_path: Path) -> Bucket:
    """Both kinds in turn, with a model."""
    made: Bucket = request.getfixturevalue(request.param)
    for path in write_llama(tmp_path / "local", 0).iterdir():
        made.put(path.name, path.read_bytes())
    return made


def watch(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The sizes of all ranges that are fetched."""
    sizes = []
    fetch = BucketSource.fetch

    def counted(self: BucketSource, name: str, start: int, view: memoryview, stat: Any) -> int:
        sizes.append(len(view))
        return fetch(self, name, start, view, stat)

    monkeypatch.setattr(BucketSource, "fetch", counted)
    return sizes


def test_a_checkpoint(bucket: Bucket, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = watch(monkeypatch)
    checkpoint = open_checkpoint(bucket.url + "/")
    assert str(checkpoint.path) == bucket.url and checkpoint.config["model_type"] == "llama"
    assert max(sizes) <= 1 << 16
    for name, wanted in llama_tensors(0).items():
        assert_same_bytes(checkpoint[name], wanted)
    assert checkpoint.source.changed() is None


def test_a_file_that_changes(bucket: Bucket) -> None:
    checkpoint = open_checkpoint(bucket.url)
    bucket.put("config.json", b"{ }")
    assert checkpoint.source.changed() == "config.json"


def test_problems(bucket: Bucket, monkeypatch: pytest.MonkeyPatch) -> None:
    """Lost connections and too few bytes are tried again; too many are not."""
    checkpoint = open_checkpoint(bucket.url)
    source = checkpoint.source
    assert isinstance(source, BucketSource)
    read = source._store._cat_file
    problems: list[str] = ["lost", "short", "lost"]

    async def faulty(path: str, start: int, end: int) -> bytes:
        kind = problems.pop(0) if problems else ""
        if kind == "lost":
            raise ConnectionResetError("https://b/m?X-Amz-Signature=word")
        data: bytes = await read(path, start=start, end=end)
        return {"short": data[:5], "long": data + b"x"}.get(kind, data)

    monkeypatch.setattr(source._store, "_cat_file", faulty)
    assert_same_bytes(checkpoint[NORM], llama_tensors(0)[NORM])
    assert problems == []
    problems += ["lost"] * 9
    with pytest.raises(
        RunError, match=r"ConnectionResetError: https://b/m\?\.\.\. \(5 attempts\); run the same"
    ):
        checkpoint[NORM]
    problems[:] = ["long"]
    with pytest.raises(CheckpointError, match="the store sent .* bytes instead of .*"):
        checkpoint[NORM]


def test_stalls(gs: GoogleBucket, server: FileServer, tmp_path: Path) -> None:
    for path in write_llama(tmp_path / "local", 0).iterdir():
        gs.put(path.name, path.read_bytes())
    checkpoint = open_checkpoint(gs.url)
    server.problems = [Problem("stall", times=2)]
    assert_same_bytes(checkpoint[NORM], llama_tensors(0)[NORM])
    assert server.problems[0].times == 0


def test_nothing_there(bucket: Bucket) -> None:
    for url in (bucket.url + "x", bucket.url.replace("://bucket/", "://no-such-bucket/")):
        with pytest.raises(CheckpointError) as caught:
            open_checkpoint(url)
        assert uncoded(str(caught.value)) == f"{url}: is empty or does not exist"


@pytest.mark.parametrize(("scheme", "package"), [("s3", "s3fs"), ("gs", "gcsfs")])
def test_a_package_that_is_missing(
    scheme: str, package: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, f"{package}.core", None)
    with pytest.raises(CheckpointError) as caught:
        open_checkpoint(f"{scheme}://b/m")
    assert uncoded(str(caught.value)) == (
        f"{scheme}://b/m: needs {package}: pip install 'jmerge[{scheme}]'"
    )


@pytest.mark.parametrize("url", ["s3://", "gs:///m", "s3://b/m?x=word"])
def test_urls_that_are_none(url: str) -> None:
    with pytest.raises(
        CheckpointError, match="is not the URL of a folder; write .*://bucket/prefix"
    ):
        open_checkpoint(url)
