"""Renew the sections of README.md that are made of other things: the methods' declarations, the matrix of families.

python tools/readme.py              rewrite the table of methods
python tools/readme.py --families   rewrite the table of families too, from merges of all of them (minutes)
python tools/readme.py --check      only say whether it is current
"""

from __future__ import annotations

import argparse
import importlib
import sys
import tempfile
from pathlib import Path

import yaml

from jmerge.report.methods import methods_markdown

ROOT = Path(__file__).resolve().parent.parent
METHODS, FAMILIES = "methods", "families"  # the sections


def marks(section: str) -> tuple[str, str]:
    """The lines before and after a section."""
    return f"<!-- {section}: made by tools/readme.py -->\n", f"<!-- end of {section} -->\n"


def recipes(folder: Path) -> dict[str, list[tuple[str, str]]]:
    """Name and link of the recipes in a folder beside the README, by the method that they use."""
    found: dict[str, list[tuple[str, str]]] = {}
    for path in sorted(folder.glob("*.yml")):
        method = yaml.safe_load(path.read_text(encoding="utf-8"))["merge_method"]
        found.setdefault(method, []).append((path.stem, f"{folder.name}/{path.name}"))
    return found


def methods() -> str:
    """The section on methods."""
    return methods_markdown(recipes(ROOT / "configs"))


def families() -> str:
    """The table of families; AssertionError when a merge of one does not hold."""
    sys.path.insert(0, str(ROOT / "tests" / "families"))
    with tempfile.TemporaryDirectory() as folder:
        table = importlib.import_module("familytable").families_markdown(Path(folder))
    return str(table)


def parts(readme: str, section: str) -> tuple[str, str, str]:
    """What stands before a section's text, that text, and what follows; ValueError when the section's marks are not
    there once, in order."""
    first, last = marks(section)
    before, found_first, rest = readme.partition(first)
    text, found_last, after = rest.partition(last)
    if not (found_first and found_last) or first in rest or last in before + after:
        raise ValueError(f"README.md needs the lines {first.strip()} and {last.strip()} once each")
    return before + first, text, last + after


def renewed(readme: str, section: str, text: str) -> str:
    """The README with another text in a section."""
    before, _, after = parts(readme, section)
    return before + text + after


def main() -> None:
    """Renew the sections, or check them."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--families", action="store_true", help="merge all families for their table"
    )
    parser.add_argument("--check", action="store_true", help="change nothing; exit 1 when stale")
    options = parser.parse_args()
    file = ROOT / "README.md"
    old = file.read_text(encoding="utf-8")
    new = renewed(old, METHODS, methods())
    if options.families:
        new = renewed(new, FAMILIES, families())
    if new == old:
        print("README.md is current")
    elif options.check:
        sys.exit("README.md is stale; python tools/readme.py --families renews its tables")
    else:
        file.write_text(new, encoding="utf-8")
        print("README.md is renewed")


if __name__ == "__main__":
    main()
