"""Disks that are really full, and limits that the system really sets: programs of their own.

`test_resume.py` makes the calls to the system fail instead.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from enginekit import contents, write_recipe

import jmerge
from jmerge.testing.tiny import write_checkpoint

pytest.importorskip("resource")


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A folder with two models of 24 MB and the recipe x.yml."""
    for seed, name in enumerate("ab"):
        rng = np.random.default_rng(seed)
        tensors = {
            f"model.layers.{i}.mlp.up_proj.weight": rng.standard_normal(
                (2048, 1024), np.float32
            ).astype(ml_dtypes.bfloat16)
            for i in range(6)
        }
        write_checkpoint(tmp_path / name, tensors, {"model_type": "x", "num_hidden_layers": 6})
    write_recipe(tmp_path)
    return tmp_path


@pytest.fixture
def want(place: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """What an undisturbed merge publishes."""
    out = tmp_path_factory.mktemp("want") / "out"
    jmerge.merge(place / "x.yml", out)
    return contents(out)


PROGRAM = """
import resource, sys
from jmerge.process import leave, prepare
prepare()
import jmerge.cli
from jmerge.engine.events import Wrote
from jmerge.report.progress import Progress

count = 0

def limit(size):
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))

def watch(self, event):
    global count
    count += isinstance(event, Wrote)
    if count == 3:
        limit(1 << 20)

if sys.argv[1] == "at once":
    limit(10 << 20)
if sys.argv[1] == "later":
    Progress.__call__ = watch
leave(jmerge.cli.main(sys.argv[2:]))
"""


def program(place: Path, when: str) -> subprocess.CompletedProcess[str]:
    """Run the program with a limit on the size of files, set `when`."""
    words = ["--config", str(place / "x.yml"), "--out", str(place / "out")]
    return subprocess.run(
        [sys.executable, "-c", PROGRAM, when, *words], capture_output=True, text=True, timeout=120
    )


@pytest.mark.parametrize("when", ["at once", "later"])
def test_a_limit_on_the_size_of_files(when: str, place: Path, want: dict[str, bytes]) -> None:
    """The signal that comes with it ends no program that could say why."""
    done = program(place, when)
    assert done.returncode == 3, done.stderr
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: ") and "ulimit -f" in line
    assert not (place / "out").exists()
    done = program(place, "never")
    assert done.returncode == 0
    assert ("verified and kept" in done.stderr) == (when == "later"), done.stderr
    assert contents(place / "out") == want


FULL = """
import contextlib, io, json, os, sys
from pathlib import Path
import jmerge.cli
from jmerge.engine.events import Wrote
from jmerge.report.progress import Progress

disk, recipe = Path(sys.argv[1]), sys.argv[2]
filler, out = disk / "filler", disk / "out"
show = Progress.__call__

def fill(leave=0):
    status = os.statvfs(disk)
    size = status.f_bavail * status.f_frsize - leave
    with open(filler, "wb") as file:
        file.write(bytes(max(size, 0)))

def merge():
    said = io.StringIO()
    with contextlib.redirect_stderr(said), contextlib.redirect_stdout(io.StringIO()):
        code = jmerge.cli.main(["--config", recipe, "--out", str(out)])
    seen = [code, said.getvalue(), out.exists()]
    return seen

def watch(self, event):
    self.count = getattr(self, "count", 0) + isinstance(event, Wrote)
    if self.count == 3 and not filler.exists():
        fill()
    show(self, event)

found = {}
fill(leave=20 << 20)
found["before"] = merge()
filler.unlink()
fallocate = os.posix_fallocate
del os.posix_fallocate  # else there is room for every byte from the start
Progress.__call__ = watch
found["meanwhile"] = merge()
Progress.__call__ = show
found["still full"] = merge()
os.posix_fallocate = fallocate
filler.unlink()
found["after"] = merge()
Path(sys.argv[3]).write_bytes((out / "model.safetensors").read_bytes())
print(json.dumps(found))
"""


def test_a_disk_that_fills_up(place: Path, want: dict[str, bytes]) -> None:
    """A file system of 40 MB, for a result of 25."""
    (place / "disk").mkdir()
    mount = 'mount -t tmpfs -o size=40m tmpfs "$0" && exec "$@"'
    inside = ["unshare", "--mount", "--map-root-user", "sh", "-c", mount, str(place / "disk")]
    try:
        subprocess.run([*inside, "true"], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"no file system can be mounted here: {error}")
    words = [str(place / "disk"), str(place / "x.yml"), str(place / "made")]
    done = subprocess.run(
        [*inside, sys.executable, "-c", FULL, *words], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    code, said, there = found["before"]
    assert (code, there) == (3, False) and "bytes free; the merge needs" in said
    code, said, there = found["meanwhile"]
    assert (code, there) == (3, False) and "the disk is full" in said
    code, said, there = found["still full"]
    assert (code, there) == (3, False) and "free" in said
    code, said, there = found["after"]
    assert (code, there) == (0, True) and "verified and kept" in said
    assert all(text.count("\n") <= 2 and "Traceback" not in text for _, text, _ in found.values())
    assert (place / "made").read_bytes() == want["model.safetensors"]
