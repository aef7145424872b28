"""Heat maps of a comparison: the layers of every stack against their tensors, and the tensors outside of layers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from jmerge.arch.parts import EMBEDDING, HEAD, ROW_ORDER
from jmerge.diff.compare import Compared, Difference
from jmerge.diff.groups import stacks
from jmerge.diff.sums import Sums, add_up
from jmerge.errors import Problem
from jmerge.report.diff import both_names, largest
from jmerge.report.measures import (
    MEASURES,
    Measure,
    Scale,
    distance,
    make_scale,
    short,
    shown,
    ticks,
)
from jmerge.report.show import count, tensors

WHOLE = "whole layer"
TILES = 200  # tensors outside of layers
LABELS = 16  # layers whose number is written, at most about


class Cell(NamedTuple):
    """A coloured cell: one tensor, or several of a layer."""

    row: int  # from 0
    column: int
    places: str  # on the scale of each measure
    says: str  # what is shown of it, a line each, its title first


class Maps(NamedTuple):
    """All heat maps of a comparison, which share the scales of their colours."""

    scales: dict[str, Scale]
    legends: list[dict[str, Any]]
    outside: list[dict[str, Any]]
    stacks: list[dict[str, Any]]
    more: int  # tensors outside of layers that have no cell

    def places(self, sums: Sums) -> str:
        """Where sums are on the scale of each measure, apart by spaces."""
        return _places(self.scales, sums)


def heat_maps(found: Difference) -> Maps:
    """The heat maps for the page's template, with one scale for all cells of a measure."""
    outside = _outside(found)
    grids = {prefix: _rows(tensors) for prefix, tensors in stacks(found).items()}
    cells = [each.sums for each in outside]
    for rows in grids.values():
        for name, row in rows.items():
            if name != WHOLE:
                cells += [add_up(each.sums for each in group) for group in row.values()]
    scales = {m.key: make_scale(distance(m, sums) for sums in cells) for m in MEASURES}
    return Maps(
        scales,
        [_legend(measure, scales[measure.key]) for measure in MEASURES],
        [
            {"name": str(Problem(both_names(each.pair))), "cell": _cell([each], "", scales)}
            for each in outside[:TILES]
        ],
        [_grid(prefix, rows, scales) for prefix, rows in grids.items()],
        max(0, len(outside) - TILES),
    )


def _outside(found: Difference) -> list[Compared]:
    """The tensors outside of layers: embeddings first, heads last, the others as they follow each other in A."""
    order = {EMBEDDING: 0, HEAD: 2}
    outside = (each for each in found.tensors if each.pair.place.stack is None)
    return sorted(outside, key=lambda each: order.get(each.pair.place.part, 1))


def _rows(tensors: Sequence[Compared]) -> dict[str, dict[int, list[Compared]]]:
    """The tensors of a stack by row and layer, the row of all of them first."""
    rows: dict[str, dict[int, list[Compared]]] = {}
    parts: dict[str, str] = {}
    for each in tensors:
        place = each.pair.place
        assert place.layer is not None
        parts.setdefault(place.row, place.part)
        for row in (WHOLE, place.row):
            rows.setdefault(row, {}).setdefault(place.layer, []).append(each)
    order = {part: i for i, part in enumerate(ROW_ORDER)}
    names = [WHOLE, *sorted(parts, key=lambda row: order.get(parts[row], len(order)))]
    return {name: rows[name] for name in names}


def _grid(
    prefix: str,
    rows: Mapping[str, Mapping[int, list[Compared]]],
    scales: Mapping[str, Scale],
) -> dict[str, Any]:
    """One stack as rows, columns and cells."""
    layers = sorted(rows[WHOLE])
    every = -(-len(layers) // LABELS)
    step = next(step for step in (1, 2, 4, 5, 8, 10, 16, 20, 32, every) if step >= every)
    return {
        "title": str(Problem(prefix)) or "layers",
        "rows": [str(Problem(name)) for name in rows],
        "columns": len(layers),
        "labels": [(i, layer) for i, layer in enumerate(layers) if layer % step == 0],
        "cells": [
            _cell(rows[name][layer], f"layer {layer}, {name}", scales, i, j)
            for i, name in enumerate(rows)
            for j, layer in enumerate(layers)
            if layer in rows[name]
        ],
    }


def _cell(
    group: Sequence[Compared],
    title: str,
    scales: Mapping[str, Scale],
    row: int = 0,
    column: int = 0,
) -> Cell:
    """A cell that stands for one tensor, or for several together."""
    sums = add_up(each.sums for each in group)
    pair, first = group[0]
    says = [title] if title else []
    if len(group) == 1:
        a, b = str(pair.a.spec), str(pair.b.spec)
        says += [both_names(pair), a if a == b else f"{a} in A, {b} in B"]
    else:
        says.append(f"{tensors(len(group))}, {short(count(sums.elements))} parameters")
    says += [f"{m.title}: {shown(m, sums)}" for m in MEASURES]
    if sums.nonfinite_a or sums.nonfinite_b:
        says.append(f"NaN or infinite: {sums.nonfinite_a:,} in A, {sums.nonfinite_b:,} in B")
    if sums.identical:
        says.append("every byte the same")
    elif len(group) == 1 and first.largest is not None:
        says.append(f"Largest change: {largest(pair, first)}")
    elif len(group) > 1:
        most = max(group, key=lambda each: distance(MEASURES[0], each.sums) or 0.0)
        says.append(f"Most changed: {both_names(most.pair)}, {shown(MEASURES[0], most.sums)}")
    return Cell(row, column, _places(scales, sums), "\n".join(str(Problem(line)) for line in says))


def _places(scales: Mapping[str, Scale], sums: Sums) -> str:
    return " ".join(scales[each.key].place(distance(each, sums)) for each in MEASURES)


def _legend(measure: Measure, scale: Scale) -> dict[str, Any]:
    return {
        "key": measure.key,
        "title": measure.title,
        "says": measure.says,
        "ticks": ticks(measure, scale),
    }
