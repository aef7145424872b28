"""Every error and warning has a code, every code an explanation, and `jmerge explain` prints it."""

from __future__ import annotations

import ast
import json
import re
import runpy
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
from said import Said

import jmerge
from jmerge.errors import JmergeError, Problem, RunError
from jmerge.problems import AREAS, CATALOGUE, explain, nearest_code, parse_code

PACKAGE = Path(jmerge.__file__).parent
CODE = re.compile(r"JM\d{3}")
# What makes a explanation, by name.
MAKERS = {
    "Problem",
    "error",
    "warning",
    "InvalidValueError",
    "problem",
    "note",
    "broken",
    "RunError",
    "CancelledError",
    "DeviceMemoryError",
    "PeerError",
}
# Errors, which make one when they are given its text.
OF_TEXT = {"JmergeError", "RecipeError", "CheckpointError", "PlanError", "NonFiniteError"}


class Site(NamedTuple):
    """A call that makes a explanation."""

    where: str  # file:line
    code: ast.expr | None  # None: it gives none


def sites() -> Iterator[Site]:
    for path in sorted(PACKAGE.rglob("*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        shown = {id(part) for call in ast.walk(tree) for part in _shown(call)}
        for call in ast.walk(tree):
            if isinstance(call, ast.Call) and id(call) not in shown and _makes(call):
                yield Site(f"{path.relative_to(PACKAGE)}:{call.lineno}", _code(call))


def _shown(node: ast.AST) -> Iterator[ast.expr]:
    """The argument of `str(...)` or what stands in an f-string: text that is only made fit for a terminal."""
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "str":
        yield from node.args
    if isinstance(node, ast.FormattedValue):
        yield node.value


def _makes(call: ast.Call) -> bool:
    name = getattr(call.func, "attr", getattr(call.func, "id", ""))
    if name in OF_TEXT:
        first = call.args[0] if call.args else None
        return isinstance(first, ast.Constant | ast.JoinedStr)
    if name == "note":  # of a tokenizer; journals note blocks, and `verify` what it could not read
        return isinstance(call.func, ast.Attribute) and len(call.args) == 1 and _is_text(call)
    return name in MAKERS and bool(call.args)


def _is_text(call: ast.Call) -> bool:
    first = call.args[0]
    return isinstance(first, ast.JoinedStr) or (
        isinstance(first, ast.Name) and first.id == "message"
    )


def _code(call: ast.Call) -> ast.expr | None:
    for keyword in call.keywords:
        if keyword.arg == "code":
            return keyword.value
    coded = {"Problem": 5, "InvalidValueError": 2, "error": 1, "warning": 1}.get(
        getattr(call.func, "id", ""), 99
    )
    return call.args[coded - 1] if len(call.args) >= coded else None


def used() -> set[str]:
    """The codes that the package writes anywhere but in the catalogue."""
    files = [p for p in PACKAGE.rglob("*.py") if p.name != "problems.py"]
    nodes = (node for p in files for node in ast.walk(ast.parse(p.read_text(encoding="utf-8"))))
    return {
        node.value
        for node in nodes
        if isinstance(node, ast.Constant)
        and isinstance(node.value, str)
        and CODE.fullmatch(node.value)
    }


def test_every_problem_has_a_code() -> None:
    found = list(sites())
    assert len(found) > 200
    assert [site.where for site in found if site.code is None] == []


def test_codes_are_those_of_the_catalogue() -> None:
    codes = used()
    assert codes - CATALOGUE.keys() == set()
    assert CATALOGUE.keys() - codes == set()


def test_a_line_ends_with_its_code() -> None:
    problem = Problem("is wrong", "models[0]", "x.yml", 12, "JM012")
    assert str(problem) == "x.yml:12: models[0]: is wrong [JM012]"
    assert problem.text == "x.yml:12: models[0]: is wrong"
    assert str(JmergeError("wrong", code="JM012")) == "wrong [JM012]"
    error = RunError("failed", code="JM501")
    assert str(error) == "failed [JM501]"
    assert error.problems[0].code == "JM501"


@pytest.mark.parametrize("code", CATALOGUE)
def test_an_entry_says_what_to_do(code: str) -> None:
    assert CODE.fullmatch(code) and code[2] in AREAS
    explanation = CATALOGUE[code]
    assert not explanation.title.endswith(".")
    for text in (explanation.cause, explanation.cure):
        assert text.endswith("."), text
        assert set(CODE.findall(text)) <= CATALOGUE.keys()


def test_the_catalogue_is_sorted_and_its_titles_differ() -> None:
    assert list(CATALOGUE) == sorted(CATALOGUE)
    titles = [explanation.title for explanation in CATALOGUE.values()]
    assert len(titles) == len(set(titles))


@pytest.mark.parametrize("word", ["JM017", "jm017", "jm17", "17", "017", "[JM017]"])
def test_codes_may_be_written_in_short(word: str) -> None:
    assert parse_code(word) == "JM017"


def test_explain_prints_cause_and_cure_within_the_width() -> None:
    explanation = CATALOGUE["JM012"]
    text = explain("JM012", 40)
    assert (
        " ".join(text.split())
        == f"JM012: {explanation.title} {explanation.cause} {explanation.cure}"
    )
    assert max(map(len, text.splitlines())) <= 40


def test_the_command_explains() -> None:
    said = Said("explain", "12")
    assert said.code == 0
    assert said.out.startswith(f"JM012: {CATALOGUE['JM012'].title}\n\n")
    both = Said("explain", "12", "JM101").out
    assert both.startswith(said.out.strip()) and "JM101: " in both


def test_the_command_lists_all_codes() -> None:
    said = Said("explain")
    assert said.code == 0
    for code, explanation in CATALOGUE.items():
        assert f"  {code}  {explanation.title}\n" in said.out


def test_an_unknown_code_gets_the_nearest() -> None:
    said = Said("explain", "JM199")
    assert said.code == 2
    (line,) = said.errors
    assert line.endswith(f"; did you mean {nearest_code('JM199')}?")
    assert said.err.endswith(" [JM415]\n")
    assert nearest_code("JM016x") == "JM016"


def test_the_page_is_current() -> None:
    tool = runpy.run_path(str(PACKAGE.parent / "tools" / "errors.py"))
    page = tool["PAGE"].read_text(encoding="utf-8")
    assert page == tool["errors_markdown"](), "stale: run python tools/errors.py"


TWO = "merge_method: linear\nmodels:\n  - model: a\n  - model: {}\n"
KINDS = {
    "JM002": "merge_method: [",
    "JM003": 'merge_method: "C:\\models"',
    "JM004": "- linear",
    "JM005": TWO.format("b") + "merge_method: ties\n",
    "JM008": "models:\n  - model: a\n",
    "JM009": TWO.format("b") + "mdoels: []\n",
    "JM010": "experts: []\n",
    "JM011": TWO.format("b") + "dtype: float17\n",
    "JM012": TWO.format("a@b@c"),
    "JM013": "merge_method: linear\nslices: [{sources: [{model: a, layer_range: 3}]}]\n",
    "JM014": TWO.format("b") + "parameters: {weight: [{val: 1}]}\n",
    "JM015": "merge_method: linear\n",
    "JM016": TWO.format("b") + "tokenizer: {source: base}\ntokenizer_source: base\n",
    "JM017": TWO.format("b") + "tokenizer: {tokens: {x: {source: {kind: nil}}}}\n",
    "JM018": TWO.format("b") + "tokenizer_source: c\n",
    "JM021": TWO.format("b") + "chat_template: chatlm\n",
    "JM101": TWO.format("./b"),
    "JM102": TWO.format("x.yml"),
    "JM103": TWO.format("ftp://host/b"),
    "JM104": TWO.format("./empty@main"),
    "JM105": TWO.format("memory://1"),
    "JM115": TWO.format("./empty"),
    "JM118": TWO.format("./pickled"),
}


@pytest.mark.parametrize("code", KINDS)
def test_kinds_of_mistakes(code: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    for folder in ("empty", "pickled"):
        (tmp_path / folder).mkdir()
    (tmp_path / "pickled" / "pytorch_model.bin").write_bytes(b"")
    Path("x.yml").write_text(KINDS[code], encoding="utf-8")
    with pytest.raises(JmergeError) as caught:
        jmerge.plan("x.yml")
    assert code in {problem.code for problem in caught.value.problems}
    assert f"[{code}]" in str(caught.value)


def test_reports_as_json_have_codes(tmp_path: Path) -> None:
    folder = tmp_path / "m"
    folder.mkdir()
    (folder / "config.json").write_text("{")
    said = Said("verify", str(folder), "--json")
    (model,) = json.loads(said.out)["models"]
    codes = {each["code"] for check in model["checks"] for each in check["findings"]}
    assert codes >= {"JM115", "JM124"}
