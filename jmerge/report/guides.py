"""The guides of `jmerge/docs`, for terminals."""

from __future__ import annotations

import io
import re
from pathlib import Path

from rich.console import Console
from rich.markdown import Markdown

from jmerge.names import did_you_mean

DOCS = Path(__file__).resolve().parent.parent / "docs"
WIDEST = 100  # columns of text that are still easy to read
LINK = re.compile(r"\[([^\]]+)\]\((?!https?:)[^)]*\)")
IMAGE = re.compile(r"^!\[.*\]\(.*\)\n", re.MULTILINE)
COMMENT = re.compile(r"^<!--.*?-->\n", re.MULTILINE)


def topics() -> dict[str, Path]:
    """The page of every topic, by its name."""
    pages = sorted(DOCS.glob("*.md"), key=lambda page: page.stem.lower())
    return {page.stem.lower(): page for page in pages if page.stem != "index"}


def topics_text() -> str:
    """A line for each topic."""
    found = topics()
    width = max(map(len, found))
    lines = [f"  {name:<{width}}  {_title(page)}" for name, page in found.items()]
    return "\n".join(["Topics:", "", *lines, "", "jmerge help TOPIC prints one."])


def guide(topic: str, width: int, *, color: bool = False) -> str:
    """A page, rendered for a terminal of `width` columns; ValueError when there is no such topic."""
    found = topics()
    if topic.lower() not in found:
        raise ValueError(
            f"'{topic}' is not a topic{did_you_mean(topic.lower(), list(found), show=40)}"
        )
    text = found[topic.lower()].read_text(encoding="utf-8")
    text = IMAGE.sub("", COMMENT.sub("", text))
    text = LINK.sub(r"\1", text)  # other pages are topics too, which a terminal cannot follow
    console = Console(
        file=io.StringIO(),
        width=min(width, WIDEST),
        force_terminal=color,
        color_system="standard" if color else None,
        legacy_windows=False,
    )
    with console.capture() as capture:
        console.print(Markdown(text))
    return "\n".join(line.rstrip() for line in capture.get().splitlines())


def _title(page: Path) -> str:
    with page.open(encoding="utf-8") as lines:
        return next(line for line in lines if line.startswith("# "))[2:].strip()
