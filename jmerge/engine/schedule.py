"""A plan to an order of work: which step when, in which pieces and passes, and when each intermediate result can go."""

from __future__ import annotations

import itertools
import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Literal, NamedTuple

from jmerge.ckpt.dtypes import BITS
from jmerge.ckpt.find import is_remote
from jmerge.ckpt.safetensors import ALIGNMENT
from jmerge.engine.kernel import KernelKey, is_plain_copy, kernel_key, view_of
from jmerge.engine.select import MOST_COLLECTED
from jmerge.methods.reduce import BLOCK
from jmerge.methods.spec import Scope
from jmerge.methods.wrap import find_method
from jmerge.plan.steps import COPY, Plan, Result, Step, reads_of

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

Kind = Literal["changes", "sums", "cuts", "combine"]


class Cutting(NamedTuple):
    """A cut to find."""

    parameter: str  # that it is for
    position: int  # of the input whose largest changes are kept
    number: int  # of them


class Pass(NamedTuple):
    """One run over the pieces of a step's inputs."""

    kind: Kind  # what is done with each piece
    inputs: tuple[int, ...]  # positions of the inputs that are read
    selected: tuple[Cutting, ...] = ()  # the cuts of changes that are looked for
    statistic: int = 0  # which of the method's statistics it is for
    scope: Scope = "tensor"


class Place(NamedTuple):
    """Where a step stands among those over which statistics of whole models are taken; alone without a group."""

    number: int
    offset: int  # elements before it
    size: int  # of all


class Work(NamedTuple):
    """One step in the order of a run."""

    step: Step
    pieces: tuple[tuple[int, int], ...]  # [start, stop) elements, whole blocks but for the end
    passes: tuple[Pass, ...]  # those of its own, its result's last
    frees: tuple[str, ...]  # results that nothing needs after this step
    row: int  # elements that stay together, see `kernel.view_of`; 0: no two have to
    place: Place  # in its group
    candidates: int  # most changes of a model that the search for a cut holds
    small: bool  # it is made together with others, see `bundles`

    @property
    def whole_rows(self) -> bool:
        """Whether pieces are rows."""
        return self.row > 0

    def padded(self, number: int) -> int:
        """The length of the kernel that works on a piece."""
        start, stop = self.pieces[number]
        return self.pieces[0][1] if self.whole_rows else padded_length(stop - start)


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
    def kernels(self) -> tuple[KernelKey, ...]:
        """The programs that have to be compiled (each for at most `LENGTHS`)."""
        steps = (item.step for item in self.work)
        return tuple(dict.fromkeys(kernel_key(step) for step in steps if not is_plain_copy(step)))


def make_schedule(
    plan: Plan, piece: int = PIECE, candidates: int = MOST_COLLECTED, devices: int = 1
) -> Schedule:
    """The order in which one process runs `plan`.

    piece: elements of a piece, one of `LENGTHS`; candidates: most changes of a model that the search for a cut holds;
    devices: how many share the work. None of them changes a bit of the results; `memory.fit` finds those that stay within a budget.

    Steps go in the order their first input lies on disk, so that files are read front to back; a step that needs
    another's result follows it. An intermediate result is freed after its last use.
    """
    order = _order(plan)
    frees = freed_after(order)
    work = []
    places = _places(plan)
    remote = any(is_remote(model.path) for model in plan.models)
    # what is fetched comes in the order of the turns, which bundles would change
    room = 0 if remote else min(piece // ROW, MOST_ROWS)
    used = {name for names in frees.values() for name in names}
    for step in order:
        view = view_of(step)
        row = math.prod(size for size in view if size > 0) if view != (-1,) else 0
        small = room > 1 and view == (-1,) and _is_small(step, used)
        pieces = _rows(step.spec.size, row, piece) if row else _pieces(step.spec.size, piece)
        if small:
            pieces = ((0, step.spec.size),)
        place = places.get(step.name) or Place(0, 0, step.spec.size)
        work.append(
            Work(step, pieces, _passes(step), frees[step.name], row, place, candidates, small)
        )
    widths = [[BITS[item.spec.dtype] for item in step.inputs] for step in order]
    count = max(map(len, widths), default=0)
    several = sum(each.small for each in work)
    rows = min(room, 1 << max(several - 1, 1).bit_length()) if several else 0
    longest = max((rows * ROW if each.small else each.padded(0) for each in work), default=0)
    widest = [max(row[i] for row in widths if len(row) > i) for i in range(count)]
    buffers = [longest * bits // 8 + ALIGNMENT for bits in widest]
    return Schedule(tuple(work), tuple(_turns(work)), tuple(buffers), remote, piece, devices, rows)


def freed_after(order: Sequence[Step]) -> Mapping[str, tuple[str, ...]]:
    """The results that nothing needs any more after each of these steps, by its name."""
    last_use = {
        item.step: step.name for step in order for item in step.inputs if isinstance(item, Result)
    }
    frees: dict[str, tuple[str, ...]] = {step.name: () for step in order}
    for name, user in last_use.items():
        frees[user] += (name,)
    return frees


def _places(plan: Plan) -> dict[str, Place]:
    """The place of every step over which statistics of whole models are taken: one for each tensor, in the order of
    the output; those that make it for several checkpoints share it."""
    groups: dict[str, dict[str, list[Step]]] = {}
    for step in plan.steps:
        if step.group:
            groups.setdefault(step.group, {}).setdefault(step.tensor, []).append(step)
    places = {}
    for members in groups.values():
        sizes = [steps[0].spec.size for steps in members.values()]
        ends = list(itertools.accumulate(sizes))
        for number, steps in enumerate(members.values()):
            place = Place(number, ends[number] - sizes[number], ends[-1])
            places.update({step.name: place for step in steps})
    return places


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
                each.place.number: each for each in reversed(order) if each.step.group == group
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


def _passes(step: Step) -> tuple[Pass, ...]:
    everything = tuple(range(len(step.inputs)))
    combine = Pass("combine", everything)
    if step.method == COPY or is_plain_copy(step):
        return (combine,)
    method = find_method(step.method)
    passes: list[Pass] = []
    for number, statistic in enumerate(method.statistics):
        if not statistic.when(step.numbers) or statistic.kind == "sorted":
            continue  # rows are sorted in every piece anew
        if step.spec.size == 0 and statistic.scope == "tensor":
            continue  # there is nothing to know, but a place of its own in its group
        if statistic.kind == "changes":
            passes += _selection(step, number)
        else:
            # keys are cut by 16 bits of them after the other
            rounds = 1 if statistic.kind == "sums" else step.arithmetic.itemsize // 2
            passes += [Pass(statistic.kind, everything, (), number, statistic.scope)] * rounds
    return (*passes, combine)


def _selection(step: Step, number: int) -> list[Pass]:
    """The pass that looks for the cuts of densities; none where they keep all or nothing."""
    counts = find_method(step.method).counts_kept(step.numbers, step.spec.size)
    selected = tuple(
        Cutting(name, position, count)
        for name, kept in counts.items()
        for position, count in zip(step.model_positions, kept, strict=True)
        if 0 < count < step.spec.size
    )
    if not selected:
        return []
    base = () if step.base is None else (step.base,)
    positions = {cutting.position for cutting in selected}
    return [Pass("changes", tuple(sorted({*base, *positions})), selected, number)]


def _order(plan: Plan) -> list[Step]:
    by_name = {step.name: step for step in plan.steps}

    def place(step: Step) -> tuple[int, str, int]:
        reads = [read for item in step.inputs for read in reads_of(item)]
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
