"""The sections of README.md that tools/readme.py makes; what the one of families says is tested beside their merges."""

from __future__ import annotations

import dataclasses
import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

from jmerge.methods import REGISTRY
from jmerge.report.methods import methods_markdown

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def tool() -> ModuleType:
    """tools/readme.py."""
    spec = importlib.util.spec_from_file_location("readme", ROOT / "tools" / "readme.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_readme_is_current(tool: ModuleType) -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert tool.renewed(text, tool.METHODS, tool.methods()) == text, (
        "README.md is stale: run python tools/readme.py"
    )


def test_a_stale_section_is_renewed_and_the_rest_kept(tool: ModuleType) -> None:
    first, last = tool.marks(tool.METHODS)
    made = tool.renewed(f"before\n{first}stale\n{last}after\n", tool.METHODS, tool.methods())
    assert made.startswith(f"before\n{first}| method |") and "stale" not in made
    assert made.endswith(f"{last}after\n")
    assert tool.renewed(made, tool.METHODS, tool.methods()) == made


@pytest.mark.parametrize("text", ["", "{0}", "{1}", "{1}{0}", "{0}{0}{1}", "{0}{1}{1}"])
def test_marks_that_do_not_make_a_section_are_refused(tool: ModuleType, text: str) -> None:
    """Nothing is guessed of what a person wrote."""
    with pytest.raises(ValueError, match="once each"):
        tool.renewed(text.format(*tool.marks(tool.METHODS)), tool.METHODS, "new")


def test_every_method_has_a_row_of_four_cells(monkeypatch: pytest.MonkeyPatch) -> None:
    """But none of another package, which is not what the README is about."""
    own = sorted(n for n, each in REGISTRY.items() if each.function.__module__[:7] == "jmerge.")
    theirs = dataclasses.replace(REGISTRY["linear"], name="theirs", function=lambda models: models)
    monkeypatch.setitem(REGISTRY, "theirs", theirs)
    text = methods_markdown({"ties": [("mine", "a/mine.yml"), ("other", "b.yml")]})
    rows = [line for line in text.splitlines() if line.startswith("| `")]
    assert [row.split("`")[1] for row in rows] == own
    assert {row.count(" | ") for row in rows} == {3}
    (ties,) = (row for row in rows if row.startswith("| `ties`"))
    assert f"[TIES]({REGISTRY['ties'].paper})" in ties
    assert ties.endswith(" | [mine](a/mine.yml), [other](b.yml) |")
    assert "\n- `condition`: " in text and "\n- `lines`: " in text
