"""Tokenizers of remote models are those of local ones."""

from __future__ import annotations

import json

import pytest
from serverkit import FileServer
from tokenizers import Tokenizer, models

from jmerge.ckpt.find import find_source
from jmerge.ckpt.source import LocalSource
from jmerge.errors import CheckpointError
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
    with pytest.raises(CheckpointError, match=rf"^{url}/tokenizer.json: is not a tokenizer: "):
        read_tokens(find_source(url))
