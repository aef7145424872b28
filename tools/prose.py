"""Words and turns that a native reader stumbles over, found in messages, public docstrings and documents.

python tools/prose.py    list what is found; exit code 1 when there is anything
"""

from __future__ import annotations

import ast
import inspect
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jmerge

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "jmerge"
DOCUMENTS = [ROOT / "README.md", *sorted((PACKAGE / "docs").rglob("*.md"))]

# Pattern -> what to write.
TURNS = {
    r"(is|are|was|were|be) told\b": "say who says it: 'the error names'",
    r"has not(?! been)\b": "does not have, lacks",
    r"none (but|of them but)\b": "only",
    r"do(es)? not do\b": "is too small, does not work",
    r"\banew\b": "again, start over",
    r"(?<!there )\bis no(?! longer| such| more| n config)\b": "is not a",
    r"(?<!there )\b(are|is) none\b": "is not valid, does not exist",
    r"(?<!, )\bof which\b": "whose, with",
    r"\blies? (in|beside|there|at|deep|too|here|above|below|behind)\b": "is, is in",
    r"sign of life": "heartbeat",
    r"one word too many": "unexpected argument",
    r"cannot be had|to be had": "is not available",
    r"forbids? to": "does not allow",
    r"\bwhoever\b": "the caller, the reader",
    r"\bin the one\b|\bthe one and\b": "in one ... in the other model",
    r"stands? (here|there|twice|in the way|beside|behind)": "is, appears",
    r"nothing (tells|says) (which|whether|whose|how|in)": "it is unclear which",
    r"\bas it is one\b|\bthat is one\b": "say what it is",
    r"(is|was|were|are) (it|the \w+) .{2,40}\?$": "state it, do not ask",
    r"\bgo(es)? on\b": "continues",
    r"a model of its own kind|of one kind": "of the same kind",
    r"in front of a person": "in messages",
    r"\bletters\b": "characters",
    r"\bbeforehand\b|\bhitherto\b|\bthereof\b|\btherein\b": "a plain word",
    r"\bkinds? of layers?\b": "layer types",
    r"\bso many\b": "that many",
    r"\bmay lie\b|\bmay stand\b": "can be",
    r"\bbegins? with\b": "starts with",
    r"\botherwise than\b|\bother(?:s)? than\b": "different from",
    r"\bsee to it\b": "make sure",
}
FOUND = {re.compile(pattern, re.IGNORECASE): instead for pattern, instead in TURNS.items()}


def problems(text: str) -> Iterator[str]:
    """What is odd in a text: the turn, and what to write instead."""
    text = " ".join(text.split())
    for pattern, instead in FOUND.items():
        for match in pattern.finditer(text):
            yield f"'{match[0]}' -> {instead}: {text[max(match.start() - 40, 0) : match.end() + 40]}"


def messages() -> Iterator[tuple[str, str]]:
    """Place and text of every string of at least three words that is not a docstring."""
    for path in sorted(PACKAGE.rglob("*.py")):
        part = path.relative_to(PACKAGE)
        if part.parts[0] == "testing":
            continue
        tree = ast.parse(path.read_text(encoding="utf-8"))
        docs = {
            id(node.value)
            for node in ast.walk(tree)
            if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
        }
        for node in ast.walk(tree):
            if isinstance(node, ast.Constant) and id(node) not in docs:
                if isinstance(node.value, str) and len(node.value.split()) > 2:
                    yield f"{path.relative_to(ROOT)}:{node.lineno}", node.value


def docstrings() -> Iterator[tuple[str, str]]:
    """Name and docstring of everything public, and of its public methods."""
    for name in jmerge.__all__:
        value: Any = getattr(jmerge, name)
        yield f"jmerge.{name}", inspect.getdoc(value) or ""
        for own, member in vars(value).items() if inspect.isclass(value) else ():
            if not own.startswith("_") and (callable(member) or isinstance(member, property)):
                yield f"jmerge.{name}.{own}", inspect.getdoc(member) or ""
            elif isinstance(member, classmethod):
                yield f"jmerge.{name}.{own}", inspect.getdoc(member.__func__) or ""


def documents() -> Iterator[tuple[str, str]]:
    """File, line and text of every line of the documents outside code blocks and of what a sweep recorded, in the words
    of its day.
    """
    for path in DOCUMENTS:
        code = recorded = False
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
            code ^= line.startswith("```")
            recorded = (
                recorded or line.startswith("<!-- sweep:")
            ) and line != "<!-- end of sweep -->"
            if not code and not recorded:
                yield f"{path.relative_to(ROOT)}:{number}", line


def findings() -> list[str]:
    """Every odd turn with its place."""
    return [
        f"{place}: {problem}"
        for source in (messages, docstrings, documents)
        for place, text in source()
        for problem in problems(text)
    ]


if __name__ == "__main__":
    found = findings()
    print("\n".join(found))
    sys.exit(bool(found))
