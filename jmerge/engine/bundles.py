"""Small tensors, many of which are made at a time: a model has thousands of norms, and a program costs about as much
to start as it takes to go through a million elements.
"""

from __future__ import annotations

import itertools
from collections.abc import Hashable

from jmerge.engine.kernel import kernel_key
from jmerge.engine.schedule import Schedule, Turn, Work

Bundle = tuple[Work, ...]  # of one kind, at most `Schedule.rows`


def bundled(schedule: Schedule) -> list[Bundle | Turn]:
    """The turns of a schedule in order, with bundles first instead of the turns of small tensors.

    They depend on no other step, so they can be made before all others. Which are made together changes no bit.
    """
    kinds: dict[Hashable, list[Work]] = {}
    turns: list[Turn] = []
    for turn in schedule.turns:
        if not turn.work.small:
            turns.append(turn)
        elif turn.what.combines:
            kinds.setdefault(_kind(turn.work), []).append(turn.work)
    bundles = [
        tuple(works[start : start + schedule.rows])
        for works in kinds.values()
        for start in range(0, len(works), schedule.rows)
    ]
    return list(itertools.chain(bundles, turns))


def _kind(work: Work) -> Hashable:
    """What small tensors must have in common: the programs they go through."""
    return kernel_key(work.step), work.passes
