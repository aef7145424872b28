"""Uniting merges: which BPEs are of one family, and which merges join."""

from __future__ import annotations

import json
from typing import Any

import pytest
import tokenkit as kit

from jmerge.tokens.bpe import family, united_merges, why_not


def bpe(*merges: str, **model: Any) -> dict[str, Any]:
    """A BPE with these merges, such as `a b`."""
    return {"model": {"type": "BPE", "merges": [m.split() for m in merges], **model}}


def test_family() -> None:
    """By what the pipeline does with spaces; nothing else has merges."""
    assert family(json.loads(kit.trained("BPE"))) == "byte-level"
    assert family(json.loads(kit.metaspace_bpe())) == "sentencepiece"
    assert {family(json.loads(kit.trained(kind))) for kind in kit.KINDS[1:]} == {None}
    assert family(bpe("a b")) is None
    for key, part in (
        ("pre_tokenizer", {"type": "Sequence", "pretokenizers": [{"type": "ByteLevel"}]}),
        ("decoder", {"type": "ByteLevel"}),
    ):
        assert family({**bpe(), key: part}) == "byte-level"
    assert (
        family({**bpe(), "pre_tokenizer": {"type": "Metaspace", "replacement": "▁"}})
        == "sentencepiece"
    )
    assert family({**bpe(), "normalizer": {"type": "Replace", "content": "-"}}) is None


def test_merges_join_in_order() -> None:
    """The base's are first and are not repeated; parts and product must be tokens."""
    vocab = {token: i for i, token in enumerate(("a", "b", "c", "ab", "bc", "abc"))}
    base = bpe("a b")
    others = [bpe("b c", "a b", "a x", "c a", "ab c"), bpe("a bc", "b c")]
    assert united_merges(base, others, vocab) == [("b", "c"), ("ab", "c"), ("a", "bc")]


@pytest.mark.parametrize(
    "key", ["continuing_subword_prefix", "end_of_word_suffix", "byte_fallback", "ignore_merges"]
)
def test_why_not(key: str) -> None:
    """Marks and rules must be alike; none is as good as false or empty."""
    assert why_not(bpe(), bpe()) is None
    assert why_not(bpe(), bpe(**{key: None})) is None
    assert why_not(bpe(**{key: False}), bpe(**{key: ""})) is None
    assert why_not(bpe(), bpe(**{key: "x"})) == f"{key} is x there and None in the base's tokenizer"
