"""What an interrupted run has left to do: pieces that are not wholly among the verified blocks of the output."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Sequence

from jmerge.ckpt.journal import Block
from jmerge.dtypes import BITS
from jmerge.engine.schedule import Schedule, Turn
from jmerge.engine.subset import subset


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
