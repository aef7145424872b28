"""Whole merges of remote models: the bytes of local ones, each range fetched once, problems and what they say."""

from __future__ import annotations

import hashlib
import json
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import layoutkit
import numpy as np
import pytest
from said import start
from serverkit import SHA, FileServer, Problem, make_certificate

import jmerge
from jmerge import cli
from jmerge.ckpt.buckets import BucketSource
from jmerge.diff.compare import compare
from jmerge.engine import fetch, store
from jmerge.engine.events import Wrote
from jmerge.engine.fetch import Fetcher
from jmerge.engine.memory import need_of
from jmerge.engine.schedule import make_schedule
from jmerge.engine.store import FileStore
from jmerge.errors import CheckpointError, RunError
from jmerge.testing.tiny import write_checkpoint, write_llama

METHODS = {
    "linear": "parameters: {weight: 0.5}",
    "slerp": "parameters: {t: 0.3}",
    "ties": "parameters: {weight: 0.5, density: 0.4}",
    "pcb": "parameters: {weight: 0.5, rho: 0.2}",
}
SIZES = {"hidden": 128, "vocab": 1024, "layers": 2}


class Place(NamedTuple):
    """Where models a and b are served, and how many bytes of weights were fetched so far."""

    url: str
    fetched: Callable[[], int]


@pytest.fixture
def local(tmp_path: Path) -> Path:
    """A folder with llamas `a` and `b` and a tokenizer."""
    for seed, name in enumerate("ab"):
        folder = write_llama(tmp_path / "local" / name, seed, **SIZES)
        (folder / "tokenizer.json").write_text("{}")
        (folder / "merges.txt").write_bytes(b"\xff\n")
    return tmp_path / "local"


@pytest.fixture(params=["https", "hf", "s3", "gs"])
def place(
    request: pytest.FixtureRequest, local: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Place]:
    """Every store in turn, with the models of `local`; http is what the other tests use."""
    if request.param == "https":
        request.getfixturevalue("impatient")
        certificate = make_certificate(tmp_path)
        monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
        with FileServer(local, certificate) as safe:
            yield Place(safe.url, safe.total)
        return
    if request.param == "s3":
        bucket = request.getfixturevalue("s3")
        for name in "ab":
            for path in (local / name).iterdir():
                bucket.client.upload_file(str(path), "bucket", f"org/{name}/{path.name}")
        sizes = []
        get = BucketSource.fetch

        def counted(self: BucketSource, name: str, start: int, view: memoryview, stat: Any) -> int:
            count = get(self, name, start, view, stat)
            sizes.append(count if name.endswith(".safetensors") else 0)
            return count

        monkeypatch.setattr(BucketSource, "fetch", counted)
        yield Place("s3://bucket/org", lambda: sum(sizes))
        return
    server: FileServer = request.getfixturevalue("hub" if request.param == "hf" else "server")
    root = server.root / "bucket" if request.param == "gs" else server.root
    if request.param == "gs":
        request.getfixturevalue("gs")
    shutil.copytree(local, root / "org", dirs_exist_ok=True)
    yield Place("org" if request.param == "hf" else "gs://bucket/org", server.total)


def recipe(folder: Path, where: str, method: str = "linear") -> Path:
    """A recipe of the models `a`, `b` and `b` again below `where`."""
    base = f"base_model: {where}/a\n" if method != "linear" else ""
    path = folder / "x.yml"
    path.write_text(
        f"merge_method: {method}\n{base}models:\n- model: {where}/a\n- model: {where}/b\n"
        f"{METHODS[method]}\n"
    )
    return path


def weights(folder: Path) -> str:
    """The digest of all weights."""
    return hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()


def merged(tmp_path: Path, where: str, method: str, out: str) -> Path:
    jmerge.merge(recipe(tmp_path, where, method), tmp_path / out)
    return tmp_path / out


def needed(local: Path) -> int:
    """Bytes of all tensors."""
    return sum(
        entry.spec.nbytes
        for name in "ab"
        for entry in jmerge.open_checkpoint(local / name).index.values()
    )


@pytest.mark.parametrize("method", ["linear", "ties"])
def test_the_bytes_of_a_local_merge(method: str, place: Place, local: Path, tmp_path: Path) -> None:
    """And every range of the inputs is fetched once, however many passes the method takes."""
    want = merged(tmp_path, str(local), method, "want")
    out = merged(tmp_path, place.url, method, "out")
    assert weights(out) == weights(want)
    for name in ("config.json", "tokenizer.json", "merges.txt"):
        assert (out / name).read_bytes() == (want / name).read_bytes()
    headers = 2 * ((1 << 16) + 1)
    assert needed(local) <= place.fetched() <= needed(local) * 1.01 + headers
    assert {path.name for path in tmp_path.iterdir()} <= {
        *("want", "out", "local", "web", "x.yml", "cache", "certificate.pem")
    }


def test_remote_models_compared(place: Place, local: Path) -> None:
    """The numbers of local ones, and every byte fetched once."""
    found = compare(*(jmerge.open_checkpoint(f"{place.url}/{name}") for name in "ab"))
    want = compare(*(jmerge.open_checkpoint(local / name) for name in "ab"))
    assert found.tensors == want.tensors and found.total.changed
    assert found.beside.files == {"merges.txt": "same", "tokenizer.json": "same"}
    headers = 2 * ((1 << 16) + 1)
    assert needed(local) <= place.fetched() <= needed(local) * 1.01 + headers


def test_again_it_is_up_to_date(place: Place, tmp_path: Path) -> None:
    out = merged(tmp_path, place.url, "linear", "out")
    before = place.fetched()
    assert jmerge.merge(tmp_path / "x.yml", out).up_to_date
    assert place.fetched() - before <= 2 * ((1 << 16) + 1)


@pytest.fixture
def web(server: FileServer, local: Path) -> FileServer:
    """A web server of `local`."""
    shutil.copytree(local, server.root, dirs_exist_ok=True)
    return server


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small parts, little fetched ahead, and nothing held in memory."""
    monkeypatch.setattr(fetch, "PART_BYTES", 1 << 15)
    monkeypatch.setattr(fetch, "AHEAD_BYTES", 1 << 17)
    monkeypatch.setattr(store, "IN_MEMORY", 0)


@pytest.mark.parametrize("method", METHODS)
def test_parts_in_a_temporary_file(
    method: str, small: None, web: FileServer, local: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """Passes over tensors and over whole models, with problems: the same bytes, fetched once, and frames used again."""
    want = merged(tmp_path, str(local), method, "want")
    frames = []
    close = FileStore.close
    monkeypatch.setattr(
        FileStore, "close", lambda self: frames.append((self._made, self._frames)) or close(self)
    )
    estimates = []
    most = Fetcher._most_held
    monkeypatch.setattr(Fetcher, "_most_held", lambda s: estimates.append(most(s)) or estimates[-1])
    web.problems = [
        Problem(kind, skip=8 * i) for i, kind in enumerate(("short", "503", "stall"), 1)
    ]
    assert weights(merged(tmp_path, web.url, method, "out")) == weights(want)
    assert all(problem.times == 0 for problem in web.problems)
    assert web.total() <= needed(local) * 1.05 + 2 * (1 << 16)
    ((made, held),) = frames
    if method != "pcb":  # whose search for cuts may look back
        assert held == {}, "every part was let go after its last use"
    assert made * (1 << 15) <= 2 * estimates[0]
    if method == "linear":
        assert estimates[0] < needed(local) / 2, "what is used once is not kept"


def test_requests_go_side_by_side(
    web: FileServer, local: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fetch, "PART_BYTES", 1 << 15)
    web.delay = 0.01
    merged(tmp_path, web.url, "linear", "out")
    assert web.most >= 8


@pytest.mark.parametrize("store", ["http", "hf", "s3", "gs"])
def test_folders_in_a_folder(
    store: str, tmp_path: Path, request: pytest.FixtureRequest, server: FileServer
) -> None:
    """The modules of Sentence Transformers, listed or not, come along and are merged as those of a folder are."""
    for seed, name in enumerate("ab"):
        folder = tmp_path / "local" / name
        write_llama(folder / "0_Transformer", seed)
        dense = {"linear.weight": np.full((3, 8), seed + 1, np.float32)}
        write_checkpoint(folder / "2_Dense", dense, {"bias": False})
        kinds = {"0_Transformer": "Transformer", "2_Dense": "Dense", "3_Normalize": "Normalize"}
        entries = [{"path": path, "type": f"x.{kind}"} for path, kind in kinds.items()]
        (folder / "modules.json").write_text(json.dumps(entries))
        (folder / "0_Transformer" / "tokenizer.json").write_text("{}")
    want = merged(tmp_path, str(tmp_path / "local"), "linear", "want")
    url = {
        "http": f"{server.url}/org",
        "hf": "org",
        "s3": "s3://bucket/org",
        "gs": "gs://bucket/org",
    }
    if store != "http":
        bucket = request.getfixturevalue({"hf": "hub"}.get(store, store))
    if store == "s3":
        for path in (tmp_path / "local").rglob("*"):
            if path.is_file():
                key = f"org/{path.relative_to(tmp_path / 'local').as_posix()}"
                bucket.client.upload_file(str(path), "bucket", key)
    else:
        root = server.root / "bucket" if store == "gs" else server.root
        shutil.copytree(tmp_path / "local", root / "org", dirs_exist_ok=True)
    out = merged(tmp_path, url[store], "linear", "out")
    names = {path.relative_to(want).as_posix() for path in want.rglob("*") if path.is_file()}
    assert names >= {"modules.json", "2_Dense/config.json", "0_Transformer/tokenizer.json"}
    assert {p.relative_to(out).as_posix() for p in out.rglob("*") if p.is_file()} == names
    for name in names - {"jmerge.lock.json", "mergekit_config.yml", "README.md"}:
        assert (out / name).read_bytes() == (want / name).read_bytes(), name


def test_no_room_for_the_temporary_file(
    small: None, web: FileServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr("jmerge.engine.store.shutil.disk_usage", lambda place: usage)
    monkeypatch.setattr("jmerge.ckpt.writer.OutputFolder.create", lambda self, files: [])
    with pytest.raises(RunError, match="has 1,000 bytes free; .* more than once"):
        merged(tmp_path, web.url, "ties", "out")


# Problems


def program(tmp_path: Path) -> int:
    return cli.main([str(tmp_path / "x.yml"), str(tmp_path / "out"), "--quiet"])


def test_a_server_that_stays_away(
    web: FileServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Exit 3 with one line; nothing looks like a result; the same command succeeds later."""
    recipe(tmp_path, web.url)
    web.problems = [Problem("503", "/model.safetensors", times=999, skip=4)]
    assert program(tmp_path) == 3
    line = capsys.readouterr().err
    assert line.startswith(f"error: {web.url}/") and line.count("\n") == 1
    assert "model.safetensors, bytes " in line and "503" in line and "run the same command" in line
    assert not (tmp_path / "out").exists()
    assert not list(tmp_path.rglob("jmerge-fetched-*"))
    web.problems = []
    assert program(tmp_path) == 0


@pytest.mark.skipif(sys.platform == "win32", reason="signals of POSIX")
def test_an_interrupted_merge_ends_at_once(web: FileServer, tmp_path: Path) -> None:
    """Though a server is silent, and would be waited for."""
    stall = Problem("stall", "/model.safetensors", times=99, skip=4)
    web.problems = [stall]
    path = recipe(tmp_path, web.url)
    process = start(tmp_path, str(path), "out")
    deadline = time.monotonic() + 60
    while stall.times == 99 and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    sent = time.monotonic()
    said = process.communicate(timeout=60)
    assert (process.returncode, *said) == (
        130, "", "interrupted; the same command continues from here\n",
    )  # fmt: skip
    assert time.monotonic() - sent < 4
    assert not list(tmp_path.rglob("jmerge-fetched-*"))


def test_a_resumed_merge_fetches_what_is_left(
    web: FileServer, small: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a tensor that is half written, the other half."""
    piece = 4096
    monkeypatch.setattr(fetch, "PART_BYTES", 2 * piece)
    monkeypatch.setattr(fetch, "AHEAD_BYTES", 1)
    monkeypatch.setattr("jmerge.engine.attempts.fit", lambda plan, *_: make_schedule(plan, piece))
    path = recipe(tmp_path, web.url)
    before = web.total()
    jmerge.merge(path, tmp_path / "want")
    whole = web.total() - before
    wrote = []

    def stop(event: Any) -> None:
        if isinstance(event, Wrote):
            wrote.append(event.block)
            if len(wrote) == 4:
                raise RunError("the machine failed")

    with pytest.raises(RunError, match="the machine failed"):
        jmerge.merge(path, tmp_path / "out", listeners=(stop,))
    assert {block.tensor for block in wrote} == {wrote[0].tensor}
    before = web.total()
    jmerge.merge(path, tmp_path / "out")
    kept = 2 * sum(block.nbytes for block in wrote)
    # the parts in which two pieces meet are needed still
    assert whole - (web.total() - before) >= kept - 2 * 2 * piece
    assert weights(tmp_path / "out") == weights(tmp_path / "want")


def test_a_file_that_changes_meanwhile(
    web: FileServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe(tmp_path, web.url)
    web.problems = [Problem("etag", "/model.safetensors", skip=4)]
    assert program(tmp_path) == 2
    assert "model.safetensors: changed while it was being read" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_bucket_that_changes_meanwhile(
    gs: Any, server: FileServer, local: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where a read does not say of what it was, the store is asked at the end."""
    shutil.copytree(local, server.root / "bucket" / "org")
    path = server.root / "bucket" / "org" / "b" / "model.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    monkeypatch.setattr(
        "jmerge.engine.attempts.fit",
        lambda plan, *_: path.write_bytes(data) and jmerge.advanced.make_schedule(plan),
    )
    with pytest.raises(CheckpointError, match="gs://bucket/org/b/model.safetensors: changed"):
        merged(tmp_path, "gs://bucket/org", "linear", "out")


def test_models_that_are_missing(
    place: Place, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Exit 2 with the recipe's line and key, and nothing fetched."""
    path = recipe(tmp_path, place.url)
    path.write_text(path.read_text().replace("/b\n", "/nowhere\n"))
    assert program(tmp_path) == 2
    line = capsys.readouterr().err
    assert line.startswith(f"error: {path}:4: models[1].model: ") and line.count("\n") == 1
    assert f"{place.url}/nowhere" in line


def test_plan_and_inspect(
    hub: FileServer, local: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """They work on headers of remote models, and plans name the commit."""
    shutil.copytree(local, hub.root / "org")
    assert cli.main(["plan", str(recipe(tmp_path, "org")), "--json"]) == 0
    shown = capsys.readouterr().out
    assert f"hf://org/a@{SHA}" in shown and "hf_secret" not in shown
    assert hub.total() <= 2 * (1 << 16)
    assert cli.main(["inspect", "org/a"]) == 0
    assert f"hf://org/a@{SHA}" in capsys.readouterr().out
    assert hub.total() <= 5 * (1 << 16)


def test_the_card_and_the_ledger_of_hub_models(
    hub: FileServer, local: Path, tmp_path: Path
) -> None:
    shutil.copytree(local, hub.root / "org")
    path = recipe(tmp_path, "hf://org")
    jmerge.merge(path, tmp_path / "out")
    card = (tmp_path / "out" / "README.md").read_text()
    assert "base_model:\n- org/a\n- org/b\n" in card
    ledger = (tmp_path / "out" / "jmerge.lock.json").read_text()
    assert f"hf://org/b@{SHA}" in ledger and "secret" not in ledger


def test_a_local_and_a_remote_model(web: FileServer, local: Path, tmp_path: Path) -> None:
    want = merged(tmp_path, str(local), "linear", "want")
    path = recipe(tmp_path, str(local))
    path.write_text(path.read_text().replace(f"{local}/b", f"{web.url}/b"))
    jmerge.merge(path, tmp_path / "out")
    assert weights(tmp_path / "out") == weights(want)
    assert web.total() <= needed(local) / 2 * 1.01 + (1 << 16)


def test_memory_of_what_is_fetched_is_announced(
    web: FileServer, local: Path, tmp_path: Path
) -> None:
    plans = [jmerge.plan(recipe(tmp_path, where)) for where in (str(local), web.url)]
    fetched = [need_of(jmerge.advanced.make_schedule(plan)).fetched for plan in plans]
    assert fetched == [0, store.REMOTE_BYTES]
    assert np.isclose(store.REMOTE_BYTES, store.IN_MEMORY + 16 * (1 << 22))


@pytest.mark.parametrize("method", ["linear", pytest.param("ties", marks=pytest.mark.slow)])
@pytest.mark.parametrize("form", ["mixtral", "transposed_experts"])
@pytest.mark.parametrize("donor", ["apart", "together"])
def test_models_in_two_forms(
    donor: str, form: str, method: str, small: None, server: FileServer, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """Experts packed and one by one: the bytes of a local merge, and every range of the inputs fetched once."""
    monkeypatch.setattr(layoutkit, "HIDDEN", 96)
    monkeypatch.setattr(layoutkit, "INNER", 80)
    for seed, name in enumerate("ab"):
        row = layoutkit.ROWS[form](seed)
        stored = row.apart if (donor == "apart") == (name == "a") else row.together
        stored.write(tmp_path / "local" / name)
    shutil.copytree(tmp_path / "local", server.root, dirs_exist_ok=True)
    want = merged(tmp_path, str(tmp_path / "local"), method, "want")
    assert weights(merged(tmp_path, server.url, method, "out")) == weights(want)
    total = needed(tmp_path / "local")
    assert total <= server.total() <= total * 1.05 + 2 * ((1 << 16) + 1)
