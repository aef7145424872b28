"""The stages of a merge one by one, for programs that put them together in another way.

    recipe = jmerge.Recipe.from_file("x.yml")
    checkpoints = {ref: jmerge.open_checkpoint(ref) for ref in recipe.models()}
    plan = build_plan(recipe, checkpoints)
    merged = Arrays(plan.outputs)
    run(plan, make_schedule(plan), merged)

These may change from one version to the next; the names of `jmerge` itself do not without notice.
"""

from jmerge.ckpt.journal import Block
from jmerge.dtypes import TensorSpec
from jmerge.engine.events import (
    Event,
    Finished,
    Listener,
    Nonfinite,
    Read,
    Resumed,
    Started,
    Without,
    Wrote,
)
from jmerge.engine.run import Arrays, Outcome, Sink, run
from jmerge.engine.schedule import Schedule, make_schedule
from jmerge.plan.build import build_plan
from jmerge.plan.steps import Plan, Step
from jmerge.recipe.refs import ModelRef
from jmerge.tracer import Span, Timings, Tracer

__all__ = [
    "Arrays",
    "Block",
    "Event",
    "Finished",
    "Listener",
    "ModelRef",
    "Nonfinite",
    "Outcome",
    "Plan",
    "Read",
    "Resumed",
    "Schedule",
    "Sink",
    "Span",
    "Started",
    "Step",
    "TensorSpec",
    "Timings",
    "Tracer",
    "Without",
    "Wrote",
    "build_plan",
    "make_schedule",
    "run",
]
