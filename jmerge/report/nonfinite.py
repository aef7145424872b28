"""What a merge that allows NaN and infinity has to say of those it wrote."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from jmerge.arch.infer import is_buffer
from jmerge.plan.steps import Plan

SHOWN = 3  # tensors, those with most first


def nonfinite_text(plan: Plan, counts: Mapping[str, int]) -> list[str]:
    """How many elements of which tensors of the output are NaN or infinite, in one line; none where none is, but in masks.

    counts: by tensor.
    """
    found = {
        step.name: (counts[step.name], step.spec.size)
        for step in plan.steps
        if counts.get(step.name) and not is_buffer(step.tensor, step.spec)
    }
    if not found:
        return []
    total = sum(count for count, _ in found.values())
    worst = sorted(found, key=lambda name: -found[name][0])
    listed = ", ".join(
        f"{name} ({found[name][0]:,} of {found[name][1]:,})" for name in worst[:SHOWN]
    )
    more = f" and {len(worst) - SHOWN} more" if len(worst) > SHOWN else ""
    tensors = "1 tensor" if len(found) == 1 else f"{len(found)} tensors"
    elements = "1 element" if total == 1 else f"{total:,} elements"
    return [f"NaN or infinity in {elements} of {tensors}: {listed}{more}"]


def owners_text(plan: Plan, models: Iterable[int]) -> str:
    """Whose tensors brought them, by position in the plan; empty where nothing is known of that."""
    names = ", ".join(plan.models[number].ref for number in sorted(set(models)))
    return f"; they come from {names}" if names else ""
