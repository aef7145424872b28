"""The timing of methods, on a tensor so small that its numbers mean nothing."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import jax

import jmerge
from jmerge.testing.leaning import NAMES

ROOT = Path(__file__).parents[1]


def bench(*words: str) -> subprocess.CompletedProcess[str]:
    """tools/bench.py, run with these words on this jmerge."""
    return subprocess.run(
        [sys.executable, ROOT / "tools" / "bench.py", *words],
        env=os.environ | {"PYTHONPATH": str(Path(jmerge.__file__).parents[1])},
        capture_output=True,
        text=True,
    )


def test_methods_are_timed(tmp_path: Path) -> None:
    """A line for each, in the order asked for; the tensor is whole rows of 4096 elements."""
    words = ("--methods", "ties,slerp", "--elements", "20000", "--folder", str(tmp_path / "new"))
    done = bench(*words)
    assert done.returncode == 0, done.stderr
    first, *rows = done.stdout.splitlines()
    assert first.endswith("; one tensor of 16384 elements, bf16")
    assert [row.split()[0] for row in rows] == ["ties", "slerp"]
    for row, models in zip(rows, ("3 + base", "1 + base"), strict=True):
        numbers = rf"{re.escape(models)} +\d+\.\d+ s +\d+\.\d M/s +\d+\.\d\d x linear"
        memory = r" +memory +\d+ MB" if sys.platform == "linux" else ""
        assert re.fullmatch(rf"\w+ +{numbers}({memory})?", row), row


def test_programs_are_timed_on_the_device(tmp_path: Path) -> None:
    """A line for each program of linear and ties, beside a copy."""
    words = ("--device", "--elements", "40000", "--repeats", "1", "--folder", str(tmp_path / "new"))
    done = bench(*words)
    assert done.returncode == 0, done.stderr
    first, *rows = done.stdout.splitlines()
    assert re.fullmatch(r".+; a copy moves \d+\.\d GB/s", first)
    assert {row.split()[0] for row in rows} == {"linear", "ties"}
    assert rows[0].split()[1] == rows[-1].split()[1] == "combine"
    for row in rows:
        assert re.fullmatch(r"\w+ +\w+ +\d+\.\d{3} ms +\d+\.\d% of a copy", row), row


def test_a_method_that_does_not_exist_is_refused(tmp_path: Path) -> None:
    """Before anything is made."""
    done = bench("--methods", "tise", "--folder", str(tmp_path / "new"))
    assert done.returncode == 1
    assert done.stderr == "'tise' is not a merge method; did you mean 'ties'?\n"
    assert not (tmp_path / "new").exists()


def test_what_leans_on_xla_is_timed() -> None:
    """A line for each use, with and without."""
    done = bench("--xla", "--repeats", "1")
    assert done.returncode == 0, done.stderr
    first, *rows = done.stdout.splitlines()
    assert first.startswith(f"jax {jax.__version__}, ")
    assert [row[:16].rstrip() for row in rows] == list(NAMES)
    number = r" +\d+\.\d+ ms +\d+\.\d MB"
    for row in rows:
        assert re.fullmatch(rf" with{number}   without{number}", row[16:]), row
