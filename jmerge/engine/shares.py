"""Who of several hosts makes what: whole files where there are enough, else whole tensors, evenly by bytes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from jmerge.ckpt.shards import OutFile
from jmerge.dtypes import BITS
from jmerge.engine.schedule import Schedule


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
