"""Tokenizers of remote models are those of local ones, and so are merges with them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from serverkit import FileServer
from tokenizers import Tokenizer, models

import jmerge
from jmerge.ckpt.find import find_source
from jmerge.ckpt.source import LocalSource
from jmerge.engine.fetch import Fetcher
from jmerge.errors import CheckpointError
from jmerge.testing.tiny import write_llama
from jmerge.tokens.model import ModelTokens, read_tokens

FILES = {
    "tokenizer.json": Tokenizer(models.WordLevel({"a": 0, "b": 1}, unk_token="a")).to_str(),
    "tokenizer_config.json": json.dumps({"eos_token": "</s>", "chat_template": "{{ old }}"}),
    "special_tokens_map.json": json.dumps({"bos_token": "<s>"}),
    "added_tokens.json": json.dumps({"<x>": 5}),
    "chat_template.jinja": "{{ messages }}",
}


def seen(found: ModelTokens | None) -> dict[str, object]:
    """What is known of a tokenizer, but for where it is."""
    assert found is not None
    return {key: value for key, value in vars(found).items() if key not in ("label", "files")}


def test_remote_tokens(server: FileServer) -> None:
    """Every file that says something of tokens is found where nothing lists a folder."""
    place = server.root / "m"
    place.mkdir()
    url = server.url + "/m"
    assert read_tokens(find_source(url)) is None
    for name, text in FILES.items():
        (place / name).write_text(text)
    local = read_tokens(LocalSource(place))
    remote = read_tokens(find_source(url))
    assert seen(remote) == seen(local)
    assert remote is not None and remote.template == "{{ messages }}"
    assert list(remote.vocabulary.ids) == ["a", "b", "<x>", "</s>", "<s>"]
    (place / "tokenizer.json").write_text("{")
    with pytest.raises(CheckpointError, match=rf"^{url}/tokenizer.json: is not valid JSON: "):
        read_tokens(find_source(url))


def write_model(folder: Path, seed: int) -> None:
    """A model whose tokens are in an order of their own."""
    words = [f"w{i}" for i in np.random.default_rng(seed).permutation(600 + 50 * seed)]
    write_llama(folder, seed, hidden=64, vocab=len(words))
    made = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, unk_token=words[0]))
    made.save(str(folder / "tokenizer.json"))


def recipe(folder: Path, where: str, method: str) -> Path:
    """A merge with the tokens of all models and some of none."""
    path = folder / "x.yml"
    base = "" if method == "linear" else f"base_model: {where}/a\n"
    path.write_text(
        f"merge_method: {method}\n{base}models: [{{model: {where}/a}}, {{model: {where}/b}}]\n"
        "parameters: {weight: 0.5, density: 0.4}\n"
        "tokenizer: {source: union, pad_to_multiple_of: 1000}\n"
    )
    return path


@pytest.mark.parametrize("method", ["linear", "ties"])
def test_remote_merges(
    method: str, server: FileServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Tables are fetched once, however often and in whatever order their rows are looked at, and then let go of."""
    for seed, name in enumerate("ab"):
        write_model(server.root / name, seed)
    monkeypatch.setattr("jmerge.engine.fetch.PART_BYTES", 1 << 14)
    fetchers: list[Fetcher] = []
    made = Fetcher.__init__

    def init(self: Fetcher, *args: Any) -> None:
        made(self, *args)
        fetchers.append(self)

    monkeypatch.setattr(Fetcher, "__init__", init)
    jmerge.merge(recipe(tmp_path, str(server.root), method), tmp_path / "local")
    remote = recipe(tmp_path, server.url, method)
    before = server.total()
    jmerge.merge(remote, tmp_path / "out")
    weights = "model.safetensors"
    assert (tmp_path / "out" / weights).read_bytes() == (tmp_path / "local" / weights).read_bytes()
    size = sum((server.root / name / weights).stat().st_size for name in "ab")
    heads = 2 * (1 << 16)  # read to plan
    assert server.total() - before <= size + heads
    assert fetchers[-1]._order and all(part.uses == 0 for part in fetchers[-1]._order)
