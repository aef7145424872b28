"""The process of the command line: set up by the program, never by importing the library."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from jmerge.process import compile_cache

KEYS = (
    "JAX_COMPILATION_CACHE_DIR",
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS",
    "TF_CPP_MIN_LOG_LEVEL",
)
SHOW = f"import gc, os; print([os.environ.get(k) for k in {KEYS}], gc.get_threshold()[0])"


def ask(code: str, **environment: str) -> str:
    """What a fresh interpreter prints."""
    clean = {k: v for k, v in os.environ.items() if k not in KEYS}
    return subprocess.run(
        [sys.executable, "-c", code],
        env=clean | environment,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.strip()


def test_the_library_changes_nothing() -> None:
    assert ask(f"import jmerge, jmerge.cli; jmerge.cli.main(['--version']); {SHOW}") == ask(
        f"print('jmerge', __import__('jmerge').__version__); {SHOW}"
    )


def test_what_the_user_set_stays() -> None:
    shown = ask(
        f"from jmerge.process import prepare; prepare(); {SHOW}", JAX_COMPILATION_CACHE_DIR="/mine"
    )
    assert shown == "['/mine', '0', '2'] 100000"


@pytest.mark.skipif(sys.platform == "win32", reason="XDG")
def test_kernels_are_kept_in_the_users_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert compile_cache().parent == tmp_path / "jmerge"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert compile_cache().parent == tmp_path / "home" / ".cache" / "jmerge"


def test_a_second_run_compiles_nothing(tmp_path: Path) -> None:
    """The program keeps its kernels, and finds them again."""
    environment = {k: v for k, v in os.environ.items() if k not in KEYS}
    quickstart = Path(__file__).parent.parent / "configs"
    for out in ("one", "two"):
        done = subprocess.run(
            [sys.executable, "-m", "jmerge", "configs/quickstart.yml", str(tmp_path / out)],
            cwd=quickstart.parent,
            env=environment | {"XDG_CACHE_HOME": str(tmp_path / "cache")},
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
        kept = {p.name: p.stat().st_mtime_ns for p in (tmp_path / "cache").rglob("*-cache")}
        assert kept
        if out == "one":
            first = kept
    assert kept == first
