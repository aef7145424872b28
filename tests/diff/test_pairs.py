"""Which tensors are compared: by what they are, whatever their names begin with; the rest is listed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from jmerge.ckpt.open import open_checkpoint
from jmerge.diff.pairs import Pairs, pair_up
from jmerge.testing.tiny import llama_config, llama_tensors, write_checkpoint

Tensors = dict[str, np.ndarray]


def paired(folder: Path, a: Tensors, b: Tensors, config: dict[str, Any] | None = None) -> Pairs:
    config = llama_config() if config is None else config
    return pair_up(
        open_checkpoint(write_checkpoint(folder / "a", a, config)),
        open_checkpoint(write_checkpoint(folder / "b", b, config)),
    )


def test_equal_names(tmp_path: Path) -> None:
    tensors = llama_tensors(0)
    pairs = paired(tmp_path, tensors, llama_tensors(1))
    assert {pair.name for pair in pairs.both} == tensors.keys()
    assert all(pair.name == pair.name_a == pair.name_b for pair in pairs.both)
    assert pairs.only_a == pairs.only_b == ()
    place = {pair.name: pair.place for pair in pairs.both}["model.layers.0.input_layernorm.weight"]
    assert (place.stack, place.layer, place.part, place.row) == (
        "model.layers",
        0,
        "norm",
        "input_layernorm",
    )


def test_other_prefixes(tmp_path: Path) -> None:
    """Of the model, as some programs leave out, and of experts."""
    a = llama_tensors(0)
    for layer in range(2):
        a[f"model.layers.{layer}.block_sparse_moe.experts.0.w1.weight"] = np.ones((4, 8), "f4")
    b = {name.removeprefix("model.").replace("block_sparse_moe", "mlp"): v for name, v in a.items()}
    pairs = paired(tmp_path, a, b)
    assert {pair.name_a: pair.name_b for pair in pairs.both} == dict(zip(a, b, strict=True))
    assert pairs.only_a == pairs.only_b == ()


def test_layers_that_one_lacks(tmp_path: Path) -> None:
    """Layer for layer from the first."""
    pairs = paired(tmp_path, llama_tensors(0, layers=2), llama_tensors(1, layers=4))
    assert len(pairs.both) == len(llama_tensors(0, layers=2))
    assert pairs.only_a == () and {each.place.layer for each in pairs.only_b} == {2, 3}
    assert len(pairs.only_b) == 18


def test_a_layer_that_is_counted_from_another_number(tmp_path: Path) -> None:
    a = llama_tensors(0)
    b = {name.replace("layers.1.", "layers.2.").replace("layers.0.", "layers.1."): v for name, v in a.items()}  # fmt: skip
    found = {pair.name_a: pair.name_b for pair in paired(tmp_path, a, b).both}
    assert found["model.layers.0.mlp.up_proj.weight"] == "model.layers.1.mlp.up_proj.weight"


def test_heads_that_one_does_not_store(tmp_path: Path) -> None:
    """A stored head is compared with the embedding of a model that has it for a head, on either side."""
    table, tied = "model.embed_tokens.weight", llama_config(tied=True)
    pairs = paired(tmp_path / "1", llama_tensors(0), llama_tensors(1, tied=True), tied)
    assert pairs.only_a == pairs.only_b == ()
    assert pairs.both[-1][:3] == ("lm_head.weight", "lm_head.weight", table)
    pairs = paired(tmp_path / "2", llama_tensors(0, tied=True), llama_tensors(1), tied)
    assert pairs.only_a == pairs.only_b == ()
    assert pairs.both[-1][:3] == ("lm_head.weight", table, "lm_head.weight")
    assert pairs.both[-1].place.part == "head"
    base = tied | {"architectures": ["LlamaModel"]}  # which has no head at all
    pairs = paired(tmp_path / "3", llama_tensors(0, tied=True), llama_tensors(1), base)
    assert [each.name for each in pairs.only_b] == ["lm_head.weight"]
    pairs = paired(tmp_path / "4", llama_tensors(0, tied=True), llama_tensors(1), llama_config())
    assert [each.name for each in pairs.only_b] == ["lm_head.weight"]  # which is missing from A


def test_what_cannot_be_compared(tmp_path: Path) -> None:
    a, b = llama_tensors(0), llama_tensors(0)
    b["model.norm.weight"] = b["model.norm.weight"][None]
    a["model.odd"] = b["model.odd"] = np.ones(3, np.complex64)
    pairs = paired(tmp_path, a, b)
    reasons = {pair.name: pair.why_not for pair in pairs.both if pair.why_not}
    assert reasons == {
        "model.norm.weight": "shape [8] in A, [1, 8] in B",
        "model.odd": "C64 is not compared as numbers",
    }
