"""What differs between two models, in tables for a terminal."""

from __future__ import annotations

import io
import json
import math
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, Literal

from jmerge.diff.compare import Compared, Difference
from jmerge.diff.groups import by_layer, by_part, most_changed, stacks
from jmerge.diff.pairs import Lone, Pair
from jmerge.diff.sums import Sums, index_of
from jmerge.errors import Problem
from jmerge.report.show import count, size, tensors

if TYPE_CHECKING:
    from rich.table import Table

WIDE = 10_000  # letters of a line without end, so that `grep` finds whole names
SHOWN = 20  # tensors in the table of those that changed most
LISTED = 8  # lines of any other list
# Parts with a column of their own in the table of layers, in this order, as far as there is room.
COLUMNS = ("attention", "mlp", "experts", "router", "recurrent", "norm", "other")


def diff_text(found: Difference, width: int = 80) -> str:
    """What was found, in tables of that many letters: what changed most first, then sums by part and by layer."""
    blocks = ["\n".join(_head(found))]
    if changed := most_changed(found.tensors):
        blocks += [
            _rendered(_tensor_table(found, changed), width),
            _rendered(_part_table(found), width),
        ]
        blocks += [_rendered(_layer_table(*each), width) for each in stacks(found).items()]
    blocks += ["\n".join(lines) for lines in _lists(found)]
    return "\n\n".join(blocks)


def percent(share: float | None) -> str:
    """A share for people: 12.3 %, 0.0123 %."""
    if share is None:
        return "-"
    value = 100 * share
    if value in (0, 100):
        return f"{value:.0f} %"
    if 99.9 < value < 100:
        return f"{math.floor(value * 1000) / 1000:.3f} %"
    value = float(f"{value:.3g}")
    digits = max(0, min(4, 2 - math.floor(math.log10(abs(value)))))
    return f"{value:.{digits}f} %" if 1e-4 <= abs(value) < 1e6 else f"{value:.1e} %"


def cosine(value: float | None) -> str:
    """A cosine for people, never rounded up to 1."""
    if value is None:
        return "-"
    return "1" if value == 1 else f"{min(value, 0.999999):.6f}"


def summary(found: Difference) -> str:
    """All tensors in one line."""
    total, same = found.total, sum(each.sums.identical for each in found.tensors)
    compared = f"{tensors(len(found.tensors))} in both ({count(total.elements)} parameters)"
    if found.same_weights:
        return f"{compared}, every byte the same"
    return f"{compared}, {same} of them identical"


def _head(found: Difference) -> Iterator[str]:
    for side, model in (("A", found.a), ("B", found.b)):
        nbytes = sum(entry.spec.nbytes for entry in model.index.values())
        yield f"{side}  {Problem(str(model.path))}: {tensors(len(model.index))}, {size(nbytes)}"
    for problem in found.problems[:LISTED]:
        yield f"PROBLEM: {problem}"
    if len(found.problems) > LISTED:
        yield f"and {len(found.problems) - LISTED} problems more"
    yield summary(found)
    total = found.total
    if total.changed:
        yield (
            f"changed by {percent(total.relative)} of the norm of A, cosine {cosine(total.cosine)}, "
            f"{percent(total.sign_agreement)} of signs agree"
        )


def _tensor_table(found: Difference, changed: list[Compared]) -> Table:
    more = f" (of {len(changed)}; --json has all)" if len(changed) > SHOWN else ""
    columns = ("change", "cosine", "signs", "largest")
    prefixes = list(stacks(found))
    if len(prefixes) == 1:  # which goes without saying, and leaves room
        title = f"most changed tensors{more}, in layers of {Problem(prefixes[0])}"
        table = _table(title, "layer", "tensor", *columns)
    else:
        table = _table(f"most changed tensors{more}", "tensor", *columns)
    for pair, sums in changed[:SHOWN]:
        cells = [*_cells(sums), largest(pair, sums)]
        place, name = pair.place, both_names(pair)
        if len(prefixes) == 1:
            layer = "" if place.layer is None else str(place.layer)
            inner = place.template.partition("{}.")[2] if layer else name
            cells = [layer, str(Problem(inner)), *cells]
        else:
            cells = [str(Problem(name)), *cells]
        table.add_row(*cells)
    return table


def both_names(pair: Pair) -> str:
    """The name of a tensor, or its two names."""
    return pair.name if pair.name_a == pair.name_b else f"{pair.name_a} | {pair.name_b}"


def largest(pair: Pair, sums: Sums) -> str:
    """The element that changed most, for people; empty when none did."""
    if sums.largest is None:
        return ""
    place = ",".join(map(str, index_of(sums.largest.element, pair.a.spec.shape)))
    return f"{sums.largest.change:+.3g} at [{place}]"


def _part_table(found: Difference) -> Table:
    table = _table("by part", "part", "tensors", "parameters", "change", "cosine", "signs")
    for part, several, sums in by_part(found.tensors):
        table.add_row(part, str(several), count(sums.elements), *_cells(sums))
    return table


def _layer_table(stack: str, tensors: list[Compared]) -> Table:
    rows = list(by_layer(tensors))
    there = [part for part in COLUMNS if any(part in parts for _, _, parts in rows)]
    there = there[:4]
    table = _table(f"by layer of {Problem(stack)}", "layer", "change", "cosine", "signs", *there)
    for layer, sums, parts in rows:
        cells = [percent(parts[part].relative) if part in parts else "" for part in there]
        table.add_row(str(layer), *_cells(sums), *cells)
    return table


def _cells(sums: Sums) -> tuple[str, str, str]:
    return percent(sums.relative), cosine(sums.cosine), percent(sums.sign_agreement)


def _table(title: str, first: str, *others: str) -> Table:
    from rich.table import Table  # slow to import

    table = Table(title=title, title_justify="left", title_style="", box=None, pad_edge=False)
    table.add_column(first, overflow="fold")
    for name in others:
        left = name == "tensor"
        folds = name in ("tensor", "largest")
        justify: Literal["left", "right"] = "left" if left else "right"
        table.add_column(name, justify=justify, overflow="fold", no_wrap=not folds)
    return table


def _rendered(table: Table, width: int) -> str:
    from rich.console import Console

    file = io.StringIO()
    console = Console(file=file, width=width, color_system=None, markup=False, highlight=False)
    console.print(table)
    return "\n".join(line.rstrip() for line in file.getvalue().splitlines())


def _lists(found: Difference) -> Iterator[list[str]]:
    """What is only in one model or cannot be compared, and what differs beside the weights."""
    if found.unlike:
        yield _list(
            f"{tensors(len(found.unlike))} not compared",
            [f"{Problem(pair.name)}: {pair.why_not}" for pair in found.unlike],
        )
    for side, lone in (("A", found.only_a), ("B", found.only_b)):
        if lone:
            yield _list(f"{tensors(len(lone))} only in {side}", list(lone_lines(lone)))
    beside = found.beside
    if beside.config:
        lines = [
            f"{Problem(c.key)}: {config_value(c.values, 'a')} -> {config_value(c.values, 'b')}"
            for c in beside.config
        ]
        yield _list("config.json (A -> B)", lines)
    differing = [
        f"{Problem(name)}: {state}" for name, state in beside.files.items() if state != "same"
    ]
    if differing:
        yield _list("files", differing)
    if note := tokens_line(found):
        yield [note]


def tokens_line(found: Difference) -> str:
    """How the tokens differ, in a line; empty when there is nothing to say."""
    tokens = found.beside.tokens
    if tokens is None:
        unreadable = found.beside.unreadable
        return f"tokens are not compared: {unreadable}" if unreadable else ""
    return (
        f"tokens: {tokens.same:,} with one id in both, {tokens.moved:,} with another id, "
        f"{tokens.only_a:,} only in A, {tokens.only_b:,} only in B"
    )


def lone_lines(lone: Iterable[Lone]) -> Iterator[str]:
    """A line for all tensors of one name in a stack of layers."""
    groups: dict[str, list[Lone]] = {}
    for each in lone:
        groups.setdefault(each.place.template, []).append(each)
    for template, group in groups.items():
        layers = sorted(each.place.layer for each in group if each.place.layer is not None)
        many = f"  ({len(group)}, layers {_spans(layers)})" if len(group) > 1 else ""
        name = template if many else group[0].name
        yield f"{Problem(name)}: {group[0].spec}{many}"


def _spans(layers: list[int]) -> str:
    """Sorted numbers in short: 0-3, 7."""
    spans: list[list[int]] = []
    for layer in layers:
        if spans and spans[-1][1] == layer - 1:
            spans[-1][1] = layer
        else:
            spans.append([layer, layer])
    return ", ".join(f"{first}-{last}" if first < last else str(first) for first, last in spans)


def config_value(values: Mapping[str, Any], side: str) -> str:
    """What one of the configs says of a field, for people."""
    text = json.dumps(values[side], ensure_ascii=False) if side in values else "not there"
    return str(Problem(text if len(text) <= 200 else text[:200] + " ..."))


def _list(title: str, lines: list[str]) -> list[str]:
    shown = [f"  {line}" for line in lines[:LISTED]]
    more = len(lines) - LISTED
    return [title, *shown, *([f"  and {more} more"] if more > 0 else [])]
