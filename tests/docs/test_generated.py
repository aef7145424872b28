"""What tools/docs.py generates is current; the table of families is tested beside its merges."""

from __future__ import annotations

import dataclasses
import importlib
import re
import shutil
from pathlib import Path
from types import ModuleType

import pytest

import jmerge
from jmerge.methods import REGISTRY
from jmerge.report.methods import methods_markdown

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def tool() -> ModuleType:
    """tools/docs.py."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(ROOT / "tools")
        return importlib.import_module("docs")


@pytest.mark.parametrize("section", ["methods", "examples", "api", "speed", "sweep"])
def test_the_page_is_current(tool: ModuleType, section: str) -> None:
    text = tool.page_of(section).read_text(encoding="utf-8")
    assert tool.renewed(text, section, tool.MADE[section]()) == text, (
        f"{section} is stale: run python tools/docs.py"
    )


def test_every_public_name_is_in_the_reference(tool: ModuleType) -> None:
    """With its signature where it has one, and never the address of an object."""
    text = tool.MADE[tool.API]()
    names = [name for name in jmerge.__all__ if name not in ("__version__", "methods", "advanced")]
    names += [f"advanced.{name}" for name in jmerge.advanced.__all__]
    headings = re.findall(r"^### jmerge\.(\S+)$", text, re.MULTILINE)
    assert sorted(headings) == sorted(names)
    assert " at 0x" not in text and "ForwardRef" not in text


def test_the_site_builds_without_warnings(tool: ModuleType, tmp_path: Path) -> None:
    """A link to a page or heading that does not exist would be one."""
    done = tool.build_site(tmp_path / "site")
    assert done.returncode == 0, done.stdout + done.stderr
    pages = {page.stem for page in tool.DOCS.glob("*.md")}
    assert pages <= {page.stem for page in (tmp_path / "site").glob("*.html")}
    text = (tmp_path / "site" / "methods.html").read_text(encoding="utf-8")
    assert '<a href="examples.html#ties">ties</a>' in text
    listed = re.findall(r'"(\w+)\.md"', tool.SITE.read_text(encoding="utf-8"))
    assert sorted(listed) == sorted(pages), "every page has its place in the navigation"


def test_a_broken_link_fails_the_site(
    tool: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(tool.DOCS, tmp_path / "docs")
    with (tmp_path / "docs" / "python.md").open("a", encoding="utf-8") as page:
        page.write("\n[gone](recipes.md#no-such-heading)\n")
    monkeypatch.setattr(tool, "DOCS", tmp_path / "docs")
    done = tool.build_site(tmp_path / "site")
    assert done.returncode != 0 and "anchor does not exist" in done.stdout + done.stderr
    assert not (tmp_path / "site").exists()


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


def test_every_method_has_a_row_of_three_cells(monkeypatch: pytest.MonkeyPatch) -> None:
    """But none of another package, which is not what the docs are about."""
    own = sorted(n for n, each in REGISTRY.items() if each.function.__module__[:7] == "jmerge.")
    theirs = dataclasses.replace(REGISTRY["linear"], name="theirs", function=lambda models: models)
    monkeypatch.setitem(REGISTRY, "theirs", theirs)
    text = methods_markdown({"ties": [("mine", "a/mine.yml"), ("other", "b.yml")]})
    rows = [line for line in text.splitlines() if line.startswith("| `")]
    assert [row.split("`")[1] for row in rows] == own
    assert {row.count(" | ") for row in rows} == {2}
    (ties,) = (row for row in rows if row.startswith("| `ties`"))
    assert f"[TIES]({REGISTRY['ties'].paper})" in ties
    assert ties.endswith(" Example: [mine](a/mine.yml), [other](b.yml). |")
    assert "\n- `condition`: " in text and "\n- `lines`: " in text
