"""Renew the section of README.md that is made of the methods' declarations.

python tools/readme.py            rewrite it
python tools/readme.py --check    only say whether it is current
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import yaml

from jmerge.report.methods import methods_markdown

ROOT = Path(__file__).resolve().parent.parent
FIRST = "<!-- methods: made by tools/readme.py -->\n"
LAST = "<!-- end of methods -->\n"


def recipes(folder: Path) -> dict[str, list[tuple[str, str]]]:
    """Name and link of the recipes in a folder beside the README, by the method that they use."""
    found: dict[str, list[tuple[str, str]]] = {}
    for path in sorted(folder.glob("*.yml")):
        method = yaml.safe_load(path.read_text(encoding="utf-8"))["merge_method"]
        found.setdefault(method, []).append((path.stem, f"{folder.name}/{path.name}"))
    return found


def renewed(readme: str) -> str:
    """The README with its section on methods made anew; ValueError when its marks are not there once, in order."""
    before, first, rest = readme.partition(FIRST)
    _, last, after = rest.partition(LAST)
    if not (first and last) or FIRST in rest or LAST in before + after:
        raise ValueError(f"README.md needs the lines {FIRST.strip()} and {LAST.strip()} once each")
    return before + first + methods_markdown(recipes(ROOT / "configs")) + last + after


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--check", action="store_true", help="change nothing; exit 1 when stale")
    options = parser.parse_args()
    file = ROOT / "README.md"
    old = file.read_text(encoding="utf-8")
    new = renewed(old)
    if new == old:
        print("README.md is current")
    elif options.check:
        sys.exit("README.md is stale: its table of methods; python tools/readme.py renews it")
    else:
        file.write_text(new, encoding="utf-8")
        print("README.md is renewed")


if __name__ == "__main__":
    main()
