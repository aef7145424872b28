"""The table of which rows made which token, and its summary."""

from __future__ import annotations

import json
from pathlib import Path

import tokenkit as kit

from jmerge.tokens.align import Alignment
from jmerge.tokens.table import summary, table_lines

TAIL = """\
tokenizer:
  source: union
  pad_to_multiple_of: 4
  tokens:
    w0: {source: b, force: yes}
    w1: {source: {kind: zero}}
    N: {source: {kind: model_token, model: c, token_id: 1}}"""


def example(tmp_path: Path) -> Alignment:
    """A union with every kind of filling."""
    models = {
        "a": kit.words("w0", "w2"),
        "b": kit.words("w0", "w1", "m"),
        "c": kit.words("x", "m", added={"S": {"special": True}}),
    }
    return kit.aligned(tmp_path, kit.recipe_of("a", "b", "c", tail=TAIL), **models)


def test_table(tmp_path: Path) -> None:
    """A line a row, with rows of their own and what fills the others."""
    lines = [json.loads(line) for line in table_lines(example(tmp_path))]
    assert lines == [
        {"id": 0, "token": "w0", "rows": {}, "fill": [["b", 0]], "forced": True},
        {"id": 1, "token": "w2", "rows": {"a": 1}, "fill": [["a", 1]]},
        {"id": 2, "token": "w1", "rows": {"b": 1}, "fill": "zero"},
        {"id": 3, "token": "m", "rows": {"b": 2, "c": 1}, "fill": [["b", 2], ["c", 1]]},
        {"id": 4, "token": "x", "rows": {"c": 0}, "fill": [["c", 0]]},
        {"id": 5, "token": "S", "rows": {"c": 2}, "fill": [["c", 2]]},
        {"id": 6, "token": "N", "rows": {}, "fill": [["c", 1]]},
        {"id": 7, "token": None, "fill": "mean of all tokens"},
    ]


def test_summary(tmp_path: Path) -> None:
    """The numbers of the table."""
    assert summary(example(tmp_path)) == [
        "7 tokens in 8 rows; 1 row of no token: means of all others",
        "tokenizer of 'a' with 5 tokens more",
        "'a' has rows of its own for 1, 6 are filled",
        "'b' has rows of its own for 2, 5 are filled",
        "'c' has rows of its own for 3, 4 are filled",
        "1 token filled from 'a'",
        "1 token filled from 'b'",
        "3 tokens filled from 'c'",
        "1 token filled with the mean of the models that have them",
        "1 token filled with zeros",
    ]


def test_summary_of_nothing_new(tmp_path: Path) -> None:
    """A tokenizer that stays, and one that loses tokens."""
    recipe = kit.recipe_of("a", "b", tail="tokenizer_source: base")
    words = kit.words("w0", "w1")
    found = kit.aligned(tmp_path, recipe, a=words, b=words)
    assert summary(found) == ["2 tokens in 2 rows", "tokenizer of 'a', byte for byte"]
    assert all("fill" not in json.loads(line) for line in table_lines(found))
    found = kit.aligned(tmp_path, recipe, a=(words, 1), b=words)
    assert summary(found) == [
        "1 token in 1 row",
        "tokenizer of 'a' with fewer tokens or other flags",
    ]


def test_summary_names_files_that_go(tmp_path: Path) -> None:
    """They would have other tokens than tokenizer.json."""
    files = {"tokenizer__json": kit.words("w0", "w1"), "vocab__txt": "w0", "x__tiktoken": ""}
    found = kit.aligned(tmp_path, kit.recipe_of("a", "b"), a=(files, 1), b=kit.words("w0"))
    assert summary(found)[2] == (
        "files of 'a' that are left out, as they have other tokens: vocab.txt, x.tiktoken"
    )
