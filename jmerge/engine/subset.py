"""A schedule that makes only some pieces of the results, with nothing in it that they do not need.

A resumed run leaves out what is written already, and work can be shared by giving everyone another part.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence

from jmerge.engine.schedule import Schedule, Turn, freed_after, last_of_group
from jmerge.plan.inputs import Result


def subset(schedule: Schedule, wanted: Mapping[str, Collection[int]]) -> Schedule:
    """The part of `schedule` that makes the `wanted` pieces (numbers by the name of the step; other steps: none).

    Kept with them are the statistics that their steps need, which for whole models go over all tensors, and, whole,
    the results that they are made of.
    """
    whole = {turn.work.step.name: turn.pieces for turn in schedule.turns if turn.what.combines}
    makes: dict[str, Sequence[int]] = {}
    for name, numbers in whole.items():
        among = set(wanted.get(name, ()))
        makes[name] = [number for number in numbers if number in among]
    while True:
        turns = list(_left(schedule, makes))
        needed = {name for turn in turns for name in _results(turn)}
        missing = {name for name in needed if len(makes[name]) < len(whole[name])}
        if not missing:
            break
        makes |= {name: whole[name] for name in missing}
    left = {turn.work.step.name for turn in turns}
    work = [each for each in schedule.work if each.step.name in left]
    frees = freed_after([each.step for each in work])
    made = {each.step.name: each._replace(frees=frees[each.step.name]) for each in work}
    turns = [turn._replace(work=made[turn.work.step.name]) for turn in turns]
    return schedule._replace(work=tuple(made.values()), turns=tuple(turns))


def _left(schedule: Schedule, makes: Mapping[str, Sequence[int]]) -> Iterator[Turn]:
    """The turns that are left when only these pieces are made."""
    # of a part of a schedule, some steps are there for the statistics of their group alone
    groups = {work.step.group for work in schedule.work if makes.get(work.step.name)}
    surveyed = {turn.work.step.name for turn in schedule.turns if turn.what.scope == "model"}
    for turn in schedule.turns:
        step = turn.work.step
        if turn.what.combines:
            if makes[step.name]:
                yield turn._replace(pieces=tuple(makes[step.name]))
        elif makes.get(step.name):
            yield turn
        elif step.group in groups and step.name in surveyed:
            if turn.what.statistic <= last_of_group(turn.work):
                yield turn


def _results(turn: Turn) -> Iterator[str]:
    """The steps whose results a turn reads."""
    for item in turn.work.step.inputs:
        if isinstance(item, Result):
            yield item.step
