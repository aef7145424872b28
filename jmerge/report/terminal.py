"""Lines for people: coloured and wrapped on a terminal, plain and whole in a file or a pipe."""

from __future__ import annotations

import os
import re
import shutil
import sys
import textwrap
from typing import Literal, TextIO

Colour = Literal["red", "yellow", "cyan"]
CODES: dict[Colour, str] = {"red": "1;31", "yellow": "33", "cyan": "36"}
HEADS: dict[str, Colour] = {"error": "red", "warning": "yellow", "note": "cyan"}
NARROWEST = 60  # letters of a line; narrower terminals wrap by themselves


def is_coloured(stream: TextIO) -> bool:
    """Whether what goes to `stream` may have colour: it is a terminal that knows them, and NO_COLOR (no-color.org) is
    unset."""
    return stream.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def paint(text: str, colour: Colour, stream: TextIO | None) -> str:
    """`text` in a colour, where there is a `stream` that may have one."""
    coloured = stream is not None and is_coloured(stream)
    return f"\x1b[{CODES[colour]}m{text}\x1b[0m" if coloured else text


def columns(stream: TextIO) -> int | None:
    """The letters in a line of the terminal that `stream` is; None for files and pipes, where `grep` finds whole lines."""
    if not stream.isatty():
        return None
    return max(shutil.get_terminal_size((80, 24)).columns, NARROWEST)


def wrap(text: str, width: int | None) -> str:
    """`text` in lines of at most `width` letters, broken between words only; None: as it is.

    What goes on below a line begins where its last column does, or two letters further in than the line.
    """
    if width is None:
        return text
    return "\n".join(_wrapped(line, width) for line in text.split("\n"))


def _wrapped(line: str, width: int) -> str:
    if len(line) <= width:
        return line
    indent = len(line) - len(line.lstrip())
    ends = [gap.end() for gap in re.finditer(r"(?<=\S) {2,}", line)]
    hang = ends[-1] if ends and ends[-1] <= width * 5 // 8 else indent + 2
    return textwrap.fill(
        line,
        width,
        subsequent_indent=" " * hang,
        break_long_words=False,
        break_on_hyphens=False,
    )


def say(line: str) -> None:
    """Print a line on standard error: its first word (`error:`, `warning:`, `note:`) in colour, the rest wrapped."""
    line = wrap(line, columns(sys.stderr))
    head = line.partition(":")[0]
    if head in HEADS:
        line = paint(f"{head}:", HEADS[head], sys.stderr) + line.removeprefix(f"{head}:")
    print(line, file=sys.stderr)
