"""A run that makes shorter pieces when the memory of a device runs out, and goes on from what is written."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import jax

from jmerge.ckpt.journal import Block
from jmerge.engine.devices import DeviceMemoryError
from jmerge.engine.events import Event, Listener, Resumed, Wrote
from jmerge.engine.memory import fit, need_of
from jmerge.engine.resume import left_to_do
from jmerge.engine.run import Outcome, Sink, run
from jmerge.engine.schedule import LENGTHS
from jmerge.errors import RunError
from jmerge.plan.steps import Plan


def run_within_memory(
    plan: Plan,
    sink: Sink,
    devices: Sequence[jax.Device],
    *,
    budget: int | None,
    blocks: Sequence[Block] = (),
    listeners: Sequence[Listener] = (),
    allow_nonfinite: bool = False,
    scratch: Path | None = None,
) -> tuple[Outcome, int]:
    """Make what is not among `blocks`, which are written already; also gives how many bytes of them were kept.

    Raises what `run` and `memory.fit` do, and:
      DeviceMemoryError: the shortest pieces do not fit a device.
    """
    written = list(blocks)
    resumed: int | None = None
    failure: DeviceMemoryError | None = None
    for longest in reversed(LENGTHS):
        schedule = fit(plan, budget, len(devices), longest)
        if schedule.piece < longest:
            continue  # which then is the longest
        rest, kept = left_to_do(schedule, written, allow_nonfinite=allow_nonfinite)
        written = [block for each in kept.values() for block in each]
        if resumed is None:
            resumed = sum(block.nbytes for block in written)
            if blocks:
                for listener in listeners:
                    listener(Resumed(resumed, plan.write_bytes - resumed))

        def note(event: Event, written: list[Block] = written) -> None:
            if isinstance(event, Wrote):
                written.append(event.block)

        try:
            outcome = run(
                plan,
                rest,
                sink,
                listeners=(note, *listeners),
                allow_nonfinite=allow_nonfinite,
                kept=kept,
                scratch=scratch,
                devices=devices,
            )
        except DeviceMemoryError as error:
            failure = error
        except MemoryError as error:
            raise RunError("out of memory; a smaller --memory makes smaller pieces") from error
        else:
            return outcome, resumed
    needed = need_of(schedule).total // 10**6
    raise DeviceMemoryError(
        f"the memory of {devices[0].platform} runs out even with the shortest pieces, which need {needed} MB: "
        f"{failure}; free some, or let another platform go on: --devices {devices[0].platform},cpu"
    )
