"""Arrays seen as the files of a model."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

import jmerge
from jmerge.ckpt.memory import MemorySource, named_arrays
from jmerge.errors import CheckpointError
from jmerge.testing.tiny import llama_config, llama_tensors, write_llama

ARRAYS: dict[str, Any] = {
    "bf16": jnp.arange(6, dtype=jnp.bfloat16).reshape(2, 3),
    "empty": np.zeros((0, 4), np.float32),
    "f8": np.ones(3, ml_dtypes.float8_e4m3fn),
    "flipped": np.arange(12, dtype=np.float32).reshape(3, 4).T,  # not contiguous
    "inner": {"scalar": np.float64(2.5), "flags": np.array([True, False])},
    "last": jnp.arange(5),
}


def test_a_mapping_of_arrays_is_a_checkpoint() -> None:
    checkpoint = jmerge.open_checkpoint(ARRAYS)
    assert isinstance(checkpoint, Mapping) and len(checkpoint) == 7
    wanted = named_arrays(ARRAYS)
    assert set(checkpoint) == set(wanted) and "inner.scalar" in wanted
    for name, array in checkpoint.items():
        assert array.dtype == wanted[name].dtype
        np.testing.assert_array_equal(array, wanted[name])
    assert checkpoint.config == {}


def test_any_range_of_its_file_is_that_of_the_whole() -> None:
    source = MemorySource(named_arrays(ARRAYS))
    size = source.size_of("model.safetensors")
    whole = np.empty(size, np.uint8)
    source.read_into("model.safetensors", 0, whole)
    for start in range(0, size, 7):
        for stop in (start, start + 1, min(start + 100, size), size):
            part = np.full(stop - start, 99, np.uint8)
            source.read_into("model.safetensors", start, part)
            assert part.tobytes() == whole[start:stop].tobytes()


def test_like_gives_the_other_files(tmp_path: Path) -> None:
    folder = jmerge.open_checkpoint(write_llama(tmp_path / "a", 0))
    (tmp_path / "a" / "tokenizer_config.json").write_text("{}")
    checkpoint = jmerge.open_checkpoint(llama_tensors(1), like=folder)
    assert checkpoint.config == llama_config()
    names = ["config.json", "model.safetensors", "tokenizer_config.json"]
    assert checkpoint.source.names() == names
    np.testing.assert_array_equal(checkpoint["lm_head.weight"], llama_tensors(1)["lm_head.weight"])
    other = jmerge.open_checkpoint(llama_tensors(1), like=folder, config={"model_type": "other"})
    assert other.config == {"model_type": "other"}


def test_sharded_arrays_are_read() -> None:
    mesh = jax.make_mesh((1,), ("x",))
    place = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("x"))
    array = jax.device_put(jnp.arange(8.0), place)
    np.testing.assert_array_equal(jmerge.open_checkpoint({"w": array})["w"], np.arange(8.0))


def test_digests_tell_arrays_apart() -> None:
    def digest(**arrays: Any) -> str:
        return MemorySource(arrays).digest()

    ones = np.ones(4, np.float32)
    assert digest(a=ones) == digest(a=jnp.ones(4))
    assert digest(a=ones) != digest(a=ones * 2) != digest(b=ones * 2)


@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        ({"a": 1.0, "b": np.ones(1)}, "^a: expected a NumPy or JAX array, found a value of type f"),
        ({"a.b": np.ones(1), "a": {"b": np.ones(1)}}, "^a.b: is the name of two arrays"),
        ({"k": jax.random.key(0)}, "k: safetensors has no dtype key<fry>"),
        ({"x": np.array(["text"])}, "x: safetensors has no dtype <U4"),
    ],
)
def test_what_is_no_array_is_refused(arrays: Any, words: str) -> None:
    with pytest.raises(CheckpointError, match=words):
        jmerge.open_checkpoint(arrays)


@pytest.mark.parametrize("place", [5, None, ["a"], b"a"])
def test_other_places_are_type_errors(place: Any) -> None:
    with pytest.raises(TypeError, match="^place: expected a path, a URL or a mapping of arrays"):
        jmerge.open_checkpoint(place)


def test_a_folder_has_its_own_config(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="^config is only for a mapping of arrays"):
        jmerge.open_checkpoint(write_llama(tmp_path / "a", 0), config={})
