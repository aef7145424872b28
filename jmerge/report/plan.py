"""A plan for people: what the merge does and costs, then its tensors, those alike on one line; and as JSON."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any, NamedTuple

from jmerge.plan.inputs import Assembled, Gathered, Item, Result
from jmerge.plan.steps import COPY, Plan, Step
from jmerge.process import resident_bytes
from jmerge.report.show import letter, several, size, tensors

if TYPE_CHECKING:  # it loads JAX, which takes a second, and words need none
    from jmerge.engine.schedule import Schedule

LINES = 60  # of the text of any plan
LISTED = 8  # lines of any list but that of tensors
MANY = 5  # files of one folder, from which it is named instead
RUNS = 3  # of numbers in a row that a name shows; of more, the first and the last
# between dots: of a layer, an expert, a module
NUMBER = re.compile(r"(?<![^./])(\d{1,9})(?![^./])")
WORD = re.compile(r"(?<![^ ])(\d{1,9})(?![^ ,])")  # in a sentence


def plan_json(plan: Plan, schedule: Schedule, need: int) -> str:
    """The plan, its totals and warnings as one JSON object."""
    return json.dumps(
        {"totals": totals(plan, schedule, need), "plan": json.loads(plan.to_json())},
        ensure_ascii=False,
    )


def totals(plan: Plan, schedule: Schedule, need: int) -> dict[str, Any]:
    """What the merge will cost; `need` bytes of memory above this process."""
    return {
        "tensors": len(plan.outputs),
        "input_bytes": plan.read_bytes,  # each input of a step once
        "read_bytes": schedule.read_bytes,  # in all passes
        "write_bytes": plan.write_bytes,
        "peak_bytes": need,
        "kernels": len(schedule.kernels),
        "unused_tensors": len(plan.unused),
    }


def plan_text(plan: Plan, schedule: Schedule, need: int, *, every: bool = False) -> str:
    """What the merge does: totals, models, changes, what is left out, then the tensors.

    At most `LINES` lines, with tensors that differ only in the numbers of their layers or experts on one; `every`: a
    line for each tensor, and no list is cut.
    """
    most = None if every else LISTED
    lines = [*_head(plan, totals(plan, schedule, need)), ""]
    lines += _cut((f"{letter(i)} = {m.ref}" for i, m in enumerate(plan.models)), "models", most)
    lines += changes_text(plan, most)
    copies = Counter(step.note for step in plan.steps if step.method == COPY)
    lines += _cut((f"{tensors(n)}: {note}" for note, n in copies.items()), "copied", most)
    lines += _cut(_left_out(plan), "not taken", most)
    lines += _cut(_marks(plan), "marks", most)
    table = _table(plan) if every else _grouped(plan, LINES - len(lines) - 1)
    return "\n".join([*lines, "", *table])


def _head(plan: Plan, sums: Mapping[str, Any]) -> Iterator[str]:
    models = several(len(plan.models), "model")
    yield f"{plan.method} of {models}: {tensors(sums['tensors'])}, {size(sums['write_bytes'])}"
    reads = size(sums["input_bytes"])
    if sums["read_bytes"] > sums["input_bytes"]:
        reads += f", over several passes {size(sums['read_bytes'])}"
    yield f"reads     {reads}"
    peak, process = sums["peak_bytes"], resident_bytes()
    yield f"memory    at most {size(peak + process)}: {size(process)} for the process, {size(peak)} for buffers"
    yield f"compiles  {several(sums['kernels'], 'kernel')}"
    if together := len({step.tensor for step in plan.steps if step.group}):
        yield f"first     statistics over {together} tensors together, before any is merged"


def changes_text(plan: Plan, most: int | None = LISTED) -> Iterator[str]:
    """What becomes of config.json and the tokens, in lists of at most so many lines; None: whole."""
    yield from _cut(_changes(plan), "changes", most)
    yield from _cut(plan.tokens.summary if plan.tokens else (), "tokens", most)


def _changes(plan: Plan) -> Iterator[str]:
    for change in plan.changes:
        yield f"config.json: {change.key}: {change.old} -> {change.new}"
    for file, made in plan.tokens.changes.items() if plan.tokens else ():
        for change in made:
            yield f"{file}: {change.key}: {change.old} -> {change.new}"


def _marks(plan: Plan) -> Iterator[str]:
    """What is written beside the letters of models."""
    kinds = {type(item) for step in plan.steps for item in step.inputs}
    if any(step.base is not None for step in plan.steps):
        yield "[A] the base"
    if Gathered in kinds:
        yield "A* its rows moved to where the output has their tokens"
    if Assembled in kinds:
        yield "A+ put together from tensors that the model stores differently"
    if Result in kinds:
        yield "= another tensor of the output"


def _left_out(plan: Plan) -> Iterator[str]:
    reasons: dict[tuple[int, Template], list[Numbers]] = {}
    for item in plan.unused:
        template, numbers = _parted(item.reason, WORD)
        reasons.setdefault((item.model, template), []).append(numbers)
    for (model, template), found in reasons.items():
        yield f"{tensors(len(found))} of {letter(model)}: {_ranged(template, found)}"
    files: dict[str, list[str]] = {}
    for file in plan.left:
        files.setdefault(file.reason, []).append(file.name)
    for why, names in files.items():
        yield f"files of {plan.models[0].ref}: {', '.join(_folded(names))} ({why})"


def _folded(names: Sequence[str]) -> list[str]:
    """Names of files; many of one folder as that."""
    folders = Counter(name.partition("/")[0] for name in names if "/" in name[:-1])
    shown = []
    for name in names:
        folder = name.partition("/")[0]
        many = folders[folder] > MANY
        shown.append(f"{folder}/ with {folders[folder]} files" if many else name)
    return list(dict.fromkeys(shown))


def _cut(items: Iterable[str], title: str, most: int | None) -> Iterator[str]:
    """A list below its title, if there is anything in it; what is more than `most` is counted, None: nothing is."""
    items = list(items)
    if not items:
        return
    shown = items if most is None or len(items) <= most else items[: most - 1]
    for i, item in enumerate(shown):
        yield f"{title if i == 0 else '':<9} {item}"
    if len(items) > len(shown):
        yield f"{'':<9} and {len(items) - len(shown)} more; --all lists them"


# Tensors, those alike on one line

Template = tuple[str, ...]  # a name's parts around its numbers
Numbers = tuple[int, ...]


class _Source(NamedTuple):
    """An input of a step."""

    mark: str  # the model's letter, and what is done to it
    template: Template  # of its name
    moved: Numbers  # its numbers less the result's, where the names are alike but for them


class _Kind(NamedTuple):
    """What steps that are shown on one line have in common: all but the numbers of layers and the values."""

    template: Template
    result: str
    method: str
    sources: tuple[_Source, ...]
    base: int | None
    parameters: tuple[str, ...]
    note: str


class _Line(NamedTuple):
    """The steps of one kind."""

    heading: str  # how they are made
    name: str
    steps: int
    result: str
    origins: str  # the sources that have other names

    @property
    def cells(self) -> tuple[str, ...]:
        """What stands below the heading."""
        return self.name, f"x{self.steps}" if self.steps > 1 else "", self.result, self.origins


def _grouped(plan: Plan, room: int) -> Iterator[str]:
    """The steps in at most `room` lines: a heading says how, and below it stand the tensors that are made so."""
    kinds: dict[_Kind, list[tuple[Step, Numbers]]] = {}
    for step in plan.steps:
        template, numbers = _parted(step.name)
        kinds.setdefault(_kind(step, template, numbers), []).append((step, numbers))
    sections: dict[str, list[_Line]] = {}
    for kind, found in kinds.items():
        line = _line(kind, *zip(*found, strict=True))
        sections.setdefault(line.heading, []).append(line)
    shown: list[str | _Line] = []
    for heading, lines in sections.items():
        shown += [heading, *lines]
    if len(shown) > room:
        shown = shown[: room - 1]
        if isinstance(shown[-1], str):  # a heading with nothing below it
            shown.pop()
    rows = [each for each in shown if isinstance(each, _Line)]
    widths = [max(map(len, column)) for column in zip(*(row.cells for row in rows), strict=True)]
    for each in shown:
        yield each if isinstance(each, str) else "  " + _row(each.cells, widths)
    if len(rows) < len(kinds):
        rest = tensors(len(plan.steps) - sum(row.steps for row in rows))
        yield f"and {rest} of {len(kinds) - len(rows)} more kinds; --all lists every tensor"


def _kind(step: Step, template: Template, numbers: Numbers) -> _Kind:
    sources = []
    for item in step.inputs:
        own, moved, name = template, (0,) * len(numbers), _name(step, item)
        if name != step.name:
            own, others = _parted(name)
            same = zip(numbers, others, strict=True) if own == template else ()
            moved = tuple(b - a for a, b in same)
        sources.append(_Source(_mark(item), own, moved))
    parameters = tuple(name for name, value in step.hyperparameters.items() if value is not None)
    return _Kind(
        template, str(step.spec), step.method, tuple(sources), step.base, parameters, step.note
    )


def _line(kind: _Kind, steps: Sequence[Step], numbers: Sequence[Numbers]) -> _Line:
    origins = []
    for i, source in enumerate(kind.sources):
        if source.template != kind.template:
            others = [_parted(_name(step, step.inputs[i]))[1] for step in steps]
            origins.append(f"{source.mark}: {_ranged(source.template, others)}")
        elif any(source.moved):
            own = zip(zip(*numbers, strict=True), source.moved, strict=True)
            moved = [_runs(number + by for number in each) for each, by in own if by]
            origins.append(f"{source.mark}: {' '.join(moved)}")
    marks = _sources((source.mark for source in kind.sources), kind.base)
    values = [
        f"{name}={_span([step.hyperparameters[name] for step in steps])}"
        for name in kind.parameters
    ]
    note = f"({kind.note})" if kind.note else ""
    heading = "  ".join(filter(None, (kind.method, marks, " ".join(values), note)))
    name = _ranged(kind.template, numbers)
    return _Line(heading, name, len(steps), kind.result, "; ".join(dict.fromkeys(origins)))


def _sources(marks: Iterable[str], base: int | None) -> str:
    """The inputs of a step, the base in brackets."""
    return " ".join(f"[{mark}]" if i == base else mark for i, mark in enumerate(marks))


def _parted(name: str, number: re.Pattern[str] = NUMBER) -> tuple[Template, Numbers]:
    """A name's parts around the numbers in it, and these."""
    parts = number.split(name)
    return tuple(parts[::2]), tuple(map(int, parts[1::2]))


def _ranged(template: Template, numbers: Sequence[Numbers]) -> str:
    """One name for several that differ in their numbers: model.layers.{0..31}.norm.weight."""
    shown = template[0]
    for each, after in zip(zip(*numbers, strict=True), template[1:], strict=True):
        shown += (_runs(each) if len(set(each)) > 1 else str(each[0])) + after
    return shown


def _runs(numbers: Iterable[int]) -> str:
    """Numbers as {0..3,7}."""
    several = sorted(set(numbers))
    ends = [
        several[0],
        *(n for a, b in pairwise(several) if b != a + 1 for n in (a, b)),
        several[-1],
    ]
    runs = list(zip(ends[::2], ends[1::2], strict=True))
    if len(runs) > RUNS:
        runs = [(several[0], several[-1])]
    return "{" + ",".join(f"{a}..{b}" if a != b else str(a) for a, b in runs) + "}"


def _span(values: Sequence[Any]) -> str:
    """What a parameter is in several steps: 0.5, or 0..1 where it changes."""
    if isinstance(values[0], tuple):
        return "[" + " ".join(_span(each) for each in zip(*values, strict=True)) + "]"
    if isinstance(values[0], bool) or len(set(values)) == 1:
        return " or ".join(dict.fromkeys(_text(value) for value in values))
    ends = _text(min(values)), _text(max(values))
    return f"{ends[0]}..{ends[1]}"


# Every tensor on its own line


def _table(plan: Plan) -> list[str]:
    rows: list[tuple[str, ...]] = [("tensor", "result", "method", "sources", "parameters")]
    for step in plan.steps:
        names = [(_mark(item), _name(step, item)) for item in step.inputs]
        marks = (mark if name == step.name else f"{mark}:{name}" for mark, name in names)
        values = [f"{k}={_span([v])}" for k, v in step.hyperparameters.items() if v is not None]
        note = f"({step.note})" if step.note else ""
        texts = _sources(marks, step.base), " ".join(filter(None, (*values, note)))
        rows.append((step.name, str(step.spec), step.method, *texts))
    widths = [max(len(row[i]) for row in rows) for i in range(4)]
    return [_row(row, [*widths, 0]) for row in rows]


def _row(cells: Sequence[str], widths: Sequence[int]) -> str:
    return "  ".join(f"{c:<{w}}" for c, w in zip(cells, widths, strict=True)).rstrip()


def _mark(item: Item) -> str:
    """The letter of the model that an input is of, with * or + for what is done to it; = for another step's result."""
    if isinstance(item, Result):
        return "="
    mark = "*" if isinstance(item, Gathered) else "+" if isinstance(item, Assembled) else ""
    return letter(item.model) + mark


def _name(step: Step, item: Item) -> str:
    """The name of an input, as the step's result would be called if it had it."""
    if isinstance(item, Result):
        return item.step
    return step.name if item.name == step.tensor else item.name


def _text(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else f"{value:.6g}"
