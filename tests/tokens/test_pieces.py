"""sentencepiece models: pieces by position, and tokenizers that cut texts as they do."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import tokenkit as kit
from tokenizers import Tokenizer

from jmerge.tokens import library
from jmerge.tokens.pieces import (
    BYTE,
    CONTROL,
    NORMAL,
    UNKNOWN,
    UNUSED,
    USER_DEFINED,
    parse_pieces,
    piece_merges,
    pieces_document,
)
from jmerge.tokens.vocabulary import SPECIAL

HEAD = [("<unk>", 0.0, UNKNOWN), ("<s>", 0.0, CONTROL), ("</s>", 0.0, CONTROL)]


def ranked(text: str) -> list[tuple[str, float, int]]:
    """The pieces of a BPE tokenizer.json: those made by an earlier merge score higher."""
    document = json.loads(text)
    scores = {"".join(merge): -float(i) for i, merge in enumerate(document["model"]["merges"])}
    least = -float(len(scores))
    ordered = sorted(document["model"]["vocab"].items(), key=lambda item: item[1])
    return HEAD + [(t, scores.get(t, least - i), NORMAL) for t, i in ordered[len(HEAD) :]]


def test_bpe_cuts_as_the_one_it_was_made_from(tmp_path: Path) -> None:
    """Merges rebuilt from scores encode and decode every text as those the scores were taken from."""
    text = kit.metaspace_bpe()
    found = kit.read(tmp_path, tokenizer__model=kit.sentencepiece(ranked(text), bpe=True))
    assert (found.kind, found.file) == ("BPE", "tokenizer.model")
    theirs = Tokenizer.from_str(text)
    assert found.vocabulary.ids == theirs.get_vocab()
    mine = library.load(found.text)
    for each in (*kit.ENGLISH, *kit.FRENCH, "  two  spaces "):
        assert mine.encode(each).ids == theirs.encode(each).ids
    for each in kit.ENGLISH:
        assert mine.decode(mine.encode(each).ids) == each


def test_unigram_cuts_as_the_one_it_was_made_from(tmp_path: Path) -> None:
    """Scores are taken over, so the best cut is the same."""
    document = json.loads(kit.trained("Unigram"))
    pieces = HEAD + [(t, s, NORMAL) for t, s in document["model"]["vocab"][len(HEAD) :]]
    found = kit.read(tmp_path, tokenizer__model=kit.sentencepiece(pieces, bpe=False))
    assert found.kind == "Unigram"
    mine, theirs = library.load(found.text), Tokenizer.from_str(json.dumps(document))
    for each in kit.ENGLISH:
        assert mine.encode(each).ids == theirs.encode(each, add_special_tokens=False).ids
        assert mine.decode(mine.encode(each).ids) == each


def test_merges_are_ordered_by_score_then_length() -> None:
    """Every split of a piece into pieces is a merge of its score; in a piece by ids, then longer parts first."""
    letters = [("a", -10.0, NORMAL), ("b", -11.0, NORMAL), ("ab", -2.0, NORMAL)]
    rest = [("ba", -2.0, NORMAL), ("aba", -1.0, NORMAL), ("x", -1.0, NORMAL)]
    model = parse_pieces(kit.sentencepiece(HEAD + letters + rest, bpe=True))
    assert piece_merges(model) == [("ab", "a"), ("a", "ba"), ("a", "b"), ("b", "a")]


def test_types_of_pieces(tmp_path: Path) -> None:
    """Unknown and control pieces are special, user-defined ones added, all others ordinary."""
    more = [
        ("<0x41>", 0.0, BYTE),
        ("<u>", 0.0, USER_DEFINED),
        ("q", -1.0, UNUSED),
        ("▁", -2.0, NORMAL),
    ]
    data = kit.sentencepiece(HEAD + more, bpe=True, byte_fallback=True)
    found = kit.read(tmp_path, tokenizer__model=data)
    assert list(found.vocabulary.ids) == [text for text, _, _ in HEAD + more]
    assert found.vocabulary.added == {
        **dict.fromkeys(("<unk>", "<s>", "</s>"), SPECIAL),
        "<u>": SPECIAL._replace(special=False),
    }
    mine = library.load(found.text)
    assert mine.encode("A<u>").tokens[:2] == [
        "▁",
        "<0x41>",
    ]  # a byte that stands for what is not a piece
    assert mine.decode(mine.encode("A").ids) == "A"


AROUND = [
    ({}, []),
    ({"add_bos_token": True}, [1]),
    ({"add_bos_token": True, "add_eos_token": True}, [1, 2]),
    ({"tokenizer_class": "LlamaTokenizer"}, [1]),
    ({"tokenizer_class": "LlamaTokenizerFast", "add_bos_token": False}, []),
    ({"tokenizer_class": "T5Tokenizer"}, [2]),
]


@pytest.mark.parametrize(("config", "wanted"), AROUND)
@pytest.mark.parametrize("bpe", [False, True])
def test_what_stands_around_a_text(config: dict[str, object], wanted: list[int], bpe: bool) -> None:
    """bos and eos stand where tokenizer_config.json or its class says so."""
    model = parse_pieces(kit.sentencepiece([*HEAD, ("▁a", -1.0, NORMAL)], bpe=bpe))
    ids = library.load(json.dumps(pieces_document(model, config))).encode("a").ids
    assert [i for i in ids if i in (1, 2)] == wanted


def test_white_space_rules() -> None:
    """No space is put before a text, or runs are squeezed, when the model says so."""
    letters = [("▁", -1.0, NORMAL), ("a", -2.0, NORMAL)]
    for bpe in (False, True):
        plain = kit.sentencepiece(HEAD + letters, bpe=bpe, add_dummy_prefix=False)
        tight = kit.sentencepiece(HEAD + letters, bpe=bpe, remove_extra_whitespaces=True)
        encode = [
            library.load(json.dumps(pieces_document(parse_pieces(d), {}))) for d in (plain, tight)
        ]
        assert encode[0].encode("a a").tokens == ["a", "▁", "a"]
        assert encode[1].encode(" a   a ").tokens == ["▁", "a", "▁", "a"]
        every = kit.sentencepiece(HEAD + letters, bpe=bpe)
        made = library.load(json.dumps(pieces_document(parse_pieces(every), {})))
        assert made.encode("  a").tokens == [
            "▁",
            "▁",
            "▁",
            "a",
        ]  # one put before, two that were there
        assert made.decode(made.encode("  a").ids) == "  a"


def test_pieces_may_hold_spaces() -> None:
    """Texts are cut as a whole, not word by word."""
    pieces = [("▁", -9.0, NORMAL), ("a", -9.0, NORMAL), ("▁a▁a", -1.0, NORMAL)]
    made = parse_pieces(kit.sentencepiece(HEAD + pieces, bpe=False))
    assert library.load(json.dumps(pieces_document(made, {}))).encode("a a").tokens == ["▁a▁a"]


BROKEN = [
    (b"", "is not a sentencepiece model: it has no pieces"),
    (b"\xff" * 20, "is not a sentencepiece model"),
    (kit.sentencepiece([("a", 0.0, NORMAL), ("a", 0.0, NORMAL)], bpe=True), "with a duplicate piece"),
]  # fmt: skip


@pytest.mark.parametrize(("data", "message"), BROKEN)
def test_broken_models(data: bytes, message: str) -> None:
    """One line that says what is wrong."""
    with pytest.raises(ValueError, match=message):
        parse_pieces(data)


def test_other_kinds_of_models() -> None:
    """Models of words or characters are refused by their number, and an unknown piece that is none."""
    from jmerge.tokens.pieces import message_class

    model = message_class()()
    model.pieces.add(piece="a")
    model.trainer_spec.model_type = 3
    with pytest.raises(ValueError, match="of type 3; only unigram"):
        parse_pieces(model.SerializeToString())
    model.trainer_spec.model_type = 2
    model.trainer_spec.unk_id = 4
    with pytest.raises(ValueError, match="unk_id 4 is not a piece"):
        parse_pieces(model.SerializeToString())
