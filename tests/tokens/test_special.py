"""Ids of special tokens follow a tokenizer that comes from another model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import tokenkit as kit

from jmerge.arch.config import Change
from jmerge.tokens.special import REASON, set_special_ids, special_ids

IDS = {"bos_token_id": 5, "eos_token_id": 7}
MOVED = {1: 6, 2: 3}

CASES: dict[str, tuple[dict[str, Any], dict[str, Any], dict[str, Any]]] = {
    # the donor's file, that of the tokenizer's model, the outcome
    "named": (
        {"bos_token_id": 1, "eos_token_id": 2, "x": 3},
        {"bos_token_id": 0},
        {"bos_token_id": 5, "eos_token_id": 7, "x": 3},
    ),
    "all_ends_are_kept": (
        {"eos_token_id": [2, 3]},
        {"eos_token_id": [7, 9]},
        {"eos_token_id": [7, 9]},
    ),
    "the_named_end_joins": ({"eos_token_id": 2}, {"eos_token_id": [9]}, {"eos_token_id": [7, 9]}),
    "what_is_not_named": ({"pad_token_id": 2}, {"pad_token_id": 8}, {"pad_token_id": 8}),
    "what_it_has_not": ({"pad_token_id": 2}, {}, {"pad_token_id": None}),
    "what_only_it_has": ({}, {"pad_token_id": 8, "y": 1}, {"pad_token_id": 8}),
    "nothing": ({"x": 1}, {}, {"x": 1}),
    "other_tokens_stay_what_they_are": (
        {
            "image_token_id": 1,
            "begin_suppress_token_ids": [1, 4],
            "image_token_index": 4,
            "token_id": None,
        },
        {"image_token_id": 8},
        {
            "image_token_id": 6,
            "begin_suppress_token_ids": [6, 4],
            "image_token_index": 4,
            "token_id": None,
        },
    ),
    "in_parts": (
        {"text_config": {"eos_token_id": 2}, "vision_config": {"eos_token_id": 2}},
        {"text_config": {"eos_token_id": [7, 8]}},
        {"text_config": {"eos_token_id": [7, 8]}, "vision_config": {"eos_token_id": 2}},
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_set(case: str) -> None:
    """Names decide, lists come whole from the tokenizer's model; the donor's file is not touched."""
    config, own, wanted = CASES[case]
    before = repr(config)
    found, changes = set_special_ids(config, IDS, own, MOVED)
    assert found == wanted and repr(config) == before
    assert bool(changes) == (wanted != config)
    assert {change.reason for change in changes} <= {REASON}


def test_changes_say_where() -> None:
    """With the whole key."""
    _, changes = set_special_ids({"text_config": {"bos_token_id": 1}}, IDS, {}, {})
    assert changes == [Change("text_config.bos_token_id", 1, 5, REASON)]


def test_ids_of_names(tmp_path: Path) -> None:
    """Of those tokens that the output has."""
    tokens = kit.read(
        tmp_path,
        tokenizer__json=kit.words("u", "b", "e"),
        tokenizer_config__json={"unk_token": "u", "eos_token": "e", "bos_token": "b"},
    )
    wanted = {"unk_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    assert special_ids(tokens, tokens.vocabulary) == wanted
    del wanted["eos_token_id"]
    assert special_ids(tokens, tokens.vocabulary.below(2)) == wanted
