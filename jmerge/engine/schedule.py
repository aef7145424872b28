"""A plan to an order of work: which step when, in which pieces and passes, and when each intermediate result can go."""

from __future__ import annotations

import itertools
import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import NamedTuple

import jax
import numpy as np

from jmerge.ckpt.find import is_remote
from jmerge.ckpt.safetensors import ALIGNMENT
from jmerge.dtypes import BITS
from jmerge.engine.kernel import KernelKey, is_plain_copy, kernel_key, view_of
from jmerge.engine.select import MOST_COLLECTED, is_searched
from jmerge.methods.reduce import BLOCK
from jmerge.methods.statistics.fold import Extent, Scope
from jmerge.methods.wrap import find_method
from jmerge.plan.inputs import Result
from jmerge.plan.steps import COPY, Plan, Step

# Elements a kernel works on at a time: small enough for the cache, large enough to hide its dispatch.
PIECE = 1 << 20
# The lengths kernels are compiled for; what is left of a tensor is padded to one of them. Pieces have one of them, a
# smaller one where memory is short.
LENGTHS = (PIECE >> 8, PIECE >> 5, PIECE >> 2, PIECE)
assert all(length % BLOCK == 0 for length in LENGTHS)
# Tensors of at most so many elements, such as norms, go through a kernel many at a time, each as a row.
ROW = 1 << 14
MOST_ROWS = 64
assert ROW % BLOCK == 0

Cut = tuple[
    tuple[tuple[int, int], ...], int
]  # a step's pieces, and how many elements stay together


class Pass(NamedTuple):
    """One run over the pieces of a step's inputs."""

    name: str  # of the statistic that it is for, or what it does
    statistic: int = -1  # its number among those of the method; -1: the pass makes the result
    scope: Scope = "tensor"
    samples: bool = False  # its first piece comes with a sample of the inputs, see `select`
    again: bool = False  # some of its pieces may be read once more in the end

    @property
    def combines(self) -> bool:
        """Whether it makes the result."""
        return self.statistic < 0

    @property
    def adds(self) -> bool:
        """Whether it takes pieces into the state of a statistic."""
        return not self.combines and not self.samples


class Place(NamedTuple):
    """Where a step stands among those over which statistics of whole models are taken; alone without a group."""

    number: int
    offset: int  # elements before it
    first: int  # pieces before it
    sizes: tuple[int, ...]  # elements of all
    rows: int  # most rows of one, see `Work.row`
    pieces: int  # of all


class Work(NamedTuple):
    """One step in the order of a run."""

    step: Step
    pieces: tuple[tuple[int, int], ...]  # [start, stop) elements, whole blocks but for the end
    passes: tuple[Pass, ...]  # those of its own, its result's last
    frees: tuple[str, ...]  # results that nothing needs after this step
    row: int  # elements that stay together, see `kernel.view_of`; 0: no two have to
    group: Place  # where it stands in its group
    candidates: int  # most elements that the search for a threshold holds
    small: bool  # it is made together with others, see `bundles`

    def place(self, scope: Scope) -> Place:
        """Where it stands among those over which a statistic is taken."""
        return self.group if scope == "model" else _alone(self.step, self.pieces, self.row)

    def read_bytes(self, elements: int) -> int:
        """Bytes of the inputs in files, for so many elements of the result."""
        specs = (spec for item in self.step.inputs if (spec := item.stored) is not None)
        return elements * sum(BITS[spec.dtype] for spec in specs) // 8

    def padded(self, number: int) -> int:
        """The length of the kernel that works on a piece."""
        start, stop = self.pieces[number]
        return self.pieces[0][1] if self.row else padded_length(stop - start)


class Turn(NamedTuple):
    """One pass over pieces of one step."""

    work: Work
    what: Pass
    closes: bool  # with it the pass is done; one over a group goes on with the next step
    pieces: Sequence[int]  # the numbers of those it goes over, rising; statistics need all

    @classmethod
    def whole(cls, work: Work, what: Pass, closes: bool) -> Turn:
        """The pass over all pieces."""
        return cls(work, what, closes, range(len(work.pieces)))

    @property
    def read_bytes(self) -> int:
        """Bytes of the inputs in files that it goes over; small tensors are read once, with all passes over them."""
        if self.work.small and not self.what.combines:
            return 0
        if len(self.pieces) == len(self.work.pieces):
            return self.work.read_bytes(self.work.step.spec.size)
        bounds = (self.work.pieces[number] for number in self.pieces)
        return self.work.read_bytes(sum(stop - start for start, stop in bounds))


class Schedule(NamedTuple):
    """What a run does, in order."""

    work: tuple[Work, ...]
    # The passes of all steps in order, but that small tensors are made first, see `bundles`. The statistics of a step
    # come before the result of the step before it, so that what follows from them on the host is worked out meanwhile.
    turns: tuple[Turn, ...]
    buffers: tuple[int, ...]  # bytes of the read buffers of one slot, by position of the input
    remote: bool = False  # some inputs are fetched
    piece: int = PIECE  # elements of most pieces
    devices: int = 1  # that share the work
    rows: int = 0  # small tensors that are made at once

    @property
    def slots(self) -> int:
        """Pieces under way at once: one being read, two computed on every device, one written."""
        return 2 + 2 * self.devices

    @property
    def held(self) -> frozenset[str]:
        """The steps whose results others need, which are kept in memory meanwhile."""
        return frozenset(name for work in self.work for name in work.frees)

    @property
    def read_bytes(self) -> int:
        """Bytes of inputs in files that all passes read, but for pieces that some read once more in the end."""
        return sum(turn.read_bytes for turn in self.turns)

    @property
    def kernels(self) -> tuple[KernelKey, ...]:
        """The programs that have to be compiled (each for at most `LENGTHS`)."""
        steps = (item.step for item in self.work)
        return tuple(dict.fromkeys(kernel_key(step) for step in steps if not is_plain_copy(step)))


def make_schedule(
    plan: Plan,
    piece: int = PIECE,
    candidates: int = MOST_COLLECTED,
    devices: int = 1,
    platform: str | None = None,
) -> Schedule:
    """The order in which one process runs `plan`.

    piece: elements of a piece, one of `LENGTHS`; candidates: most elements that the search for a threshold holds;
    devices: how many share the work; platform: that of the devices, by default of the one that JAX prefers. None of
    them changes a bit of the results; `memory.fit` finds those that stay within a budget.

    Steps go in the order their first input lies on disk, so that files are read front to back; a step that needs
    another's result follows it. An intermediate result is freed after its last use.
    """
    platform = platform or default_platform()
    order = _order(plan)
    frees = freed_after(order)
    remote = any(is_remote(model.path) for model in plan.models)
    # what is fetched comes in the order of the turns, which bundles would change
    room = 0 if remote else min(piece // ROW, MOST_ROWS)
    used = {name for names in frees.values() for name in names}
    cuts = {step.name: _cut(step, piece) for step in order}
    places = _places(plan, cuts)
    work = []
    for step in order:
        pieces, row = cuts[step.name]
        small = room > 1 and not row and _is_small(step, used)
        pieces = ((0, step.spec.size),) if small else pieces
        place = places.get(step.name) or _alone(step, pieces, row)
        passes = _passes(step, platform)
        work.append(Work(step, pieces, passes, frees[step.name], row, place, candidates, small))
    widths = [[BITS[item.spec.dtype] for item in step.inputs] for step in order]
    count = max(map(len, widths), default=0)
    several = sum(each.small for each in work)
    rows = min(room, 1 << max(several - 1, 1).bit_length()) if several else 0
    longest = max((rows * ROW if each.small else each.padded(0) for each in work), default=0)
    widest = [max(row[i] for row in widths if len(row) > i) for i in range(count)]
    buffers = [longest * bits // 8 + ALIGNMENT for bits in widest]
    return Schedule(tuple(work), tuple(_turns(work)), tuple(buffers), remote, piece, devices, rows)


def default_platform() -> str:
    """The platform of the device that JAX prefers here."""
    # zeros of NumPy's: for JAX's own it would compile a program
    (device,) = jax.device_put(np.zeros(())).devices()
    return str(device.platform)


def freed_after(order: Sequence[Step]) -> Mapping[str, tuple[str, ...]]:
    """The results that nothing needs any more after each of these steps, by its name."""
    last_use = {
        item.step: step.name for step in order for item in step.inputs if isinstance(item, Result)
    }
    frees: dict[str, tuple[str, ...]] = {step.name: () for step in order}
    for name, user in last_use.items():
        frees[user] += (name,)
    return frees


def _places(plan: Plan, cuts: Mapping[str, Cut]) -> dict[str, Place]:
    """The place of every step over which statistics of whole models are taken: one for each tensor, in the order of
    the output; those that make it for several checkpoints share it."""
    groups: dict[str, dict[str, list[Step]]] = {}
    for step in plan.steps:
        if step.group:
            groups.setdefault(step.group, {}).setdefault(step.tensor, []).append(step)
    places = {}
    for members in groups.values():
        own = [_alone(steps[0], *cuts[steps[0].name]) for steps in members.values()]
        ends = list(itertools.accumulate(place.sizes[0] for place in own))
        pieces = list(itertools.accumulate(place.pieces for place in own))
        together = tuple(place.sizes[0] for place in own), max(place.rows for place in own)
        for number, (steps, place) in enumerate(zip(members.values(), own, strict=True)):
            before = ends[number] - place.sizes[0], pieces[number] - place.pieces
            for step in steps:
                places[step.name] = Place(number, *before, *together, pieces[-1])
    return places


def _alone(step: Step, pieces: Sequence[tuple[int, int]], row: int) -> Place:
    return Place(0, 0, 0, (step.spec.size,), step.spec.size // row if row else 0, len(pieces))


def _turns(order: list[Work]) -> Iterator[Turn]:
    waiting: list[Turn] = []
    surveyed: dict[
        str, set[str]
    ] = {}  # group -> steps whose statistics are found with those of the group
    for work in order:
        group = work.step.group
        if group and group not in surveyed:
            yield from waiting  # which may make the results that the group needs
            waiting = []
            members = {
                each.group.number: each for each in reversed(order) if each.step.group == group
            }
            surveyed[group] = {each.step.name for each in members.values()}
            yield from _survey([members[number] for number in sorted(members)])
        *statistics, combine = work.passes
        if group and work.step.name in surveyed[group]:
            statistics = [what for what in statistics if what.statistic > last_of_group(work)]
        own = [Turn.whole(work, what, True) for what in statistics if what.scope == "tensor"]
        if not own or any(isinstance(item, Result) for item in work.step.inputs):
            yield from waiting  # which may make the results that this step needs
            yield from own
            yield Turn.whole(work, combine, True)
            waiting = []
        else:
            yield from own
            yield from waiting
            waiting = [Turn.whole(work, combine, True)]
    yield from waiting


def last_of_group(work: Work) -> int:
    """The last statistic that is taken over a step's whole group."""
    return max((what.statistic for what in work.passes if what.scope == "model"), default=-1)


def _survey(members: list[Work]) -> Iterator[Turn]:
    """The passes over a group, and those over single tensors that they build on, which not every tensor needs."""
    for statistic in range(last_of_group(members[0]) + 1):
        passes = [[w for w in work.passes[:-1] if w.statistic == statistic] for work in members]
        for number in range(max(map(len, passes))):
            for work, own in zip(members, passes, strict=True):
                if number < len(own):
                    what = own[number]
                    closes = what.scope == "tensor" or work is members[-1]
                    yield Turn.whole(work, what, closes)


def _is_small(step: Step, used: Collection[str]) -> bool:
    """Whether a step can be made with others of its kind: its tensors are short, and no other step depends on it, nor
    it on another."""
    apart = not step.group and not any(isinstance(item, Result) for item in step.inputs)
    if not apart or step.name in used or not 0 < step.spec.size <= ROW or is_plain_copy(step):
        return False
    return step.method == COPY or find_method(step.method).bundled


def padded_length(elements: int) -> int:
    """The length of the kernel that works on a piece of this many elements."""
    return next((length for length in LENGTHS if length >= elements), LENGTHS[-1])


def _cut(step: Step, piece: int) -> Cut:
    """The pieces of a step, and how many elements stay together."""
    view = view_of(step)
    row = math.prod(size for size in view if size > 0) if view != (-1,) else 0
    return _rows(step.spec.size, row, piece) if row else _pieces(step.spec.size, piece), row


def _pieces(size: int, piece: int) -> tuple[tuple[int, int], ...]:
    """Whole pieces, then of the next shorter length: so little of the last kernel's work is padding."""
    shorter = max((length for length in LENGTHS if length < piece), default=piece)
    bounds = [0]
    while (left := size - bounds[-1]) > 0:
        bounds.append(bounds[-1] + (piece if left >= piece else min(left, shorter)))
    return tuple(itertools.pairwise(bounds)) or ((0, 0),)


def _rows(size: int, unit: int, piece: int) -> tuple[tuple[int, int], ...]:
    """As many whole units as a piece holds, but at least one."""
    step = max(piece // unit, 1) * unit
    return tuple((start, min(start + step, size)) for start in range(0, size, step))


def _passes(step: Step, platform: str) -> tuple[Pass, ...]:
    combine = Pass("combine")
    if step.method == COPY or is_plain_copy(step):
        return (combine,)
    passes: list[Pass] = []
    for number, statistic in enumerate(find_method(step.method).statistics):
        if statistic.scope == "piece" or not statistic.when(step.hyperparameters):
            continue
        extent = Extent((step.spec.size,), 0, step.arithmetic)
        if (
            statistic.scope == "tensor"
            and statistic.known(extent, step.hyperparameters, {}) is not None
        ):
            continue
        searched = is_searched(statistic, view_of(step), platform)
        again = statistic.narrows
        rounds = 1 if searched else statistic.passes(step.arithmetic) - again
        passes += [Pass(statistic.keyword, number, statistic.scope, searched, again)] * rounds
    return (*passes, combine)


def _order(plan: Plan) -> list[Step]:
    by_name = {step.name: step for step in plan.steps}

    def place(step: Step) -> tuple[int, str, int]:
        reads = [read for item in step.inputs for read in item.reads]
        return (
            (reads[0].model, reads[0].file, reads[0].start) if reads else (len(plan.models), "", 0)
        )

    done: dict[str, Step] = {}

    def visit(step: Step) -> None:
        if step.name not in done:
            for item in step.inputs:
                if isinstance(item, Result):
                    visit(by_name[item.step])
            done[step.name] = step

    for step in sorted(plan.steps, key=place):
        visit(step)
    return list(done.values())
