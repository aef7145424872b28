"""Where the time of a run went, in two lines."""

from __future__ import annotations

from jmerge.report.show import size
from jmerge.tracer import Timings


def summary(timings: Timings) -> str:
    """How long the run took, what it read and wrote at which rates, and what bounded it, with how busy each stage was
    after the start."""

    def rate(nbytes: int) -> str:
        return f"{size(nbytes)} at {size(int(nbytes / timings.running))}/s"

    def share(stage: str) -> str:
        return f"{stage} {getattr(timings, stage) / timings.running:.0%}"

    stages = ["reading", "computing", "writing"]
    bound = "starting up (after that busy: "
    if timings.bound != "starting":
        stages.remove(timings.bound)
        bound = f"{share(timings.bound)} of the time after the start ("
    return (
        f"{timings.seconds:.1f} s, {timings.starting:.1f} s of it to start: read {rate(timings.read_bytes)}, "
        f"wrote {rate(timings.write_bytes)}\n"
        f"bounded by {bound}{', '.join(map(share, stages))})"
    )
