"""YAML text to plain values, remembering the line of every key and item.

PyYAML builds the node tree; this file turns nodes into values with a scalar table of our own (`1e-4` is a number,
`"0.5"` stays text), resolves anchors and `<<` merge keys, and refuses repeated keys.
"""

from __future__ import annotations

import re
from typing import Any, NamedTuple

import yaml

from jmerge.errors import Problem, RecipeError
from jmerge.recipe.refs import ESCAPES

Entry = tuple[yaml.ScalarNode, yaml.Node]  # of a map: key and value
Path = tuple[str | int, ...]  # of keys and list positions, from the top of the document

MAX_DIGITS = 400  # beyond, an integer is a float, which says infinity
MAX_NODES = 200_000  # aliases expanded; stops "billion laughs" documents
BLANKS = "\u00a0\u2007\u202f\u3000"  # that look like a space and are none to YAML
TRUE = {"true", "yes", "on"}
FALSE = {"false", "no", "off"}
INTEGER = re.compile(r"[-+]?\d+")
FLOAT = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?")


class Document(NamedTuple):
    """A parsed YAML document."""

    value: Any
    lines: dict[
        Path, int
    ]  # 1-based line of every key and list item; empty for a recipe of Python values
    problems: tuple[Problem, ...]  # repeated keys and the like; `value` is then what the rest says

    def line(self, path: Path) -> int:
        """The line of `path`, or of the nearest thing around it; 0 when there are no lines."""
        while path and path not in self.lines:
            path = path[:-1]
        return self.lines.get(path, 1 if self.lines else 0)

    def has(self, path: Path) -> bool:
        """Whether something stands at `path`."""
        value = self.value
        for part in path:
            inside = isinstance(value, dict) and part in value
            if not inside and not (isinstance(value, list) and part in range(len(value))):
                return False
            value = value[part]
        return True


def show_path(path: Path) -> str:
    """A key path as people write it: `models[1].parameters.weight`."""
    text = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in path)
    return text.removeprefix(".")


def parse_yaml(text: str, file: str) -> Document:
    """The one YAML document in `text`; RecipeError when the text is not YAML, is empty or holds several."""
    try:
        nodes = list(yaml.compose_all(text, Loader=yaml.SafeLoader))
    except yaml.YAMLError as error:
        if problem := _bad_escape(error, file):
            raise RecipeError(problem) from error
        mark = getattr(error, "problem_mark", None)
        reason = getattr(error, "problem", None) or str(error).splitlines()[0]
        if reason == "second occurrence":  # PyYAML keeps the anchor's name in the context
            reason = (
                str(getattr(error, "context", ""))
                .removeprefix("found ")
                .removesuffix("; first occurrence")
            )
        reason += _hint(text, mark.line) if mark else ""
        raise RecipeError(
            Problem(
                f"not valid YAML: {reason}",
                file=file,
                line=mark.line + 1 if mark else 0,
                code="JM002",
            )
        ) from error
    except RecursionError as error:
        raise RecipeError(
            Problem("not valid YAML: nested too deeply", file=file, code="JM002")
        ) from error
    except (ValueError, OverflowError) as error:  # of `chr`
        message = f"not valid YAML: an escape is not a character; {ESCAPES}"
        raise RecipeError(Problem(message, file=file, code="JM003")) from error
    nodes = [node for node in nodes if not _is_empty(node)]  # as between two lines of dashes
    if len(nodes) > 1:
        line = nodes[1].start_mark.line + 1
        raise RecipeError(
            Problem(
                "a second document starts here; a recipe is a single document",
                file=file,
                line=line,
                code="JM004",
            )
        )
    if not nodes or not isinstance(nodes[0], yaml.MappingNode):
        found = "nothing" if not nodes else "a list or a string"
        raise RecipeError(
            Problem(f"expected a map of keys, found {found}", file=file, line=1, code="JM004")
        )
    reader = _Reader(file)
    try:
        return Document(reader.value(nodes[0], ()), reader.lines, tuple(reader.problems))
    except RecursionError as error:  # by way of aliases
        raise RecipeError(
            Problem("not valid YAML: nested too deeply", file=file, code="JM002")
        ) from error


def _is_empty(node: yaml.Node) -> bool:
    return isinstance(node, yaml.ScalarNode) and node.style is None and not node.value


def _hint(text: str, line: int) -> str:
    """What to do about letters that come along when a recipe is copied from a page or a chat; empty without any."""
    lines = text.split("\n")[max(line - 1, 0) : line + 1]
    if any(each.lstrip().startswith("```") for each in lines):
        return "; remove the ``` lines around the recipe"
    if any("\t" in each[: len(each) - len(each.lstrip())] for each in lines):
        return "; indent with spaces, not tabs"
    if any(blank in each for each in lines for blank in BLANKS):
        return "; a space here is not a plain space (U+00A0 or similar): retype it"
    return ""


def _bad_escape(error: yaml.YAMLError, file: str) -> Problem | None:
    """What to say of a backslash that stands in double quotes as in a path of Windows; None for another error."""
    reason, start = getattr(error, "problem_mark", None), getattr(error, "context_mark", None)
    if reason is None or start is None or reason.buffer is None:
        return None
    text = reason.buffer
    place = text.rfind("\\", start.pointer, reason.pointer)
    if text[start.pointer] != '"' or place < 0:
        return None
    if "escape" in str(getattr(error, "problem", "")):
        said, mark = f"'{text[place : place + 2].rstrip(chr(0))}' is not a valid escape", reason
        column = mark.column - (reason.pointer - place) + 1
    elif '\\"' in text[start.pointer : reason.pointer]:
        said, mark, column = "the closing quote is missing", start, start.column + 1
    else:
        return None
    return Problem(
        f"not valid YAML: {said}; {ESCAPES}", f"column {column}", file, mark.line + 1, code="JM003"
    )


def read_scalar(text: str) -> Any:
    """The value of an unquoted scalar: null, boolean, number or the text itself."""
    word = text.lower()
    if word in ("", "~", "null"):
        return None
    if word in TRUE or word in FALSE:
        return word in TRUE
    if INTEGER.fullmatch(text) and len(text) <= MAX_DIGITS:
        return int(text)
    if FLOAT.fullmatch(text):
        return float(text)
    if word in (".inf", "+.inf", "-.inf", ".nan"):
        return float(word.replace(".", ""))
    return text


class _Reader:
    def __init__(self, file: str) -> None:
        self.file = file
        self.lines: dict[Path, int] = {}
        self.problems: list[Problem] = []
        self.open: list[yaml.Node] = []
        self.count = 0

    def value(self, node: yaml.Node, path: Path) -> Any:
        self.enter(node, path)
        self.lines.setdefault(path, node.start_mark.line + 1)
        try:
            if isinstance(node, yaml.ScalarNode):
                return read_scalar(node.value) if node.style is None else node.value
            if isinstance(node, yaml.SequenceNode):
                return [self.value(item, (*path, i)) for i, item in enumerate(node.value)]
            assert isinstance(node, yaml.MappingNode)  # the only other kind of node
            return self.mapping(node, path)
        finally:
            self.open.pop()

    def mapping(self, node: yaml.MappingNode, path: Path) -> dict[str, Any]:
        result = {}
        for name, (key, item) in self.entries(node, path).items():
            self.lines[(*path, name)] = key.start_mark.line + 1
            result[name] = self.value(item, (*path, name))
        return result

    def entries(self, node: yaml.MappingNode, path: Path) -> dict[str, Entry]:
        """The keys of a map with those that `<<` brings in, which its own keys hide, as earlier maps hide later."""
        own: dict[str, Entry] = {}
        merged: dict[str, Entry] = {}
        for key, item in self.pairs(node, path):
            if key.value == "<<" and key.style is None:
                for source in item.value if isinstance(item, yaml.SequenceNode) else [item]:
                    if isinstance(source, yaml.MappingNode):
                        merged = {**self.merged_entries(source, path), **merged}
                    else:
                        self.problem("'<<' takes a map or a list of maps", path, key, code="JM006")
            elif key.value in own:
                first = own[key.value][0].start_mark.line + 1
                message = f"duplicate key; the first is on line {first}"
                self.problem(message, (*path, key.value), key, code="JM005")
            else:
                own[key.value] = (key, item)
        return {**merged, **own}

    def merged_entries(self, node: yaml.MappingNode, path: Path) -> dict[str, Entry]:
        """The keys that a map gives to another, which may itself have them from a third."""
        self.enter(node, path)
        self.count += len(node.value)  # each is copied
        try:
            return self.entries(node, path)
        finally:
            self.open.pop()

    def enter(self, node: yaml.Node, path: Path) -> None:
        """Count a node and put it among those that are open; an alias must not lead back into one of them."""
        self.count += 1
        line = node.start_mark.line + 1
        if self.count > MAX_NODES:
            message = f"aliases expand to more than {MAX_NODES:,} values"
            raise RecipeError(Problem(message, file=self.file, line=line, code="JM007"))
        if any(node is outer for outer in self.open):
            message = "an anchor contains itself"
            raise RecipeError(Problem(message, show_path(path), self.file, line, code="JM007"))
        self.open.append(node)

    def pairs(self, node: yaml.MappingNode, path: Path) -> list[tuple[yaml.ScalarNode, yaml.Node]]:
        pairs = []
        for key, item in node.value:
            if isinstance(key, yaml.ScalarNode):
                pairs.append((key, item))
            else:
                self.problem("a key must be a string", path, key, code="JM006")
        return pairs

    def problem(self, message: str, path: Path, node: yaml.Node, *, code: str) -> None:
        line = node.start_mark.line + 1
        self.problems.append(Problem(message, show_path(path), self.file, line, code))
