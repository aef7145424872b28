"""README, BUILD and the guides: their length, their links, and every block of code in them."""

from __future__ import annotations

import doctest
import re
import shlex
import tomllib
from pathlib import Path
from typing import Any, NamedTuple

import jsonschema
import pytest
import yaml

import jmerge
from jmerge import cli, options
from jmerge.methods import REGISTRY
from jmerge.report.schema import recipe_schema

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "jmerge" / "docs"
PAGES = [ROOT / "README.md", ROOT / "BUILD.md", *sorted(DOCS.glob("*.md"))]
MOST = {"README.md": 120, "BUILD.md": 250}  # lines
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
FILE = re.compile(r"# \S+\.\w+\n")  # of the package that tests/methods/test_extension.py builds
KINDS = {"bash", "shell", "python", "py", "pycon", "yaml", "toml", ""}
LINK = re.compile(r"\]\(([^)\s]+)\)")


class Block(NamedTuple):
    """Code in a page."""

    page: Path
    kind: str
    text: str


def blocks(page: Path) -> list[Block]:
    """The blocks of a page, in order."""
    return [Block(page, *found) for found in FENCE.findall(page.read_text(encoding="utf-8"))]


ALL = [block for page in PAGES for block in blocks(page)]


def of_kind(*kinds: str) -> list[Any]:
    """The blocks of these kinds, each with the name of its page and its number there as its id."""
    return [
        pytest.param(block, id=f"{block.page.stem}-{i}")
        for i, block in enumerate(ALL)
        if block.kind in kinds
    ]


def commands(text: str) -> list[str]:
    """The commands of a block, without comments."""
    lines = text.replace("\\\n", " ").splitlines()
    return [each.strip() for line in lines for each in line.partition("  #")[0].split("&&") if each]


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory in which the repository's recipes lie."""
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("name", MOST)
def test_stays_short(name: str) -> None:
    lines = (ROOT / name).read_text(encoding="utf-8").splitlines()
    assert len(lines) <= MOST[name], f"{name} has {len(lines)} lines; guides go to jmerge/docs"
    assert max(map(len, lines)) <= 120


def test_the_blocks_are_found() -> None:
    """Every fence opens or closes a block of a kind that a test below knows."""
    for page in PAGES:
        fences = re.findall(r"^\s*```", page.read_text(encoding="utf-8"), re.MULTILINE)
        assert len(fences) == 2 * len(blocks(page)), page
    assert {block.kind for block in ALL} <= KINDS


def slugs(page: Path) -> set[str]:
    """What links can name in a page."""
    text = FENCE.sub("", page.read_text(encoding="utf-8"))
    titles = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize(
    "page", [*PAGES, ROOT / "configs/quickstart/README.md"], ids=lambda p: p.stem
)
def test_links_resolve(page: Path) -> None:
    for link in LINK.findall(FENCE.sub("", page.read_text(encoding="utf-8"))):
        if link.startswith(("https://", "http://")):
            continue
        name, _, anchor = link.partition("#")
        target = (page.parent / name).resolve() if name else page
        assert target.is_file(), link
        assert not anchor or anchor in slugs(target), link


@pytest.mark.parametrize("block", of_kind("yaml"))
def test_recipes_parse(block: Block) -> None:
    """Whole recipes as they are, parts of one within a short one."""
    found = yaml.safe_load(block.text)
    if "merge_method" not in found:
        models = [{"model": "models/a"}, {"model": "models/b"}]
        found = {"merge_method": "linear", "models": models} | found
    jmerge.Recipe.from_dict(found)
    jsonschema.validate(found, recipe_schema())


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_python_runs(page: Path, place: Path) -> None:
    """The blocks of a page one after the other, as a reader would type them."""
    before = set(REGISTRY)
    namespace: dict[str, Any] = {"__name__": f"docs_{page.stem}"}
    try:
        for block in blocks(page):
            if block.kind == "python" and not FILE.match(block.text):
                exec(compile(block.text, str(page), "exec"), namespace)
    finally:
        for name in set(REGISTRY) - before:
            del REGISTRY[name]


@pytest.mark.parametrize("block", of_kind("pycon"))
def test_examples_give_what_they_say(block: Block) -> None:
    """Names that an example before it on the page has made are there too."""
    names: dict[str, Any] = {}
    runner = doctest.DocTestRunner(verbose=False)
    for each in ALL:
        if each.kind == "pycon" and each.page == block.page:
            test = doctest.DocTestParser().get_doctest(each.text, names, "docs", None, 0)
            runner.run(test, clear_globs=False)
            names.update(test.globs)
        if each is block:
            break
    assert runner.failures == 0


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_commands_run(page: Path, place: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Those of jmerge, and end with code 0; those of pip name extras that there are."""
    for block in blocks(page):
        for command in commands(block.text) if block.kind == "bash" else ():
            program, *words = shlex.split(command)
            if program == "jmerge":
                assert cli.main(words) == 0, f"{command}: {capfd.readouterr().err}"
            else:
                assert program in ("pip", "pytest"), command


@pytest.mark.parametrize("block", of_kind("shell"))
def test_commands_for_other_machines_have_flags_and_files_that_exist(block: Block) -> None:
    for command in commands(block.text):
        for text in re.findall(r"\bjmerge (?!\[)[^\"]*", command):
            options.parse_words(options.define_flags(), shlex.split(text)[1:])
        for name in re.findall(r"\b(?:tools|tests)/\S+", command):
            assert (ROOT / name).exists(), command


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_extras_exist(page: Path) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    found = re.findall(r"(?:jmerge|'\.)\[(\w+)\]'", page.read_text(encoding="utf-8"))
    assert set(found) <= set(project["optional-dependencies"])


def test_the_readme_has_the_command_that_ci_runs() -> None:
    (line,) = re.findall(
        r"^pip install .*pytest.*$", (ROOT / "README.md").read_text(), re.MULTILINE
    )
    ci = (ROOT / ".ci" / "run").read_text().replace("python -m pip install --quiet", "pip install")
    assert f"\n{line}\n" in ci
