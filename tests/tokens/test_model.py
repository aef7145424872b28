"""Reading tokenizers: every kind and every file that has one, and what is wrong with those that have none."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import tokenkit as kit
from tokenizers import Tokenizer

from jmerge.ckpt.source import LocalSource
from jmerge.errors import CheckpointError
from jmerge.tokens import library
from jmerge.tokens.model import read_template, read_tokens
from jmerge.tokens.vocabulary import SPECIAL, Added


@pytest.mark.parametrize("kind", kit.KINDS)
def test_every_kind(kind: str, tmp_path: Path) -> None:
    """Ids are those of the library, in order of ids; flags are those of the file."""
    text = kit.with_tokens(kit.trained(kind), "<|x|>", special=True)
    found = kit.read(tmp_path, tokenizer__json=text)
    assert (found.kind, found.file, found.text) == (kind, "tokenizer.json", text)
    assert found.vocabulary.ids == Tokenizer.from_str(text).get_vocab(with_added_tokens=True)
    assert list(found.vocabulary.ids.values()) == sorted(found.vocabulary.ids.values())
    assert list(found.vocabulary.added) == ["<unk>", "<s>", "</s>", "<|x|>"]
    assert set(found.vocabulary.added.values()) == {SPECIAL}


def test_holes_close_as_they_do_in_the_library(tmp_path: Path) -> None:
    """An added token that says it has id 9 after 0 to 2 has id 3."""
    document = json.loads(kit.words("a", "b", "c", added={"x": {}}))
    document["added_tokens"][0]["id"] = 9
    found = kit.read(tmp_path, tokenizer__json=document)
    assert found.vocabulary.ids == {"a": 0, "b": 1, "c": 2, "x": 3}


COMPANIONS: dict[str, tuple[dict[str, Any], dict[str, Added]]] = {
    "decoder": (
        {
            "tokenizer_config__json": {
                "added_tokens_decoder": {
                    "40": {"content": "late", "lstrip": True, "special": False},
                    "25": {"content": "early", "special": True, "normalized": False},
                    "1": {"content": "b", "special": True},
                }
            }
        },
        {"early": SPECIAL, "late": Added(lstrip=True)},
    ),
    "added_tokens": (
        {"added_tokens__json": {"z": 9, "y": 8, "a": 0}},
        {"y": Added(), "z": Added()},
    ),
    "named": (
        {
            "tokenizer_config__json": {
                "bos_token": "<s>",
                "pad_token": None,
                "unk_token": {"content": "a", "special": True},
                "additional_special_tokens": ["<i>", {"content": "<j>", "rstrip": True}],
            },
            "special_tokens_map__json": {"eos_token": {"content": "</s>", "normalized": True}},
        },
        {
            "<s>": SPECIAL,
            "<i>": SPECIAL,
            "<j>": SPECIAL._replace(rstrip=True),
            "</s>": SPECIAL._replace(normalized=True),
        },
    ),
    "named_and_numbered": (
        {
            "tokenizer_config__json": {"eos_token": "</s>", "extra_special_tokens": {"i": "<i>"}},
            "added_tokens__json": {"</s>": 7, "plain": 6},
        },
        {"plain": Added(), "</s>": SPECIAL, "<i>": SPECIAL},
    ),
}


@pytest.mark.parametrize("case", COMPANIONS)
def test_companion_files_add_tokens(case: str, tmp_path: Path) -> None:
    """Tokens that only they mention follow by id, then the named ones, with compacted ids."""
    files, wanted = COMPANIONS[case]
    found = kit.read(tmp_path, tokenizer__json=kit.words("a", "b"), **files)
    assert found.vocabulary.added == wanted
    assert found.vocabulary.ids == {t: i for i, t in enumerate(["a", "b", *wanted])}


def test_special_names(tmp_path: Path) -> None:
    """Names stand for tokens; tokenizer_config.json wins over special_tokens_map.json."""
    found = kit.read(
        tmp_path,
        tokenizer__json=kit.words("a", "b", "c"),
        tokenizer_config__json={"bos_token": "a", "eos_token": {"content": "b"}},
        special_tokens_map__json={"bos_token": "c", "pad_token": "c"},
    )
    assert found.specials == {"bos_token": "a", "eos_token": "b", "pad_token": "c"}


def test_vocab_and_merges(tmp_path: Path) -> None:
    """The two files of GPT-2 make the tokenizer that encodes as the one they were saved from."""
    text = kit.trained("BPE")
    document = json.loads(text)
    merges = "#version: 0.2\n" + "\n".join(" ".join(m) for m in document["model"]["merges"]) + "\n"
    found = kit.read(tmp_path, vocab__json=document["model"]["vocab"], merges__txt=merges)
    assert (found.kind, found.file) == ("BPE", "merges.txt")
    assert found.vocabulary.ids == document["model"]["vocab"]
    mine, theirs = library.load(found.text), Tokenizer.from_str(text)
    for each in kit.TEXTS:
        assert mine.encode(each).ids == theirs.encode(each, add_special_tokens=False).ids
        assert mine.decode(mine.encode(each).ids) == each


def test_word_pieces(tmp_path: Path) -> None:
    """vocab.txt makes a WordPiece that puts [CLS] and [SEP] around a text."""
    lines = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "hel", "##lo", "cafe"]
    found = kit.read(
        tmp_path,
        vocab__txt="\r\n".join(lines) + "\r\n",
        tokenizer_config__json={"do_lower_case": True},
    )
    assert (found.kind, found.file) == ("WordPiece", "vocab.txt")
    assert library.load(found.text).encode("Hello café").ids == [2, 4, 5, 6, 3]


TEMPLATES: list[tuple[dict[str, Any], str | None]] = [
    ({}, None),
    ({"tokenizer_config__json": {"chat_template": "{{ a }}"}}, "{{ a }}"),
    ({"tokenizer_config__json": {"chat_template": "{{ a }}"}, "chat_template__jinja": "{{ b }}\n"}, "{{ b }}\n"),
    ({"chat_template__json": {"chat_template": "{{ c }}"}}, "{{ c }}"),
    (
        {
            "tokenizer_config__json": {
                "chat_template": [
                    {"name": "tool_use", "template": "{{ t }}"},
                    {"name": "default", "template": "{{ d }}"},
                ]
            }
        },
        "{{ d }}",
    ),
    ({"tokenizer_config__json": {"chat_template": [{"name": "rag", "template": "{{ t }}"}]}}, None),
]  # fmt: skip


@pytest.mark.parametrize(("files", "wanted"), TEMPLATES)
def test_where_a_template_is(files: dict[str, Any], wanted: str | None, tmp_path: Path) -> None:
    """The file of its own, then tokenizer_config.json, then chat_template.json."""
    assert read_template(LocalSource(kit.folder(tmp_path, **files))) == wanted


BROKEN: dict[str, tuple[dict[str, Any], str]] = {
    "no_json": ({"tokenizer__json": "{"}, "tokenizer.json: is not valid JSON: "),
    "no_model": ({"tokenizer__json": {"model": {"type": "BPX"}}}, "tokenizer.json: is not a tokenizer: "),
    "no_text": ({"tokenizer__json": b"\xff\xfe"}, "tokenizer.json: is not text in UTF-8"),
    "no_pieces": ({"tokenizer__model": b"nothing"}, "tokenizer.model: is not a sentencepiece model"),
    "bad_merge": (
        {"vocab__json": {"a": 0, "b": 1}, "merges__txt": "#version: 0.2\na b\n"},
        "merges.txt: line 2: 'a b' is not a merge of tokens of vocab.json",
    ),
    "bad_vocab": (
        {"vocab__json": {"a": "0"}, "merges__txt": ""},
        "vocab.json: is not a map from tokens to ids",
    ),
    "no_unk": ({"vocab__txt": "a\nb"}, "vocab.txt: lacks the token '[UNK]'"),
    "twice": ({"vocab__txt": "[UNK]\n[UNK]"}, "vocab.txt: has a token twice"),
    "tiktoken": (
        {"qwen__tiktoken": "YQ== 0"},
        "qwen.tiktoken: cannot be converted here: save the tokenizer as tokenizer.json with transformers first",
    ),
    "tekken": ({"tekken__json": {}}, "tekken.json: cannot be converted here"),
    "bad_config": (
        {"tokenizer__json": kit.words("a"), "tokenizer_config__json": "[]"},
        "tokenizer_config.json: is not a JSON object",
    ),
    "bad_decoder": (
        {"tokenizer__json": kit.words("a"), "tokenizer_config__json": {"added_tokens_decoder": ["a"]}},
        "tokenizer_config.json: added_tokens_decoder is not a map from ids to tokens",
    ),
    "bad_added": (
        {"tokenizer__json": kit.words("a"), "added_tokens__json": {"b": "1"}},
        "added_tokens.json: 'b': expected an id, found '1'",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", BROKEN)
def test_broken_files(case: str, tmp_path: Path) -> None:
    """One line that names the file and what is wrong with it."""
    files, message = BROKEN[case]
    with pytest.raises(CheckpointError) as caught:
        read_tokens(LocalSource(kit.folder(tmp_path, **files)))
    assert str(caught.value).removeprefix(f"{tmp_path}/").startswith(message)
    assert "\n" not in str(caught.value)


def test_no_tokenizer(tmp_path: Path) -> None:
    """A folder without one has none, whatever else is there."""
    assert read_tokens(LocalSource(kit.folder(tmp_path, config__json={}, vocab__json={}))) is None


def test_a_panic_of_the_library_is_a_line(capfd: pytest.CaptureFixture[str]) -> None:
    """What makes the library give up is an error like any other."""
    document = json.loads(kit.trained("BPE"))
    document["model"] |= {"continuing_subword_prefix": "####", "merges": [["a", "b"]]}
    with pytest.raises(ValueError, match=r"^[^\n]+$"):
        library.load(json.dumps(document))
    capfd.readouterr()  # its own words go to standard error
