"""`OutputFolder` by itself: what is written, what stays after a problem, systems that lack calls.

The states that a whole merge meets are in `tests/engine/test_folder.py`.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from jmerge.ckpt.journal import Block, read_journal
from jmerge.ckpt.safetensors import read_header
from jmerge.ckpt.shards import plan_files
from jmerge.ckpt.writer import JOURNAL, LEDGER, OutputFolder, read_ledger
from jmerge.dtypes import TensorSpec
from jmerge.errors import PlanError, RunError

SPECS = {"a": TensorSpec("U8", (100,)), "b": TensorSpec("F32", (16,)), "c": TensorSpec("U8", (0,))}
FILES = plan_files(SPECS, 0)
DATA = {"a": bytes(range(100)), "b": bytes(range(100, 164))}
IDENTITY = {"plan": "p", "jmerge": "test"}


def folder(out: Path, plan: str = "p", *, overwrite: bool = False) -> OutputFolder:
    return OutputFolder(out, IDENTITY | {"plan": plan}, overwrite)


def fill(made: OutputFolder) -> None:
    """Write every tensor, backwards and in uneven pieces, and the ledger."""
    for name, data in DATA.items():
        for start in reversed(range(0, len(data), 33)):
            made.write(name, start, memoryview(data)[start : start + 33])
    made.write_text("config.json", "{}\n")
    made.write_text(LEDGER, json.dumps(made.identity | {"files": made.sizes()}))


def build(out: Path, plan: str = "p", *, overwrite: bool = False) -> OutputFolder:
    """Make a whole result."""
    made = folder(out, plan, overwrite=overwrite)
    assert not made.finished()
    with made:
        made.create(FILES)
        fill(made)
        made.publish()
    return made


def contents(out: Path) -> dict[str, bytes]:
    """Every file under a folder, by its path in it."""
    return {
        str(path.relative_to(out)): path.read_bytes() for path in out.rglob("*") if path.is_file()
    }


def beside(out: Path) -> set[str]:
    """What lies beside a folder."""
    return {path.name for path in out.parent.iterdir()} - {out.name}


def expected_bytes() -> bytes:
    (file,) = FILES
    image = bytearray(file.size)
    image[: len(file.header)] = file.header
    for name, data in DATA.items():
        image[file.starts[name] : file.starts[name] + len(data)] = data
    return bytes(image)


# From nothing to a published folder


def test_a_folder_appears_whole(tmp_path: Path) -> None:
    made = folder(tmp_path / "out")
    assert not made.finished()
    with made:
        made.create(FILES)
        assert not (tmp_path / "out").exists()
        assert (made.work / "model.safetensors").stat().st_size == FILES[0].size
        assert json.loads((made.work / JOURNAL).read_text().splitlines()[0]) == IDENTITY
        fill(made)
        assert made.sizes() == {
            name: (made.work / name).stat().st_size
            for name in ("config.json", LEDGER, "model.safetensors")
        }
        assert not (tmp_path / "out").exists()
        made.publish()
    found = contents(tmp_path / "out")
    assert set(found) == {"model.safetensors", "config.json", LEDGER}
    assert found["model.safetensors"] == expected_bytes()
    assert set(read_header(tmp_path / "out" / "model.safetensors").extents) == set(SPECS)
    assert beside(tmp_path / "out") == set()
    assert not made.resumed


def test_missing_parents_are_made(tmp_path: Path) -> None:
    build(tmp_path / "deep" / "er" / "out")
    assert contents(tmp_path / "deep" / "er" / "out")["model.safetensors"] == expected_bytes()


def test_a_relative_path_stays_where_it_pointed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "here").mkdir()
    (tmp_path / "there").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    made = folder(Path("out"))
    with made:
        made.create(FILES)
        monkeypatch.chdir(tmp_path / "there")
        fill(made)
        made.publish()
    assert {p.name for p in tmp_path.rglob("out")} == {"out"}
    assert contents(tmp_path / "here" / "out")["model.safetensors"] == expected_bytes()


def test_everything_is_on_the_disk_before_it_is_published(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Files and their folder are synced before the rename, and the folder around it after."""
    synced: set[int] = set()
    unsynced: list[str] = []
    real_sync, real_rename = os.fsync, os.rename

    def sync(descriptor: int) -> None:
        synced.add(os.fstat(descriptor).st_ino)
        real_sync(descriptor)

    def rename(source: Any, target: Any, **rest: Any) -> None:
        unsynced.extend(p.name for p in Path(source).iterdir() if p.stat().st_ino not in synced)
        assert Path(source).stat().st_ino in synced
        synced.clear()
        real_rename(source, target, **rest)

    monkeypatch.setattr(os, "fsync", sync)
    monkeypatch.setattr(os, "rename", rename)
    build(tmp_path / "out")
    assert unsynced == []
    assert tmp_path.stat().st_ino in synced


def test_small_files_are_written_as_they_are(tmp_path: Path) -> None:
    data = b"\x00\xffany bytes"
    with folder(tmp_path / "out") as made:
        made.write_file("tokenizer.json", data)
        assert made.sizes() == {"tokenizer.json": len(data)}
        assert (made.work / "tokenizer.json").read_bytes() == data


# What is there already


class State(NamedTuple):
    """What stands at the output path before a run, and what `finished` makes of it."""

    make: Callable[[Path], Any]
    refused: str  # part of the message without --overwrite; empty: it goes on
    forced: str  # the same with --overwrite


def foreign(out: Path) -> None:
    out.mkdir()
    (out / "thesis.tex").write_text("years of work")


def ours_with_a_guest(out: Path) -> None:
    build(out, "other")
    foreign(out / "sub")


def damaged(out: Path) -> None:
    build(out)
    os.truncate(out / "model.safetensors", 10)


def damaged_with_a_guest(out: Path) -> None:
    damaged(out)
    (out / "notes.txt").write_text("mine")


def incomplete(out: Path) -> None:
    build(out)
    (out / "config.json").unlink()


def broken_ledger(out: Path) -> None:
    build(out)
    (out / LEDGER).write_text("{")


STATES = {
    "nothing": State(lambda out: None, "", ""),
    "an empty folder": State(Path.mkdir, "", ""),
    "a file": State(lambda out: out.write_text("x"), "not written by jmerge", "not written"),
    "a foreign folder": State(foreign, "not written by jmerge", "not written by jmerge"),
    "another result": State(lambda out: build(out, "other"), "overwrite=True", ""),
    "another result and a guest": State(ours_with_a_guest, "overwrite=True", "sub"),
    "this result, cut": State(damaged, "damaged", ""),
    "this result, cut, and a guest": State(damaged_with_a_guest, "damaged", "notes.txt"),
    "this result, a file gone": State(incomplete, "damaged", ""),
    "this result, its ledger broken": State(broken_ledger, "not written", "not written"),
}


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("case", STATES)
def test_what_is_there_already(case: str, overwrite: bool, tmp_path: Path) -> None:
    state = STATES[case]
    out = tmp_path / "out"
    state.make(out)
    before = contents(out) if out.is_dir() else None
    message = state.forced if overwrite else state.refused
    if message:
        with pytest.raises(PlanError, match=message) as caught:
            folder(out, overwrite=overwrite).finished()
        assert str(out) in str(caught.value) and "\n" not in str(caught.value)
        assert before is None or contents(out) == before
    else:
        build(out, overwrite=overwrite)
        assert set(contents(out)) == {"model.safetensors", "config.json", LEDGER}
        assert contents(out)["model.safetensors"] == expected_bytes()
    assert beside(out) == set()


def test_this_very_result_is_finished(tmp_path: Path) -> None:
    build(tmp_path / "out")
    (tmp_path / "out" / "notes.txt").write_text("a guest does no harm here")
    for overwrite in (False, True):
        assert folder(tmp_path / "out", overwrite=overwrite).finished()


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"files": 3}', '{"files": []}', "\x00"])
def test_only_a_ledger_makes_a_folder_ours(text: str, tmp_path: Path) -> None:
    (tmp_path / LEDGER).write_text(text)
    assert read_ledger(tmp_path) is None


def test_a_guest_in_the_place_of_the_old_folder_is_kept(tmp_path: Path) -> None:
    """`DIR.jmerge-old` is for a replaced result; what others put there is not ours to delete."""
    build(tmp_path / "out")
    foreign(tmp_path / "out.jmerge-old")
    with contextlib.suppress(PlanError):
        folder(tmp_path / "out").finished()
    assert (tmp_path / "out.jmerge-old" / "thesis.tex").exists()


# Leaving early


@pytest.mark.parametrize(
    ("error", "kept"),
    [
        (PlanError("a mistake"), False),
        (ValueError("a bug"), False),
        (RunError("the machine"), True),
        (KeyboardInterrupt(), True),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, BaseException) else "",
)
def test_what_a_problem_leaves_behind(error: BaseException, kept: bool, tmp_path: Path) -> None:
    made = folder(tmp_path / "out")
    with pytest.raises(type(error)), made:
        made.create(FILES)
        raise error
    assert not (tmp_path / "out").exists()
    assert beside(tmp_path / "out") == ({"out.jmerge-work"} if kept else set())


def test_work_of_the_same_plan_is_taken_over(tmp_path: Path) -> None:
    with pytest.raises(RunError), folder(tmp_path / "out") as first:
        first.create(FILES)
        raise RunError("killed")
    assert build(tmp_path / "out").resumed
    assert contents(tmp_path / "out")["model.safetensors"] == expected_bytes()
    assert beside(tmp_path / "out") == set()


def test_work_of_another_plan_is_refused_unless_overwritten(tmp_path: Path) -> None:
    with pytest.raises(RunError), folder(tmp_path / "out", "other") as first:
        first.create(FILES)
        raise RunError("killed")
    before = contents(first.work)
    with pytest.raises(PlanError, match="another recipe"), folder(tmp_path / "out"):
        pass
    assert contents(first.work) == before
    assert beside(tmp_path / "out") == {"out.jmerge-work"}
    build(tmp_path / "out", overwrite=True)
    assert beside(tmp_path / "out") == set()


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_guest_in_the_place_of_the_work_folder_is_kept(overwrite: bool, tmp_path: Path) -> None:
    foreign(tmp_path / "out.jmerge-work")
    with (
        pytest.raises(PlanError, match="in the way"),
        folder(tmp_path / "out", overwrite=overwrite),
    ):
        pass
    assert contents(tmp_path / "out.jmerge-work") == {"thesis.tex": b"years of work"}
    assert beside(tmp_path / "out") == {"out.jmerge-work"}


def test_one_at_a_time(tmp_path: Path) -> None:
    with folder(tmp_path / "out") as first:
        for overwrite in (False, True):
            with pytest.raises(RunError, match="another jmerge") as caught:
                folder(tmp_path / "out", overwrite=overwrite).__enter__()
            assert str(tmp_path / "out") in str(caught.value)
        with folder(tmp_path / "other"):
            pass  # a lock is of one folder
        first.create(FILES)
        fill(first)
        first.publish()
    assert contents(tmp_path / "out")["model.safetensors"] == expected_bytes()
    assert beside(tmp_path / "out") == set()


# What the machine does to us


def failing(number: int) -> Callable[..., Any]:
    def call(*args: Any) -> Any:
        raise OSError(number, os.strerror(number))

    return call


@pytest.mark.parametrize("number", [errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS])
def test_a_file_system_without_fallocate(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "posix_fallocate", failing(number))
    build(tmp_path / "out")
    assert contents(tmp_path / "out")["model.safetensors"] == expected_bytes()


@pytest.mark.parametrize("name", ["posix_fallocate", "pwrite"])
def test_a_system_without_a_call(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(os, name)
    build(tmp_path / "out")
    assert contents(tmp_path / "out")["model.safetensors"] == expected_bytes()


def test_short_writes_are_carried_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda fd, data, at: real(fd, memoryview(data)[:7], at))
    build(tmp_path / "out")
    assert contents(tmp_path / "out")["model.safetensors"] == expected_bytes()


@pytest.mark.parametrize("call", ["posix_fallocate", "pwrite", "fsync"])
@pytest.mark.parametrize(
    ("number", "words"), [(errno.ENOSPC, "disk is full"), (errno.EIO, os.strerror(errno.EIO))]
)
def test_a_failing_disk_is_a_run_error(
    call: str, number: int, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = folder(tmp_path / "out")
    with monkeypatch.context() as patch:
        patch.setattr(os, call, failing(number))
        with pytest.raises(RunError, match=words) as caught, made:
            made.create(FILES)
            fill(made)
            made.publish()
    assert str(made.work) in str(caught.value) and "run the same command again" in str(caught.value)
    assert not (tmp_path / "out").exists()
    assert build(tmp_path / "out").resumed


@pytest.mark.parametrize("moment", ["before the last write", "after the last write"])
def test_a_sync_that_fails_meanwhile_is_not_forgotten(
    moment: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The system reports a lost write once: a later sync of the same file may well succeed."""
    failed = threading.Event()

    def lose(descriptor: int) -> None:
        failed.set()
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr("jmerge.ckpt.disk.SYNC_BYTES", 150)  # below what the last write makes
    monkeypatch.setattr(os, "fdatasync", lose)
    if moment == "before the last write":
        monkeypatch.setattr("jmerge.ckpt.disk.SYNC_BYTES", 1)
    with pytest.raises(RunError, match=os.strerror(errno.EIO)), folder(tmp_path / "out") as made:
        made.create(FILES)
        for name, data in DATA.items():
            made.write(name, 0, memoryview(data))
            if moment == "before the last write":
                assert failed.wait(10)
        assert failed.wait(10)
        made.publish()
    assert not (tmp_path / "out").exists()


def test_a_sync_that_fails_before_the_run_ends_otherwise(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody asks the flusher any more, but the next run must not believe what can only be read from memory."""
    failed = threading.Event()

    def lose(descriptor: int) -> None:
        failed.set()
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr("jmerge.ckpt.disk.SYNC_BYTES", 1)
    monkeypatch.setattr(os, "fdatasync", lose)
    with pytest.raises(KeyboardInterrupt), folder(tmp_path / "out") as made:
        made.create(FILES)
        made.write("a", 0, memoryview(DATA["a"]))
        made.note(Block("a", 0, 100, 0))
        assert failed.wait(10)
        raise KeyboardInterrupt
    assert read_journal(tmp_path / "out.jmerge-work" / JOURNAL)[1] == []


def test_a_file_system_without_locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fcntl = pytest.importorskip("fcntl")

    def refuse(*_: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", refuse)
    before = len(os.listdir("/dev/fd"))
    with pytest.raises(RunError, match=os.strerror(errno.ENOLCK)):
        build(tmp_path / "out")
    assert len(os.listdir("/dev/fd")) == before


def test_a_place_that_cannot_be_looked_at(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=os.strerror(errno.ENAMETOOLONG)):
        folder(tmp_path / ("x" * 300)).finished()


def test_a_disk_too_small_is_seen_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    total, used, _ = shutil.disk_usage(tmp_path)
    usage = type(shutil.disk_usage(tmp_path))(total, used, FILES[0].size - 1)
    made = folder(tmp_path / "out")
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "disk_usage", lambda path: usage)
        with pytest.raises(RunError, match="bytes free") as caught, made:
            made.create(FILES)
    assert f"{FILES[0].size:,}" in (line := str(caught.value))
    assert f"{FILES[0].size - 1:,}" in line
    assert not (tmp_path / "out").exists()
    assert not list(tmp_path.rglob("*.safetensors"))


def test_a_parent_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    made = folder(tmp_path / "file" / "out")
    with pytest.raises(RunError, match="file"):
        made.__enter__()
    assert (tmp_path / "file").read_text() == "x"


def test_no_descriptor_is_left_open(tmp_path: Path) -> None:
    before = len(os.listdir("/dev/fd"))
    build(tmp_path / "out")
    with pytest.raises(PlanError), folder(tmp_path / "other") as made:
        made.create(FILES)
        raise PlanError("a mistake")
    assert len(os.listdir("/dev/fd")) == before


def test_a_second_run_does_not_disturb_the_swap(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another command looks between the two renames: it is refused, and changes nothing."""
    build(tmp_path / "out", "other")
    real = os.rename
    looked: list[Any] = []

    def rename(source: Any, target: Any, **rest: Any) -> None:
        if Path(source).name.endswith(".jmerge-work") and not looked:
            looked.append(source)
            second = folder(tmp_path / "out", "third")
            with pytest.raises((PlanError, RunError)):
                assert not second.finished()
                second.__enter__()
        real(source, target, **rest)

    monkeypatch.setattr(os, "rename", rename)
    build(tmp_path / "out", overwrite=True)
    assert looked
    assert read_ledger(tmp_path / "out") == json.loads((tmp_path / "out" / LEDGER).read_text())
    assert json.loads((tmp_path / "out" / LEDGER).read_text())["plan"] == "p"
    assert beside(tmp_path / "out") == set()


def test_an_empty_folder_behind_a_link_is_filled(tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "out").symlink_to(tmp_path / "disk")
    build(tmp_path / "out")
    assert contents(tmp_path / "out")["model.safetensors"] == expected_bytes()


def test_a_result_behind_a_link_is_replaced(tmp_path: Path) -> None:
    build(tmp_path / "disk", "other")
    (tmp_path / "out").symlink_to(tmp_path / "disk")
    build(tmp_path / "out", overwrite=True)
    assert (tmp_path / "out" / LEDGER).read_text().count('"plan": "p"') == 1
