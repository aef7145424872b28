"""Parts of a schedule: what an interrupted run has left to do, and what each of several hosts makes."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence

from jmerge.ckpt.journal import Block
from jmerge.ckpt.shards import OutFile
from jmerge.dtypes import BITS
from jmerge.engine.schedule import Schedule, Turn, freed_after, last_of_group
from jmerge.plan.inputs import Result


def subset(schedule: Schedule, wanted: Mapping[str, Collection[int]]) -> Schedule:
    """The part of `schedule` that makes the `wanted` pieces (numbers by the name of the step; other steps: none).

    Kept with them are the statistics that their steps need, which for whole models go over all tensors, and, whole,
    the results that they are made of.
    """
    whole = {turn.work.step.name: turn.pieces for turn in schedule.turns if turn.what.combines}
    makes: dict[str, Sequence[int]] = {}
    for name, hyperparameters in whole.items():
        among = set(wanted.get(name, ()))
        makes[name] = [number for number in hyperparameters if number in among]
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


def left_to_do(
    schedule: Schedule, blocks: Iterable[Block], *, allow_nonfinite: bool = False
) -> tuple[Schedule, dict[str, list[Block]]]:
    """The rest of `schedule` when `blocks`, no two of which overlap, are written; and by tensor those that stay.

    A block that holds NaN or infinity stays only if that is allowed: made again, it stops the run as it would have.
    Blocks that share bytes with a piece that has to be made are made with it, which costs nothing but where another
    run cut the tensor otherwise.
    """
    written: dict[str, list[Block]] = {}
    for block in blocks:
        if allow_nonfinite or not block.nonfinite:
            written.setdefault(block.tensor, []).append(block)
    wanted: dict[str, list[int]] = {}
    kept: dict[str, list[Block]] = {}
    for turn in schedule.turns:
        step = turn.work.step
        if turn.what.combines and step.written:
            wanted[step.name], kept[step.name] = _split(turn, written.get(step.name, []))
    rest = subset(schedule, wanted)
    for turn in rest.turns:  # a result that another step needs is made whole
        name = turn.work.step.name
        if turn.what.combines and name in wanted and len(turn.pieces) > len(wanted[name]):
            kept[name] = []
    return rest, kept


def _split(turn: Turn, blocks: list[Block]) -> tuple[list[int], list[Block]]:
    """The pieces that have to be made, and the blocks that share no byte with one of them."""
    while True:
        runs = _join((block.start, block.stop) for block in blocks)
        todo = [number for number in turn.pieces if not _covered(_bytes(turn, number), runs)]
        made = _join(_bytes(turn, number) for number in todo)
        apart = [block for block in blocks if not _touches((block.start, block.stop), made)]
        if len(apart) == len(blocks):
            return todo, blocks
        blocks = apart


def _bytes(turn: Turn, number: int) -> tuple[int, int]:
    """The range [start, stop) of a piece in its tensor."""
    bits = BITS[turn.work.step.spec.dtype]
    start, stop = turn.work.pieces[number]
    return start * bits // 8, stop * bits // 8


def _join(ranges: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
    """Ranges that do not overlap, in order, those that meet as one."""
    joined: list[tuple[int, int]] = []
    for start, stop in sorted(ranges):
        if joined and joined[-1][1] == start:
            start = joined.pop()[0]
        joined.append((start, stop))
    return joined


def _covered(piece: tuple[int, int], runs: Sequence[tuple[int, int]]) -> bool:
    """Whether a piece lies in one of the runs; an empty one needs none."""
    start, stop = piece
    place = bisect_right(runs, start, key=lambda run: run[0]) - 1
    return start == stop or (place >= 0 and stop <= runs[place][1])


def _touches(block: tuple[int, int], runs: Sequence[tuple[int, int]]) -> bool:
    """Whether a block and one of the runs share a byte."""
    start, stop = block
    place = bisect_left(runs, stop, key=lambda run: run[0]) - 1
    return place >= 0 and start < runs[place][1]


def shares(
    schedule: Schedule, files: Sequence[OutFile], count: int
) -> tuple[dict[str, Sequence[int]], ...]:
    """The pieces of `schedule` that each of `count` hosts makes, by the name of the step, as `subset` takes them.

    The same on every host, whatever it knows beside the schedule.
    """
    left: dict[str, Sequence[int]] = {}
    sizes: dict[str, int] = {}
    for turn in schedule.turns:
        step = turn.work.step
        if turn.what.combines and step.written:
            left[step.name] = turn.pieces
            elements = sum(
                stop - start for start, stop in map(turn.work.pieces.__getitem__, turn.pieces)
            )
            sizes[step.name] = elements * BITS[step.spec.dtype] // 8
    inside = [[name for name in file.starts if name in left] for file in files]
    groups = [names for names in inside if names]
    if len(groups) < count:
        groups = [[name] for names in groups for name in names]
    load = [0] * count
    found: tuple[dict[str, Sequence[int]], ...] = tuple({} for _ in range(count))
    # the largest first, each to whom has least so far
    for names in sorted(groups, key=lambda names: -_total(sizes, names)):
        host = load.index(min(load))
        load[host] += _total(sizes, names)
        found[host].update({name: left[name] for name in names})
    return found


def shared_files(
    files: Sequence[OutFile], parts: Sequence[Mapping[str, Sequence[int]]]
) -> list[OutFile]:
    """The files that more than one host writes."""
    return [file for file in files if sum(bool(file.starts.keys() & part) for part in parts) > 1]


def _total(sizes: Mapping[str, int], names: Iterable[str]) -> int:
    return sum(sizes[name] for name in names)
