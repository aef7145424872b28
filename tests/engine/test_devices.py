"""Several devices share the work and give the same bytes; what happens when their memory runs out."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import numpy as np
import pytest

import jmerge
from jmerge import cli
from jmerge.engine import compute, devices
from jmerge.engine.attempts import run_within_memory
from jmerge.engine.devices import DeviceMemoryError, choose_devices
from jmerge.engine.events import Resumed, Without
from jmerge.engine.kernel import combine_kernel
from jmerge.engine.schedule import LENGTHS
from jmerge.errors import PlanError
from jmerge.methods import REGISTRY
from jmerge.report.methods import minimal_recipe
from jmerge.testing.tiny import write_checkpoint

TOGETHER = """
import hashlib, sys
from pathlib import Path
from types import SimpleNamespace
import jax
import jmerge

jax.config.update("jax_num_cpu_devices", 8)
for recipe in sys.argv[1:]:
    found = []
    for count in (8, 1):
        out = Path(recipe).parent / str(count) / Path(recipe).stem
        out.parent.mkdir(exist_ok=True)
        used = set()
        jmerge.merge(recipe, out, devices=count)
        files = sorted(path for path in out.rglob("*") if path.is_file())
        found.append([(p.relative_to(out).as_posix(), hashlib.sha256(p.read_bytes()).hexdigest()) for p in files])
    assert len(jax.devices()) == 8
    assert found[0] == found[1], recipe
    print(recipe)
"""
METHODS = ("linear", "ties", "dare_ties", "localize_stitch")


def write_models(place: Path, elements: int = 3 * LENGTHS[0] + 5) -> None:
    rng = np.random.default_rng(0)
    for model in ("base", "a", "b", "c"):
        tensors = {
            "x": rng.standard_normal((3, elements), np.float32),
            "y": rng.standard_normal((70,), np.float32),
        }
        write_checkpoint(place / model, tensors)


def write_recipe(place: Path, method: str) -> Path:
    path = place / f"{method}.yml"
    models = [str(place / name) for name in "abc"]
    path.write_text(minimal_recipe(REGISTRY[method], models, str(place / "base")))
    return path


def test_eight_devices_give_the_bytes_of_one(tmp_path: Path) -> None:
    """Other methods are in `test_same_bytes`."""
    write_models(tmp_path)
    recipes = [str(write_recipe(tmp_path, method)) for method in METHODS]
    command = [sys.executable, "-c", TOGETHER, *recipes]
    done = subprocess.run(command, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == recipes


def test_every_device_takes_part(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pieces go round; a second device that is the first again stands in for another."""
    seen: list[Any] = []
    original = jax.default_device

    def watched(device: Any) -> Any:
        seen.append(device)
        return original(device)

    own = SimpleNamespace(**{**vars(jax), "default_device": watched})
    monkeypatch.setattr(compute, "jax", own)
    write_models(tmp_path, LENGTHS[-1])
    jmerge.merge(write_recipe(tmp_path, "linear"), tmp_path / "out")
    assert len(seen) == 4 and set(seen) == set(jax.local_devices()[:1])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("0", "--devices: expected at least 1, found 0"),
        ("99", "--devices: expected at most"),
        (
            "gpus",
            "expected a number or platforms such as gpu or gpu,cpu, found 'gpus'; did you mean 'gpu'?",
        ),
        ("cpu,moon", "found 'cpu,moon'"),
        ("1.5", "found '1.5'"),
        ("", "expected a number or platforms"),
    ],
)
def test_devices_that_are_none(text: str, message: str, tmp_path: Path, capsys: Any) -> None:
    write_models(tmp_path)
    recipe = write_recipe(tmp_path, "linear")
    assert cli.main([str(recipe), str(tmp_path / "out"), f"--devices={text}"]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_platforms_in_order() -> None:
    assert choose_devices(None) == [jax.local_devices()]
    assert choose_devices("1") == choose_devices(1) == [jax.local_devices()[:1]]
    assert choose_devices("cpu,cpu") == choose_devices("cpu") == [jax.local_devices(backend="cpu")]
    missing = next(name for name in ("tpu", "gpu") if name != jax.default_backend())
    with pytest.raises(PlanError, match=f"JAX finds no {missing} here; it finds .*cpu"):
        choose_devices(missing)
    told: list[Without] = []
    cpus = [jax.local_devices(backend="cpu")]
    for text in (f"{missing},cpu", f"cpu,{missing}"):
        assert choose_devices(text, told.append) == cpus
    assert told == [Without((missing,), "cpu")] * 2


def test_a_platform_that_is_not_here_is_told(tmp_path: Path, capsys: Any) -> None:
    """The one after it does the work."""
    write_models(tmp_path, 10)
    recipe = write_recipe(tmp_path, "linear")
    missing = next(name for name in ("tpu", "gpu") if name != jax.default_backend())
    words = [str(recipe), str(tmp_path / "out"), f"--devices={missing},cpu"]
    assert cli.main(words) == 0
    assert capsys.readouterr().err == (
        f"note: --devices: JAX finds no {missing} on this machine; cpu does the work\n"
    )
    assert (tmp_path / "out").exists()


# Memory of devices


@pytest.fixture
def small_device(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], list[int]]:
    """Sets how many elements a piece of a result may have for memory to do; gives the lengths that were tried."""
    tried: list[int] = []

    def limit(most: int) -> list[int]:
        original = combine_kernel

        def kernel_of(key: Any) -> Any:
            kernel = original(key)

            def run(windows: Any, *rest: Any) -> Any:
                length = windows[0].size - 64 // windows[0].itemsize
                tried.append(length)
                if length > most:
                    raise jax.errors.JaxRuntimeError(
                        "RESOURCE_EXHAUSTED: Out of memory allocating 123 bytes.\nmore"
                    )
                return kernel(windows, *rest)

            return run

        monkeypatch.setattr(compute, "combine_kernel", kernel_of)
        return tried

    return limit


def digest(folder: Path) -> str:
    return hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()


@pytest.mark.parametrize("method", ["linear", "ties"])
def test_pieces_shrink_when_memory_runs_out(
    method: str, small_device: Callable[[int], list[int]], tmp_path: Path
) -> None:
    write_models(tmp_path, LENGTHS[-1])  # whole pieces and shorter ones
    recipe = write_recipe(tmp_path, method)
    jmerge.merge(recipe, tmp_path / "want")
    tried = small_device(LENGTHS[1])
    events: list[Any] = []
    jmerge.merge(recipe, tmp_path / "out", listeners=[events.append])
    assert digest(tmp_path / "out") == digest(tmp_path / "want")
    assert set(tried) >= {LENGTHS[3], LENGTHS[2], LENGTHS[1]}
    assert not any(isinstance(event, Resumed) for event in events)


def test_what_is_written_stays_when_pieces_shrink(
    small_device: Callable[[int], list[int]], tmp_path: Path
) -> None:
    """The short tensor comes first and is not made twice."""
    rng = np.random.default_rng(1)
    for model in "abc":
        write_checkpoint(
            tmp_path / model,
            {
                "first": rng.standard_normal((LENGTHS[1],), np.float32),
                "second": rng.standard_normal((LENGTHS[-1],), np.float32),
            },
        )
    recipe = write_recipe(tmp_path, "linear")
    tried = small_device(LENGTHS[2])
    jmerge.merge(recipe, tmp_path / "out")
    assert tried.count(LENGTHS[1]) == 1 and tried.count(LENGTHS[2]) == 4


def test_memory_that_never_does_ends_the_run(
    small_device: Callable[[int], list[int]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_models(tmp_path)
    recipe = write_recipe(tmp_path, "linear")
    small_device(0)
    assert cli.main([str(recipe), str(tmp_path / "out")]) == 3
    said = capsys.readouterr().err
    assert "error: cpu is out of memory: even the smallest pieces need" in said
    assert "Out of memory allocating 123 bytes" in said and "--devices cpu,cpu" not in said
    assert "Traceback" not in said and not (tmp_path / "out").exists()


def test_another_platform_goes_on_where_it_is_listed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_models(tmp_path)
    recipe = write_recipe(tmp_path, "linear")
    jmerge.merge(recipe, tmp_path / "want")
    from jmerge.api import merge as api

    first, second = jax.local_devices()[:1], list(jax.local_devices()[:1])
    monkeypatch.setattr(api, "choose_devices", lambda text, tell: [first, second])
    original = run_within_memory
    failed: list[Any] = []

    def failing(plan: Any, folder: Any, chosen: Any, **rest: Any) -> Any:
        if chosen is first:
            folder.write("y", 0, memoryview(b"\x55" * 16))
            failed.append(chosen)
            raise DeviceMemoryError("no memory")
        return original(plan, folder, chosen, **rest)

    monkeypatch.setattr(api, "run_within_memory", failing)
    merged = jmerge.merge(recipe, tmp_path / "out")
    assert failed == [first] and merged.resumed_bytes is None
    assert digest(tmp_path / "out") == digest(tmp_path / "want")


def test_other_errors_of_jax_are_not_about_memory() -> None:
    wanted = pytest.raises(jax.errors.JaxRuntimeError, match="INTERNAL")
    with wanted, devices.device_memory_errors():
        raise jax.errors.JaxRuntimeError("INTERNAL: a bug")
