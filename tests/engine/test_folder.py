"""The output folder through a merge: fresh, up to date, refused, replaced, cut off, recovered.

`tests/ckpt/test_writer.py` has the same folder by itself.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from enginekit import contents, two_models, write_recipe

import jmerge
from jmerge import cli
from jmerge.ckpt.writer import JOURNAL, LEDGER
from jmerge.engine.events import Wrote
from jmerge.errors import CheckpointError, PlanError, RunError
from jmerge.report.progress import Progress
from jmerge.testing.tiny import llama_config, llama_tensors, write_checkpoint

PUBLISHED = {"model.safetensors", "config.json", "README.md", "mergekit_config.yml", LEDGER}


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A folder with models a and b and the recipe x.yml; merges go to `out` in it."""
    two_models(tmp_path)
    write_recipe(tmp_path)
    return tmp_path


@pytest.fixture
def want(tmp_path_factory: pytest.TempPathFactory, place: Path) -> dict[str, bytes]:
    """What an undisturbed merge of `place` publishes."""
    jmerge.merge(place / "x.yml", place / "out")
    found = contents(place / "out")
    shutil.rmtree(place / "out")
    return found


def program(place: Path, *flags: str, recipe: str = "x.yml") -> int:
    """The exit code of the main job."""
    return cli.main(["--config", str(place / recipe), "--out", str(place / "out"), *flags])


def left(place: Path) -> set[str]:
    """What a merge left beside the inputs."""
    return {path.name for path in place.iterdir()} - {"a", "b", "x.yml", "y.yml"}


def fingerprints(folder: Path) -> dict[str, int]:
    return {path.name: path.stat().st_mtime_ns for path in [folder, *folder.iterdir()]}


# Undisturbed


def test_a_fresh_folder(place: Path) -> None:
    merged = jmerge.merge(place / "x.yml", place / "out")
    assert (merged.folder, merged.up_to_date, merged.resumed_bytes) == (place / "out", False, None)
    assert left(place) == {"out"}
    assert set(contents(place / "out")) == PUBLISHED
    assert (place / "out" / "mergekit_config.yml").read_text() == (place / "x.yml").read_text()
    a, b, out = (jmerge.open_checkpoint(place / name) for name in ("a", "b", "out"))
    assert set(out) == set(a)
    for name in a:
        wanted = (a[name] * 0.5 + b[name]) / 1.5
        np.testing.assert_allclose(out[name], wanted, rtol=1e-5, atol=1e-6)


def test_an_empty_folder_is_filled(place: Path, want: dict[str, bytes]) -> None:
    (place / "out").mkdir()
    assert program(place) == 0
    assert contents(place / "out") == want
    assert left(place) == {"out"}


def test_up_to_date_writes_nothing(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert program(place) == 0
    before = fingerprints(place / "out")
    assert "up to date" not in capsys.readouterr().out
    for flags in ((), ("--overwrite",)):
        assert program(place, *flags) == 0
        assert "up to date" in capsys.readouterr().out
    assert fingerprints(place / "out") == before
    assert left(place) == {"out"}
    assert jmerge.merge(place / "x.yml", place / "out").up_to_date


def test_donor_files_come_along(place: Path) -> None:
    keep = {
        "tokenizer.json": b"{}",
        "tokenizer_config.json": b"\xff\x00",
        "chat_template.jinja": b"{{ x }}",
        "generation_config.json": b"{}",
        "modeling_x.py": b"raise RuntimeError",
    }
    leave = {
        "optimizer.pt": b"x",
        "pytorch_model.bin": b"x",
        "README.md": b"old card",
        "other.safetensors": b"x",
        "training_args.bin": b"x",
    }
    for name, data in (keep | leave).items():
        (place / "a" / name).write_bytes(data)
        (place / "b" / name).write_bytes(b'{"of": "b"}')
    jmerge.merge(place / "x.yml", place / "out")
    found = contents(place / "out")
    assert set(found) == PUBLISHED | set(keep)
    assert {name: found[name] for name in keep} == keep
    assert b"old card" not in found["README.md"]


# Something is there already


def test_another_result_needs_overwrite(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_recipe(place, 0.25, "y.yml")
    assert program(place) == 0
    before = contents(place / "out")
    assert program(place, recipe="y.yml") == 2
    assert "--overwrite" in capsys.readouterr().err
    assert contents(place / "out") == before and left(place) == {"out"}
    assert program(place, "--overwrite", recipe="y.yml") == 0
    after = contents(place / "out")
    assert after["model.safetensors"] != before["model.safetensors"]
    assert set(after) == PUBLISHED and left(place) == {"out"}


def test_the_old_result_stays_until_the_new_one_is_whole(place: Path) -> None:
    write_recipe(place, 0.25, "y.yml")
    jmerge.merge(place / "x.yml", place / "out")
    before = contents(place / "out")
    seen = []

    def look(event: Any) -> None:
        seen.append(contents(place / "out") == before)

    jmerge.merge(place / "y.yml", place / "out", overwrite=True, listeners=(look,))
    assert len(seen) > 20 and all(seen)
    assert contents(place / "out") != before


def test_a_failed_overwrite_keeps_the_old_result(place: Path) -> None:
    write_recipe(place, 0.25, "y.yml")
    jmerge.merge(place / "x.yml", place / "out")
    before = contents(place / "out")

    def fail(event: Any) -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        jmerge.merge(place / "y.yml", place / "out", overwrite=True, listeners=(fail,))
    assert contents(place / "out") == before and left(place) == {"out"}


def test_another_seed_shards_or_inputs_are_another_result(place: Path) -> None:
    jmerge.merge(place / "x.yml", place / "out")
    cases: list[tuple[dict[str, Any], str]] = [
        ({"seed": 1}, "this recipe's result with seed=0, not 1; overwrite=True replaces it"),
        ({"shard_size": 500}, r"this recipe's result in 1 file, not \d+, by another shard_size="),
        ({"seed": 1, "shard_size": 500}, "with seed=0, not 1 and in 1 file, not"),
    ]
    for changed, what in cases:
        with pytest.raises(PlanError, match=what):
            jmerge.merge(place / "x.yml", place / "out", **changed)
    write_checkpoint(
        place / "a", llama_tensors(0) | {"extra": np.ones(3, np.float32)}, llama_config()
    )
    with pytest.raises(PlanError, match="this recipe's result from other inputs"):
        jmerge.merge(place / "x.yml", place / "out")
    write_recipe(place, 0.25)
    with pytest.raises(PlanError, match="another recipe's result"):
        jmerge.merge(place / "x.yml", place / "out")


def test_where_the_recipe_lies_makes_no_other_result(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same text by another path, with a warning that names its line, is the same merge."""
    write_recipe(place, extra="name: has no effect\n")
    merged = jmerge.merge(place / "x.yml", place / "out")
    assert merged.plan.warnings
    monkeypatch.chdir(place)
    assert jmerge.merge("x.yml", place / "out").up_to_date


@pytest.mark.parametrize("flags", [(), ("--overwrite",)], ids=["plain", "overwrite"])
def test_a_foreign_folder_is_never_touched(
    flags: tuple[str, ...], place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (place / "out").mkdir()
    (place / "out" / "thesis.tex").write_text("years of work")
    assert program(place, *flags) == 2
    assert "not written by jmerge" in capsys.readouterr().err
    assert contents(place / "out") == {"thesis.tex": b"years of work"} and left(place) == {"out"}


def test_a_guest_in_our_folder_blocks_overwrite(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_recipe(place, 0.25, "y.yml")
    program(place)
    (place / "out" / "notes.txt").write_text("mine")
    before = contents(place / "out")
    assert program(place) == 0  # up to date: the guest does no harm
    assert program(place, "--overwrite", recipe="y.yml") == 2
    assert "notes.txt" in capsys.readouterr().err
    assert contents(place / "out") == before and left(place) == {"out"}


@pytest.mark.parametrize("harm", ["cut", "gone"])
def test_a_damaged_result_is_found(
    harm: str, place: Path, want: dict[str, bytes], capsys: pytest.CaptureFixture[str]
) -> None:
    program(place)
    if harm == "cut":
        os.truncate(place / "out" / "model.safetensors", 100)
    else:
        (place / "out" / "config.json").unlink()
    assert program(place) == 2
    assert "damaged" in (line := capsys.readouterr().err) and "--overwrite" in line
    assert program(place, "--overwrite") == 0
    assert contents(place / "out") == want and left(place) == {"out"}


@pytest.mark.parametrize("spell", ["plain", "dotted", "linked"])
def test_an_input_is_no_place_for_the_output(
    spell: str, place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = contents(place / "a")
    out = {"plain": "a", "dotted": "b/../a", "linked": "link"}[spell]
    (place / "link").symlink_to(place / "a")
    for flags in ((), ("--overwrite",)):
        assert cli.main(["--config", str(place / "x.yml"), "--out", f"{place}/{out}", *flags]) == 2
        assert "is an input" in capsys.readouterr().err
    assert contents(place / "a") == before
    assert left(place) == {"link"}


@pytest.mark.parametrize("before", ["nothing", "an empty folder", "another result"])
def test_what_others_put_there_meanwhile_is_kept(before: str, place: Path) -> None:
    """A merge takes hours: what stood at its start is not what stands at its end."""
    write_recipe(place, 0.25, "y.yml")
    if before == "an empty folder":
        (place / "out").mkdir()
    if before == "another result":
        jmerge.merge(place / "y.yml", place / "out")

    def meanwhile(event: Any) -> None:
        (place / "out").mkdir(exist_ok=True)
        (place / "out" / "notes.txt").write_text("mine")

    with contextlib.suppress(PlanError, RunError):
        jmerge.merge(
            place / "x.yml",
            place / "out",
            overwrite=before == "another result",
            listeners=(meanwhile,),
        )
    notes = [path.read_text() for path in place.rglob("notes.txt")]
    assert notes == ["mine"]


@pytest.mark.parametrize("out", ["/", "x.yml/out"])
def test_a_place_that_cannot_be(
    out: str, place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(place)
    assert cli.main(["--config", "x.yml", "--out", out]) in (2, 3)
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ") and out in line
    assert left(place) == set()


# Problems while it runs


def test_nan_leaves_nothing(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tensors = llama_tensors(1)
    tensors["model.layers.1.mlp.up_proj.weight"][3, 4] = np.nan
    write_checkpoint(place / "b", tensors, llama_config())
    assert program(place) == 2
    line = capsys.readouterr().err
    assert "model.layers.1.mlp.up_proj.weight" in line and str(place / "b") in line
    assert left(place) == set()
    assert program(place, "--allow_nonfinite") == 0
    ledger = json.loads((place / "out" / LEDGER).read_text())
    counts = {name: entry.get("nonfinite") for name, entry in ledger["tensors"].items()}
    assert {name: count for name, count in counts.items() if count} == {
        "model.layers.1.mlp.up_proj.weight": 1
    }


@pytest.mark.parametrize("change", ["cut", "deleted", "replaced by a shorter one"])
def test_an_input_that_changes_after_planning(change: str, place: Path) -> None:
    path = place / "b" / "model.safetensors"

    def disturb(plan: Any) -> None:
        if change == "cut":
            os.truncate(path, path.stat().st_size - 200)
        elif change == "deleted":
            path.unlink()
        else:
            write_checkpoint(place / "b", {"x": np.zeros(3, np.float32)})

    with pytest.raises(CheckpointError) as caught:
        jmerge.merge(place / "x.yml", place / "out", on_plan=disturb)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)
    assert left(place) == set()


def test_a_full_disk(
    place: Path,
    want: dict[str, bytes],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    real = os.pwrite
    calls = []

    def full(descriptor: int, data: memoryview, at: int) -> int:
        calls.append(at)
        if len(calls) > 5:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real(descriptor, data, at)

    with monkeypatch.context() as patch:
        patch.setattr(os, "pwrite", full)
        assert program(place) == 3
    line = capsys.readouterr().err
    assert "the disk is full" in line and "Traceback" not in line
    assert left(place) <= {"out.jmerge-work"}
    assert program(place) == 0
    assert "resuming" in capsys.readouterr().err
    assert contents(place / "out") == want and left(place) == {"out"}


def test_a_disk_too_small(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    total, used, _ = shutil.disk_usage(place)
    usage = type(shutil.disk_usage(place))(total, used, 1000)
    events: list[Any] = []
    monkeypatch.setattr(Progress, "__call__", lambda self, event: events.append(event))
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    assert program(place) == 3
    assert "1,000 bytes free" in capsys.readouterr().err
    assert events == [], "nothing was read"
    assert not list((place / "out.jmerge-work").glob("*.safetensors"))
    assert not (place / "out").exists()


def test_a_second_run_is_refused_while_the_first_goes_on(
    place: Path, want: dict[str, bytes], capsys: pytest.CaptureFixture[str]
) -> None:
    codes: list[int] = []

    def meanwhile(event: Any) -> None:
        if isinstance(event, Wrote) and not codes:
            codes.append(program(place))
            codes.append(program(place, "--overwrite"))

    jmerge.merge(place / "x.yml", place / "out", listeners=(meanwhile,))
    assert codes == [3, 3]
    assert "another jmerge is writing" in capsys.readouterr().err
    assert contents(place / "out") == want and left(place) == {"out"}


def test_ctrl_c(
    place: Path,
    want: dict[str, bytes],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def interrupt(self: Progress, event: Any) -> None:
        if isinstance(event, Wrote):
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Progress, "__call__", interrupt)
        assert program(place) == 130
    assert "interrupted" in capsys.readouterr().err
    assert left(place) <= {"out.jmerge-work"}
    assert program(place) == 0
    assert "resuming" in capsys.readouterr().err
    assert contents(place / "out") == want and left(place) == {"out"}


def test_no_memory_is_a_problem_of_the_machine(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(self: Progress, event: Any) -> None:
        if isinstance(event, Wrote):
            raise MemoryError

    monkeypatch.setattr(Progress, "__call__", full)
    assert program(place) == 3
    assert "memory" in capsys.readouterr().err
    assert left(place) <= {"out.jmerge-work"}


def test_interrupted_work_of_another_recipe(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_recipe(place, 0.25, "y.yml")
    with pytest.raises(RunError):
        jmerge.merge(place / "x.yml", place / "out", listeners=(out_of_order,))
    before = contents(place / "out.jmerge-work")
    assert JOURNAL in before
    assert program(place, recipe="y.yml") == 2
    assert "another recipe" in (line := capsys.readouterr().err) and "--overwrite" in line
    assert contents(place / "out.jmerge-work") == before
    assert program(place, "--overwrite", recipe="y.yml") == 0
    assert left(place) == {"out"}


def out_of_order(event: Any) -> None:
    if isinstance(event, Wrote):
        raise RunError("the machine failed")


# Killed: the process ends at once, as by SIGKILL or a power cut

KILL = """
import os, signal, sys
import jmerge.cli
from jmerge.engine.events import Wrote
from jmerge.report.progress import Progress

point, *arguments = sys.argv[1:]
renamed = False

def watch(event, details):
    global renamed
    first = os.fsdecode(details[0]) if details and isinstance(details[0], str | bytes) else ""
    if renamed and point == "after the last rename":
        os._exit(99)
    if event == "os.rename" and first.endswith(".jmerge-work"):
        if point == "before the last rename":
            os._exit(99)
        renamed = True
    if event == "open" and ".jmerge-work" in first and point == "after making the work folder":
        os._exit(99)

def progress(self, event):
    if isinstance(event, Wrote):
        self.count = getattr(self, "count", 0) + 1
        if point == "while writing" and self.count == 5:
            os._exit(99)
        if point == "by ctrl-c" and self.count == 5:
            os.kill(os.getpid(), signal.SIGINT)

signal.signal(signal.SIGINT, signal.default_int_handler)  # jobs in the background begin without it
sys.addaudithook(watch)  # called before the system is
Progress.__call__ = progress
sys.exit(jmerge.cli.main(arguments))
"""


def killed(place: Path, point: str, *arguments: str) -> int:
    """The exit code of a merge in a process of its own that dies at `point`."""
    words = ["--config", str(place / "x.yml"), "--out", str(place / "out"), *arguments]
    done = subprocess.run(
        [sys.executable, "-c", KILL, point, *words], cwd=place, capture_output=True, timeout=120
    )
    assert b"Traceback" not in done.stderr, done.stderr.decode()
    return done.returncode


def harm_nothing(place: Path) -> None:
    """No result was there before."""


def put_another_result(place: Path) -> None:
    """Another result was there before, to be replaced."""
    write_recipe(place, 0.25, "y.yml")
    jmerge.merge(place / "y.yml", place / "out")


@pytest.mark.parametrize("before", [harm_nothing, put_another_result])
@pytest.mark.parametrize(
    "point",
    [
        "after making the work folder",
        "while writing",
        "before the last rename",
        "after the last rename",
    ],
)
def test_the_same_command_recovers_from_a_kill(
    point: str, before: Callable[[Path], None], place: Path, want: dict[str, bytes]
) -> None:
    before(place)
    old = contents(place / "out") if (place / "out").exists() else None
    flags = ("--overwrite",) if old else ()
    assert killed(place, point, *flags) == 99
    if (place / "out").exists():  # whatever stands there is whole
        assert contents(place / "out") in ((want,) if point.startswith("after the") else (old,))
    assert program(place, *flags) == 0
    assert contents(place / "out") == want
    assert left(place) - {".out.jmerge-lock"} == {"out"}


def test_ctrl_c_as_the_terminal_sends_it(place: Path, want: dict[str, bytes]) -> None:
    assert killed(place, "by ctrl-c") == 130
    assert left(place) <= {"out.jmerge-work"}
    assert program(place) == 0
    assert contents(place / "out") == want and left(place) == {"out"}


# Systems that lack calls

BARE = """
import os, sys
for name in ("preadv", "pread", "pwrite", "pwritev", "posix_fallocate", "posix_fadvise"):
    if hasattr(os, name):
        delattr(os, name)
import jmerge.cli
sys.exit(jmerge.cli.main(sys.argv[1:]))
"""


def test_a_system_without_positioned_calls_gives_the_same_bytes(tmp_path: Path) -> None:
    """Several shards and tensors of several pieces, so that positions matter."""
    two_models(tmp_path, layers=2, hidden=64, inner=96, vocab=512)
    recipe = write_recipe(tmp_path)
    words = ["--config", str(recipe), "--shard_size", "100kB"]
    (tmp_path / "bare").mkdir()
    (tmp_path / "full").mkdir()
    done = subprocess.run(
        [sys.executable, "-c", BARE, *words, "--out", str(tmp_path / "bare" / "out")],
        cwd=tmp_path,
        capture_output=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr.decode()
    assert cli.main([*words, "--out", str(tmp_path / "full" / "out")]) == 0
    assert contents(tmp_path / "bare") == contents(tmp_path / "full")
    assert len(list((tmp_path / "full" / "out").glob("*.safetensors"))) > 2


@pytest.mark.parametrize("call", ["posix_fallocate", "pwrite"])
def test_a_call_taken_away_changes_no_byte(
    call: str, place: Path, want: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(os, call)
    assert program(place) == 0
    assert contents(place / "out") == want


def test_fallocate_that_the_file_system_lacks(
    place: Path, want: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    def unsupported(*args: int) -> None:
        raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))

    monkeypatch.setattr(os, "posix_fallocate", unsupported)
    assert program(place) == 0
    assert contents(place / "out") == want
