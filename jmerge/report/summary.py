"""Where the time of a run went, in two lines."""

from __future__ import annotations

from jmerge.report.show import size
from jmerge.tracer import Timings


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
