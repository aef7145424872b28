"""A plan in words, for people and as JSON."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from jmerge.plan.steps import COPY, Assembled, Gathered, Plan, Result, Step
from jmerge.process import resident_bytes

MANY = 5  # files of one folder, from which it is named instead

if TYPE_CHECKING:  # it loads JAX, which takes a second, and words need none
    from jmerge.engine.schedule import Schedule


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
        "read_bytes": plan.read_bytes,
        "write_bytes": plan.write_bytes,
        "peak_bytes": need,
        "kernels": len(schedule.kernels),
        "unused_tensors": len(plan.unused),
    }


def plan_text(plan: Plan, schedule: Schedule, need: int) -> str:
    """The plan as a table, one line a tensor, and its totals."""
    rows = [("tensor", "result", "method", "sources", "numbers")]
    rows += [_row(plan, step) for step in plan.steps]
    widths = [max(len(row[i]) for row in rows) for i in range(4)]
    lines = [
        "  ".join(
            f"{cell:<{width}}" for cell, width in zip(row, [*widths, 0], strict=True)
        ).rstrip()
        for row in rows
    ]
    legend = [f"  {letter(i)} = {model.ref}" for i, model in enumerate(plan.models)]
    changes = [
        f"  config.json: {change.key}: {change.old} -> {change.new}" for change in plan.changes
    ]
    if plan.tokens:
        changes += [
            f"  {file}: {change.key}: {change.old} -> {change.new}"
            for file, made in plan.tokens.changes.items()
            for change in made
        ]
        changes += ["tokens:", *(f"  {line}" for line in plan.tokens.summary)]
    if plan.maps:
        changes.append("  * rows moved to where the output has their tokens")
    if any(isinstance(item, Assembled) for step in plan.steps for item in step.inputs):
        changes.append("  + put together from tensors that the model stores in another form")
    sums = totals(plan, schedule, need)
    peak, process = sums["peak_bytes"], resident_bytes()
    lines += ["", "models:", *legend, *changes, ""]
    lines += [
        f"{sums['tensors']} tensors; reads {size(sums['read_bytes'])}, writes {size(sums['write_bytes'])}",
        f"at most {size(peak)} of memory above the process, which takes {size(process)}: {size(peak + process)}",
        f"{sums['kernels']} kernels to compile",
    ]
    together = {step.tensor for step in plan.steps if step.group}
    if together:
        lines.append(f"{len(together)} tensors are looked at together before any of them is merged")
    copies = Counter(step.note for step in plan.steps if step.method == COPY)
    if copies:
        lines += [f"{copies.total()} tensors are copied:"]
        lines += [f"  {count:>6}  {note}" for note, count in copies.items()]
    if plan.unused:
        reasons: dict[str, int] = {}
        for item in plan.unused:
            reasons[item.reason] = reasons.get(item.reason, 0) + 1
        lines += [f"{len(plan.unused)} input tensors are not used:"]
        lines += [f"  {count:>6}  {reason}" for reason, count in reasons.items()]
    if plan.left:
        lines.append(f"files of {plan.models[0].ref} that stay behind: {_left(plan)}")
    return "\n".join(lines)


def _left(plan: Plan) -> str:
    """The files that stay behind by their reasons; many of one folder as that."""
    groups: dict[str, list[str]] = {}
    for file in plan.left:
        groups.setdefault(file.reason, []).append(file.name)
    return "; ".join(f"{', '.join(_folded(names))} ({why})" for why, names in groups.items())


def _folded(names: Sequence[str]) -> list[str]:
    folders = Counter(name.partition("/")[0] for name in names if "/" in name[:-1])
    shown = []
    for name in names:
        folder = name.partition("/")[0]
        many = folders[folder] > MANY
        shown.append(f"{folder}/ with {folders[folder]} files" if many else name)
    return list(dict.fromkeys(shown))


def letter(number: int) -> str:
    """A short name for an input model: A, B, ... Z, AA, ..."""
    text = ""
    number += 1
    while number:
        number, rest = divmod(number - 1, 26)
        text = chr(65 + rest) + text
    return text


def size(nbytes: int) -> str:
    """Bytes for people: 1.23 GB."""
    value, units = float(nbytes), ["B", "kB", "MB", "GB", "TB"]
    while value >= 1000 and len(units) > 1:
        value /= 1000
        units.pop(0)
    return f"{value:.0f} {units[0]}" if units[0] == "B" else f"{value:.2f} {units[0]}"


def count(number: int) -> str:
    """A number of parameters for people: 1.10 B."""
    for unit, name in ((10**9, "B"), (10**6, "M"), (10**3, "k")):
        if number >= unit:
            return f"{number / unit:.2f} {name}"
    return str(number)


def _row(plan: Plan, step: Step) -> tuple[str, str, str, str, str]:
    sources = []
    for i, item in enumerate(step.inputs):
        if isinstance(item, Result):
            name = item.step
        else:
            owner = letter(item.model)
            name = owner if item.name == step.tensor else f"{owner}:{item.name}"
            name += "*" if isinstance(item, Gathered) else ""
            name += "+" if isinstance(item, Assembled) else ""
        sources.append(f"[{name}]" if i == step.base else name)
    numbers = _numbers(step.numbers) + (f"  ({step.note})" if step.note else "")
    return step.name, str(step.spec), step.method, " ".join(sources), numbers.strip()


def _numbers(numbers: Mapping[str, Any]) -> str:
    def show(value: Any) -> str:
        if isinstance(value, tuple):
            return "[" + " ".join(f"{v:.6g}" for v in value) + "]"
        return str(value).lower() if isinstance(value, bool) else f"{value:.6g}"

    return " ".join(f"{name}={show(value)}" for name, value in numbers.items() if value is not None)
