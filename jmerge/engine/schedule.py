"""A plan to an order of work: which step when, in which pieces and passes, and when each intermediate result can go."""

from __future__ import annotations

from typing import Literal, NamedTuple

from jmerge.ckpt.dtypes import BITS
from jmerge.engine.kernel import KernelKey, is_plain_copy, kernel_key
from jmerge.methods.cuts import kept_count
from jmerge.methods.reduce import BLOCK
from jmerge.methods.spec import REGISTRY
from jmerge.plan.steps import COPY, Plan, Read, Result, Step

# Elements a kernel works on at a time: small enough for the cache, large enough to hide its dispatch.
PIECE = 1 << 21
# The lengths kernels are compiled for; what is left of a tensor is padded to one of them.
LENGTHS = (PIECE >> 9, PIECE >> 6, PIECE >> 3, PIECE)
# Pieces under way at once: one being read, one computed, one written.
SLOTS = 3
# Magnitudes gathered at once for partial sorts; beyond, the models of a tensor are looked at one after another.
GATHER_BYTES = 1 << 28

assert all(length % BLOCK == 0 for length in LENGTHS)

Kind = Literal["magnitudes", "sums", "combine"]


class Pass(NamedTuple):
    """One run over the pieces of a step's inputs."""

    kinds: tuple[Kind, ...]  # what is done with each piece, in order
    inputs: tuple[int, ...]  # positions of the inputs that are read
    measured: tuple[int, ...]  # those whose magnitudes are gathered


class Work(NamedTuple):
    """One step in the order of a run."""

    step: Step
    pieces: tuple[tuple[int, int], ...]  # [start, stop) elements, whole blocks but for the end
    passes: tuple[Pass, ...]
    frees: tuple[str, ...]  # results that nothing needs after this step


class Schedule(NamedTuple):
    """What a run does, in order."""

    work: tuple[Work, ...]
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
        """An upper bound on what the run allocates: read buffers, arithmetic, gathered magnitudes and their sorted
        copies, results on their way to disk, and intermediate results."""
        wide = max((_wide_bytes(item.step) for item in self.work), default=0)
        gathered = max((_gathered_bytes(item) for item in self.work), default=0)
        out = max((PIECE * BITS[item.step.spec.dtype] // 8 for item in self.work), default=0)
        held = peak = 0
        sizes = {w.step.name: w.step.spec.nbytes for w in self.work if w.step.name in self.held}
        for item in self.work:
            held += sizes.get(item.step.name, 0)
            peak = max(peak, held)
            held -= sum(sizes[name] for name in item.frees)
        return SLOTS * sum(self.buffers) + (SLOTS + 1) * out + wide + gathered + peak


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
        pieces = _pieces(step.spec.size, piece)
        work.append(Work(step, pieces, _passes(step, len(pieces)), tuple(frees.get(step.name, ()))))
    widths = [[BITS[item.spec.dtype] for item in step.inputs] for step in order]
    count = max(map(len, widths), default=0)
    sizes = (min(step.spec.size, PIECE) for step in order)
    longest = max(map(padded_length, sizes), default=0)
    buffers = [longest * max(row[i] for row in widths if len(row) > i) // 8 for i in range(count)]
    return Schedule(tuple(work), tuple(buffers))


def padded_length(elements: int) -> int:
    """The length of the kernel that works on a piece of this many elements."""
    return next((length for length in LENGTHS if length >= elements), LENGTHS[-1])


def _pieces(size: int, piece: int) -> tuple[tuple[int, int], ...]:
    starts = range(0, max(size, 1), piece)
    return tuple((start, min(start + piece, size)) for start in starts)


def _passes(step: Step, pieces: int) -> tuple[Pass, ...]:
    everything = tuple(range(len(step.inputs)))
    combine = Pass(("combine",), everything, ())
    if step.method == COPY or is_plain_copy(step):
        return (combine,)
    method = REGISTRY[step.method]
    models = [i for i in everything if i != step.base]
    counts = [kept_count(density, step.spec.size) for density in method.densities(step.numbers)]
    selected = zip(models, counts, strict=False)  # a method that does not select has no counts
    measured = tuple(i for i, count in selected if 0 < count < step.spec.size)
    sums = [Pass(("sums",), everything, ())] if method.needs_sums(step.numbers) else []
    if pieces == 1:
        magnitudes: list[Kind] = ["magnitudes"] if measured else []
        kinds = [*magnitudes, *(kind for each in sums for kind in each.kinds), "combine"]
        return (Pass(tuple(kinds), everything, measured),)
    groups = [measured] if measured else []
    if 4 * step.spec.size * len(measured) > GATHER_BYTES:
        groups = [(i,) for i in measured]
    base = () if step.base is None else (step.base,)
    gather = [Pass(("magnitudes",), tuple(sorted((*base, *group))), group) for group in groups]
    return (*gather, *sums, combine)


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
    if method and (method.sums or method.densities(step.numbers)):
        copies *= 2
    return PIECE * _width(step) * copies


def _gathered_bytes(work: Work) -> int:
    """The magnitudes that are gathered at once, with a sorted copy of each."""
    most = max((len(each.measured) for each in work.passes), default=0)
    return 2 * most * work.step.spec.size * _width(work.step)
