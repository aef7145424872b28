"""Models of one table size whose rows are other tokens, in a recipe that says nothing of tokens: told, not refused."""

from __future__ import annotations

from pathlib import Path

import pytest
import tokenkit as kit
from mergeplace import Place

from jmerge.tokens import agree

ABC = kit.words(*"abc")


@pytest.fixture
def place(tmp_path: Path) -> Place:
    made = Place(tmp_path)
    made.model("base", ABC)
    return made


def told(place: Place, *models: str, tail: str = "") -> list[str]:
    place.run(place.linear("base", *models, tail=tail))
    return [line for line in place.said.warnings if "other tokens" in line]


def test_rows_of_other_tokens_are_told(place: Place) -> None:
    place.model("moved", kit.words(*"acb"))
    (line,) = told(place, "moved")
    assert f"x.yml:6: models[1].model: {2} ids are other tokens than in" in line
    assert "such as 1: 'c' and 'b'; rows of different tokens are merged" in line
    assert line.endswith("unless the recipe aligns them: 'tokenizer_source: base' or 'union'")
    assert told(place, "moved", tail="tokenizer_source: base") == []


def test_what_agrees_is_not_told(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """Spare rows that one model uses, a tokenizer that cannot be read, none; equal files are not even parsed."""
    place.model("longer", kit.words(*"abcd"), rows=3)
    place.model("torn", rows=3, files={"tokenizer__json": ABC[:-9]})
    place.model("none", rows=3)
    assert told(place, "longer", "torn", "none") == []
    place.model("same", ABC)
    monkeypatch.setattr(agree, "read_tokens", None)
    assert told(place, "same") == []


def test_tables_that_are_not_merged_are_not_compared(place: Place) -> None:
    place.model("moved", kit.words(*"acb"))
    assert told(place, "moved", tail="except: [model.embed_tokens.weight, lm_head.weight]") == []
