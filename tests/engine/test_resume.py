"""An interrupted merge and its second run, in one process: what is believed, what is refused, what is written again.

`test_kill.py` does the same with real kills.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from enginekit import checkpoints, contents, plan_of, read, result, step, two_models, write_recipe

import jmerge
from jmerge import cli
from jmerge.ckpt.journal import Block, read_journal
from jmerge.ckpt.safetensors import read_header
from jmerge.ckpt.writer import JOURNAL, LEDGER
from jmerge.engine.events import Resumed, Wrote
from jmerge.engine.partition import left_to_do
from jmerge.engine.schedule import make_schedule
from jmerge.errors import CheckpointError, PlanError, RunError
from jmerge.report.progress import Progress
from jmerge.testing.tiny import llama_config, llama_tensors, write_checkpoint

PIECE = 4096
SIZES: dict[str, Any] = {"layers": 2, "hidden": 64, "inner": 96, "vocab": 300}


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with models a and b and the recipe x.yml; merges go in small pieces to several files of `out` in it."""
    two_models(tmp_path, **SIZES)
    write_recipe(tmp_path)
    cut_into(monkeypatch, PIECE)
    return tmp_path


def cut_into(monkeypatch: pytest.MonkeyPatch, piece: int) -> None:
    monkeypatch.setattr(
        "jmerge.engine.attempts.fit", lambda plan, *_: make_schedule(plan, piece=piece)
    )


class Ran(NamedTuple):
    """What a run did."""

    merged: jmerge.Merged
    wrote: list[Block]
    resumed: list[Resumed]


def merge(place: Path, **rest: Any) -> Ran:
    events: list[Any] = []
    merged = jmerge.merge(
        place / "x.yml", place / "out", shard_size=100_000, listeners=(events.append,), **rest
    )
    wrote = [event.block for event in events if isinstance(event, Wrote)]
    return Ran(merged, wrote, [event for event in events if isinstance(event, Resumed)])


def interrupt(place: Path, after: int, **rest: Any) -> list[Block]:
    """Run a merge that the machine breaks off when it has written so many blocks, and give them."""
    wrote: list[Block] = []

    def stop(event: Any) -> None:
        if isinstance(event, Wrote):
            wrote.append(event.block)
        if len(wrote) == after:
            raise RunError("the machine failed")

    with pytest.raises(RunError, match="the machine failed"):
        jmerge.merge(place / "x.yml", place / "out", shard_size=100_000, listeners=(stop,), **rest)
    assert not (place / "out").exists()
    assert read_journal(work(place) / JOURNAL)[1] == wrote
    return wrote


def work(place: Path) -> Path:
    return place / "out.jmerge-work"


def undisturbed(place: Path, **rest: Any) -> tuple[dict[str, bytes], list[Block]]:
    """What a merge publishes and the blocks it writes; the folder is deleted."""
    ran = merge(place, **rest)
    assert (ran.merged.resumed_bytes, ran.resumed) == (None, [])
    want = contents(place / "out")
    shutil.rmtree(place / "out")
    return want, ran.wrote


def program(place: Path, *flags: str) -> int:
    words = ["--config", str(place / "x.yml"), "--out", str(place / "out")]
    return cli.main([*words, "--shard_size=100kB", *flags])


def left(place: Path) -> set[str]:
    return {path.name for path in place.iterdir()} - {"a", "b", "x.yml"}


# Going on


def test_only_what_is_left_is_written(place: Path) -> None:
    want, blocks = undisturbed(place)
    assert len({b.tensor for b in blocks}) == 21 and len(blocks) > 30
    for after in (1, 2, 7, 25, len(blocks) - 1, len(blocks)):
        done = interrupt(place, after)
        ran = merge(place)
        assert sorted(done + ran.wrote) == sorted(blocks)
        kept = sum(block.nbytes for block in done)
        assert ran.merged.resumed_bytes == kept
        assert ran.resumed == [Resumed(kept, ran.merged.plan.write_bytes - kept)]
        assert contents(place / "out") == want and left(place) == {"out"}
        shutil.rmtree(place / "out")


def test_interrupted_again_and_again(place: Path) -> None:
    want, blocks = undisturbed(place)
    written = 0
    while written + 10 < len(blocks):
        wrote: list[Block] = []

        def stop(event: Any, wrote: list[Block] = wrote) -> None:
            wrote += [event.block] if isinstance(event, Wrote) else []
            if len(wrote) == 10:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            jmerge.merge(place / "x.yml", place / "out", shard_size=100_000, listeners=(stop,))
        written += 10
        assert len(read_journal(work(place) / JOURNAL)[1]) == written
    assert len(merge(place).wrote) == len(blocks) - written
    assert contents(place / "out") == want


def test_lines_after_a_torn_one_count(place: Path) -> None:
    """The run that finds a torn line does not write behind it."""
    want, blocks = undisturbed(place)
    interrupt(place, 10)
    tear_the_end(place)
    wrote: list[Block] = []

    def stop(event: Any) -> None:
        wrote.extend([event.block] if isinstance(event, Wrote) else [])
        if len(wrote) == 10:
            raise RunError("again")

    with pytest.raises(RunError):
        jmerge.merge(place / "x.yml", place / "out", shard_size=100_000, listeners=(stop,))
    ran = merge(place)
    assert len(ran.wrote) == len(blocks) - 9 - 10
    assert contents(place / "out") == want


@pytest.mark.parametrize("piece", [1024, 3 * PIECE, 1 << 22])
def test_pieces_cut_otherwise(piece: int, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another budget of memory cuts tensors elsewhere: whole tensors stay, and no byte changes."""
    want, blocks = undisturbed(place)
    done = interrupt(place, len(blocks) // 2)
    cut_into(monkeypatch, piece)
    ran = merge(place)
    assert contents(place / "out") == want
    whole = jmerge.plan(place / "x.yml").outputs
    sizes = {name: sum(b.nbytes for b in done if b.tensor == name) for name in whole}
    complete = {name for name, spec in whole.items() if sizes[name] == spec.nbytes}
    assert len(complete) > 3
    assert not complete & {block.tensor for block in ran.wrote}
    for name, spec in whole.items():  # and of others each byte once
        made = sorted((b.start, b.stop) for b in ran.wrote if b.tensor == name)
        assert all(one[1] <= other[0] for one, other in zip(made, made[1:], strict=False))
        assert sum(b - a for a, b in made) >= spec.nbytes - sizes[name]


def test_other_runs_blocks_are_cut_off_where_they_meet_a_piece(tmp_path: Path) -> None:
    """Of one tensor of six pieces: what shares a byte with a piece that is made is made with it."""
    x = np.zeros(6 * PIECE, np.float32)
    models = checkpoints(tmp_path, {"x": x}, {"x": x})
    plan = plan_of(models, step("x", [read(models, 0, "x"), read(models, 1, "x")]))
    schedule = make_schedule(plan, piece=PIECE)
    size = 4 * PIECE

    def split(*ranges: tuple[float, float]) -> tuple[list[int], list[tuple[float, float]]]:
        blocks = [Block("x", int(a * size), int(b * size), 0) for a, b in ranges]
        rest, kept = left_to_do(schedule, blocks)
        todo = [number for turn in rest.turns for number in turn.pieces]
        return todo, [(block.start / size, block.stop / size) for block in kept["x"]]

    pieces = [stop - start for start, stop in schedule.work[0].pieces]
    assert pieces == [PIECE] * 6
    assert split() == ([0, 1, 2, 3, 4, 5], [])
    assert split((0, 6)) == ([], [(0, 6)])
    assert split((0, 1), (3, 4)) == ([1, 2, 4, 5], [(0, 1), (3, 4)])
    assert split((2, 4), (0, 2)) == ([4, 5], [(2, 4), (0, 2)])
    assert split((0, 0.5), (0.5, 1)) == ([1, 2, 3, 4, 5], [(0, 0.5), (0.5, 1)])
    assert split((0, 0.5), (0.75, 1), (1, 2)) == ([0, 2, 3, 4, 5], [(1, 2)])
    assert split((0, 1.5)) == ([0, 1, 2, 3, 4, 5], [])
    assert split((0, 1.5), (1.5, 3), (3, 3.5)) == ([3, 4, 5], [(0, 1.5), (1.5, 3)])
    assert split((5, 6), (4.5, 5), (0, 4.5)) == ([], [(5, 6), (4.5, 5), (0, 4.5)])


def test_a_result_that_others_need_is_made_again(tmp_path: Path) -> None:
    x = np.zeros(3 * PIECE, np.float32)
    models = checkpoints(tmp_path, {"x": x}, {"x": x})
    stage = step("stage", [read(models, 0, "x"), read(models, 1, "x")])
    last = step("last", [result(stage), read(models, 1, "x")])
    schedule = make_schedule(plan_of(models, stage, last), piece=PIECE)
    blocks = [Block("stage", 0, 12 * PIECE, 0), Block("last", 0, 4 * PIECE, 0)]
    rest, kept = left_to_do(schedule, blocks)
    made = {turn.work.step.name: list(turn.pieces) for turn in rest.turns}
    assert made == {"stage": [0, 1, 2], "last": [1, 2]}
    assert kept == {"stage": [], "last": blocks[1:]}
    rest, kept = left_to_do(schedule, [blocks[0], Block("last", 0, 12 * PIECE, 0)])
    assert rest.turns == () and kept["stage"] == blocks[:1]


# Numbers that are not finite


def spoil(place: Path) -> None:
    tensors = llama_tensors(1, **SIZES)
    tensors["model.embed_tokens.weight"].reshape(-1)[[1, 5000, 5001, 15000]] = np.nan
    tensors["lm_head.weight"].reshape(-1)[7] = np.inf
    write_checkpoint(place / "b", tensors, llama_config(**SIZES))


def test_the_ledger_counts_what_was_written_before(place: Path) -> None:
    spoil(place)
    want, blocks = undisturbed(place, allow_nonfinite=True)
    assert json.loads(want[LEDGER])["tensors"]["model.embed_tokens.weight"]["nonfinite"] == 4
    for after in range(1, len(blocks), 4):
        interrupt(place, after, allow_nonfinite=True)
        ran = merge(place, allow_nonfinite=True)
        assert len(ran.wrote) == len(blocks) - after
        assert contents(place / "out") == want
        shutil.rmtree(place / "out")


def test_what_was_allowed_before_stops_a_run_that_does_not_allow_it(place: Path) -> None:
    spoil(place)
    _, blocks = undisturbed(place, allow_nonfinite=True)
    with pytest.raises(jmerge.NonFiniteError) as wanted:
        merge(place)
    interrupt(place, len(blocks) - 1, allow_nonfinite=True)
    with pytest.raises(jmerge.NonFiniteError) as caught:
        merge(place)
    assert str(caught.value) == str(wanted.value)
    assert left(place) == set()


# Work that was harmed


def shards(place: Path) -> list[Path]:
    return sorted(work(place).glob("*.safetensors"))


def cut(place: Path) -> None:
    os.truncate(shards(place)[0], shards(place)[0].stat().st_size // 2)


def lengthen(place: Path) -> None:
    with shards(place)[0].open("ab") as file:
        file.write(b"more")


def flip(place: Path) -> None:
    """One byte of a block that was written."""
    block = read_journal(work(place) / JOURNAL)[1][3]
    for path in shards(place):
        extents = read_header(path).extents
        if block.tensor in extents:
            with path.open("r+b") as file:
                file.seek(extents[block.tensor].start + block.start)
                (byte,) = file.read(1)
                file.seek(-1, os.SEEK_CUR)
                file.write(bytes([byte ^ 1]))


def spoil_a_header(place: Path) -> None:
    with shards(place)[0].open("r+b") as file:
        file.write(b"\xff" * 40)


def delete_a_shard(place: Path) -> None:
    shards(place)[0].unlink()


def delete_all(place: Path) -> None:
    for path in shards(place):
        path.unlink()


def tear_the_end(place: Path) -> None:
    path = work(place) / JOURNAL
    path.write_bytes(path.read_bytes()[:-5])


def tear_the_middle(place: Path) -> None:
    path = work(place) / JOURNAL
    lines = path.read_bytes().split(b"\n")
    lines[4] = lines[4][:10]
    path.write_bytes(b"\n".join(lines))


def tear_the_header(place: Path) -> None:
    path = work(place) / JOURNAL
    path.write_bytes(path.read_bytes()[20:])


def a_guest(place: Path) -> None:
    (work(place) / "tokenizer.json").write_text("of a donor that has none any more")


HARMS: dict[Callable[[Path], None], range] = {  # how many of thirty blocks stay
    cut: range(1, 30),
    lengthen: range(30, 31),
    flip: range(29, 30),
    spoil_a_header: range(30, 31),
    delete_a_shard: range(1, 30),
    delete_all: range(1),
    tear_the_end: range(29, 30),
    tear_the_middle: range(3, 4),
    tear_the_header: range(1),
    a_guest: range(30, 31),
}


@pytest.mark.parametrize("harm", HARMS)
def test_what_is_harmed_is_written_again(
    harm: Callable[[Path], None], place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    want, blocks = undisturbed(place)
    done = interrupt(place, 30)
    harm(place)
    ran = merge(place)
    assert contents(place / "out") == want and left(place) == {"out"}
    kept = sorted(set(blocks) - set(ran.wrote))
    assert len(kept) in HARMS[harm] and set(kept) <= set(done)
    assert ran.merged.resumed_bytes == sum(block.nbytes for block in kept)


def test_it_is_said_what_is_kept(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    interrupt(place, 30)
    assert program(place) == 0
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("resuming an interrupted run: ") and "verified and kept" in line
    shutil.rmtree(place / "out")
    interrupt(place, 30)
    delete_all(place)
    assert program(place) == 0
    (line,) = capsys.readouterr().err.splitlines()
    assert "starts over" in line
    shutil.rmtree(place / "out")
    interrupt(place, 30)
    assert program(place, "--quiet") == 0
    assert capsys.readouterr().err == ""


def test_a_work_folder_without_a_journal_is_not_touched(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Without it nobody can say whose it is."""
    interrupt(place, 30)
    (work(place) / JOURNAL).unlink()
    before = contents(work(place))
    for flags in ((), ("--overwrite",)):
        assert program(place, *flags) == 2
        assert "does not belong to jmerge; move it" in capsys.readouterr().err
    assert contents(work(place)) == before


def test_only_the_rename_was_missing(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The journal is gone then; the ledger says the same."""
    want, _ = undisturbed(place)
    real = os.rename

    def fail(source: Any, target: Any) -> None:
        if str(source).endswith(".jmerge-work"):
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        real(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(os, "rename", fail)
        with pytest.raises(RunError, match=os.strerror(errno.EIO)):
            merge(place)
    assert not (place / "out").exists() and not (work(place) / JOURNAL).exists()
    ran = merge(place)
    assert ran.wrote == [] and ran.merged.resumed_bytes == ran.merged.plan.write_bytes
    assert contents(place / "out") == want and left(place) == {"out"}


# Another run than that which was interrupted


def touch(place: Path) -> None:
    """Written anew, with the same names, shapes and size."""
    path = place / "b" / "model.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    time.sleep(0.01)
    path.write_bytes(data)


def another_header(place: Path) -> None:
    tensors = llama_tensors(1, **SIZES)
    tensors["extra"] = np.ones(3, np.float32)
    write_checkpoint(place / "b", tensors, llama_config(**SIZES))


@pytest.mark.parametrize("change", [touch, another_header])
def test_inputs_that_changed_since(
    change: Callable[[Path], None], place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    interrupt(place, 30)
    before = contents(work(place))
    change(place)
    assert program(place) == 2
    (line,) = (line for line in capsys.readouterr().err.splitlines() if "error" in line)
    assert "inputs have changed" in line and "--overwrite starts over" in line
    assert str(place / "b" / "model.safetensors") in line
    assert contents(work(place)) == before
    assert program(place, "--overwrite") == 0
    assert "resuming" not in capsys.readouterr().err
    found = contents(place / "out")
    shutil.rmtree(place / "out")
    assert found == undisturbed(place)[0]


def test_inputs_that_change_meanwhile(place: Path) -> None:
    """Half of the result would be of the old one, so it is not published."""
    last = len(undisturbed(place)[1])
    seen: list[Any] = []

    def disturb(event: Any) -> None:
        seen.append(event)
        if sum(isinstance(each, Wrote) for each in seen) == last and isinstance(event, Wrote):
            touch(place)

    with pytest.raises(CheckpointError, match="changed while") as caught:
        jmerge.merge(place / "x.yml", place / "out", shard_size=100_000, listeners=(disturb,))
    assert str(place / "b" / "model.safetensors") in str(caught.value)
    assert left(place) == set()


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("jmerge.api.publish.platform_of", lambda _: "Plan9 mips", "with platform"),
        ("jmerge.api.publish.VERSION", "9.9", "with jmerge"),
        ("jax.__version__", "9.9", "with jax "),
        ("jaxlib.version.__version__", "9.9", "with jaxlib"),
    ],
)
def test_another_version_or_platform_may_round_otherwise(
    name: str, value: Any, words: str, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    interrupt(place, 30)
    before = contents(work(place))
    with monkeypatch.context() as patch:
        patch.setattr(name, value)
        with pytest.raises(PlanError, match=words) as caught:
            merge(place)
    assert "finish it there" in str(caught.value) and "overwrite=True" in str(caught.value)
    assert contents(work(place)) == before
    assert len(merge(place).wrote) > 0


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"seed": 1}, "with seed=0; this run has seed=1"),
        ({"shard_size": 50_000}, "with shard_size=100000; this run has shard_size=50000"),
        ("recipe", "another recipe or other settings"),
    ],
)
def test_another_recipe_or_other_settings(change: Any, words: str, place: Path) -> None:
    interrupt(place, 30)
    if change == "recipe":
        write_recipe(place, 0.25)
    flags: dict[str, Any] = {"shard_size": 100_000} | (change if isinstance(change, dict) else {})
    with pytest.raises(PlanError, match=words):
        jmerge.merge(place / "x.yml", place / "out", **flags)
    jmerge.merge(place / "x.yml", place / "out", overwrite=True, **flags)
    assert left(place) == {"out"}


def test_a_second_program_is_refused_while_the_first_runs(place: Path) -> None:
    done: list[subprocess.CompletedProcess[str]] = []

    def meanwhile(event: Any) -> None:
        if isinstance(event, Wrote) and not done:
            words = ["--config", str(place / "x.yml"), "--out", str(place / "out")]
            done.append(
                subprocess.run(
                    [sys.executable, "-m", "jmerge", *words],
                    capture_output=True,
                    text=True,
                    timeout=120,
                )
            )

    want, _ = undisturbed(place)
    jmerge.merge(place / "x.yml", place / "out", shard_size=100_000, listeners=(meanwhile,))
    assert done[0].returncode == 3
    (line,) = done[0].stderr.splitlines()
    assert line.startswith("error: another jmerge is writing")
    assert contents(place / "out") == want and left(place) == {"out"}


# What the machine does to us


def failing(name: str, number: int, after: int) -> Callable[[pytest.MonkeyPatch], None]:
    """A call of `os` fails with an error number from its call `after` on."""

    def patch(monkeypatch: pytest.MonkeyPatch) -> None:
        real, calls = getattr(os, name), []

        def call(*args: Any) -> Any:
            calls.append(args)
            if len(calls) > after:
                raise OSError(number, os.strerror(number))
            return real(*args)

        monkeypatch.setattr(os, name, call)

    return patch


FULL, BROKEN, LONG = errno.ENOSPC, errno.EIO, errno.EFBIG
PROBLEMS = {
    "full before": (failing("posix_fallocate", FULL, 0), "disk is full", False),
    "full in the middle of allocating": (failing("posix_fallocate", FULL, 1), "full", False),
    "full while writing": (failing("pwrite", FULL, 20), "disk is full", True),
    "broken while writing": (failing("pwrite", BROKEN, 20), os.strerror(BROKEN), True),
    "a limit on files": (failing("pwrite", LONG, 20), "ulimit", True),
    "no room for the journal": (failing("write", FULL, 10), "disk is full", True),
    "a sync that fails": (failing("fsync", BROKEN, 0), os.strerror(BROKEN), False),
    "a later sync that fails": (failing("fsync", FULL, 5), "disk is full", False),
    "no rename": (failing("rename", BROKEN, 0), os.strerror(BROKEN), True),
}


@pytest.mark.parametrize("case", PROBLEMS)
def test_a_problem_of_the_disk(
    case: str, place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Exit code 3 and one line; nothing at the output's place; the same command goes on.

    After a sync that failed nothing is believed: what can be read may not be on the disk.
    """
    problem, words, believed = PROBLEMS[case]
    want, _ = undisturbed(place)
    with monkeypatch.context() as patch:
        problem(patch)
        assert program(place) == 3
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ") and words in line and "run the same command again" in line
    assert left(place) == {"out.jmerge-work"}
    assert program(place) == 0
    said = capsys.readouterr().err
    assert ("resuming" in said) == believed and ("starts over" in said) != believed
    assert contents(place / "out") == want and left(place) == {"out"}


def test_an_input_that_cannot_be_read_for_a_while(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The machine's problem, not the recipe's: what was done stays."""
    want, _ = undisturbed(place)
    with monkeypatch.context() as patch:
        patch.setattr("jmerge.engine.local.LOCAL", frozenset())  # so that everything is read
        failing("preadv", BROKEN, 40)(patch)
        assert program(place) == 3
    (line,) = capsys.readouterr().err.splitlines()
    assert "model.safetensors: " + os.strerror(BROKEN) in line
    assert left(place) == {"out.jmerge-work"}
    assert program(place) == 0
    assert "resuming" in capsys.readouterr().err
    assert contents(place / "out") == want


def test_a_journal_that_cannot_be_read_is_no_empty_one(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    interrupt(place, 30)
    before = contents(work(place))
    real = Path.read_bytes

    def fail(path: Path) -> bytes:
        return os.read(-1, 1) if path.name == JOURNAL else real(path)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "read_bytes", fail)
        with pytest.raises(RunError, match="Bad file descriptor"):
            merge(place)
    assert contents(work(place)) == before
    assert merge(place).merged.resumed_bytes


def test_space_that_is_ours_already_is_not_asked_for_again(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    want, blocks = undisturbed(place)
    interrupt(place, 30)
    largest = max(path.stat().st_size for path in shards(place))
    usage = type(shutil.disk_usage(place))(10**9, 10**9, largest // 2)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    sizes = {path: path.stat().st_size for path in shards(place)}
    gone = max(sizes, key=lambda path: sizes[path])
    gone.unlink()
    assert program(place) == 3
    line = capsys.readouterr().err
    assert f"{largest // 2:,} bytes free" in line and "needs" in line
    usage = usage._replace(free=2 * largest)
    assert program(place) == 0
    assert contents(place / "out") == want


def test_ctrl_c_is_one_line(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def press(self: Progress, event: Any) -> None:
        if isinstance(event, Wrote):
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Progress, "__call__", press)
        assert program(place) == 130
    assert capsys.readouterr().err == "interrupted; the same command continues from here\n"
    assert left(place) == {"out.jmerge-work"}
