"""What a run allocates at most, and the longest pieces with which it stays within a budget.

Counted are the buffers that pieces are read into, results on their way to disk, what compiled programs allocate beside
them (XLA's own figure), what is gathered on the host for statistics, and intermediate results. The process itself, its
libraries and its programs are not.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import jax
import numpy as np

from jmerge.ckpt.dtypes import BITS, NUMPY
from jmerge.ckpt.safetensors import ALIGNMENT
from jmerge.engine.assemble import ASSEMBLE_BYTES, is_dealt_out
from jmerge.engine.compute import THREADS, tree_blocks
from jmerge.engine.gather import GATHER_BYTES
from jmerge.engine.kernel import (
    bracket_kernel,
    combine_kernel,
    is_plain_copy,
    kernel_key,
    keys_kernel,
    sums_kernel,
)
from jmerge.engine.radix import FEW
from jmerge.engine.schedule import LENGTHS, ROW, Pass, Schedule, Work, make_schedule
from jmerge.engine.select import MOST_COLLECTED, SAMPLE_RUN, SAMPLE_STEP, sample_starts
from jmerge.engine.small import Small, change_rows, combine_rows, key_rows, sum_rows
from jmerge.engine.store import REMOTE_BYTES
from jmerge.engine.task import Known, Task
from jmerge.errors import Fault, PlanError
from jmerge.methods.cuts import make_cut
from jmerge.methods.reduce import BLOCK
from jmerge.methods.wrap import find_method
from jmerge.plan.steps import COPY, Gathered, Plan

LEAST_BUDGET = 64_000_000
LEAST_CANDIDATES = 1 << 12  # of a search for a cut; with fewer it would hardly end
ENOUGH_CANDIDATES = (
    1 << 18
)  # to look at a tensor once or twice; for that, pieces are made shorter first
OTHER_BYTES = (
    8_000_000  # Python's objects, the stacks of threads, what is counted in files' pages twice
)
KEPT = 2  # the allocator keeps what programs free, in blocks that do not always fit the next


class Need(NamedTuple):
    """Bytes that a run allocates at most, by what for."""

    buffers: int  # of pieces of the inputs
    results: int  # pieces on their way to disk
    programs: int  # what compiled programs allocate beside them
    statistics: int  # samples, candidates, counts, sorted rows and partial sums on the host
    held: int  # results that other steps need
    fetched: int  # remote inputs, ahead of their use
    gathered: (
        int  # rows of token tables, and parts of other layouts, on their way to where they belong
    )
    other: int = OTHER_BYTES

    @property
    def total(self) -> int:
        """All of it."""
        return sum(self)


def need_of(schedule: Schedule) -> Need:
    """What a run of `schedule` allocates at most; compiles its programs, for JAX's default device."""
    slots = schedule.slots
    again = any(what.kind in ("changes", "cuts") for work in schedule.work for what in work.passes)
    platform = _platform()
    programs = (_program_bytes(work, schedule.rows, platform) for work in schedule.work)
    return Need(
        buffers=(slots + 1 + again) * sum(schedule.buffers),
        results=KEPT
        * (slots + 1)
        * max((_result_bytes(work, schedule.rows) for work in schedule.work), default=0),
        # every piece under way but the one that is read may be in a program
        programs=KEPT * (slots - 1) * max(programs, default=0),
        statistics=max(map(_statistics_bytes, schedule.work), default=0),
        held=_held_bytes(schedule),
        fetched=REMOTE_BYTES if schedule.remote else 0,
        gathered=_gathered_bytes(schedule) + _assembled_bytes(schedule),
    )


def fit(plan: Plan, budget: int | None, devices: int = 1, longest: int = LENGTHS[-1]) -> Schedule:
    """The schedule with the longest pieces that stays within `budget` bytes (None: without a limit).

    devices: how many share the work; longest: the longest pieces that come into question, one of `LENGTHS`.

    Raises:
      PlanError: none does; says which tensor needs most, and the least budget that would do.
    """
    if budget is None:
        return make_schedule(plan, longest, devices=devices)
    if budget < LEAST_BUDGET:
        message = f"expected at least {_size(LEAST_BUDGET)}, found {_size(budget)}"
        raise PlanError(Fault(message, where="memory"))
    found: list[tuple[float, Schedule]] = []
    for piece in reversed(LENGTHS[: LENGTHS.index(longest) + 1]):
        least = make_schedule(plan, piece, LEAST_CANDIDATES, devices)
        spare = budget - need_of(least).total
        if spare < 0:
            continue
        each = max(map(_candidate_bytes, least.work), default=0)
        more = spare // each if each else MOST_COLLECTED
        candidates = min(LEAST_CANDIDATES + more, MOST_COLLECTED)
        schedule = make_schedule(plan, piece, candidates, devices)
        while need_of(schedule).total > budget:  # samples grow with them too
            candidates = candidates * 3 // 4
            schedule = make_schedule(plan, piece, candidates, devices)
        # with few candidates tensors are looked at often, with short pieces each look takes long
        speed = min(candidates, ENOUGH_CANDIDATES) * math.sqrt(piece)
        found.append((speed, schedule))
    if found:
        return max(found, key=lambda each: each[0])[1]
    worst = max(least.work, key=lambda work: _own_bytes(work, least))
    unit = "" if not worst.row else ", whose elements have to stay together"
    raise PlanError(
        Fault(
            f"{_size(budget)} do not do: {worst.step.name} {worst.step.spec} by {worst.step.method}{unit} needs "
            f"{_size(_own_bytes(worst, least))}; with everything else at least {_size(need_of(least).total)}",
            where="memory",
        )
    )


def _own_bytes(work: Work, schedule: Schedule) -> int:
    """What one step alone needs."""
    slots = schedule.slots
    reads = sum(
        BITS[item.spec.dtype] // 8 * work.padded(0) + ALIGNMENT for item in work.step.inputs
    )
    programs = (slots - 1) * _program_bytes(work, schedule.rows, _platform())
    made = KEPT * ((slots + 1) * _result_bytes(work, schedule.rows) + programs)
    return (slots + 1) * reads + made + _statistics_bytes(work)


def _result_bytes(work: Work, rows: int) -> int:
    """Of one piece, or of all tensors of a bundle."""
    elements = rows * ROW if work.small else work.padded(0)
    return elements * BITS[work.step.spec.dtype] // 8


def _held_bytes(schedule: Schedule) -> int:
    held = schedule.held
    sizes = {w.step.name: w.step.spec.nbytes for w in schedule.work if w.step.name in held}
    now = most = 0
    for work in schedule.work:
        now += sizes.get(work.step.name, 0)
        most = max(most, now)
        now -= sum(sizes[name] for name in work.frees)
    return most


def _gathered_bytes(schedule: Schedule) -> int:
    inputs = {item for work in schedule.work for item in work.step.inputs}
    tables = [item for item in inputs if isinstance(item, Gathered)]
    # single rows of a few kinds, and one that is kept for all padding
    widths = [8 * item.spec.size // max(item.spec.shape[0], 1) for item in tables]
    return GATHER_BYTES + 8 * max(widths) + sum(widths) if widths else 0


def _assembled_bytes(schedule: Schedule) -> int:
    inputs = (item for work in schedule.work for item in work.step.inputs)
    return ASSEMBLE_BYTES if any(map(is_dealt_out, inputs)) else 0


_known: dict[
    Any, int
] = {}  # bytes of programs: the same ones are asked about for every length that is tried


def _program_bytes(work: Work, rows: int, platform: str) -> int:
    """What one of the programs of a step allocates at most beside inputs and result, by XLA's analysis of the longest
    piece."""
    if is_plain_copy(work.step):
        return 0
    program = kernel_key(work.step)
    kinds = tuple((what.kind, what.statistic, len(what.selected)) for what in work.passes)
    key: Any = platform, program, work.padded(0), kinds
    if work.small:
        key = platform, program, rows, frozenset((kind, number) for kind, number, _ in kinds)
    if key not in _known:
        with program.precision():
            _known[key] = (
                _compile_rows(Small([work], rows, platform), rows)
                if work.small
                else _compile(Task(work, Known(), platform))
            )
    return _known[key]


def _platform() -> str:
    """Of the device that programs are compiled for."""
    # zeros of NumPy's: for JAX's own it would compile a program
    (device,) = jax.device_put(np.zeros(())).devices()
    return str(device.platform)


def _compile_rows(small: Small, rows: int) -> int:
    """Bytes of the largest program that a small tensor goes through, with others."""
    (task,), key = small.tasks, small.key
    task.cuts, work = dict, task.work
    inputs = [_shape((rows, ROW), NUMPY[item.spec.dtype]) for item in work.step.inputs]
    most = 0
    for what in dict.fromkeys(work.passes):
        if what.kind == "changes":
            assert work.step.base is not None
            models = [inputs[position] for position in work.step.model_positions]
            factors = np.ones((rows, len(models)), key.compute)
            most = max(most, _bytes_of(change_rows(), inputs[work.step.base], models, factors))
        elif what.kind == "combine":
            most = max(most, _bytes_of(combine_rows(key), inputs, small.arguments(), result=True))
        else:
            program: Any = sum_rows if what.kind == "sums" else key_rows
            program = program(key, what.statistic)
            most = max(most, _bytes_of(program, inputs, small.arguments()))
            given = jax.eval_shape(program, inputs, small.arguments())
            _pretend(task, what, given.shape[1] if what.kind == "sums" else 0)
    return most


def _compile(task: Task) -> int:
    """Bytes of the largest program of a step, with what it gives back to the host but for results."""
    task.cuts = dict  # so that there are cuts of the right shape
    work, most = task.work, 0
    for what in dict.fromkeys(work.passes):
        inputs = _windows(work, what.inputs)
        if what.kind == "changes":
            count = len(what.selected)
            base, *_ = what.inputs
            positions = [base, *(cutting.position for cutting in what.selected)]
            bounds = np.zeros(count, task.key.word)
            factors = np.ones(count, task.key.compute)
            most = max(
                most,
                _bytes_of(bracket_kernel(), *_windows(work, positions), factors, bounds, bounds),
            )
            continue
        arguments = task.arguments(0)
        arguments |= _sorted_rows(task, inputs, arguments)
        if what.kind == "combine":
            most = max(most, _bytes_of(combine_kernel(task.key), *inputs, arguments, result=True))
            continue
        assert task.method is not None
        kernel = (sums_kernel if what.kind == "sums" else keys_kernel)(task.key, what.statistic)
        most = max(most, _bytes_of(kernel, *inputs, arguments))
        given = jax.eval_shape(kernel, *inputs, arguments)
        _pretend(task, what, given.shape[0] if what.kind == "sums" else 0)
    return most


def _pretend(task: Task, what: Pass, sums: int) -> None:
    """Give a step a statistic of the right shape; sums: how many there are."""
    assert task.method is not None
    statistic = task.method.statistics[what.statistic]
    if what.kind == "sums":
        task.own.found[statistic.keyword] = np.zeros(sums, task.key.compute)
        return
    assert statistic.counts is not None
    found = {name: np.asarray(value) for name, value in task.found.items()}
    counts = statistic.counts(task.work.step.numbers, task.work.place.size, found)
    cuts = sum(map(len, counts))
    task.own.found[statistic.keyword] = make_cut([0] * cuts, [0] * cuts, task.key.word)


def _windows(work: Work, positions: Any) -> tuple[list[jax.ShapeDtypeStruct], np.ndarray]:
    """What kernels read of some inputs, but for the values."""
    windows = []
    for position in positions:
        dtype = NUMPY[work.step.inputs[position].spec.dtype]
        length = work.padded(0) + ALIGNMENT // dtype.itemsize
        windows.append(_shape(length, dtype))
    return windows, np.zeros(len(windows), np.int32)


def _shape(shape: int | tuple[int, ...], dtype: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(np.broadcast_shapes(shape), dtype)  # type: ignore[no-untyped-call]


def _sorted_rows(task: Task, inputs: Any, arguments: dict[str, Any]) -> dict[str, Any]:
    """Sorted rows of the right shape."""
    found = {}
    for number, statistic in enumerate(task.method.statistics if task.method else ()):
        if statistic.kind == "sorted" and task.sorts_on_host:
            keys = jax.eval_shape(keys_kernel(task.key, number), *inputs, arguments)
            shape = np.empty(keys[0].size, np.bool_).reshape(task.row_view).shape
            found[statistic.keyword] = [_shape(shape, task.key.word) for _ in keys]
    return found


def _bytes_of(program: Any, *arguments: Any, result: bool = False) -> int:
    """What a program allocates: temporary memory, and what it returns unless that is a piece of the result."""
    analysis = program.lower(*arguments).compile().memory_analysis()
    if analysis is None:  # not every backend has one
        return 0
    own: int = analysis.temp_size_in_bytes + (0 if result else analysis.output_size_in_bytes)
    return own


def _statistics_bytes(work: Work) -> int:
    """What is gathered on the host for the statistics of a step."""
    if work.step.method == COPY or is_plain_copy(work.step):
        return 0
    step, piece = work.step, work.padded(0)
    width, models = step.arithmetic.itemsize, len(step.models)
    selected = max((len(what.selected) for what in work.passes), default=0)
    total = 0
    if selected:
        sample = sample_starts(step.spec.size, work.candidates).size * SAMPLE_RUN // SAMPLE_STEP
        # of the inputs of two steps, and the bits of one's changes, also sorted and compared
        total += 2 * sample * len(step.inputs) * width + selected * sample * (2 * width + 1)
        total += min(step.spec.size, work.candidates) * _candidate_bytes(work)
        total += 3 * min(selected, THREADS) * piece  # masks
    for what in work.passes:
        if what.kind == "cuts":
            total += min(piece, FEW) * (3 * width + 2 + 8) + (1 << 16) * 8 * 4 * models
    sums = [what for what in work.passes if what.kind == "sums"]
    if sums:
        parts = step.spec.size // work.row if work.whole_rows else -(-step.spec.size // BLOCK)
        # gathered, put together, padded and handed over, for two sums a model at least
        total += 4 * 2 * width * tree_blocks(parts) * max(3, 2 * models)
    if any(each.kind == "sorted" for each in find_method(step.method).statistics):
        total += 2 * models * piece * 2 * width  # keys as they are and sorted, of two pieces
    return total


def _candidate_bytes(work: Work) -> int:
    """What one candidate of each of a step's searches takes: its position and change, once more while all are put
    together, the bits of the change and these sorted; of two steps, since one is settled while the next is read."""
    selected = max((len(what.selected) for what in work.passes), default=0)
    return 2 * selected * (2 * 8 + 6 * work.step.arithmetic.itemsize)


def _size(nbytes: int) -> str:
    return f"{-(-nbytes // 10**6)} MB"
