"""Windows into mapped files: the right bytes, aligned, or none at all and then plain reading."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import numpy as np
import pytest
from enginekit import checkpoints, plan_of, read, step, within

from jmerge.ckpt.safetensors import ALIGNMENT
from jmerge.engine import local
from jmerge.engine.local import Maps
from jmerge.engine.run import run
from jmerge.engine.schedule import PIECE, make_schedule
from jmerge.plan.steps import Plan

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="windows are for Linux")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A file of numbered bytes."""
    file = tmp_path / "file"
    np.arange(100_000, dtype=np.uint32).tofile(file)
    return file


def test_windows_hold_the_range(path: Path) -> None:
    """For every place of its first byte, with what lies around it, and aligned in memory."""
    data = np.fromfile(path, np.uint8)
    found = Maps()
    for start in (*range(130), 4095, 4096, 4097, 123_457):
        window = found.window(path, start, 1000)
        assert window is not None
        around, skip = window
        np.testing.assert_array_equal(around[skip : skip + 1000], data[start : start + 1000])
        assert around.ctypes.data % ALIGNMENT == 0 and around.size == 1000 + ALIGNMENT
        assert 0 <= skip < ALIGNMENT
        with pytest.raises(ValueError, match="read-only"):
            around[0] = 1


def test_no_window(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Beyond the end, of nothing, of what is no file, and where the file system is not known to be local."""
    (tmp_path / "empty").touch()
    size = path.stat().st_size
    assert Maps().window(path, size - 64, 64) is None
    assert Maps().window(path, size - 128, 64) is not None
    assert Maps().window(tmp_path / "empty", 0, 0) is None
    assert Maps().window(tmp_path / "nothing", 0, 1) is None
    assert Maps().window(tmp_path, 0, 1) is None
    monkeypatch.setattr(local, "LOCAL", frozenset(["nfs"]))
    assert Maps().window(path, 0, 64) is None


def test_a_file_that_was_cut_gives_no_window(path: Path) -> None:
    """What would end the process with a signal is noticed while the pages are brought in."""
    found = Maps()
    assert found.window(path, 0, 64) is not None
    os.truncate(path, 4096)
    assert found.window(path, 300_000, 64) is None
    assert found.window(path, 0, 64) is not None


def test_released_windows_come_back(path: Path) -> None:
    found = Maps()
    window = found.window(path, 8192, 4096)
    assert window is not None
    before = window[0].copy()
    found.release(window[0])
    np.testing.assert_array_equal(window[0], before)


def test_no_descriptor_stays_open(path: Path) -> None:
    """A merge may have more files than a process may have open; the memory goes with the last window."""
    before = len(os.listdir("/dev/fd"))
    found = Maps()
    window = found.window(path, 0, 64)
    assert len(os.listdir("/dev/fd")) == before
    assert str(path) in Path("/proc/self/maps").read_text()
    found.close()
    assert window is not None and window[0].sum() >= 0
    del window
    assert str(path) not in Path("/proc/self/maps").read_text()


def plan_for(folder: Path, method: str, dtype: str) -> Plan:
    """Tensors of whole pieces and of less, whose data begins at every multiple of the element in turn."""
    rng = np.random.default_rng(0)
    shapes = {"a": (7,), "b": (PIECE + 4097,), "c": (33,), "d": (PIECE // 4,), "e": (PIECE,)}
    tensors = []
    for _ in range(2):
        values = {n: rng.standard_normal(s, np.float32) for n, s in shapes.items()}
        tensors.append({n: v.astype(dtype) for n, v in values.items()})
    models = checkpoints(folder, *tensors)
    return plan_of(
        models, *(step(n, [read(models, i, n) for i in range(2)], method) for n in shapes)
    )


@pytest.mark.parametrize("dtype", ["float16", "float32"])
@pytest.mark.parametrize("method", ["linear", "slerp", "task_arithmetic"])
def test_mapped_or_read_the_bytes_are_the_same(
    method: str, dtype: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = plan_for(tmp_path, method, dtype)
    used = []
    window = Maps.window

    def watch(self: Maps, path: Path, start: int, size: int) -> object:
        found = window(self, path, start, size)
        used.append(found is not None)
        return found

    class Nowhere:
        def write(self, tensor: str, start: int, data: memoryview) -> None:
            pass

    monkeypatch.setattr(Maps, "window", watch)
    mapped = within(lambda: run(plan, make_schedule(plan), Nowhere()))
    assert sum(used) >= 4, "no piece was mapped, so nothing is compared"
    monkeypatch.setattr(Maps, "window", lambda self, path, start, size: None)
    plain = within(lambda: run(plan, make_schedule(plan), Nowhere()))
    assert mapped.crc32 == plain.crc32
