"""The end of a merge: one line of what was made, and two of where the time went."""

from __future__ import annotations

import os

from jmerge.plan.steps import Plan
from jmerge.report.show import size, tensors
from jmerge.tracer import Timings


def closing_line(plan: Plan, out: str | os.PathLike[str], seconds: float) -> str:
    """What was made of a plan in how many seconds, and what to do with it."""
    first, *others = (os.path.join(out, each) if each else str(out) for each in plan.checkpoints)
    loads = f"from_pretrained({first!r}) in transformers"
    if plan.modules:
        loads = f"SentenceTransformer({first!r})"
    more = f"; {len(others)} more beside it" if others else ""
    made = f"merged {tensors(len(plan.outputs))} ({size(plan.write_bytes)}) by {plan.method} into {out}"
    return f"Done in {seconds:.1f} s: {made}. Next: jmerge inspect {first}, or {loads}{more}"


def summary(timings: Timings) -> str:
    """How long the run took, what it read and wrote at which rates, and what bounded it, with how busy each stage was
    after the start."""

    def rate(nbytes: int) -> str:
        return f"{size(nbytes)} at {size(int(nbytes / timings.running))}/s"

    busy = {
        stage: f"{getattr(timings, stage) / timings.running:.0%}"
        for stage in ("reading", "computing", "writing")
    }
    if timings.bound == "starting":
        bound, since = "starting up", "after that busy: "
    else:
        bound = f"{timings.bound}, busy {busy.pop(timings.bound)} of the time after the start"
        since = ""
    others = ", ".join(f"{stage} {share}" for stage, share in busy.items())
    return (
        f"{timings.seconds:.1f} s, {timings.starting:.1f} s of it to start: "
        f"read {rate(timings.read_bytes)}, wrote {rate(timings.write_bytes)}\n"
        f"bounded by {bound} ({since}{others})"
    )
