"""A plan to an order of work: which step when, in which pieces, and when each intermediate result can go."""

from __future__ import annotations

from typing import NamedTuple

from jmerge.ckpt.dtypes import BITS
from jmerge.engine.kernel import KernelKey, is_plain_copy, kernel_key
from jmerge.methods.reduce import BLOCK
from jmerge.methods.spec import REGISTRY
from jmerge.plan.steps import COPY, Plan, Read, Result, Step

PIECE = (
    1 << 21
)  # elements a kernel works on at a time: small enough for the cache, large enough to hide dispatch
LENGTHS = (
    PIECE >> 9,
    PIECE >> 6,
    PIECE >> 3,
    PIECE,
)  # that kernels are compiled for; a tensor's rest is padded
SLOTS = 3  # pieces under way at once: one being read, one computed, one written

assert all(length % BLOCK == 0 for length in LENGTHS)


class Work(NamedTuple):
    """One step in the order of a run."""

    step: Step
    pieces: tuple[
        tuple[int, int], ...
    ]  # [start, stop) elements, each a run of whole blocks but for the end
    frees: tuple[str, ...]  # intermediate results that nothing needs after this step


class Schedule(NamedTuple):
    """What a run does, in order."""

    work: tuple[Work, ...]
    buffers: tuple[int, ...]  # bytes of the read buffers of one slot, by position of the input

    @property
    def kernels(self) -> tuple[KernelKey, ...]:
        """The programs that have to be compiled (each for at most `LENGTHS`)."""
        steps = (item.step for item in self.work)
        return tuple(dict.fromkeys(kernel_key(step) for step in steps if not is_plain_copy(step)))

    def peak_bytes(self) -> int:
        """An upper bound on what the run allocates: read buffers, arithmetic, results on their way to disk, and
        intermediate results."""
        wide = max((_wide_bytes(item.step) for item in self.work), default=0)
        out = max((PIECE * BITS[item.step.spec.dtype] // 8 for item in self.work), default=0)
        held = peak = 0
        sizes = {
            item.step.name: item.step.spec.nbytes for item in self.work if not item.step.written
        }
        for item in self.work:
            held += sizes.get(item.step.name, 0)
            peak = max(peak, held)
            held -= sum(sizes[name] for name in item.frees)
        return SLOTS * sum(self.buffers) + (SLOTS + 1) * out + wide + peak


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
    work = tuple(
        Work(step, _pieces(step.spec.size, piece), tuple(frees.get(step.name, ())))
        for step in order
    )
    widths = [[BITS[item.spec.dtype] for item in step.inputs] for step in order]
    count = max(map(len, widths), default=0)
    longest = max((min(max(LENGTHS), _padded(step.spec.size)) for step in order), default=0)
    buffers = tuple(
        longest * max(row[i] for row in widths if len(row) > i) // 8 for i in range(count)
    )
    return Schedule(work, buffers)


def padded_length(elements: int) -> int:
    """The length of the kernel that works on a piece of this many elements."""
    return next((length for length in LENGTHS if length >= elements), LENGTHS[-1])


def _padded(size: int) -> int:
    return padded_length(min(size, PIECE))


def _pieces(size: int, piece: int) -> tuple[tuple[int, int], ...]:
    return tuple((start, min(start + piece, size)) for start in range(0, size, piece)) or ((0, 0),)


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


def _wide_bytes(step: Step) -> int:
    """What the arithmetic of one piece may hold beside inputs and result: a wide copy of each, and as many again for
    a method that needs sums."""
    if is_plain_copy(step):
        return 0
    width = 8 if any(item.spec.dtype == "F64" for item in step.inputs) else 4
    copies = len(step.inputs) + 1
    if step.method != COPY and REGISTRY[step.method].sums is not None:
        copies *= 2
    return PIECE * width * copies
