"""What an opened model has: its tokenizer, and rows that every table has."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tokenkit as kit

from jmerge.arch.infer import infer_layout
from jmerge.ckpt.open import open_checkpoint
from jmerge.errors import CheckpointError
from jmerge.testing.tiny import llama_config, llama_tensors, write_checkpoint
from jmerge.tokens.align import Input
from jmerge.tokens.inputs import read_input


def read(place: Path) -> Input:
    """The input that a folder makes."""
    checkpoint = open_checkpoint(place)
    specs = {name: entry.spec for name, entry in checkpoint.index.items()}
    return read_input(checkpoint, infer_layout(specs, checkpoint.config))


@pytest.mark.parametrize(("size", "rows", "limit"), [(16, 16, 16), (12, 16, 12), (20, 16, 16)])
def test_limit(size: int, rows: int, limit: int, tmp_path: Path) -> None:
    """The lesser of what config.json says and what the tables have."""
    config = llama_config(vocab=rows) | {"vocab_size": size}
    place = write_checkpoint(tmp_path / "m", llama_tensors(0, vocab=rows), config)
    found = read(place)
    assert found.tokens is None
    assert (found.rows, found.config_size, found.limit) == (rows, size, limit)
    kit.folder(place, tokenizer__json=kit.words("a", "b"))
    tokens = read(place).tokens
    assert tokens is not None and list(tokens.vocabulary.ids) == ["a", "b"]


def test_a_head_with_fewer_rows(tmp_path: Path) -> None:
    """Counts, since its rows are moved too."""
    tensors = llama_tensors(0, vocab=16)
    tensors["lm_head.weight"] = tensors["lm_head.weight"][:14]
    place = write_checkpoint(tmp_path / "m", tensors, llama_config(vocab=16))
    checkpoint = open_checkpoint(place)
    specs = {name: entry.spec for name, entry in checkpoint.index.items()}
    layout = infer_layout(specs, checkpoint.config)
    assert read_input(checkpoint, replace(layout, heads=())).rows == 16
    assert read_input(checkpoint, replace(layout, heads=("lm_head.weight",))).rows == 14


def test_no_embedding(tmp_path: Path) -> None:
    """A model without one is refused by its folder."""
    place = write_checkpoint(tmp_path / "m", {"x": np.ones((3, 2), np.float32)}, {})
    with pytest.raises(
        CheckpointError, match=rf"^{tmp_path}/m: has no tensor that looks like a token"
    ):
        read(place)
