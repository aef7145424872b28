"""Fixtures of the tests of remote sources."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from serverkit import FileServer

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
