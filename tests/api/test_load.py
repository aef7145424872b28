"""Folders to arrays on devices: values, places, and no more read than each device holds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import ml_dtypes
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec, SingleDeviceSharding

import jmerge
from jmerge.ckpt.open import Checkpoint
from jmerge.testing.tiny import llama_tensors, write_checkpoint, write_llama

SHARDED = """
import sys
import jax
jax.config.update("jax_num_cpu_devices", 4)
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec as P
import jmerge
from jmerge.ckpt.open import Checkpoint

mesh = jax.make_mesh((2, 2), ("x", "y"))
read = []
original = Checkpoint.raw
def raw(self, name, start, stop):
    read.append((name, start, stop))
    return original(self, name, start, stop)
Checkpoint.raw = raw

def place(name, struct):
    axes = ("x", "y", None)[: len(struct.shape)] if "norm" not in name else ()
    return NamedSharding(mesh, P(*axes))

tree = jmerge.load(sys.argv[1], shardings=place)
wanted = jmerge.open_checkpoint(sys.argv[1])
Checkpoint.raw = original
for name, array in wanted.items():
    found = tree[name]
    np.testing.assert_array_equal(found, array)
    assert found.sharding.spec == (P() if "norm" in name else P("x", "y")), name
rows = sorted(stop - start for name, start, stop in read if name == "lm_head.weight")
assert set(rows) == {16 * 8 * 4 // 2}, rows  # half of the rows at a time
norms = [each for each in read if each[0] == "model.norm.weight"]
assert len(norms) == 1, norms  # once for all devices
folder = jmerge.save(tree, sys.argv[2], like=sys.argv[1])
for name, array in jmerge.open_checkpoint(folder).items():
    np.testing.assert_array_equal(wanted[name], array)
print("fine")
"""


def test_parts_of_a_mesh(tmp_path: Path) -> None:
    """Four devices in a process of their own; what was loaded is saved again."""
    import subprocess
    import sys

    write_llama(tmp_path / "a", 0)
    command = [sys.executable, "-c", SHARDED, str(tmp_path / "a"), str(tmp_path / "out")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "fine\n"


MIXED: dict[str, np.ndarray] = {
    "bf16": np.arange(12).astype(ml_dtypes.bfloat16).reshape(3, 4),
    "empty": np.zeros((0, 3), np.float32),
    "f64": np.array([1 + 1e-12, 2.0]),
    "f8": np.ones((2, 2), ml_dtypes.float8_e4m3fn),
    "flags": np.array([True, False]),
    "i64": np.array([2**40 + 1, -1]),
    "scalar": np.asarray(3.5, np.float32),
}


def test_every_dtype_stays_and_no_bit_is_lost(tmp_path: Path) -> None:
    """64-bit ones too, without jax_enable_x64."""
    write_checkpoint(tmp_path / "m", MIXED)
    tree = jmerge.load(tmp_path / "m")
    assert list(tree) == list(jmerge.open_checkpoint(tmp_path / "m"))
    for name, array in tree.items():
        assert isinstance(array, jax.Array)
        assert (array.dtype, array.shape) == (MIXED[name].dtype, MIXED[name].shape)
        assert np.asarray(array).tobytes() == MIXED[name].tobytes(), name


def test_arrays_do_not_follow_the_file(tmp_path: Path) -> None:
    write_llama(tmp_path / "a", 0)
    tree = jmerge.load(tmp_path / "a")
    file = tmp_path / "a" / "model.safetensors"
    with file.open("r+b") as opened:
        opened.seek(file.stat().st_size - 4000)
        opened.write(b"\0" * 4000)
    for name, array in llama_tensors(0).items():
        np.testing.assert_array_equal(tree[name], array)


def test_patterns_in_order() -> None:
    checkpoint = jmerge.open_checkpoint({"a.x": np.ones(2), "a.y": np.ones(2), "b": np.ones(2)})
    mesh = jax.make_mesh((1,), ("m",))
    first, rest = NamedSharding(mesh, PartitionSpec("m")), SingleDeviceSharding(jax.devices()[0])
    tree = jmerge.load(checkpoint, shardings={"a.?": first, "*": rest})
    assert [each.sharding for each in tree.values()] == [first, first, rest]
    assert jmerge.load(checkpoint, shardings=first)["b"].sharding == first


def failing(**rest: Any) -> Any:
    mesh = jax.make_mesh((1,), ("m",))
    return NamedSharding(mesh, PartitionSpec("m", None))


@pytest.mark.parametrize(
    ("shardings", "kind", "words"),
    [
        (
            5,
            TypeError,
            "^shardings: expected a sharding, a function or a dict by pattern, found 5$",
        ),
        (lambda name, struct: None, TypeError, "^shardings of 'a.x': expected a jax.sharding.Shar"),
        (
            {"a.*": SingleDeviceSharding(jax.devices()[0])},
            jmerge.PlanError,
            "no pattern matches b;",
        ),
        (
            {"*": SingleDeviceSharding(jax.devices()[0]), "a.z": None},
            jmerge.PlanError,
            "^shardings: 'a.z' matches no tensor; did you mean 'a.x'?",
        ),
        (lambda name, struct: failing(), jmerge.PlanError, r"^a.x: \[2\] cannot be split by P"),
    ],
)
def test_wrong_shardings_are_told(shardings: Any, kind: Any, words: str) -> None:
    checkpoint = jmerge.open_checkpoint({"a.x": np.ones(2), "b": np.ones(2)})
    with pytest.raises(kind, match=words):
        jmerge.load(checkpoint, shardings=shardings)


def test_wrong_places_are_told(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="^place: expected a path, a URL or an opened checkpoint"):
        jmerge.load(5)  # type: ignore[arg-type]
    with pytest.raises(jmerge.CheckpointError, match="is not a folder"):
        jmerge.load(tmp_path / "nothing")
    assert isinstance(jmerge.open_checkpoint({"w": np.ones(1)}), Checkpoint)
