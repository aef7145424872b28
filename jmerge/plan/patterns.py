"""Names of tensors as a recipe writes them: few patterns for many names, words that YAML does not take for others."""

from __future__ import annotations

import re
from collections.abc import Iterable
from fnmatch import translate

PLAIN = re.compile(r"[A-Za-z_][\w.*/\-]*")


def patterns_of(names: Iterable[str], others: Iterable[str]) -> list[str]:
    """Patterns that match these names and none of the `others`, as few as whole parts and any layer allow."""
    left, kept = dict.fromkeys(names), "\n".join(dict.fromkeys(others))
    found: list[str] = []
    while left:
        name = next(iter(left))
        pattern = next((each for each in _wider(name) if not _matches(each, kept)), name)
        fits = re.compile(translate(pattern)).match
        matched = {any_layer(each) for each in left if fits(each)}
        if len(matched) == 1 and pattern != name:
            (pattern,) = matched  # no wider than need be
        left = {each: None for each in left if not fits(each) and each != name}
        found.append(pattern)
    return found


def excepting(patterns: Iterable[str]) -> str:
    """The line of a recipe that leaves out what these match."""
    return f"'except: [{', '.join(map(scalar, patterns))}]'"


def scalar(text: str) -> str:
    """A word as YAML writes it inside brackets."""
    return text if PLAIN.fullmatch(text) else "'" + text.replace("'", "''") + "'"


def any_layer(name: str) -> str:
    """A pattern of what is called like `name` in any layer."""
    return ".".join("*" if word.isdigit() else word for word in name.split("."))


def _wider(name: str) -> Iterable[str]:
    """Patterns for a name, the widest first: what begins with its first words, the name in any layer, the name."""
    words = any_layer(name).split(".")
    for end in range(1, len(words)):
        yield ".".join([*words[:end], "*"])
    yield ".".join(words)
    yield name


def _matches(pattern: str, lines: str) -> bool:
    """Whether a pattern matches a whole line."""
    inner = ".*".join(re.escape(part) for part in pattern.split("*"))
    return re.search(rf"^{inner}$", lines, re.MULTILINE) is not None
