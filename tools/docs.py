"""Renew what is generated in jmerge/docs: tables, example recipes, the API reference; and build the site.

python tools/docs.py               renew everything but the table of families
python tools/docs.py --families    renew that too, by merging a tiny model of every family (minutes)
python tools/docs.py --check       change nothing; exit 1 when a page is stale
python tools/docs.py --site        build the site into site/; exit 1 on a broken link or any other warning
"""

from __future__ import annotations

import argparse
import importlib
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import benchchart
import sweeprecord
import yaml
from docsapi import api_markdown

from jmerge.report.methods import methods_markdown

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "jmerge" / "docs"
SITE = ROOT / "tools" / "zensical.toml"
METHODS, FAMILIES, EXAMPLES, API = "methods", "families", "examples", "api"
SPEED, SWEEP = "speed", "sweep"
ELSEWHERE = {SPEED: "running", SWEEP: "families"}  # the others are in the page of their name


def marks(section: str) -> tuple[str, str]:
    """The lines before and after a section."""
    return f"<!-- {section}: made by tools/docs.py -->\n", f"<!-- end of {section} -->\n"


def recipes() -> dict[str, list[tuple[str, str]]]:
    """Label and link of the example recipes, by the method that they use."""
    found: dict[str, list[tuple[str, str]]] = {}
    for path in sorted((ROOT / "configs").glob("*.yml")):
        method = yaml.safe_load(path.read_text(encoding="utf-8"))["merge_method"]
        found.setdefault(method, []).append((path.stem, f"examples.md#{path.stem}"))
    return found


def methods() -> str:
    """The table of methods."""
    return methods_markdown(recipes())


def examples() -> str:
    """Every recipe of configs/, under a heading of its own."""
    parts = []
    for path in sorted((ROOT / "configs").glob("*.yml")):
        lines = path.read_text(encoding="utf-8").splitlines()
        about = [line[2:] for line in lines if line.startswith("# ") and "$schema" not in line]
        body = "\n".join(line for line in lines if not line.startswith("#"))
        parts.append(f"\n## {path.stem}\n\n{chr(10).join(about)}\n\n```yaml\n{body.strip()}\n```\n")
    return "".join(parts)


def families() -> str:
    """The table of families; AssertionError when a merge of one does not hold."""
    sys.path.insert(0, str(ROOT / "tests" / "families"))
    with tempfile.TemporaryDirectory() as folder:
        table = importlib.import_module("familytable").families_markdown(Path(folder))
    return str(table)


def speed() -> str:
    """The table of the figures that the chart of speed and memory shows."""
    found = benchchart.read(benchchart.RESULTS.read_text(encoding="utf-8"))
    programs = {"jmerge": "jmerge", "other": found.other, "floor": "floor"}
    heads = ["merge", *programs.values()]
    lines = [f"{found.machine}; {found.day}.", "", row(heads), row(["---"] * len(heads))]
    for method, by_program in found.figures.items():
        figures = [by_program.get(program) for program in programs]
        cells = [
            f"{each.seconds:.1f} s, {each.gigabytes:.2f} GB" if each else "" for each in figures
        ]
        lines.append(row([f"`{method}`", *cells]))
    return "\n".join(["", *lines, "", ""])


def sweep() -> str:
    """What the last sweep over all types of transformers found."""
    return sweeprecord.markdown(sweeprecord.RESULTS.read_text(encoding="utf-8"))


def row(cells: list[str]) -> str:
    """A line of a table."""
    return f"| {' | '.join(cells)} |"


# in a moment
MADE = {METHODS: methods, EXAMPLES: examples, API: api_markdown, SPEED: speed, SWEEP: sweep}


def page_of(section: str) -> Path:
    """The page that a section is in."""
    return DOCS / f"{ELSEWHERE.get(section, section)}.md"


def parts(page: str, section: str) -> tuple[str, str, str]:
    """What stands before a section's text, that text, and what follows; ValueError when the section's marks are not
    there once, in order."""
    first, last = marks(section)
    before, found_first, rest = page.partition(first)
    text, found_last, after = rest.partition(last)
    if not (found_first and found_last) or first in rest or last in before + after:
        raise ValueError(f"the page needs the lines {first.strip()} and {last.strip()} once each")
    return before + first, text, last + after


def renewed(page: str, section: str, text: str) -> str:
    """The page with another text in a section."""
    before, _, after = parts(page, section)
    return before + text + after


def stale(with_families: bool = False) -> dict[Path, str]:
    """The pages whose generated section is not current, with the text that they should have."""
    makers = MADE | ({FAMILIES: families} if with_families else {})
    found: dict[Path, str] = {}
    for section, make in makers.items():
        page = page_of(section)
        old = found.get(page) or page.read_text(encoding="utf-8")
        if (new := renewed(old, section, make())) != old:
            found[page] = new
    return found


def build_site(out: Path = ROOT / "site") -> subprocess.CompletedProcess[str]:
    """Build the site into `out`, replacing what is there; a warning fails the build.

    zensical keeps to one folder, so it gets copies of its configuration and of the pages.
    """
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        shutil.copy(SITE, folder)
        shutil.copytree(DOCS, folder / "docs", ignore=shutil.ignore_patterns("*.py", "__pycache__"))
        command = [sys.executable, "-m", "zensical", "build", "--strict"]
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
        if not done.returncode:
            shutil.rmtree(out, ignore_errors=True)
            shutil.copytree(folder / "site", out)
    return done


def main() -> None:
    """Renew the pages, or check that they are current."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--families", action="store_true", help="merge all families for their table"
    )
    parser.add_argument("--check", action="store_true", help="change nothing; exit 1 when stale")
    parser.add_argument("--site", action="store_true", help="build the site")
    options = parser.parse_args()
    if options.site:
        done = build_site()
        print(done.stdout + done.stderr)
        sys.exit(done.returncode and 1)
    found = stale(options.families)
    names = ", ".join(page.name for page in found) or "nothing"
    if options.check:
        sys.exit(f"stale: {names}; python tools/docs.py renews them" if found else 0)
    for page, text in found.items():
        page.write_text(text, encoding="utf-8")
    print(f"renewed: {names}")


if __name__ == "__main__":
    main()
