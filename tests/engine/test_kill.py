"""SIGKILL at random moments: the same command goes on, writes only what is not proven, and publishes the same bytes.

Merges of 200 MB and more run as programs of their own. A kill comes either when the journal has grown to a random
number of lines or at a random time. What a resumed run may leave out is worked out here again, from the journal's
lines and the bytes on the disk.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np
import pytest

import jmerge
from jmerge.ckpt.safetensors import read_header
from jmerge.ckpt.writer import JOURNAL
from jmerge.engine.schedule import make_schedule
from jmerge.testing.tiny import write_checkpoint

pytestmark = pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="no SIGKILL here")

SEED = int(os.environ.get("JMERGE_KILL_SEED", "20240607"))
LEAST_BYTES = 200_000_000
LARGE, ROWS = 5, (20_500, 1024)  # tensors of 42 MB in bf16
SMALL = 12

# Runs the program, and says what it writes in a log of its own.
PROGRAM = """
import os, sys
from jmerge.process import prepare
prepare()
import jmerge.cli
from jmerge.engine.events import Wrote
from jmerge.report.progress import Progress

log = os.open(sys.argv[1], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
show = Progress.__call__

def watch(self, event):
    if isinstance(event, Wrote):
        os.write(log, ("%s %d %d\\n" % (event.tensor, event.block.start, event.block.stop)).encode())
    show(self, event)

Progress.__call__ = watch
sys.exit(jmerge.cli.main(sys.argv[2:]))
"""


class Recipe(NamedTuple):
    """What of a recipe makes a kind of merge."""

    method: str
    own: dict[str, Any] = {}  # of each model
    rest: dict[str, Any] = {}


RECIPES = {
    "linear": Recipe("linear", {"weight": 0.5}),
    "slerp": Recipe("slerp", {}, {"parameters": {"t": 0.3}}),
    "ties": Recipe("ties", {"weight": 0.5, "density": 0.4}),
    "dare_ties": Recipe("dare_ties", {"weight": 0.5, "density": 0.5}),
    "dare_linear": Recipe("dare_linear", {"weight": 0.5, "density": 0.3}),
    "localize_stitch": Recipe("localize_stitch", {}, {"parameters": {"density": 0.1}}),
    "wrapped": Recipe(
        "task_arithmetic", {"weight": 0.5}, {"wrap": {"condition": "equalize", "lines": {}}}
    ),
    "emr": Recipe("emr"),
}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with the models `base`, `a` and `b`."""
    folder = tmp_path_factory.mktemp("kill")
    rng = np.random.default_rng(SEED)
    size = ROWS[0] * ROWS[1]
    drawn = rng.standard_normal(size + 97 * LARGE, np.float32).astype(ml_dtypes.bfloat16)
    for number, name in enumerate(("base", "a", "b")):
        tensors = {}
        for i in range(LARGE):
            values = drawn[97 * i : 97 * i + size].reshape(ROWS)
            if number:  # a fine-tune changes some rows
                values = values.copy()
                values[number::3] = values[::-1][number::3]
            tensors[f"model.layers.{i}.mlp.up_proj.weight"] = values
        for i in range(SMALL):
            small = rng.standard_normal(500 + i, np.float32).astype(ml_dtypes.bfloat16)
            tensors[f"model.norms.{i}.weight"] = small
        write_checkpoint(folder / name, tensors, {"model_type": "x", "num_hidden_layers": LARGE})
    yield folder
    shutil.rmtree(folder)


class Merge:
    """One recipe in a folder of its own: what an undisturbed run gives, and a way to start others."""

    def __init__(self, place: Path, name: str) -> None:
        self.place = place
        self.out = place / f"out-{name}"
        self.work = place / f"out-{name}.jmerge-work"
        self.log = place / f"{name}.log"
        self.recipe = place / f"{name}.yml"
        recipe = RECIPES[name]
        models = [{"model": str(place / m), "parameters": recipe.own} for m in "ab"]
        content: dict[str, Any] = {"merge_method": recipe.method, "models": models, **recipe.rest}
        if recipe.method != "linear":
            content["base_model"] = str(place / "base")
        if recipe.method == "slerp":
            content["models"] = models[:1]
        self.recipe.write_text(json.dumps(content))
        plan = jmerge.plan(self.recipe)
        assert plan.write_bytes >= LEAST_BYTES
        self.total = plan.write_bytes
        self.lines = sum(len(work.pieces) for work in make_schedule(plan).work)
        began = time.monotonic()
        self.finish()
        self.seconds = time.monotonic() - began
        self.want = self.published()

    def start(self) -> subprocess.Popen[bytes]:
        words = ["--config", str(self.recipe), "--out", str(self.out), "--shard_size", "90MB"]
        return subprocess.Popen(
            [sys.executable, "-c", PROGRAM, str(self.log), *words],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
        )

    def finish(self) -> str:
        """Run to the end, and give what was said on standard error."""
        process = self.start()
        _, errors = process.communicate(timeout=300)
        assert process.returncode == 0, errors.decode()
        assert b"Traceback" not in errors
        return errors.decode()

    def kill(self, when: Callable[[float], bool]) -> bool:
        """Run until `when`, asked again and again with the seconds since the start, and kill; whether it was alive."""
        process = self.start()
        began = time.monotonic()
        while process.poll() is None and not when(time.monotonic() - began):
            time.sleep(0.0005)
        process.kill()
        process.communicate()
        assert process.returncode in (0, -signal.SIGKILL)
        return process.returncode != 0

    def journal_lines(self) -> int:
        """Whole lines of the journal but for the first; 0 without one."""
        try:
            return max((self.work / JOURNAL).read_bytes().count(b"\n") - 1, 0)
        except FileNotFoundError:
            return 0

    def proven(self) -> dict[tuple[str, int], int]:
        """The blocks that the journal claims and the bytes on the disk prove: their ends by tensor and start."""
        places = {}
        for path in self.work.rglob("*.safetensors"):
            prefix = path.parent.relative_to(self.work).as_posix()
            data = np.memmap(path, np.uint8, "r")
            length = int.from_bytes(data[:8].tobytes(), "little")
            header = json.loads(data[8 : 8 + length].tobytes())
            header.pop("__metadata__")
            for name, entry in header.items():
                full = name if prefix == "." else f"{prefix}/{name}"
                places[full] = data[8 + length :][slice(*entry["data_offsets"])]
        found = {}
        text = (self.work / JOURNAL).read_bytes() if (self.work / JOURNAL).exists() else b""
        for line in text.split(b"\n")[1:-1]:
            try:
                tensor, start, stop, crc32, _ = json.loads(line)
            except ValueError:
                break
            if zlib.crc32(places[tensor][start:stop].data) == crc32 and stop <= places[tensor].size:
                found[tensor, start] = stop
        return found

    def wrote(self) -> dict[tuple[str, int], int]:
        """The blocks in the log, which is emptied."""
        lines = self.log.read_text().splitlines() if self.log.exists() else []
        self.log.unlink(missing_ok=True)
        found = {(name, int(start)): int(stop) for name, start, stop in map(str.split, lines)}
        assert len(found) == len(lines), "a block was written twice in one run"
        return found

    def published(self) -> dict[str, str]:
        """The sha256 of every file of the output folder, which is then deleted."""
        assert not self.work.exists()
        found = {}
        for path in sorted(self.out.rglob("*")):
            if path.is_file():
                with path.open("rb") as file:
                    found[str(path.relative_to(self.out))] = hashlib.file_digest(
                        file, "sha256"
                    ).hexdigest()
        shutil.rmtree(self.out)
        self.wrote()
        return found


def nothing(merge: Merge, rng: random.Random) -> None:
    """Only the kill."""


def tear_the_journal(merge: Merge, rng: random.Random) -> None:
    """As if the last lines had been torn."""
    size = (merge.work / JOURNAL).stat().st_size
    os.truncate(merge.work / JOURNAL, size - rng.randrange(1, min(size, 200)))


def cut_a_shard(merge: Merge, rng: random.Random) -> None:
    """Somebody cut a file."""
    path = rng.choice(sorted(merge.work.rglob("*.safetensors")))
    os.truncate(path, rng.randrange(path.stat().st_size // 2, path.stat().st_size))


def change_a_byte(merge: Merge, rng: random.Random) -> None:
    """The disk lost a page."""
    path = rng.choice(sorted(merge.work.rglob("*.safetensors")))
    header = read_header(path)
    extent = rng.choice([each for each in header.extents.values() if each.spec.nbytes])
    with path.open("r+b") as file:
        file.seek(extent.start + rng.randrange(extent.spec.nbytes))
        byte = file.read(1)
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte[0] ^ 0x40]))


HARMS = (nothing, nothing, tear_the_journal, cut_a_shard, change_a_byte)


def kill_and_resume(
    merge: Merge, kills: int, timed: int, rng: random.Random, harms: bool = False
) -> int:
    """Kill `kills` times, `timed` of them at a random time and not by the journal's length, then let it finish; how
    many landed between the first and the last line that the run would have added to the journal."""
    landed = done = 0
    before: dict[tuple[str, int], int] = {}  # proven when the run began
    by_time = set(rng.sample(range(kills), timed))
    while done < kills:
        ahead = merge.lines - len(before)  # that this run would add to those it finds
        if done in by_time:
            moment = rng.uniform(0, merge.seconds)
            alive = merge.kill(lambda seconds, moment=moment: seconds > moment)  # type: ignore[misc]
        else:  # in the first half, so that there is room for another kill after this one
            target = merge.journal_lines() + rng.randrange(1, max(2, ahead // 2))
            alive = merge.kill(lambda _, target=target: merge.journal_lines() >= target)  # type: ignore[misc]
        if merge.out.exists():  # it was done first: that was no kill
            assert merge.published() == merge.want
            before = {}
            continue
        assert alive
        done += 1
        wrote = merge.wrote()
        landed += 0 < len(wrote) < ahead
        assert_only_unproven(before, wrote)
        if harms and merge.journal_lines() > 0:
            rng.choice(HARMS)(merge, rng)
        before = merge.proven()
    said = merge.finish()
    proven = sum(stop - start for (_, start), stop in before.items())
    wrote = merge.wrote()
    assert_only_unproven(before, wrote)
    assert sum(stop - start for (_, start), stop in wrote.items()) == merge.total - proven
    assert ("resuming" in said) == (proven > 0), said
    assert merge.published() == merge.want
    return landed


def assert_only_unproven(
    proven: dict[tuple[str, int], int], wrote: dict[tuple[str, int], int]
) -> None:
    """No block was written that was proven before."""
    assert not proven.keys() & wrote.keys()


def test_five_kills(place: Path) -> None:
    rng = random.Random(SEED)
    print(f"seed {SEED} (JMERGE_KILL_SEED)")
    landed = kill_and_resume(Merge(place, "linear"), 3, 1, rng)
    landed += kill_and_resume(Merge(place, "slerp"), 2, 0, rng)
    assert landed >= 3, f"only {landed} of 5 kills landed between the journal's first and last line"


@pytest.mark.slow
def test_fifty_kills(place: Path) -> None:
    rng = random.Random(SEED + 1)
    print(f"seed {SEED} (JMERGE_KILL_SEED)")
    landed = kills = 0
    for number, name in enumerate(RECIPES):
        merge = Merge(place, name)
        for count in (3, 4 if number < 2 else 3):
            landed += kill_and_resume(merge, count, 1, rng, harms=True)
            kills += count
    assert kills >= 50
    assert 2 * landed >= kills, f"only {landed} of {kills} landed between first and last line"
