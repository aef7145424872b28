"""Whole models: values against NumPy, groups, problems, memory, threads, remote files, what lies beside the weights."""

from __future__ import annotations

import json
import tracemalloc
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from tokenizers import Tokenizer
from tokenizers.models import WordLevel

from jmerge.ckpt.open import Checkpoint, open_checkpoint
from jmerge.ckpt.source import LocalSource
from jmerge.diff import compare as module
from jmerge.diff.compare import Difference, compare
from jmerge.diff.groups import by_layer, by_part, most_changed, stacks
from jmerge.errors import CheckpointError
from jmerge.testing.tiny import llama_config, llama_tensors, write_checkpoint, write_llama

Tensors = dict[str, np.ndarray]


def models(folder: Path, a: Tensors, b: Tensors) -> tuple[Checkpoint, Checkpoint]:
    return (
        open_checkpoint(write_checkpoint(folder / "a", a, llama_config())),
        open_checkpoint(write_checkpoint(folder / "b", b, llama_config(), shard_bytes=2000)),
    )


def compared(folder: Path, a: Tensors, b: Tensors) -> Difference:
    return compare(*models(folder, a, b))


def norm(*arrays: np.ndarray) -> float:
    return float(np.linalg.norm(np.concatenate([each.reshape(-1) for each in arrays]).astype("f8")))


def test_values_and_groups(tmp_path: Path) -> None:
    a, b = llama_tensors(0), llama_tensors(1)
    b["model.layers.0.mlp.up_proj.weight"] = a["model.layers.0.mlp.up_proj.weight"]
    found = compared(tmp_path, a, b)
    assert [each.pair.name for each in found.tensors] == list(found.a.index)
    change = {name: b[name].astype("f8") - a[name] for name in a}
    for pair, sums in found.tensors:
        assert sums.norm_change == pytest.approx(norm(change[pair.name]), rel=1e-12)
        assert sums.norm_b == pytest.approx(norm(b[pair.name]), rel=1e-12)
        assert sums.identical == (pair.name == "model.layers.0.mlp.up_proj.weight")
    assert found.total.norm_change == pytest.approx(norm(*change.values()), rel=1e-12)
    assert found.total.relative == pytest.approx(norm(*change.values()) / norm(*a.values()))
    parts = {part: sums for part, _, sums in by_part(found.tensors)}
    assert set(parts) == {"embedding", "attention", "mlp", "norm", "head"}
    mlp = [each for name, each in change.items() if ".mlp." in name]
    assert parts["mlp"].norm_change == pytest.approx(norm(*mlp), rel=1e-12)
    assert list(stacks(found)) == ["model.layers"]
    layers = list(by_layer(stacks(found)["model.layers"]))
    assert [layer for layer, _, _ in layers] == [0, 1]
    second = [each for name, each in change.items() if "layers.1." in name]
    assert layers[1][1].norm_change == pytest.approx(norm(*second), rel=1e-12)
    assert sum(sums.elements for sums in layers[1][2].values()) == sum(e.size for e in second)
    order = [each.sums.relative for each in most_changed(found.tensors)]
    assert len(order) == len(a) - 1 and order == sorted(order, reverse=True)  # type: ignore[type-var]
    assert found.problems == () and not found.same_weights


def test_a_tensor_that_was_zero_changed_most(tmp_path: Path) -> None:
    a, b = llama_tensors(0), llama_tensors(1)
    a["model.norm.weight"][:] = 0
    found = compared(tmp_path, a, b)
    assert most_changed(found.tensors)[0].pair.name == "model.norm.weight"
    assert most_changed(found.tensors)[0].sums.relative is None


def test_equal_models(tmp_path: Path) -> None:
    found = compared(tmp_path, llama_tensors(0), llama_tensors(0))
    assert found.same_weights and found.problems == () and found.beside.config == ()
    assert most_changed(found.tensors) == [] and found.total.cosine == 1
    checkpoint = open_checkpoint(tmp_path / "a")
    assert compare(checkpoint, checkpoint).same_weights  # one and the same


def test_another_dtype_is_not_the_same_weights(tmp_path: Path) -> None:
    ones = {name: np.ones_like(each) for name, each in llama_tensors(0).items()}
    found = compared(tmp_path, ones, {name: each.astype("f2") for name, each in ones.items()})
    assert found.total.changed == 0 and not found.same_weights


def test_problems(tmp_path: Path) -> None:
    """NaN and infinity where numbers should be, but not in masks; and nothing in common."""
    a, b = llama_tensors(0), llama_tensors(1)
    b["model.norm.weight"][2:4] = np.inf
    mask = np.full((1, 1, 4, 4), -np.inf, np.float32)
    a["model.layers.0.attn.bias"] = b["model.layers.0.attn.bias"] = mask
    (problem,) = compared(tmp_path / "1", a, b).problems
    assert problem.text.endswith("b: model.norm.weight: 2 of 8 elements are NaN or infinite")
    found = compared(tmp_path / "2", {"x.weight": np.ones(2, "f4")}, {"y.weight": np.ones(2, "f4")})
    (problem,) = found.problems
    assert "A and B have no tensor in common" in str(problem) and not found.same_weights
    found = compared(tmp_path / "3", {"x": np.ones(2, "f4")}, {"x": np.ones(3, "f4")})
    assert len(found.problems) == 1 and len(found.unlike) == 1


def test_no_thread_or_order_shows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One thread or many, the numbers have the same bits, and every element is told of once."""
    rng = np.random.default_rng(0)
    a, b = ({"x": rng.standard_normal(200_001).astype("f4")} for _ in range(2))
    checkpoints = models(tmp_path, a, b)
    found = []
    monkeypatch.setattr(module, "PIECE", 10_000)
    for threads in (1, 7):
        monkeypatch.setattr(module, "THREADS", threads)
        done: list[int] = []
        found.append(compare(*checkpoints, tell=lambda n, total, done=done: done.append(n)))  # type: ignore[misc]
        assert sum(done) == 200_001 and len(done) == 21
    assert found[0].tensors == found[1].tensors


def test_memory_does_not_grow_with_the_model(tmp_path: Path) -> None:
    peaks = []
    for size in (1 << 22, 1 << 24):
        rng, cast = np.random.default_rng(0), ml_dtypes.bfloat16
        a, b = ({"x": rng.standard_normal(size, "f4").astype(cast)} for _ in range(2))
        checkpoints = models(tmp_path / str(size), a, b)
        del a, b
        tracemalloc.start()
        compare(*checkpoints)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    buffers = module.THREADS * (2 * 2 * module.PIECE + (1 << 20))
    assert max(peaks) < buffers + (1 << 20) and peaks[1] < 1.2 * peaks[0]


class Wire(LocalSource):
    """A folder whose files cannot be opened here, as those of a remote one."""

    def path(self, name: str) -> None:
        return None


def test_files_that_lie_elsewhere(tmp_path: Path) -> None:
    checkpoints = models(tmp_path, llama_tensors(0), llama_tensors(1))
    wired = [open_checkpoint(Wire(tmp_path / name)) for name in "ab"]
    assert compare(wired[0], wired[1]).tensors == compare(*checkpoints).tensors


def test_a_file_that_is_cut_meanwhile(tmp_path: Path) -> None:
    a, b = models(tmp_path, llama_tensors(0), llama_tensors(1))
    path = tmp_path / "a" / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(CheckpointError, match="it changed while"):
        compare(a, b)


# Beside the weights


def write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value))


def test_config(tmp_path: Path) -> None:
    write_llama(tmp_path / "a", 0)
    write_llama(tmp_path / "b", 0)
    config = llama_config() | {"rope": {"theta": 1.0, "kind": "x"}, "use_cache": True}
    write_json(tmp_path / "a" / "config.json", config)
    config |= {"rope": {"theta": 2.0, "kind": "x"}, "use_cache": 1, "new": [1]}
    del config["bos_token_id"]
    write_json(tmp_path / "b" / "config.json", config)
    found = compare(open_checkpoint(tmp_path / "a"), open_checkpoint(tmp_path / "b"))
    assert {change.key: change.values for change in found.beside.config} == {
        "bos_token_id": {"a": 1},
        "rope.theta": {"a": 1.0, "b": 2.0},
        "use_cache": {"a": True, "b": 1},
        "new": {"b": [1]},
    }
    assert found.same_weights


def test_files_and_tokens(tmp_path: Path) -> None:
    words = (["x", "y", "z", "q"], ["x", "z", "y"])
    for name, each in zip("ab", words, strict=True):
        write_llama(tmp_path / name, 0)
        tokenizer = Tokenizer(WordLevel({word: i for i, word in enumerate(each)}, unk_token="x"))
        tokenizer.save(str(tmp_path / name / "tokenizer.json"))
        write_json(tmp_path / name / "generation_config.json", {"eos_token_id": 2})
    (tmp_path / "a" / "chat_template.jinja").write_text("x")
    a, b = (open_checkpoint(tmp_path / name) for name in "ab")
    beside = compare(a, b).beside
    assert beside.files == {
        "chat_template.jinja": "only in A",
        "generation_config.json": "same",
        "tokenizer.json": "differs",
    }
    assert beside.tokens == (1, 2, 1, 0)
    (tmp_path / "b" / "tokenizer.json").write_text("[]")
    beside = compare(a, b).beside
    assert beside.tokens is None and "tokenizer.json" in beside.unreadable
