"""A run that makes shorter pieces when the memory of a device runs out, and goes on from what is written."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from pathlib import Path

import jax

from jmerge.ckpt.journal import Block
from jmerge.engine.devices import DeviceMemoryError
from jmerge.engine.events import Event, Listener, Resumed, Wrote
from jmerge.engine.memory import fit, need_of
from jmerge.engine.partition import left_to_do
from jmerge.engine.run import Sink, run
from jmerge.engine.schedule import LENGTHS, Schedule
from jmerge.errors import RunError
from jmerge.plan.steps import Plan
from jmerge.tracer import Tracer


def run_within_memory(
    plan: Plan,
    sink: Sink,
    devices: Sequence[jax.Device],
    *,
    budget: int | None,
    blocks: Sequence[Block] = (),
    resumed: bool = False,
    share: Callable[[Schedule], Schedule] = lambda schedule: schedule,
    listeners: Sequence[Listener] = (),
    allow_nonfinite: bool = False,
    scratch: Path | None = None,
    tracer: Tracer | None = None,
    alarm: Callable[[], threading.Event] = threading.Event,
) -> tuple[list[Block], int]:
    """Make what is not among `blocks`, which are written already.

    resumed: an interrupted run is gone on with, so listeners are told what is kept of it; share: the part of what is
    left that this process makes; alarm: gives what stops a run when it is set. The rest as for `run`.

    Returns:
      The blocks that are written now, those kept among them, and how many bytes were kept.

    Raises what `run` and `memory.fit` do, and:
      DeviceMemoryError: the shortest pieces do not fit a device.
    """
    written = list(blocks)
    found: int | None = None
    failure = ""
    for longest in reversed(LENGTHS):
        with jax.default_device(devices[0]):
            schedule = fit(plan, budget, len(devices), longest)
        if LENGTHS[0] < longest > schedule.piece:
            continue  # which is the longest then
        rest, kept = left_to_do(schedule, written, allow_nonfinite=allow_nonfinite)
        written = [block for each in kept.values() for block in each]
        if found is None:
            found = sum(block.nbytes for block in written)
            for listener in listeners if resumed else ():
                listener(Resumed(found, plan.write_bytes - found))

        rest = share(rest)

        def note(event: Event, written: list[Block] = written) -> None:
            if isinstance(event, Wrote):
                written.append(event.block)

        try:
            run(
                plan,
                rest,
                sink,
                listeners=(note, *listeners),
                allow_nonfinite=allow_nonfinite,
                kept=kept,
                scratch=scratch,
                devices=devices,
                tracer=tracer,
                stop=alarm(),
            )
        except DeviceMemoryError as error:
            failure = error.problems[0].message
        except MemoryError as error:
            raise RunError("out of memory; set a smaller memory=", code="JM503") from error
        else:
            return written, found
    with jax.default_device(devices[0]):
        needed = need_of(schedule).total // 10**6
    here = devices[0].platform
    other = "" if here == "cpu" else f", or continue on another platform: devices='{here},cpu'"
    raise DeviceMemoryError(
        f"{here} is out of memory: even the smallest pieces need {needed} MB ({failure}); "
        f"free some of it{other}",
        code="JM504",
    )
