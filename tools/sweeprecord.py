"""Keep what `tools/sweep.py` found beside it, a line for each type, for the docs' page of families.

python tools/sweep.py OUT             try all types (an hour of one core)
python tools/sweeprecord.py OUT       keep the results in tools/sweep.jsonl
python tools/docs.py                  show them
"""

from __future__ import annotations

import argparse
import datetime
import json
import re
import sys
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from jmerge.version import VERSION

RESULTS = Path(__file__).resolve().parent / "sweep.jsonl"
RIGHT = "right"
TRIES = {"linear": "`linear`", "slerp": "`slerp`", "ties": "`ties`", "stack": "a stack of layers"}
WORDS = {"none": "not possible"}  # for statuses that are none
SHARED = 3  # types that cannot be built for one reason, for the docs to name it
Outcomes = dict[str, str]  # how each kind of try ended: "right", or a status and its reason


def outcomes(lines: Iterable[Mapping[str, Any]]) -> dict[str, Outcomes]:
    """How the tries of every type ended, of the lines that `tools/sweep.py` wrote; the last one counts."""
    found: dict[str, Outcomes] = {}
    for line in lines:
        status = str(line["status"])
        told = status if status == RIGHT else f"{WORDS.get(status, status)}: {reason(line)}"
        found.setdefault(line["type"], {})[line["kind"]] = told
    return found


def reason(line: Mapping[str, Any]) -> str:
    """Why a try did not end as right. What jmerge says is without names, numbers and the advice at its end, so that
    types with one cause share it."""
    text = str(line.get("detail") or line.get("cause") or "").partition("\n")[0]
    if line["kind"] == "build":
        text = re.sub(r"^(?:[A-Z]\w+: )+", "", text)  # the class, and the errors that Python raised
        return text.partition(". ")[0].rstrip(".") or str(line["cause"])
    text = re.sub(r"^.*?\bslices: ", "", text).partition("; ")[0]
    text = re.sub(r"(?<!\w)'[^']*'|\[[^\]]*\]", "...", text)
    return re.sub(r"\b\d[\d,.]*(?:, \d+)*\b", "N", text)


def write(out: Path, names: Iterable[str], transformers: str) -> str:
    """The text to keep, of a sweep over types with these names; ValueError when it has not tried all of them."""
    text = (out / "results.jsonl").read_text(encoding="utf-8")
    found = outcomes(json.loads(line) for line in text.splitlines())
    tried = {name for name, each in found.items() if each.keys() >= TRIES.keys() or len(each) == 1}
    if missing := sorted(set(names) - tried):
        raise ValueError(f"{len(missing)} types are not tried, such as {missing[0]}")
    day = datetime.date.today().isoformat()
    first = {"day": day, "jmerge": VERSION, "transformers": transformers}
    lines = [first, *({"type": name} | found[name] for name in sorted(found))]
    return "".join(f"{json.dumps(line)}\n" for line in lines)


def markdown(text: str) -> str:
    """The docs' section of results that are kept."""
    first, *lines = (json.loads(line) for line in text.splitlines())
    built = [line for line in lines if line["build"] == RIGHT]
    parts = [
        f"jmerge {first['jmerge']}, transformers {first['transformers']}, {first['day']}: of "
        f"{len(lines)} types, {len(built)} can be built.\n",
        "| merge | right | refused | wrong |\n|---|---|---|---|\n" + "".join(counts(built)),
    ]
    groups: dict[str, list[str]] = defaultdict(list)
    for line in built:
        bad = [f"{TRIES[kind]} {line[kind]}" for kind in TRIES if line[kind] != RIGHT]
        groups["; ".join(bad)].append(line["type"])
    parts.append(f"Right in all: {listed(groups.pop('', []))}.\n")
    parts.append("The others merge but for this:\n")
    parts.append("".join(bullets(groups)))
    unbuilt: dict[str, list[str]] = defaultdict(list)
    for line in lines:
        if line["build"] != RIGHT:
            unbuilt[line["build"].partition(": ")[2]].append(line["type"])
    parts.append("Not tried, as their tiny models cannot be built:\n")
    rare = {text for text, names in unbuilt.items() if len(names) < SHARED}
    shared = {text: names for text, names in unbuilt.items() if text not in rare}
    others = sorted(name for text in rare for name in unbuilt[text])
    last = f"- for other reasons, which `tools/sweep.jsonl` has ({len(others)}): {listed(others)}\n"
    parts.append("".join([*bullets(shared), last]))
    return "\n".join(["", *parts, ""])


def counts(built: list[Outcomes]) -> Iterable[str]:
    """A row of the table for each kind of try."""
    for kind, name in TRIES.items():
        ends = Counter(line[kind].partition(":")[0] for line in built)
        right, refused = ends.pop(RIGHT, 0), ends.pop("refused", 0) + ends.pop(WORDS["none"], 0)
        yield f"| {name} | {right} | {refused} | {ends.total()} |\n"


def bullets(groups: Mapping[str, list[str]]) -> Iterable[str]:
    """A line for each reason, the most frequent first."""
    for text, names in sorted(groups.items(), key=lambda each: (-len(each[1]), each[0])):
        yield f"- {text} ({len(names)}): {listed(names)}\n"


def listed(names: list[str]) -> str:
    """Names of types, as code."""
    return ", ".join(f"`{name}`" for name in names)


def main() -> None:
    """Keep the results of a sweep."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("out", type=Path, help="the folder that tools/sweep.py wrote")
    options = parser.parse_args()
    import transformers
    from transformers.models.auto import configuration_auto

    names: dict[str, str] = vars(configuration_auto)["CONFIG_MAPPING_NAMES"]
    try:
        text = write(options.out, names, transformers.__version__)
    except ValueError as error:
        sys.exit(str(error))
    RESULTS.write_text(text, encoding="utf-8")
    print(RESULTS)


if __name__ == "__main__":
    main()
