"""Draw jmerge/docs/images/bench.svg: seconds and memory of whole merges, from what `tools/bench.py` printed.

python tools/bench.py --folder /tmp/bench --size 1.1b --merges ties,slerp --other 'mergekit-yaml' > results.txt
python tools/benchchart.py results.txt --other 'MergeKit 0.1.5'   keep these results beside the picture, and draw
python tools/benchchart.py                                        draw those that are kept
"""

from __future__ import annotations

import argparse
import datetime
import re
from html import escape
from pathlib import Path
from typing import NamedTuple

IMAGES = Path(__file__).resolve().parent.parent / "jmerge" / "docs" / "images"
RESULTS, PICTURE = IMAGES / "bench.txt", IMAGES / "bench.svg"
LINE = re.compile(r"(\w+) +(jmerge|other|floor) +([\d.]+) s .* peak RSS ([\d.]+) GB")
# In the order of the bars; the colours, and INK, can be seen on white and on black.
COLOURS = {"jmerge": "#2a7de1", "other": "#c9780c", "floor": "#8b949e"}
INK = "#7a838d"
WIDTH, TOP, BAR, GAP, GROUP = 860, 74, 10, 2, 46  # pixels
LABELS, ROOM = 130, 76  # beside the bars: for the names of methods, for a number
PANEL = (WIDTH - LABELS) // 2


class Figures(NamedTuple):
    """What one program took for one method."""

    seconds: float
    gigabytes: float


class Results(NamedTuple):
    """Kept results: figures by method and program, and what their first line says."""

    day: str
    other: str  # the name of the other program
    machine: str  # and models
    figures: dict[str, dict[str, Figures]]


def read(text: str) -> Results:
    """Kept results. ValueError when a line is not one of `tools/bench.py`."""
    first, *lines = text.splitlines()
    day, other, machine = first.split("; ", 2)
    found: dict[str, dict[str, Figures]] = {}
    for line in lines:
        match = LINE.fullmatch(line)
        if match is None:
            raise ValueError(f"not a line of tools/bench.py: {line!r}")
        method, program, seconds, memory = match.groups()
        found.setdefault(method, {})[program] = Figures(float(seconds), float(memory))
    return Results(day, other.removeprefix("other is "), machine, found)


def chart(text: str) -> str:
    """The picture of kept results, as SVG."""
    day, other, machine, found = read(text)
    names = {"jmerge": "jmerge", "other": other, "floor": "floor: read the inputs, copy one"}
    height = TOP + GROUP * len(found) + 26
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" '
        f'height="{height}" role="img" font-family="system-ui, sans-serif" font-size="13" fill="{INK}">',
        f"<title>{escape(f'Whole merges by jmerge and {other}: seconds and peak memory')}</title>",
    ]
    x = float(LABELS)
    for program, name in names.items():
        colour = COLOURS[program]
        lines.append(f'<rect x="{x:.0f}" y="8" width="12" height="12" rx="2" fill="{colour}"/>')
        lines.append(f'<text x="{x + 18:.0f}" y="18.5">{escape(name)}</text>')
        x += 50 + 7.2 * len(name)
    for i, title in enumerate(("wall seconds", "peak memory, GB")):
        numbers = [{name: each[i] for name, each in taken.items()} for taken in found.values()]
        lines += _panel(LABELS + i * PANEL, title, numbers)
    for i, method in enumerate(found):
        y = TOP + GROUP * i + 1.5 * BAR + GAP + 4.5
        lines.append(f'<text x="{LABELS - 12}" y="{y}" text-anchor="end">{method}</text>')
    about = escape(f"{machine}; {day}")
    lines.append(f'<text x="{LABELS}" y="{height - 8}" font-size="12">{about}</text>')
    return "\n".join([*lines, "</svg>", ""])


def _panel(left: int, title: str, numbers: list[dict[str, float]]) -> list[str]:
    """Bars from `left` on, in proportion to their numbers, which stand behind them."""
    most = max(max(each.values()) for each in numbers)
    lines = [f'<text x="{left}" y="{TOP - 14}" font-weight="600">{title}</text>']
    for i, each in enumerate(numbers):
        for j, (program, colour) in enumerate(COLOURS.items()):
            if program not in each:
                continue
            width = max(1.0, each[program] / most * (PANEL - ROOM))
            y = TOP + GROUP * i + (BAR + GAP) * j
            weight = ' font-weight="700"' if program == "jmerge" else ""
            lines += [
                f'<rect x="{left}" y="{y}" width="{width:.1f}" height="{BAR}" rx="1.5" fill="{colour}"/>',
                f'<text x="{left + width + 6:.1f}" y="{y + BAR - 1}" font-size="11.5"{weight}>'
                f"{_digits(each[program])}</text>",
            ]
    return lines


def _digits(number: float) -> str:
    """Three digits, of which at most two behind the point."""
    return (
        f"{number:.0f}" if number >= 100 else f"{number:.1f}" if number >= 10 else f"{number:.2f}"
    )


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("results", type=Path, nargs="?", help="what tools/bench.py printed")
    parser.add_argument(
        "--other", default="MergeKit 0.1.5", help="what the program called other is"
    )
    options = parser.parse_args()
    IMAGES.mkdir(parents=True, exist_ok=True)
    if options.results:
        text = options.results.read_text(encoding="utf-8")
        first = f"{datetime.date.today()}; other is {options.other}; "
        RESULTS.write_text(first + text, encoding="utf-8")
    PICTURE.write_text(chart(RESULTS.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main()
