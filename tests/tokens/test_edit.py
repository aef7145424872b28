"""Editing tokenizer.json: the library gives every token the wanted id, and the pipeline stays as it was."""

from __future__ import annotations

import copy
import json
from typing import Any

import pytest
import tokenkit as kit
from hypothesis import given, settings
from hypothesis import strategies as st

from jmerge.tokens import library
from jmerge.tokens.edit import edited, merges_of, pipeline_tokens, product
from jmerge.tokens.vocabulary import PLAIN, SPECIAL, Vocabulary, vocabulary


def reread(document: dict[str, Any]) -> Vocabulary:
    """The vocabulary that the library finds."""
    return library.read_vocabulary(library.load(json.dumps(document)))


@pytest.mark.parametrize("kind", kit.KINDS)
def test_new_tokens(kind: str) -> None:
    """New added tokens get their ids, one of the model's becomes added; nothing else changes."""
    document = json.loads(kit.trained(kind))
    before = copy.deepcopy(document)
    known = reread(document)
    ordinary = next(t for t in reversed(list(known.ids)) if t not in known.added)
    wanted = known.with_added({"<new>": SPECIAL, "Ġmore": PLAIN, ordinary: PLAIN})
    found = edited(document, wanted)
    assert reread(found) == wanted
    assert document == before
    for key in document.keys() - {"added_tokens"}:
        assert found[key] == document[key]
    assert found["added_tokens"][: len(document["added_tokens"])] == document["added_tokens"]


@pytest.mark.parametrize("kind", kit.KINDS)
def test_fewer_tokens(kind: str) -> None:
    """A limit takes away the last tokens, and of a BPE the merges that have or make one."""
    document = json.loads(kit.with_tokens(kit.trained(kind), "<a>", "<b>", special=True))
    known = reread(document)
    for limit in (known.size - 1, known.size - 2, known.size - 4):
        wanted = known.below(limit)
        found = edited(document, wanted)
        assert reread(found) == wanted
        assert found["pre_tokenizer"] == document["pre_tokenizer"]
        if kind == "BPE":
            lost = {t for t in known.ids if t not in wanted.ids and t not in known.added}
            kept = merges_of(found)
            assert kept == [m for m in merges_of(document) if "".join(m) not in lost]


def test_merges_go_with_parts_and_products() -> None:
    """Of a word whose middle part goes, all that was made of it goes too; the rest stays in order."""
    vocab = {"a": 0, "b": 1, "c": 2, "bc": 4, "ab": 3, "abc": 5}
    merges = [["a", "b"], ["b", "c"], ["a", "bc"], ["ab", "c"]]
    model = {"type": "BPE", "vocab": vocab, "merges": merges}
    document = {"added_tokens": [], "model": model}
    found = edited(document, vocabulary({t: vocab[t] for t in ("a", "b", "c", "ab")}, {}))
    assert found["model"]["merges"] == [["a", "b"]]
    assert found["model"]["vocab"] == {"a": 0, "b": 1, "c": 2, "ab": 3}


def test_merges_keep_their_spelling() -> None:
    """Text stays text and pairs pairs; text cannot hold a token with a space, so then all become pairs."""
    for merges, more, wanted in (
        (["a b"], ("a", "c"), ["a b", "a c"]),
        ([["a", "b"]], ("a", "c"), [["a", "b"], ["a", "c"]]),
        (["a b"], ("a", " "), [["a", "b"], ["a", " "]]),
    ):
        vocab = {"a": 0, "b": 1, "ab": 2}
        document = {"added_tokens": [], "model": {"vocab": vocab, "merges": merges}}
        new = {more[1]: 3, "".join(more): 4}
        found = edited(document, vocabulary({**vocab, **new}, {}), new, [more])
        assert found["model"]["merges"] == wanted


def test_products_know_the_prefix() -> None:
    """Of pieces inside of words the mark is not repeated."""
    document = {"model": {"continuing_subword_prefix": "##"}}
    assert product(document, ("a", "##b")) == "ab" and product(document, ("##a", "##b")) == "##ab"


HOLES = {
    # id of the last token of the model, added tokens and their ids
    "after_a_hole": ({"a": 0, "b": 1, "c": 5}, {"x": 6, "y": 7}),
    "before_the_models": ({"a": 0, "b": 1, "c": 9}, {"x": 2, "y": 10}),
    "between": ({"a": 0, "b": 1, "c": 4, "d": 5}, {"x": 2, "y": 3, "z": 6}),
}


@pytest.mark.parametrize("case", HOLES)
def test_ids_that_the_library_would_not_give(case: str) -> None:
    """Added tokens go into the model's vocabulary too where it counts otherwise."""
    vocab, added = HOLES[case]
    model = {"type": "WordLevel", "vocab": vocab, "unk_token": "a"}
    document = {"version": "1.0", "added_tokens": [], "model": model}
    wanted = vocabulary({**vocab, **added}, dict.fromkeys(added, PLAIN))
    assert reread(edited(document, wanted)) == wanted


@settings(max_examples=60, deadline=None)
@given(st.sets(st.integers(0, 12), min_size=1), st.sets(st.integers(0, 16), max_size=5))
def test_any_ids(inside: set[int], outside: set[int]) -> None:
    """Whatever ids tokens have, the library gives them these."""
    vocab = {f"w{i}": i for i in sorted(inside)}
    added = {f"x{i}": i for i in sorted(outside - inside)}
    model = {"type": "WordLevel", "vocab": vocab, "unk_token": next(iter(vocab))}
    wanted = vocabulary({**vocab, **added}, dict.fromkeys(added, PLAIN))
    document = {"version": "1.0", "added_tokens": [], "model": model}
    assert reread(edited(document, wanted)) == wanted


def test_ids_that_a_file_has_wrong_are_corrected() -> None:
    """An added token that says it has id 9, and has 3."""
    document = json.loads(kit.words("a", "b", "c", added={"x": {}}))
    document["added_tokens"][0]["id"] = 9
    found = edited(document, reread(document).with_added({"y": PLAIN}))
    assert [(each["content"], each["id"]) for each in found["added_tokens"]] == [("x", 3), ("y", 4)]


def test_tokens_of_the_pipeline() -> None:
    """The unknown token and those of post-processors, nested ones too."""
    assert pipeline_tokens(json.loads(kit.trained("WordPiece"))) == ["<unk>", "<s>"]
    unigram = json.loads(kit.trained("Unigram"))
    assert pipeline_tokens(unigram) == ["<unk>", "<s>"]
    bert = {"type": "BertProcessing", "sep": ["S", 1], "cls": ["C", 2]}
    nested = {"type": "Sequence", "processors": [{"type": "ByteLevel"}, bert]}
    assert pipeline_tokens({"model": {"vocab": {}}, "post_processor": nested}) == ["S", "C"]
    assert pipeline_tokens({"model": {"vocab": {}}, "post_processor": None}) == []
