"""A plan to an order of work: which step when, in which pieces and passes, and when each intermediate result can go."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from typing import Literal, NamedTuple

from jmerge.ckpt.dtypes import BITS
from jmerge.ckpt.safetensors import ALIGNMENT
from jmerge.engine.kernel import KernelKey, is_plain_copy, kernel_key, view_of
from jmerge.engine.select import MOST_COLLECTED
from jmerge.methods.reduce import BLOCK
from jmerge.methods.spec import REGISTRY
from jmerge.plan.steps import COPY, Plan, Read, Result, Step

# Elements a kernel works on at a time: small enough for the cache, large enough to hide its dispatch.
PIECE = 1 << 22
# The lengths kernels are compiled for; what is left of a tensor is padded to one of them.
LENGTHS = (PIECE >> 10, PIECE >> 7, PIECE >> 2, PIECE)
# Pieces under way at once: one being read, two computed, one written.
SLOTS = 4
assert all(length % BLOCK == 0 for length in LENGTHS)

Kind = Literal["select", "sums", "combine"]


class Cutting(NamedTuple):
    """A cut to find."""

    parameter: str  # that it is for
    position: int  # of the input whose largest changes are kept
    number: int  # of them


class Pass(NamedTuple):
    """One run over the pieces of a step's inputs."""

    kind: Kind  # what is done with each piece
    inputs: tuple[int, ...]  # positions of the inputs that are read
    selected: tuple[Cutting, ...]  # the cuts that are looked for


class Work(NamedTuple):
    """One step in the order of a run."""

    step: Step
    pieces: tuple[tuple[int, int], ...]  # [start, stop) elements, whole blocks but for the end
    passes: tuple[Pass, ...]
    frees: tuple[str, ...]  # results that nothing needs after this step
    whole_rows: bool  # the pieces are rows that stay together, see `kernel.view_of`

    def padded(self, number: int) -> int:
        """The length of the kernel that works on a piece."""
        start, stop = self.pieces[number]
        return self.pieces[0][1] if self.whole_rows else padded_length(stop - start)


class Schedule(NamedTuple):
    """What a run does, in order."""

    work: tuple[Work, ...]
    # The passes of all steps in order. The statistics of a step come before the result of the step before it, so that
    # what follows from them on the host is worked out meanwhile.
    turns: tuple[tuple[Work, Pass], ...]
    buffers: tuple[int, ...]  # bytes of the read buffers of one slot, by position of the input

    @property
    def held(self) -> frozenset[str]:
        """The steps whose results others need, which are kept in memory meanwhile."""
        return frozenset(name for work in self.work for name in work.frees)

    @property
    def kernels(self) -> tuple[KernelKey, ...]:
        """The programs that have to be compiled (each for at most `LENGTHS`)."""
        steps = (item.step for item in self.work)
        return tuple(dict.fromkeys(kernel_key(step) for step in steps if not is_plain_copy(step)))

    def peak_bytes(self) -> int:
        """An upper bound on what the run allocates: read buffers, arithmetic, what the search for cuts collects,
        results on their way to disk, and intermediate results."""
        wide = max((_wide_bytes(item.step) for item in self.work), default=0)
        collected = max((_collected_bytes(item) for item in self.work), default=0)
        out = max((PIECE * BITS[item.step.spec.dtype] // 8 for item in self.work), default=0)
        held = peak = 0
        sizes = {w.step.name: w.step.spec.nbytes for w in self.work if w.step.name in self.held}
        for item in self.work:
            held += sizes.get(item.step.name, 0)
            peak = max(peak, held)
            held -= sum(sizes[name] for name in item.frees)
        return SLOTS * sum(self.buffers) + (SLOTS + 1) * out + wide + collected + peak


def make_schedule(plan: Plan, piece: int = PIECE) -> Schedule:
    """The order in which one process runs `plan`.

    Steps go in the order their first input lies on disk, so that files are read front to back; a step that needs
    another's result follows it. An intermediate result is freed after its last use.
    """
    order = _order(plan)
    last_use: dict[str, str] = {}
    for step in order:
        for item in step.inputs:
            if isinstance(item, Result):
                last_use[item.step] = step.name
    frees: dict[str, list[str]] = {}
    for name, user in last_use.items():
        frees.setdefault(user, []).append(name)
    work = []
    for step in order:
        view = view_of(step)
        row = math.prod(size for size in view if size > 0)
        rows = view != (-1,)
        pieces = _rows(step.spec.size, row, piece) if rows else _pieces(step.spec.size, piece)
        work.append(Work(step, pieces, _passes(step), tuple(frees.get(step.name, ())), rows))
    widths = [[BITS[item.spec.dtype] for item in step.inputs] for step in order]
    count = max(map(len, widths), default=0)
    longest = max((each.padded(0) for each in work), default=0)
    widest = [max(row[i] for row in widths if len(row) > i) for i in range(count)]
    buffers = [longest * bits // 8 + ALIGNMENT for bits in widest]
    return Schedule(tuple(work), tuple(_turns(work)), tuple(buffers))


def _turns(order: list[Work]) -> Iterator[tuple[Work, Pass]]:
    waiting: list[tuple[Work, Pass]] = []
    for work in order:
        *statistics, combine = [(work, turn) for turn in work.passes]
        if not statistics or any(isinstance(item, Result) for item in work.step.inputs):
            yield from waiting  # which may make the results that this step needs
            yield from statistics
            yield combine
            waiting = []
        else:
            yield from statistics
            yield from waiting
            waiting = [combine]
    yield from waiting


def padded_length(elements: int) -> int:
    """The length of the kernel that works on a piece of this many elements."""
    return next((length for length in LENGTHS if length >= elements), LENGTHS[-1])


def _pieces(size: int, piece: int) -> tuple[tuple[int, int], ...]:
    """Whole pieces, then quarters of one: so little of the last kernel's work is padding."""
    quarter = max(piece // 4 // BLOCK, 1) * BLOCK
    bounds = [0]
    while (left := size - bounds[-1]) > 0:
        bounds.append(bounds[-1] + (piece if left >= piece else min(left, quarter)))
    return tuple(itertools.pairwise(bounds)) or ((0, 0),)


def _rows(size: int, unit: int, piece: int) -> tuple[tuple[int, int], ...]:
    """As many whole units as a piece holds, but at least one."""
    step = max(piece // unit, 1) * unit
    return tuple((start, min(start + step, size)) for start in range(0, size, step))


def _passes(step: Step) -> tuple[Pass, ...]:
    everything = tuple(range(len(step.inputs)))
    combine = Pass("combine", everything, ())
    if step.method == COPY or is_plain_copy(step):
        return (combine,)
    method = REGISTRY[step.method]
    models = [i for i in everything if i != step.base]
    selected = tuple(
        Cutting(name, position, count)
        for name, counts in method.counts_kept(step.numbers, step.spec.size).items()
        for position, count in zip(models, counts, strict=True)
        if 0 < count < step.spec.size
    )
    passes = []
    if selected:
        base = () if step.base is None else (step.base,)
        positions = {cutting.position for cutting in selected}
        passes.append(Pass("select", tuple(sorted({*base, *positions})), selected))
    if method.needs_sums(step.numbers):
        passes.append(Pass("sums", everything, ()))
    return (*passes, combine)


def _order(plan: Plan) -> list[Step]:
    by_name = {step.name: step for step in plan.steps}

    def place(step: Step) -> tuple[int, str, int]:
        reads = [item for item in step.inputs if isinstance(item, Read)]
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


def _width(step: Step) -> int:
    """Bytes of an element in the arithmetic of a step."""
    return 8 if "F64" in (step.spec.dtype, *(item.spec.dtype for item in step.inputs)) else 4


def _wide_bytes(step: Step) -> int:
    """What the arithmetic of one piece may hold beside inputs and result: a wide copy of each, and as many again for
    a method with statistics."""
    if is_plain_copy(step):
        return 0
    copies = len(step.inputs) + 1
    method = None if step.method == COPY else REGISTRY[step.method]
    if method and (method.sums or any(p.count for p in method.parameters.values())):
        copies *= 2
    return PIECE * _width(step) * copies


def _collected_bytes(work: Work) -> int:
    """What the search for cuts holds: positions, changes and bits of candidates, sorted too, and masks of a piece."""
    most = max((len(each.selected) for each in work.passes), default=0)
    candidates = min(work.step.spec.size, MOST_COLLECTED)
    return most * (candidates * (8 + 4 * _width(work.step)) + 2 * PIECE)
