"""Write jmerge/docs/errors.md, the page of all error codes.

python tools/errors.py
"""

from __future__ import annotations

import textwrap
from pathlib import Path

from jmerge.problems import AREAS, CATALOGUE

PAGE = Path(__file__).resolve().parent.parent / "jmerge" / "docs" / "errors.md"
WIDTH = 120
INTRODUCTION = """\
# Errors and warnings

Every error and warning of jmerge ends with a code, such as `[JM017]`. `jmerge explain JM017` prints the entry below.
In Python, `error.problems[0].code` has it. A code keeps its meaning from release to release.

<!-- made by tools/errors.py from jmerge/problems.py -->
"""


def errors_markdown() -> str:
    """The page: title, cause and cure of every code, by area."""
    blocks = [INTRODUCTION]
    for digit, area in AREAS.items():
        blocks.append(f"\n## {area}\n")
        for code, explanation in CATALOGUE.items():
            if code[2] == digit:
                blocks.append(f"\n### {code}: {explanation.title}\n\n")
                blocks.append(f"{_filled(explanation.cause)}\n\n{_filled(explanation.cure)}\n")
    return "".join(blocks)


def _filled(text: str) -> str:
    return textwrap.fill(text, WIDTH, break_long_words=False, break_on_hyphens=False)


if __name__ == "__main__":
    PAGE.write_text(errors_markdown(), encoding="utf-8")
