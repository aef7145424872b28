"""`jmerge help`: lists the guides, prints them for a terminal."""

from __future__ import annotations

import pytest

from jmerge import cli
from jmerge.options import HELP
from jmerge.report.guides import DOCS, WIDEST, guide, topics


def test_lists_every_guide(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["help"]) == 0
    out = capsys.readouterr().out
    pages = {page.stem.lower() for page in DOCS.glob("*.md")} - {"index"}
    assert set(topics()) == pages
    assert [line.split()[0] for line in out.splitlines() if line.startswith("  ")] == sorted(pages)
    assert "  recipes       Recipes\n" in out


@pytest.mark.parametrize("topic", sorted(topics()))
@pytest.mark.parametrize("width", [80, 200])
def test_fits_the_terminal(topic: str, width: int) -> None:
    """No line is wider or ends in blanks, no word of a table is cut, and no Markdown or HTML is left."""
    text = guide(topic, width)
    lines = text.splitlines()
    assert len(lines) > 10
    assert max(map(len, lines)) <= min(width, WIDEST)
    assert all(line == line.rstrip() for line in lines)
    for mark in ("<!--", "```", "\n#", "![", "\n!", "…", "\x1b"):
        assert mark not in text


def test_color_is_for_terminals() -> None:
    assert "\x1b[" in guide("recipes", 80, color=True)


def test_prints_several(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["help", "Recipes", "python"]) == 0
    out = capsys.readouterr().out
    assert "merge_method: slerp" in out and "jmerge.load" in out


def test_a_misspelt_topic_gets_its_neighbour(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["help", "recipe"]) == 2
    assert "'recipe' is not a topic; did you mean 'recipes'?" in capsys.readouterr().err


def test_a_command_without_a_guide_is_described(capsys: pytest.CaptureFixture[str]) -> None:
    """As by --help; where there is a guide too, that is printed."""
    assert cli.main(["help", "plan"]) == 0
    assert capsys.readouterr().out == f"{HELP['plan']}\n"
    assert cli.main(["help", "verify"]) == 0
    assert "Is a folder sound?" in capsys.readouterr().out
