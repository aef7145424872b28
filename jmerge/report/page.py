"""What differs between two models as one HTML file: heat maps over layers and parts, with all of its code and data in it."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

from jmerge.arch.infer import class_names
from jmerge.ckpt.disk import environment_errors
from jmerge.ckpt.open import Checkpoint
from jmerge.diff.compare import Difference
from jmerge.diff.groups import by_part, most_changed, stacks
from jmerge.diff.sums import Sums
from jmerge.errors import Fault, PlanError
from jmerge.report.diff import (
    both_names,
    config_value,
    cosine,
    largest,
    lone_lines,
    percent,
    tensors_text,
    tokens_line,
)
from jmerge.report.heatmaps import stack_charts
from jmerge.report.show import count, size
from jmerge.version import VERSION

WHERE = "--html"
TEMPLATE = "page.html.jinja"
BEGINNING = b"<!doctype html>"
SHOWN = 30  # tensors in the list of those that changed most
LISTED = 200  # lines of any other list


def check_page(path: str | Path) -> None:
    """PlanError when a page cannot be made at `path`, before anything is compared."""
    if importlib.util.find_spec("plotly") is None:
        raise PlanError(
            Fault("needs plotly; run: pip install 'jmerge[report]'", where=WHERE, code="JM410")
        )
    place = Path(path)
    if place.is_dir():
        raise PlanError(Fault(f"{place} is a folder; name a file", where=WHERE, code="JM409"))
    if not place.parent.is_dir():
        raise PlanError(Fault(f"{place.parent} is not a folder", where=WHERE, code="JM409"))
    if place.is_file() and not _replaceable(place):
        raise PlanError(
            Fault(
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
    from plotly.offline import get_plotlyjs

    template = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True).from_string(
        files("jmerge.report").joinpath(TEMPLATE).read_text(encoding="utf-8")
    )
    changed = most_changed(found.tensors)
    return template.render(
        plotly=get_plotlyjs(),
        version=VERSION,
        models=[_model(side, model) for side, model in (("A", found.a), ("B", found.b))],
        faults=_some([str(fault) for fault in found.faults]),
        cards=_cards(found),
        stacks=[stack_charts(number, *each) for number, each in enumerate(stacks(found).items())],
        parts=_bars(_parts(found)),
        tensors=_bars([(both_names(p), s, largest(p, s)) for p, s in changed[:SHOWN]]),
        more=len(changed) - SHOWN,
        unlike=_some([f"{Fault(pair.name)}: {pair.why_not}" for pair in found.unlike]),
        only=[
            (side, len(lone), _some(list(lone_lines(lone))))
            for side, lone in (("A", found.only_a), ("B", found.only_b))
        ],
        config=[
            (str(Fault(each.key)), config_value(each.values, "a"), config_value(each.values, "b"))
            for each in found.beside.config[:LISTED]
        ],
        files=[(str(Fault(name)), state) for name, state in found.beside.files.items()],
        tokens=tokens_line(found),
    )


def _model(side: str, model: Checkpoint) -> dict[str, str]:
    nbytes = sum(entry.spec.nbytes for entry in model.index.values())
    parameters = sum(entry.spec.size for entry in model.index.values())
    kind = ", ".join(class_names(model.config)) or "no class named in config.json"
    says = f"{kind}; {len(model.index):,} tensors, {count(parameters)} parameters, {size(nbytes)}"
    return {"side": side, "path": str(Fault(str(model.path))), "says": str(Fault(says))}


def _cards(found: Difference) -> list[tuple[str, str, str]]:
    """Number, name, explanation."""
    total, same = found.total, sum(each.sums.identical for each in found.tensors)
    changed = total.changed / total.elements if total.elements else None
    apart = f"; {len(found.unlike):,} in both cannot be compared" if found.unlike else ""
    alone = f"{len(found.only_a)} / {len(found.only_b)}"
    return [
        (percent(total.relative), "relative change", "the norm of B - A over that of A"),
        (cosine(total.cosine), "cosine", "over all tensors in both"),
        (percent(total.sign_agreement), "signs agree", "of elements that are zero in neither"),
        (percent(changed), "elements differ", f"of {count(total.elements)}"),
        (f"{len(found.tensors):,}", "tensors compared", f"{same:,} of them identical"),
        (alone, "only in A / only in B", "tensors" + apart),
    ]


def _parts(found: Difference) -> list[tuple[str, Sums, str]]:
    return [
        (part, sums, f"{tensors_text(tensors)}, {count(sums.elements)} parameters")
        for part, tensors, sums in by_part(found.tensors)
    ]


def _bars(rows: Sequence[tuple[str, Sums, str]]) -> list[dict[str, Any]]:
    """Rows of a table, with bars as long as the largest of them allows."""
    most = max((sums.relative or 0.0 for _, sums, _ in rows), default=0.0)
    return [
        {
            "name": str(Fault(name)),
            "width": f"{100 * (sums.relative or 0.0) / most if most else 0:.1f}",
            "change": percent(sums.relative),
            "cosine": cosine(sums.cosine),
            "signs": percent(sums.sign_agreement),
            "note": note,
        }
        for name, sums, note in rows
    ]


def _some(lines: list[str]) -> list[str]:
    more = len(lines) - LISTED
    return [*lines[:LISTED], f"and {more:,} more"] if more > 0 else lines
