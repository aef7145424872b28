"""Fixtures of the tests of remote sources."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from serverkit import FileServer, GoogleBucket, S3Bucket

from jmerge.ckpt import remote


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> remote.Patience:
    """Short pauses and a short silence."""
    monkeypatch.setenv("NO_PROXY", "127.0.0.1,localhost")
    for name, value in {"pause": 0.01, "longest_pause": 0.05, "silence": 0.4}.items():
        monkeypatch.setattr(remote.PATIENCE, name, value)
    return remote.PATIENCE


@pytest.fixture
def server(tmp_path: Path, impatient: remote.Patience) -> Iterator[FileServer]:
    """A web server of the folder `web`."""
    (tmp_path / "web").mkdir()
    with FileServer(tmp_path / "web") as made:
        yield made


@pytest.fixture
def hub(
    server: FileServer,
    impatient: remote.Patience,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[FileServer]:
    """A Hub of the same folder, with an empty cache."""
    monkeypatch.setattr(
        impatient, "silence", 5.0
    )  # its client takes its time with the first request
    import huggingface_hub
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "ENDPOINT", server.url)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    yield server
    huggingface_hub.close_session()


@pytest.fixture(scope="session")
def moto() -> Iterator[str]:
    """The URL of a server of S3."""
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    yield f"http://127.0.0.1:{server.get_host_and_port()[1]}"
    server.stop()


@pytest.fixture
def s3(
    moto: str, impatient: remote.Patience, monkeypatch: pytest.MonkeyPatch
) -> Iterator[S3Bucket]:
    """An empty bucket of S3."""
    from s3fs.core import S3FileSystem

    monkeypatch.setattr(impatient, "silence", 5.0)
    for name, value in {
        "AWS_ENDPOINT_URL": moto,
        "AWS_ACCESS_KEY_ID": "key",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_DEFAULT_REGION": "us-east-1",
    }.items():
        monkeypatch.setenv(name, value)
    bucket = S3Bucket(moto)
    yield bucket
    for each in bucket.client.list_objects_v2(Bucket="bucket").get("Contents", ()):
        bucket.client.delete_object(Bucket="bucket", Key=each["Key"])
    bucket.client.close()
    S3FileSystem.clear_instance_cache()


@pytest.fixture
def gs(server: FileServer, monkeypatch: pytest.MonkeyPatch) -> Iterator[GoogleBucket]:
    """An empty bucket of Google's."""
    import fsspec.config
    from gcsfs.core import GCSFileSystem

    monkeypatch.setenv("STORAGE_EMULATOR_HOST", server.url)
    monkeypatch.setitem(fsspec.config.conf, "gs", {"token": "anon"})
    yield GoogleBucket(server.root)
    GCSFileSystem.clear_instance_cache()
