"""Models on web servers: the ranges that are asked for, what passes, what is refused, and what errors say."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest
from said import uncoded
from serverkit import FileServer, Problem, make_certificate, seconds

from jmerge.ckpt import remote
from jmerge.ckpt.find import find_source
from jmerge.ckpt.open import open_checkpoint
from jmerge.ckpt.remote import PART_BYTES, redacted
from jmerge.errors import CheckpointError, RunError
from jmerge.testing.close import assert_same_bytes
from jmerge.testing.tiny import llama_tensors, write_checkpoint, write_llama


@pytest.fixture
def model(server: FileServer) -> str:
    """The URL of a tiny llama."""
    write_llama(server.root / "m", 0)
    return f"{server.url}/m"


def refusal(url: str, name: str = "model.norm.weight") -> str:
    """The one line with which reading a tensor is refused."""
    with pytest.raises(CheckpointError) as caught:
        open_checkpoint(url)[name]
    assert "\n" not in str(caught.value)
    return uncoded(str(caught.value))


def test_a_checkpoint(model: str, server: FileServer) -> None:
    """Names, config and values are those of the folder; opening reads headers alone."""
    checkpoint = open_checkpoint(model + "/")
    assert str(checkpoint.path) == model
    assert checkpoint.config["model_type"] == "llama"
    size = (server.root / "m" / "model.safetensors").stat().st_size
    assert server.total() <= min(size, 1 << 16) + 1
    before = server.total()
    array = checkpoint["model.norm.weight"]
    assert server.total() - before == array.nbytes
    for name, wanted in llama_tensors(0).items():
        assert_same_bytes(checkpoint[name], wanted)
        assert not checkpoint[name].flags.writeable


def test_folders_with_other_letters(server: FileServer) -> None:
    """Blanks and letters beyond ASCII are written as URLs have them."""
    write_llama(server.root / "ein Modell für 1%" / "m", 0)
    checkpoint = open_checkpoint(f"{server.url}/ein Modell für 1%25/m")
    assert str(checkpoint.path) == f"{server.url}/ein%20Modell%20f%C3%BCr%201%25/m"


def test_shards_and_long_headers(server: FileServer) -> None:
    """A header beyond the first guess is read to its end, and every shard's is."""
    tensors = {f"layer.{i}.{'x' * 60}": np.full(3, i, np.int16) for i in range(900)}
    write_checkpoint(server.root / "long", tensors)
    write_checkpoint(server.root / "shards", tensors, shard_bytes=1800)
    for folder in ("long", "shards"):
        checkpoint = open_checkpoint(f"{server.url}/{folder}")
        assert len(checkpoint) == 900 and checkpoint[f"layer.7.{'x' * 60}"].tolist() == [7, 7, 7]


def test_large_tensors_come_in_parts(server: FileServer) -> None:
    values = np.arange(3 * PART_BYTES, dtype=np.uint32)[: 3 * PART_BYTES // 4 + 5]
    write_checkpoint(server.root / "m", {"a": values})
    server.problems = [Problem("short", skip=3), Problem("503", skip=4)]
    np.testing.assert_array_equal(open_checkpoint(f"{server.url}/m")["a"], values)
    ranges = [h["Range"] for p, h in server.requests if p.endswith("/model.safetensors")]
    assert len(set(ranges)) >= 5


def test_https_with_a_trusted_certificate(
    tmp_path: Path, impatient: remote.Patience, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And a line without attempts for one that is not trusted."""
    write_llama(tmp_path / "web" / "m", 0)
    certificate = make_certificate(tmp_path)
    with FileServer(tmp_path / "web", certificate) as server:
        assert server.url.startswith("https://")
        with pytest.raises(RunError, match="its certificate is not trusted .*SSL_CERT_FILE"):
            open_checkpoint(f"{server.url}/m")
        monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
        checkpoint = open_checkpoint(f"{server.url}/m")
        assert_same_bytes(checkpoint["model.norm.weight"], llama_tensors(0)["model.norm.weight"])
        kept = {headers["Host"] for _, headers in server.requests}
        assert len(kept) == 1
        del checkpoint


def test_connections_are_kept(model: str, server: FileServer) -> None:
    checkpoint = open_checkpoint(model)
    opened = []
    accept = server.server.get_request
    server.server.get_request = lambda: opened.append(1) or accept()  # type: ignore[method-assign]
    for name in checkpoint:
        checkpoint[name]
    assert len(opened) <= 1


def test_through_a_proxy(model: str, server: FileServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """The environment names it; it is asked for the whole URL."""
    monkeypatch.delenv("NO_PROXY")
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.setenv("http_proxy", server.url)
    assert len(open_checkpoint("http://models.invalid/m")) == len(open_checkpoint(model))
    assert server.requests[0][0].startswith("http://models.invalid/m/")


def test_through_a_tunnel(
    server: FileServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A proxy of https sees a host and a port."""
    write_llama(tmp_path / "safe" / "m", 0)
    certificate = make_certificate(tmp_path)
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    monkeypatch.delenv("NO_PROXY")
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.setenv("https_proxy", server.url)
    with FileServer(tmp_path / "safe", certificate) as other:
        assert len(open_checkpoint(f"{other.url}/m")) == len(llama_tensors(0))
        assert {path for path, _ in server.requests} == {other.url.removeprefix("https://")}


@pytest.mark.parametrize("kind", ["short", "500", "502", "503", "429", "stall", "408"])
def test_passing_problems(kind: str, model: str, server: FileServer) -> None:
    """What passes is tried again, and the bytes are right."""
    checkpoint = open_checkpoint(model)
    server.problems = [Problem(kind, times=3)]
    with seconds(5):
        name = "model.embed_tokens.weight"
        assert_same_bytes(checkpoint[name], llama_tensors(0)[name])
    assert server.problems[0].times == 0


@pytest.mark.parametrize(
    ("kind", "message"),
    [("503", "the server answered 503 Service Unavailable"), ("stall", "no data for 0.4 s")],
)
def test_problems_that_stay(kind: str, message: str, model: str, server: FileServer) -> None:
    """They end the run, which names the URL, the range and what to do; it is the machine's problem."""
    checkpoint = open_checkpoint(model)
    server.problems = [Problem(kind, times=99)]
    with pytest.raises(RunError) as caught, seconds(8):
        checkpoint["model.norm.weight"]
    line = uncoded(str(caught.value))
    entry = checkpoint.index["model.norm.weight"]
    stop = entry.start + entry.spec.nbytes
    assert line.startswith(f"{model}/model.safetensors, bytes {entry.start} to {stop}: {message}")
    assert line.endswith(r"(5 attempts); run the same command again") and "\n" not in line
    assert 99 - server.problems[0].times == 5


def test_bytes_before_a_problem_are_kept(model: str, server: FileServer) -> None:
    checkpoint = open_checkpoint(model)
    server.problems = [Problem("short", times=2)]
    before = server.total()
    array = checkpoint["model.embed_tokens.weight"]
    assert server.total() - before == array.nbytes


def test_nobody_there(impatient: remote.Patience) -> None:
    with pytest.raises(RunError, match=r"127.0.0.1:9/m/\S+: Connection refused \(5 attempts\)"):
        open_checkpoint("http://127.0.0.1:9/m")


# What is refused


def test_a_file_that_is_gone_is_not_tried_again(model: str, server: FileServer) -> None:
    checkpoint = open_checkpoint(model)
    (server.root / "m" / "model.safetensors").unlink()
    count = len(server.requests)
    with pytest.raises(
        CheckpointError, match="changed while it was being read: the server answered 404"
    ):
        checkpoint["model.norm.weight"]
    assert len(server.requests) == count + 1


def test_access_is_not_tried_again(model: str, server: FileServer) -> None:
    checkpoint = open_checkpoint(model)
    server.problems = [Problem("403", times=9)]
    with pytest.raises(CheckpointError, match=r"the server refused access \(403\)"):
        checkpoint["model.norm.weight"]
    assert server.problems[0].times == 8
    server.problems = [Problem("401", end="", times=999)]
    assert "; the server refused access (401)" in refusal(model)


def test_a_server_without_ranges(model: str, server: FileServer) -> None:
    """Is noticed before it sends a file of gigabytes."""
    server.problems = [Problem("whole", times=99)]
    line = refusal(model)
    assert "ignores byte ranges" in line and "download the model" in line


def test_another_range_than_asked_for(model: str, server: FileServer) -> None:
    checkpoint = open_checkpoint(model)
    server.problems = [Problem("elsewhere")]
    with pytest.raises(CheckpointError, match="the server sent 'bytes .*', not 'bytes .*'"):
        checkpoint["model.norm.weight"]


@pytest.mark.parametrize("how", ["tag", "size", "content"])
def test_a_file_that_changes(how: str, model: str, server: FileServer) -> None:
    checkpoint = open_checkpoint(model)
    path = server.root / "m" / "model.safetensors"
    if how == "tag":
        server.problems = [Problem("etag")]
    else:
        data = bytearray(path.read_bytes())
        data[-1] ^= 1
        path.write_bytes(data + b"x" * (how == "size"))
    with pytest.raises(CheckpointError, match="changed while it was being read"):
        checkpoint["model.norm.weight"]


def test_nothing_there(server: FileServer) -> None:
    assert refusal(f"{server.url}/nowhere") == (
        f"{server.url}/nowhere: holds no model.safetensors and no model.safetensors.index.json"
    )


@pytest.mark.parametrize(
    "url",
    [
        "https://user:word@host/m",
        "https://host/m?sig=word",
        "http://host/m#word",
        "https:///m",
        "https://host:port/m",
    ],
)
def test_urls_that_are_none_of_a_folder(url: str) -> None:
    line = refusal(url)
    assert "is not the URL of a folder" in line and "word" not in line.replace("password", "")


@pytest.mark.parametrize("url", ["ftp://host/m", "file:///m", "S4://b/m"])
def test_schemes_that_are_not_offered(url: str) -> None:
    assert "write the path of a folder, or hf://, https://, http://, s3://, gs://" in refusal(url)


def test_web_servers_have_no_revisions(model: str) -> None:
    with pytest.raises(CheckpointError, match="has no revision 'main': only models on the Hub"):
        find_source(model, "main")


def test_what_errors_do_not_show() -> None:
    text = "GET https://me:word@host/a?sig=word&x=1 <Bad>\nhttps://host/b?token=word'"
    assert redacted(text) == "GET https://host/a?... <Bad> https://host/b?...'"


def test_whole_files(server: FileServer, model: str) -> None:
    """The known files of a model are found and read whole; an empty one too."""
    (server.root / "m" / "tokenizer.json").write_bytes(b"")
    (server.root / "m" / "merges.txt").write_bytes(b"a b\n")
    source = find_source(model)
    assert {"tokenizer.json", "merges.txt", "config.json"} <= set(source.names())
    assert source.read("tokenizer.json") == b"" and source.read("merges.txt") == b"a b\n"
    data = (server.root / "m" / "config.json").read_bytes()
    assert hashlib.sha256(source.read("config.json")).digest() == hashlib.sha256(data).digest()
