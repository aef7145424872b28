"""Called from Python, jmerge leaves the process as it is, runs in threads, and can be cancelled."""

from __future__ import annotations

import hashlib
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import jmerge
from jmerge.engine.schedule import PIECE
from jmerge.testing.tiny import write_checkpoint


def recipe(method: str, place: Path) -> dict[str, Any]:
    models = [
        {"model": str(place / name), "parameters": {"weight": 0.5, "density": 0.5}} for name in "ab"
    ]
    return {"merge_method": method, "base_model": str(place / "base"), "models": models}


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A folder with models of several pieces."""
    rng = np.random.default_rng(0)
    for name in ("base", "a", "b"):
        tensors = {f"x{i}": rng.standard_normal(PIECE + 5).astype(np.float32) for i in range(3)}
        write_checkpoint(tmp_path / name, tensors)
    return tmp_path


def digest(folder: Path) -> str:
    return hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()


def test_two_merges_in_two_threads(place: Path) -> None:
    methods = ("ties", "dare_ties")
    failed: list[BaseException] = []

    def work(method: str) -> None:
        try:
            jmerge.merge(recipe(method, place), place / f"{method}-thread")
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=work, args=(method,)) for method in methods]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failed == []
    for method in methods:
        jmerge.merge(recipe(method, place), place / method)
        assert digest(place / f"{method}-thread") == digest(place / method)


def test_a_merge_is_cancelled_and_goes_on(place: Path) -> None:
    want = digest(jmerge.merge(recipe("ties", place), place / "want").folder)
    cancel = threading.Event()
    written: list[Any] = []

    def listen(event: Any) -> None:
        if isinstance(event, jmerge.advanced.Wrote):
            written.append(event)
            cancel.set()

    words = "^the merge was cancelled; the same call continues \\[JM508\\]$"
    with pytest.raises(jmerge.CancelledError, match=words):
        jmerge.merge(recipe("ties", place), place / "out", cancel=cancel, listeners=[listen])
    assert len(written) < 6 and cancel.is_set() and not (place / "out").exists()
    with pytest.raises(jmerge.CancelledError):  # as long as it is set
        jmerge.merge(recipe("ties", place), place / "out", cancel=cancel)
    merged = jmerge.merge(recipe("ties", place), place / "out", cancel=threading.Event())
    assert merged.resumed_bytes is not None and merged.resumed_bytes >= written[0].nbytes
    assert digest(place / "out") == want


def test_a_merge_into_memory_is_cancelled(place: Path) -> None:
    cancel = threading.Event()
    with pytest.raises(jmerge.CancelledError, match=r"^the merge was cancelled \[JM508\]$"):
        jmerge.merge(recipe("ties", place), cancel=cancel, listeners=[lambda _: cancel.set()])
    threads = {thread.name for thread in threading.enumerate()}
    assert not {"jmerge-read", "jmerge-write"} & threads


def test_settings_of_jax_stay(place: Path) -> None:
    """Though the number of devices is asked for before JAX is used."""
    code = """
import sys, jax, jmerge
before = dict(jax.config.values)
try:
    jmerge.merge(RECIPE, OUT, devices=2)
except jmerge.PlanError as error:
    assert "expected at most 1, the number of cpu devices here, found 2; JAX makes more with" in str(error)
jmerge.merge(RECIPE, OUT, devices=1)
jmerge.load(OUT)
assert {k: v for k, v in jax.config.values.items() if before.get(k) != v} == {}
"""
    code = code.replace("RECIPE", repr(recipe("ties", place)))
    code = code.replace("OUT", repr(str(place / "out")))
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_the_function_plan_is_not_hidden_by_the_folder_of_its_name() -> None:
    import jmerge.plan.build

    assert callable(jmerge.plan) and jmerge.plan.__module__ == "jmerge.api.plan"
    from jmerge.plan import steps

    assert steps.Plan is jmerge.Plan
