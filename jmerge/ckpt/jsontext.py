"""JSON of files that nobody vouches for, to plain values; what is ambiguous or absurd is refused with its reason."""

from __future__ import annotations

import json
import re
from typing import Any

MAX_DEPTH = 100  # of nesting: real files have up to ten, and copying a value takes two Python frames a level
MAX_NAME = (
    4096  # letters of a key: real ones have up to 200, and patterns are matched against all of them
)
NAN = float("nan")  # one for all, so that values that hold it are equal
SURROGATE = re.compile("[\ud800-\udfff]")


def parse_object(data: bytes) -> dict[str, Any]:
    """The JSON object that `data` is, as `parse_json` reads it; ValueError when it is none."""
    value = parse_json(data)
    if not isinstance(value, dict):
        raise ValueError("is not a JSON object")
    return value


def parse_json(data: bytes, *, repeats: bool = False, constants: bool = False) -> Any:
    """The JSON that `data` is, UTF-8, and with no key twice in a map.

    Args:
      data: the text.
      repeats: accept a key that stands twice with the same value, as hands leave it.
      constants: accept `NaN` and `Infinity` (of time limits of Mamba layers), which Python writes and transformers reads.

    Raises:
      ValueError: it is none; the message follows the name of the file.
    """

    def no_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        entries = dict(pairs)
        if len(entries) != len(pairs):
            seen: dict[str, Any] = {}
            for name, value in pairs:
                if name in seen and not (repeats and seen[name] == value):
                    raise ValueError(f"the name {name!r} appears twice")
                seen[name] = value
        return entries

    def constant(word: str) -> float:
        if constants:
            return NAN if word == "NaN" else float(word)
        raise ValueError(f"{word} is not a JSON number")

    try:
        return json.loads(
            data.decode("utf-8"), object_pairs_hook=no_repeats, parse_constant=constant
        )
    except RecursionError:
        raise ValueError(f"is not valid JSON: nested deeper than {MAX_DEPTH}") from None
    except ValueError as error:
        raise ValueError(f"is not valid JSON: {error}") from error


def check_values(value: Any) -> None:
    """ValueError when something in `value` is nested deeper than `MAX_DEPTH`, has a key longer than `MAX_NAME`, or holds
    text that cannot be written again (half of a surrogate pair). For maps whose values are not looked at one by one."""
    level: list[Any] = [value]
    for _ in range(MAX_DEPTH):
        if not level:
            return
        below: list[Any] = []
        for item in level:
            if isinstance(item, dict):
                for key in item:
                    if len(key) > MAX_NAME:
                        raise ValueError(f"has a key of {len(key):,} characters: {key[:40]}...")
                below += item
                below += item.values()
            elif isinstance(item, list):
                below += item
            elif isinstance(item, str) and not item.isascii() and SURROGATE.search(item):
                raise ValueError(f"holds text that is not Unicode: {item[:40]!r}")
        level = below
    if level:
        raise ValueError(f"is nested deeper than {MAX_DEPTH}")
