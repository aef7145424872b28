"""The tokenizer's files of the output: byte for byte where nothing changes, else edited so that readers agree."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import tokenkit as kit
import transformers
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer

from jmerge.tokens.files import NO_EDITS, FileEdits, pretty, template_edits, vocabulary_edits
from jmerge.tokens.model import ModelTokens
from jmerge.tokens.vocabulary import PLAIN, SPECIAL

NEW = {"<|new|>": SPECIAL, "Ġplus": PLAIN}
WORDS = kit.words("<unk>", "a", "b", added={"<s>": {"special": True}})


def loaded(edits: FileEdits, name: str) -> Any:
    """A file that is written, parsed."""
    return json.loads(edits.written[name])


def test_nothing_changes(tmp_path: Path) -> None:
    """No file is written and none left out, tokens that only companion files have included."""
    files = {"tokenizer_config__json": {"eos_token": "</s>"}, "vocab__json": {"a": 1}}
    donor = kit.read(tmp_path, tokenizer__json=WORDS, **files)
    assert "</s>" in donor.vocabulary.ids
    assert vocabulary_edits(donor, donor.vocabulary) == NO_EDITS


def test_more_tokens(tmp_path: Path) -> None:
    """Lists of added tokens get them; the model's own files stay, but for those that nobody can add to."""
    document = json.loads(kit.trained("BPE"))
    entry = {"content": "<s>", "special": True, "mine": 1}
    donor = kit.read(
        tmp_path,
        tokenizer__json=document,
        tokenizer_config__json={"z": 1, "added_tokens_decoder": {"1": entry}, "bos_token": "<s>"},
        special_tokens_map__json={"bos_token": "<s>"},
        added_tokens__json={},
        vocab__json=document["model"]["vocab"],
        merges__txt="",
        tokenizer__model=b"pieces",
        x__tiktoken="",
    )
    wanted = donor.vocabulary.with_added(NEW)
    edits = vocabulary_edits(donor, wanted)
    size = donor.vocabulary.size
    assert edits.left_out == {"x.tiktoken"}
    assert set(edits.written) == {"tokenizer.json", "tokenizer_config.json", "added_tokens.json"}
    config = loaded(edits, "tokenizer_config.json")
    assert list(config) == ["z", "added_tokens_decoder", "bos_token"]
    decoder = config["added_tokens_decoder"]
    assert list(decoder) == ["0", "1", "2", str(size), str(size + 1)]
    assert decoder["1"] == entry and decoder[str(size)] == SPECIAL.entry("<|new|>")
    assert loaded(edits, "added_tokens.json") == {"<|new|>": size, "Ġplus": size + 1}


def test_no_list_is_begun(tmp_path: Path) -> None:
    """tokenizer_config.json without added tokens stays as it is, unless pieces are shipped that lack them."""
    config = {"model_max_length": 9}
    donor = kit.read(tmp_path / "a", tokenizer__json=WORDS, tokenizer_config__json=config)
    wanted = donor.vocabulary.with_added(NEW)
    assert set(vocabulary_edits(donor, wanted).written) == {"tokenizer.json"}
    files = {"tokenizer_config__json": config, "tokenizer__model": b"pieces"}
    donor = kit.read(tmp_path / "b", tokenizer__json=WORDS, **files)
    edits = vocabulary_edits(donor, wanted)
    assert "4" in loaded(edits, "tokenizer_config.json")["added_tokens_decoder"]
    assert not edits.left_out


def test_fewer_tokens(tmp_path: Path) -> None:
    """Nothing names them any more, and what spells out the model's own vocabulary goes."""
    text = kit.trained("BPE")
    size = kit.size_of(text)
    donor = kit.read(
        tmp_path,
        tokenizer__json=kit.with_tokens(text, "<pad>", "<x>", special=True),
        tokenizer_config__json={
            "pad_token": "<pad>",
            "eos_token": "</s>",
            "additional_special_tokens": ["<x>", "<s>"],
            "extra_special_tokens": {"x": "<x>", "s": "<s>"},
        },
        special_tokens_map__json={"pad_token": {"content": "<pad>"}},
        added_tokens__json={"<pad>": size, "<x>": size + 1},
        vocab__json={},
        merges__txt="",
        tokenizer__model=b"pieces",
    )
    edits = vocabulary_edits(donor, donor.vocabulary.below(size))
    assert loaded(edits, "tokenizer_config.json") == {
        "eos_token": "</s>",
        "additional_special_tokens": ["<s>"],
        "extra_special_tokens": {"s": "<s>"},
        "added_tokens_decoder": {
            str(i): SPECIAL.entry(token) for i, token in enumerate(("<unk>", "<s>", "</s>"))
        },
    }
    assert loaded(edits, "special_tokens_map.json") == loaded(edits, "added_tokens.json") == {}
    assert edits.left_out == frozenset()
    deeper = vocabulary_edits(donor, donor.vocabulary.below(size - 1))
    assert deeper.left_out == {"vocab.json", "merges.txt", "tokenizer.model"}
    assert "added_tokens_decoder" not in loaded(deeper, "tokenizer_config.json")


def test_other_spellings_of_the_vocabulary_go_with_it(tmp_path: Path) -> None:
    """Whatever their names; a slow tokenizer would read the old one from them."""
    old = {"spm__model": b"x", "source__spm": b"x", "bpe__codes": "x", "vocab__bpe": "x"}
    donor = kit.read(tmp_path, tokenizer__json=json.loads(kit.trained("BPE")), **old)
    assert not vocabulary_edits(donor, donor.vocabulary.with_added(NEW)).left_out
    fewer = vocabulary_edits(donor, donor.vocabulary.below(donor.vocabulary.size - 1))
    assert fewer.left_out == {"spm.model", "source.spm", "bpe.codes", "vocab.bpe"}


def test_pieces_become_a_tokenizer_when_they_must(tmp_path: Path) -> None:
    """A folder with pieces alone gets a tokenizer.json beside them; unchanged, it does not."""
    head = [("<unk>", 0.0, 2), ("<s>", 0.0, 3), ("</s>", 0.0, 3)]
    data = kit.sentencepiece([*head, ("▁a", -1.0, 1), ("▁b", -2.0, 1)], bpe=False)
    files = {"tokenizer__model": data, "tokenizer_config__json": {"add_bos_token": True}}
    donor = kit.read(tmp_path, **files)
    assert vocabulary_edits(donor, donor.vocabulary) == NO_EDITS
    edits = vocabulary_edits(donor, donor.vocabulary.with_added(NEW))
    assert not edits.left_out
    made = Tokenizer.from_str(edits.written["tokenizer.json"].decode())
    assert made.encode("a b<|new|>").ids == [1, 3, 4, 5]
    assert (
        loaded(edits, "tokenizer_config.json")["added_tokens_decoder"]["5"]["content"] == "<|new|>"
    )
    assert vocabulary_edits(donor, donor.vocabulary.below(4)).left_out == {"tokenizer.model"}


def test_what_the_library_reads_otherwise_is_refused(tmp_path: Path) -> None:
    """An id that a Unigram cannot have: its tokens have those of their places."""
    donor = kit.read(tmp_path, tokenizer__json=kit.trained("Unigram"))
    size = donor.vocabulary.size
    wanted = donor.vocabulary.with_added({"x": PLAIN})
    wanted.ids["x"] = size + 5  # type: ignore[index]
    with pytest.raises(
        ValueError,
        match=rf"^the edited tokenizer.json gives 'x' the id {size} instead of {size + 5}$",
    ):
        vocabulary_edits(donor, wanted)


@pytest.mark.parametrize("kind", ["BPE", "WordLevel"])
def test_transformers_reads_the_same_ids(kind: str, tmp_path: Path) -> None:
    """The edited files load as a fast tokenizer with the wanted ids and special tokens."""
    files = {
        "tokenizer_config__json": {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "eos_token": "</s>",
        }
    }
    donor = kit.read(tmp_path / "a", tokenizer__json=kit.trained(kind), **files)
    wanted = donor.vocabulary.with_added(NEW)
    edits = vocabulary_edits(donor, wanted)
    edits = template_edits(donor, edits, "{{ messages[0]['content'] }}!")
    place = kit.folder(tmp_path / "b", **files)
    for name, data in edits.written.items():
        (place / name).write_bytes(data)
    found = transformers.AutoTokenizer.from_pretrained(place)
    assert found.get_vocab() == wanted.ids
    assert found("the<|new|>", add_special_tokens=False)["input_ids"][-1] == wanted.ids["<|new|>"]
    assert found.decode([wanted.ids["<|new|>"], 0], skip_special_tokens=True) == ""
    assert found.apply_chat_template([{"role": "user", "content": "x"}], tokenize=False) == "x!"


# Templates

TEMPLATE = "{{ messages }} in full"


def test_a_template_is_set_everywhere(tmp_path: Path) -> None:
    """In its own file, and where older readers look; other named ones stay."""
    named = [{"name": "default", "template": "{{ old }}"}, {"name": "rag", "template": "{{ rag }}"}]
    donor = kit.read(
        tmp_path,
        tokenizer__json=WORDS,
        tokenizer_config__json={"chat_template": named, "eos_token": "<s>"},
        chat_template__json={"chat_template": "{{ old }}"},
    )
    edits = template_edits(donor, NO_EDITS, TEMPLATE)
    assert edits.written["chat_template.jinja"] == TEMPLATE.encode()
    assert loaded(edits, "chat_template.json") == {"chat_template": TEMPLATE}
    assert loaded(edits, "tokenizer_config.json") == {
        "chat_template": [{"name": "default", "template": TEMPLATE}, named[1]],
        "eos_token": "<s>",
    }


def test_a_template_beside_other_edits(tmp_path: Path) -> None:
    """Those of the vocabulary stay."""
    donor = kit.read(
        tmp_path, tokenizer__json=WORDS, tokenizer_config__json={"added_tokens_decoder": {}}
    )
    edits = vocabulary_edits(donor, donor.vocabulary.with_added(NEW))
    both = template_edits(donor, edits, TEMPLATE)
    assert both.written["tokenizer.json"] == edits.written["tokenizer.json"]
    config = loaded(both, "tokenizer_config.json")
    assert config.pop("chat_template") == TEMPLATE
    assert config == loaded(edits, "tokenizer_config.json")


def test_the_same_template_changes_nothing(tmp_path: Path) -> None:
    """And a model without a tokenizer gets the file alone."""
    donor: ModelTokens = kit.read(
        tmp_path, tokenizer__json=WORDS, tokenizer_config__json={"chat_template": TEMPLATE}
    )
    assert template_edits(donor, NO_EDITS, TEMPLATE) == NO_EDITS
    assert set(template_edits(None, NO_EDITS, TEMPLATE).written) == {"chat_template.jinja"}


SCALARS = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text()


@given(st.recursive(SCALARS, lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner)))
def test_pretty_is_what_json_writes(value: Any) -> None:
    """Byte for byte."""
    assert pretty(value) == json.dumps(value, ensure_ascii=False, indent=2)
