"""Messages, public docstrings and documents are free of turns that a native reader stumbles over."""

from __future__ import annotations

import runpy
from pathlib import Path
from types import SimpleNamespace

import pytest

PROSE = SimpleNamespace(**runpy.run_path(str(Path(__file__).parents[1] / "tools" / "prose.py")))


def test_nothing_odd_is_found() -> None:
    assert PROSE.findings() == []


def test_all_sources_are_looked_at() -> None:
    """Each finds the odd turn where it looks for it, and finds many texts."""
    assert len(list(PROSE.messages())) > 500
    names = [name for name, text in PROSE.docstrings() if text]
    assert {"jmerge.merge", "jmerge.ties", "jmerge.Recipe.from_dict"} <= set(names)
    assert any(place.startswith("jmerge/docs/errors.md:") for place, _ in PROSE.documents())


@pytest.mark.parametrize(
    "text",
    [
        "tables of one size whose rows are other tokens are told",
        "64 MB do not do: X by ties needs",
        "'extra': is one word too many",
        "x is no source of this slice",
        "layers that are none",
        "which has not the key",
        "overwrite=True begins anew",
        "it was written otherwise: is the disk sound?",
        "a model may lie in one of these places",
        "gave no sign of life",
        "this key stands twice",
        "HF_HUB_OFFLINE forbids to ask the Hub",
        "a name of 300 letters",
        "the same command goes on from here",
    ],
)
def test_odd_turns_are_found(text: str) -> None:
    assert list(PROSE.problems(text))


@pytest.mark.parametrize(
    "text",
    [
        "there is no such file",
        "the file no longer exists; download it again",
        "empty if there is none",
        "a number between 0 and 1",
        "has not been written",
    ],
)
def test_plain_turns_pass(text: str) -> None:
    assert not list(PROSE.problems(text))
