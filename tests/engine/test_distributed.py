"""`--distributed`: groups of processes on this machine give the bytes of one, and survive the death of any."""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from enginekit import contents
from hostskit import RECIPES, SIZES, Ended, Running, write_models
from said import until

import jmerge
from jmerge.ckpt.writer import JOURNAL
from jmerge.testing.tiny import llama_tensors, write_checkpoint

pytestmark = pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="no SIGKILL here")

SHARDS = {"one": "0", "many": "20kB"}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_models(tmp_path_factory.mktemp("models"))


class Place:
    """A place for one output."""

    def __init__(self, models: Path, folder: Path) -> None:
        self.models = models
        self.folder = folder
        self.out = folder / "out"
        self.work = folder / "out.jmerge-work"

    def words(self, recipe: str, shards: str) -> list[str]:
        return [str(self.models / f"{recipe}.yml"), str(self.out), f"--shard_size={SHARDS[shards]}"]

    def want(self, recipe: str, shards: str, **rest: Any) -> dict[str, bytes]:
        """What one process publishes; the card has the folder's name, so it is the same folder."""
        jmerge.merge(self.models / f"{recipe}.yml", self.out, shard_size=SHARDS[shards], **rest)
        return self.take()

    def start(self, recipe: str, shards: str, count: int, **rest: Any) -> Running:
        return Running(self.words(recipe, shards), count, folder=self.folder, **rest)

    def take(self) -> dict[str, bytes]:
        """The files of the output, which is then deleted; nothing is beside it."""
        found = contents(self.out)
        shutil.rmtree(self.out)
        assert [p.name for p in self.folder.iterdir() if "out" in p.name] == []
        return found

    def made(self, recipe: str, shards: str, count: int, **rest: Any) -> dict[str, bytes]:
        """What a group publishes that nothing happens to."""
        ended = self.start(recipe, shards, count, **rest).end()
        assert [each.code for each in ended.values()] == [0] * count, ended
        assert "merged" in ended[0].out
        assert all((each.out, each.errors) == ("", "") for n, each in ended.items() if n)
        return self.take()


@pytest.fixture
def place(models: Path, tmp_path: Path) -> Place:
    return Place(models, tmp_path)


def assert_stopped(ended: dict[int, Ended], *parts: str) -> None:
    """All of these ended by themselves, soon, with code 3 and one line."""
    for number, each in ended.items():
        assert each.code == 3, (number, each)
        (line,) = each.lines
        assert all(part in line for part in parts), line
        assert each.seconds < 40


# The same bytes


def test_two_processes_of_two_devices(place: Place) -> None:
    want = place.want("ties", "many")
    assert len(want) > 10
    assert place.made("ties", "many", 2, devices=2) == want


@pytest.mark.slow
@pytest.mark.parametrize("shards", SHARDS)
@pytest.mark.parametrize("recipe", RECIPES)
def test_any_group_gives_the_same_bytes(recipe: str, shards: str, place: Place) -> None:
    want = place.want(recipe, shards)
    for count, devices in ((1, 1), (2, 2), (3, 4)):
        found = place.made(recipe, shards, count, devices=devices)
        assert found == want, (count, devices)


# Deaths


def test_a_peer_dies_and_another_group_goes_on(place: Place) -> None:
    want = place.want("linear", "one")
    group = place.start("linear", "one", 2, waits={1: 5})
    own = place.work / JOURNAL
    until(lambda: own.exists() and own.read_bytes().count(b"\n") > 1)
    group.signal(1, signal.SIGKILL)
    ended = group.end()
    assert ended.pop(1).code == -signal.SIGKILL
    assert_stopped(
        ended, "error: host 1 (of 0-1) died or lost its connection; run the same command on all"
    )
    assert not place.out.exists()
    journal = (place.work / "journal-001.jsonl").read_bytes()
    assert journal.count(b"\n") == 6 and (place.work / JOURNAL).read_bytes().count(b"\n") > 1
    ended = place.start("linear", "one", 3, devices=4).end()
    assert [each.code for each in ended.values()] == [0, 0, 0], ended
    assert "resuming an interrupted run: " in ended[0].errors
    assert " 0 B verified" not in ended[0].errors
    assert place.take() == want


def test_host_0_dies_and_one_process_goes_on(place: Place) -> None:
    want = place.want("dare_ties", "many")
    group = place.start("dare_ties", "many", 2, waits={0: 5, 1: 9})
    group.signal(1, signal.SIGCONT)  # it is there too, and hangs, so that it has to be ended
    group.signal(0, signal.SIGKILL)
    ended = group.end()
    assert ended.pop(0).code == -signal.SIGKILL
    assert_stopped(ended, "error: host 0 (of 0-1) died or lost its connection")
    assert not place.out.exists()
    merged = jmerge.merge(place.models / "dare_ties.yml", place.out, shard_size=SHARDS["many"])
    assert merged.resumed_bytes is not None and merged.resumed_bytes > 14 * 64 * 4
    assert place.take() == want


@pytest.mark.slow
@pytest.mark.parametrize("when", ["plan", "create", 1, 12, "publish"])
@pytest.mark.parametrize("dead", [0, 2])
@pytest.mark.parametrize("what", [signal.SIGKILL, signal.SIGSTOP])
def test_deaths_at_any_time(what: signal.Signals, dead: int, when: Any, place: Place) -> None:
    if dead and when in ("create", "publish"):
        pytest.skip("host 0 does that")
    want = place.want("emr", "one")
    group = place.start("emr", "one", 3, waits={dead: when}, patience=4.0)
    group.signal(dead, what)
    others = [n for n in range(3) if n != dead]
    assert_stopped(group.end(*others), f"error: host {dead} (of 0-2) ", "on all hosts again")
    group.processes[dead].kill()
    group.processes[dead].communicate()
    assert not place.out.exists()
    again = 2 if (dead == 0) == (what == signal.SIGKILL) else 1  # each after either host's death
    assert place.made("emr", "one", again) == want


@pytest.mark.slow
@pytest.mark.parametrize("number", [0, 1])
def test_ctrl_c_on_one_host(number: int, place: Place) -> None:
    want = place.want("linear", "one")
    group = place.start("linear", "one", 2, waits={number: "create" if number == 0 else "plan"})
    group.signal(number, signal.SIGINT)
    ended = group.end()
    assert ended.pop(number).code == 130
    assert_stopped(ended, f"error: host {number} (of 0-1) was interrupted")
    assert place.made("linear", "one", 2) == want


@pytest.mark.slow
def test_ctrl_c_while_waiting_for_the_others(place: Place) -> None:
    group = place.start("linear", "one", 2, absent=[1], waits={0: "meeting"})
    group.signal(0, signal.SIGINT)
    ended = group.end()[0]
    assert ended.code == 130 and ended.seconds < 5
    assert ended.errors.startswith("interrupted")


def test_a_peer_that_never_comes(place: Place) -> None:
    group = place.start("linear", "one", 2, absent=[1], meeting=3.0)
    assert_stopped(
        group.end(), "2 hosts did not connect at 127.0.0.1:", "within 3 seconds", "--process_id"
    )
    assert [p.name for p in place.folder.iterdir()] == []


def test_without_a_cluster_jax_finds_none(place: Place) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "jmerge", *place.words("linear", "one"), "--distributed"],
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stdout) == (2, "")
    line = "error: --distributed: JAX finds no cluster here; give --coordinator HOST:PORT, "
    assert line in done.stderr and "Traceback" not in done.stderr


# Mistakes and failures of one host


@pytest.mark.parametrize(
    ("flag", "line"),
    [
        ("--seed=4", "error: host 1 has --seed 4, host 0 has 0; start all hosts with the same"),
        pytest.param(
            "--shard_size=7000",
            "host 1 has --shard_size 7000, host 0 has 0",
            marks=pytest.mark.slow,
        ),
        pytest.param("--memory=500MB", "host 1 has --memory 500000000", marks=pytest.mark.slow),
        pytest.param(
            "--allow_nonfinite", "host 1 has --allow_nonfinite True", marks=pytest.mark.slow
        ),
    ],
)
def test_other_flags_are_refused_by_all(flag: str, line: str, place: Place) -> None:
    ended = place.start("linear", "one", 2, more={1: [flag]}).end()
    for each in ended.values():
        assert each.code == 2 and line in each.lines[0] and len(each.lines) == 1
    assert not place.out.exists() and not place.work.exists()


@pytest.mark.slow
def test_another_recipe_is_refused_by_all(place: Place) -> None:
    other = f"--config={place.models / 'ties.yml'}"
    words = [f"--config={place.models / 'linear.yml'}", f"--out={place.out}"]
    ended = Running(words, 2, more={1: [other]}, folder=place.folder).end()
    for each in ended.values():
        assert each.code == 2 and "host 1 has a different recipe from host 0" in each.lines[0]
    assert not place.out.exists() and not place.work.exists()


@pytest.mark.slow
def test_a_folder_that_is_not_shared(place: Place) -> None:
    words = [f"--config={place.models / 'linear.yml'}", f"--out={place.out}"]
    other = {1: [f"--out={place.folder / 'elsewhere'}"]}
    ended = Running(words, 2, more=other, folder=place.folder).end()
    line = "is not the folder that host 0 made; --out must be on a file system that all hosts share"
    assert_stopped(ended, line)


@pytest.mark.slow
@pytest.mark.parametrize("shards", SHARDS)
def test_nan_on_one_host(shards: str, tmp_path: Path) -> None:
    place = Place(write_models(tmp_path / "models"), tmp_path)
    tensors = llama_tensors(1, **SIZES)
    tensors["model.norm.weight"][3] = np.nan
    write_checkpoint(place.models / "a", tensors)
    ended = place.start("linear", shards, 2).end()
    assert sorted(each.code for each in ended.values()) == [2, 3]
    (own,) = [each for each in ended.values() if each.code == 2]
    (other,) = [each for each in ended.values() if each.code == 3]
    assert own.lines[0].startswith("error: model.norm.weight: 1 elements of 'model.norm.weight'")
    assert "failed: model.norm.weight: 1 elements of 'model.norm.weight' in" in other.lines[0]
    assert not place.out.exists()


@pytest.mark.slow
def test_a_second_group_is_refused(place: Place) -> None:
    first = place.start("linear", "one", 2, waits={1: 5})
    first.signal(1, signal.SIGCONT)
    second = place.start("linear", "one", 2).end()
    assert_stopped(second, "another jmerge is writing")
    first.signal(1, signal.SIGKILL)
    first.end()


def test_up_to_date(place: Place) -> None:
    jmerge.merge(place.models / "linear.yml", place.out, shard_size=0)
    ended = place.start("linear", "one", 2).end()
    assert [each.code for each in ended.values()] == [0, 0]
    assert "is up to date" in ended[0].out and ended[1].out == ""
