"""What differs between two models as one HTML file: heat maps and tables, with all of its code and data in it."""

from __future__ import annotations

import os
import re
from importlib.resources import files
from pathlib import Path
from typing import Any

from jmerge.arch.infer import class_names
from jmerge.ckpt.disk import environment_errors
from jmerge.ckpt.open import Checkpoint
from jmerge.diff.compare import Difference
from jmerge.diff.groups import by_part, most_changed
from jmerge.diff.sums import Sums
from jmerge.errors import PlanError, Problem
from jmerge.report.diff import (
    both_names,
    config_value,
    largest,
    lone_lines,
    percent,
    tokens_line,
)
from jmerge.report.heatmaps import Maps, heat_maps
from jmerge.report.measures import MEASURES, distance, near_one, short, shown
from jmerge.report.show import count, size, tensors
from jmerge.version import VERSION

WHERE = "--html"
TEMPLATE, STYLE, SCRIPT = "page.html.jinja", "page.css", "page.js"
BEGINNING = b"<!doctype html>"
TENSORS = 3000  # in the table; more would make a page of megabytes
LISTED = 200  # lines of any other list


def check_page(path: str | Path) -> None:
    """PlanError when a page cannot be made at `path`, before anything is compared."""
    place = Path(path)
    if place.is_dir():
        raise PlanError(Problem(f"{place} is a folder; name a file", where=WHERE, code="JM409"))
    if not place.parent.is_dir():
        raise PlanError(Problem(f"{place.parent} is not a folder", where=WHERE, code="JM409"))
    if place.is_file() and not _replaceable(place):
        raise PlanError(
            Problem(
                f"{place} exists and is not a page of jmerge; name another file",
                where=WHERE,
                code="JM409",
            )
        )


def _replaceable(place: Path) -> bool:
    """Whether a file is empty or a page, and not the weights or the recipe of somebody who mistook the order of words."""
    with environment_errors(place), place.open("rb") as file:
        return file.read(len(BEGINNING)).lower() in (b"", BEGINNING)


def write_page(found: Difference, path: str | Path) -> None:
    """Write the page; PlanError or RunError when that cannot be done."""
    check_page(path)
    text = page(found)
    with environment_errors(Path(path)):
        Path(path).write_text(text, encoding="utf-8")


def page(found: Difference) -> str:
    """The page as text."""
    from jinja2 import Environment

    template = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True).from_string(
        _text(TEMPLATE)
    )
    name_a, name_b = short_names(*(_whole_path(each) for each in (found.a, found.b)))
    maps, changed = heat_maps(found), most_changed(found.tensors)
    same = [each for each in found.tensors if not each.sums.changed]
    return template.render(
        style=_text(STYLE),
        script=_text(SCRIPT),
        version=VERSION,
        title=f"{name_b} compared with {name_a}",
        models=[_model("A", name_a, found.a), _model("B", name_b, found.b)],
        problems=_some([str(problem) for problem in found.problems]),
        cards=_cards(found),
        maps=maps,
        measures=MEASURES,
        parts=[
            _row(
                maps,
                part,
                sums,
                (f"{tensors(several)}, {short(count(sums.elements))}", several),
            )
            for part, several, sums in by_part(found.tensors)
        ],
        tensors=[
            _row(maps, both_names(pair), sums, (largest(pair, sums), _size(sums)))
            for pair, sums in [*changed, *same][:TENSORS]
        ],
        all_tensors=len(found.tensors),
        unlike=_some([f"{Problem(pair.name)}: {pair.why_not}" for pair in found.unlike]),
        only=[
            (f"{name} ({side})", tensors(len(lone)), _some(list(lone_lines(lone))))
            for side, name, lone in (("A", name_a, found.only_a), ("B", name_b, found.only_b))
        ],
        config=[
            (str(Problem(each.key)), config_value(each.values, "a"), config_value(each.values, "b"))
            for each in found.beside.config[:LISTED]
        ],
        files=[(str(Problem(name)), state) for name, state in found.beside.files.items()],
        tokens=tokens_line(found),
    )


def short_names(a: str, b: str) -> tuple[str, str]:
    """The ends of two paths or URLs that tell them apart; of those of one place, the last name."""
    parts = [[part for part in re.split(r"[/\\]", each) if part] or [each] for each in (a, b)]
    for length in range(1, max(map(len, parts)) + 1):
        one, other = ("/".join(each[-length:]) for each in parts)
        if one != other:
            return str(Problem(one)), str(Problem(other))
    return str(Problem(parts[0][-1])), str(Problem(parts[1][-1]))


def _whole_path(model: Checkpoint) -> str:
    return os.path.abspath(model.path) if isinstance(model.path, Path) else model.path


def _text(name: str) -> str:
    return files("jmerge.report").joinpath(name).read_text(encoding="utf-8")


def _model(side: str, name: str, model: Checkpoint) -> dict[str, str]:
    nbytes = sum(entry.spec.nbytes for entry in model.index.values())
    parameters = sum(entry.spec.size for entry in model.index.values())
    kind = ", ".join(class_names(model.config)) or "no class named in config.json"
    says = f"{kind}; {len(model.index):,} tensors, {short(count(parameters))} parameters, {short(size(nbytes))}"
    return {
        "side": side,
        "name": name,
        "path": str(Problem(str(model.path))),
        "says": str(Problem(says)),
    }


def _cards(found: Difference) -> list[tuple[str, str, str]]:
    """Number, name, explanation."""
    total, same = found.total, sum(each.sums.identical for each in found.tensors)
    changed = total.changed / total.elements if total.elements else None
    apart = f"; {len(found.unlike):,} in both cannot be compared" if found.unlike else ""
    alone = f"{len(found.only_a)} / {len(found.only_b)}"
    return [
        (percent(total.relative), "relative change", "the norm of B - A over that of A"),
        (near_one(total.cosine), "cosine", "over all tensors in both"),
        (percent(total.sign_agreement), "signs agree", "of elements that are zero in neither"),
        (percent(changed), "elements differ", f"of {short(count(total.elements))}"),
        (f"{len(found.tensors):,}", "tensors compared", f"{same:,} of them identical"),
        (alone, "only in A / in B", "tensors" + apart),
    ]


def _row(maps: Maps, name: str, sums: Sums, note: tuple[str, float]) -> dict[str, Any]:
    """A row of a table: the texts of its columns, and the numbers by which they are sorted."""
    change = shown(MEASURES[0], sums), distance(MEASURES[0], sums)
    others = [(shown(m, sums), m.value(sums)) for m in MEASURES[1:]]
    return {
        "name": str(Problem(name)),
        "places": maps.places(sums),
        "cells": [
            (text, "" if number is None else f"{number:.9g}".replace("inf", "Infinity"))
            for text, number in (change, *others, note)
        ],
    }


def _size(sums: Sums) -> float:
    """Of the largest change of an element."""
    return abs(sums.largest.change) if sums.largest else 0.0


def _some(lines: list[str]) -> list[str]:
    more = len(lines) - LISTED
    return [*lines[:LISTED], f"and {more:,} more"] if more > 0 else lines
