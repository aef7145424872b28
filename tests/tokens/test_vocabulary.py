"""Vocabularies: limits, new tokens, ids to tokens."""

from __future__ import annotations

from jmerge.tokens.vocabulary import PLAIN, SPECIAL, vocabulary

BASE = vocabulary({"a": 0, "S": 4, "b": 1}, {"S": SPECIAL})


def test_sorted_by_id() -> None:
    """Whatever the order they were found in."""
    assert list(BASE.ids) == ["a", "b", "S"] and BASE.size == 5
    assert vocabulary({}, {}).size == 0


def test_below() -> None:
    """Tokens beyond a limit go; with none beyond it is the same object."""
    assert BASE.below(5) is BASE
    assert BASE.below(4) == vocabulary({"a": 0, "b": 1}, {})
    assert BASE.below(0) == vocabulary({}, {})


def test_with_added() -> None:
    """Those it has keep their ids, the others come after the largest."""
    found = BASE.with_added({"x": PLAIN, "b": PLAIN, "y": SPECIAL})
    assert found.ids == {"a": 0, "b": 1, "S": 4, "x": 5, "y": 6}
    assert found.added == {"b": PLAIN, "S": SPECIAL, "x": PLAIN, "y": SPECIAL}
    assert list(found.added) == ["b", "S", "x", "y"]


def test_by_id() -> None:
    """Ids of no token are None; of two tokens the added one counts, which is found first in a text."""
    assert BASE.by_id() == ["a", "b", None, None, "S"]
    assert vocabulary({"a": 0, "S": 0}, {"S": SPECIAL}).by_id() == ["S"]
    assert vocabulary({"S": 0, "a": 0}, {"a": SPECIAL}).by_id() == ["a"]


def test_entry() -> None:
    """What tokenizer_config.json has of an added token."""
    assert SPECIAL.entry("<x>") == {
        "content": "<x>",
        "lstrip": False,
        "normalized": False,
        "rstrip": False,
        "single_word": False,
        "special": True,
    }
