"""Heat maps over the layers and parts of a stack: how much each of its tensors changed."""

from __future__ import annotations

import html
import statistics
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from jmerge.arch.parts import ROW_ORDER
from jmerge.diff.compare import Compared
from jmerge.diff.sums import Sums, add_up
from jmerge.errors import Fault
from jmerge.report.diff import both_names, cosine, largest, percent
from jmerge.report.show import count

WHOLE = "whole layer"
ROW_HEIGHT, AROUND = 24, 96  # pixels of a row, and of all above and below the rows
LETTER = 7  # pixels, at most on average
FONT = {"family": "system-ui, sans-serif", "size": 12, "color": "#1f2933"}
CONFIG = {"displaylogo": False, "responsive": True, "displayModeBar": False}


class Chart(NamedTuple):
    """One of the numbers that heat maps show."""

    key: str
    title: str
    says: str  # what it is, in a sentence
    value: Callable[[Sums], float | None]
    shown: Callable[[float | None], str]
    colours: tuple[str, str, str]  # from the value of no change to that of the most
    least: float  # the value of no change
    room: float  # the smallest range that the colours are stretched over


# Of one lightness each, from nearly white to dark, so that they can be told apart in grey too.
CHARTS = (
    Chart(
        "change",
        "Relative change",
        "The norm of B - A over the norm of A.",
        lambda sums: sums.relative,
        percent,
        ("#f7fbff", "#6baed6", "#08306b"),
        0.0,
        1e-6,
    ),
    Chart(
        "cosine",
        "Cosine",
        "Of the angle between A and B: 1 where they point the same way, 0 where they have nothing in common.",
        lambda sums: sums.cosine,
        cosine,
        ("#fcfbfd", "#9e9ac8", "#3f007d"),
        1.0,
        1e-6,
    ),
    Chart(
        "signs",
        "Sign agreement",
        "The share of elements with one sign in A and B, of those that are zero in neither.",
        lambda sums: sums.sign_agreement,
        percent,
        ("#f7fcf5", "#74c476", "#00441b"),
        1.0,
        1e-4,
    ),
)


def stack_charts(number: int, prefix: str, tensors: Sequence[Compared]) -> dict[str, Any]:
    """The heat maps of one stack of layers, for the page's template; `number` makes their names differ."""
    rows: dict[str, dict[int, list[Compared]]] = {WHOLE: {}}
    parts: dict[str, str] = {}
    for each in tensors:
        place = each.pair.place
        assert place.layer is not None
        parts.setdefault(place.row, place.part)
        for row in (WHOLE, place.row):
            rows.setdefault(row, {}).setdefault(place.layer, []).append(each)
    order = {part: i for i, part in enumerate(ROW_ORDER)}
    names = [WHOLE, *sorted(parts, key=lambda row: order.get(parts[row], len(order)))]
    layers = sorted(rows[WHOLE])
    cells = [
        [_cell(rows[name][layer]) if layer in rows[name] else None for layer in layers]
        for name in names
    ]
    title = str(Fault(prefix)) or "layers"
    return {
        "title": title,
        "layers": len(layers),
        "charts": [
            {
                "title": chart.title,
                "says": chart.says,
                "html": _heat_map(f"stack{number}-{chart.key}", chart, layers, names, cells),
            }
            for chart in CHARTS
        ],
    }


class _Cell(NamedTuple):
    sums: Sums
    says: str  # what is shown of it besides its value


def _cell(group: Sequence[Compared]) -> _Cell:
    """A cell that stands for one tensor, or for several together."""
    sums = add_up(each.sums for each in group)
    first = group[0].pair
    if len(group) == 1:
        says = [both_names(first), f"{first.a.spec} in A, {first.b.spec} in B"]
    else:
        says = [f"{len(group)} tensors, {count(sums.elements)} parameters"]
    says += [f"{chart.title.lower()}: {chart.shown(chart.value(sums))}" for chart in CHARTS]
    if len(group) == 1 and sums.largest is not None:
        says.append(f"largest change: {largest(first, sums)}")
    return _Cell(sums, "<br>".join(html.escape(str(Fault(line))) for line in says))


def _heat_map(
    name: str,
    chart: Chart,
    layers: list[int],
    rows: list[str],
    cells: list[list[_Cell | None]],
) -> str:
    """One heat map: a figure with its data, as a piece of HTML."""
    import plotly.graph_objects as go

    values = [[None if cell is None else chart.value(cell.sums) for cell in row] for row in cells]
    low, high, beyond = _range(chart, [v for row in values for v in row if v is not None])
    says = [
        [
            f"<b>layer {layer}, {html.escape(row)}</b><br>{'not there' if cell is None else cell.says}"
            for layer, cell in zip(layers, line, strict=True)
        ]
        for row, line in zip(rows, cells, strict=True)
    ]
    up = chart.least == 0  # whether larger values are of more change
    colours = chart.colours if up else chart.colours[::-1]
    ticks = [low + (high - low) * i / 4 for i in range(5)]
    texts = [chart.shown(tick) for tick in ticks]
    if beyond:
        texts[-1 if up else 0] = ("≥ " if up else "≤ ") + texts[-1 if up else 0]
    figure = go.Figure(
        go.Heatmap(
            z=values,
            x=layers,
            y=[html.escape(row) for row in rows],
            customdata=says,
            hovertemplate="%{customdata}<extra></extra>",
            zmin=low,
            zmax=high,
            colorscale=[[i / 2, colour] for i, colour in enumerate(colours)],
            xgap=1,
            ygap=1,
            colorbar={
                "thickness": 12,
                "outlinewidth": 0,
                "tickvals": ticks,
                "ticktext": texts,
                "ticks": "",
                "len": 1,
                "xpad": 6,
            },
        )
    )
    figure.update_layout(
        template="none",
        font=FONT,
        height=ROW_HEIGHT * len(rows) + AROUND,
        # fixed, so that the layers of all charts stand below each other
        margin={
            "l": LETTER * max(map(len, map(_short, rows))) + 8,
            "r": 104,
            "t": 6,
            "b": 44,
            "autoexpand": False,
        },
        paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="#cbd2d9",
        hoverlabel={"align": "left", "font": {**FONT, "color": "#1f2933"}, "bgcolor": "#ffffff"},
        xaxis={"title": {"text": "layer", "standoff": 8}, "showgrid": False, "zeroline": False},
        yaxis={
            "autorange": "reversed",
            "ticklabelstandoff": 6,
            "showgrid": False,
            "type": "category",
            "tickmode": "array",
            "tickvals": list(range(len(rows))),
            "ticktext": [html.escape(_short(row)) for row in rows],
            "ticks": "",
        },
    )
    if len(layers) <= 24:
        figure.update_xaxes(tickmode="array", tickvals=layers)
    text: str = figure.to_html(
        full_html=False, include_plotlyjs=False, config=CONFIG, div_id=name, default_width="100%"
    )
    return text


def _range(chart: Chart, values: list[float]) -> tuple[float, float, bool]:
    """The values of the first and the last colour, and whether some lie beyond: a few that are far from all others
    would leave these one colour."""
    apart = sorted(abs(value - chart.least) for value in values)
    most = apart[-1] if apart else 0.0
    usual = statistics.quantiles(apart, n=20)[-1] if len(apart) >= 20 else most
    beyond = most > 4 * usual > 0
    span = max(usual if beyond else most, chart.room)
    low, high = (0.0, span) if chart.least == 0 else (chart.least - span, chart.least)
    return low, high, beyond


def _short(row: str) -> str:
    """The name of a row that leaves room for the chart."""
    return row if len(row) <= 28 else f"...{row[-26:]}"
