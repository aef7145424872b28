"""What a run allocates at most, and the longest pieces with which it stays within a budget.

Counted are the buffers that pieces are read into, results on their way to disk, what compiled programs allocate beside
them (XLA's own figure), what is gathered on the host for statistics, and intermediate results. The process itself, its
libraries and its programs are not.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import partial
from typing import Any, NamedTuple

import jax
import numpy as np

from jmerge.ckpt.safetensors import ALIGNMENT
from jmerge.dtypes import BITS, NUMPY
from jmerge.engine.assemble import ASSEMBLE_BYTES, is_dealt_out
from jmerge.engine.gather import GATHER_BYTES
from jmerge.engine.kernel import (
    CHOSEN,
    IN_A_BYTE,
    Piece,
    bracket_kernel,
    chosen_kernel,
    combine_kernel,
    is_plain_copy,
    kernel_key,
    piece_kernel,
    update_kernel,
)
from jmerge.engine.schedule import (
    LENGTHS,
    ROW,
    Pass,
    Schedule,
    Work,
    default_platform,
    make_schedule,
)
from jmerge.engine.select import MOST_COLLECTED, SAMPLE_RUN, SAMPLE_STEP, sample_starts
from jmerge.engine.small import combine_rows, fold_rows, terms_rows
from jmerge.engine.store import REMOTE_BYTES
from jmerge.engine.task import KEPT_BYTES, Task, piece_shapes, window_shapes
from jmerge.errors import PlanError, Problem
from jmerge.methods.statistics.fold import Statistic
from jmerge.methods.statistics.rows import Masks, SortedRows
from jmerge.methods.wrap import find_method
from jmerge.plan.inputs import Gathered
from jmerge.plan.steps import COPY, Plan

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
    again = any(what.again for work in schedule.work for what in work.passes)
    programs = (_program_bytes(work, schedule.rows) for work in schedule.work)
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
        raise PlanError(Problem(message, where="memory", code="JM406"))
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
    unit = "" if not worst.row else " on whole rows"
    raise PlanError(
        Problem(
            f"{_size(budget)} is too small: {worst.step.name} {worst.step.spec} by {worst.step.method}{unit} needs "
            f"{_size(_own_bytes(worst, least))}; the smallest limit that works is {_size(need_of(least).total)}",
            where="memory",
            code="JM406",
        )
    )


def _own_bytes(work: Work, schedule: Schedule) -> int:
    """What one step alone needs."""
    slots = schedule.slots
    reads = sum(
        BITS[item.spec.dtype] // 8 * work.padded(0) + ALIGNMENT for item in work.step.inputs
    )
    programs = (slots - 1) * _program_bytes(work, schedule.rows)
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


# What is asked about for every length that is tried.
_known: dict[Any, int] = {}  # bytes of programs
_found: dict[Any, tuple[int, int]] = {}  # see `_gathered`


def _program_bytes(work: Work, rows: int) -> int:
    """What one of the programs of a step allocates at most beside inputs and result, by XLA's analysis of the longest
    piece."""
    if is_plain_copy(work.step):
        return 0
    program = kernel_key(work.step)
    key = default_platform(), program, rows if work.small else work.padded(0), work.passes
    if key not in _known:
        with program.precision():
            _known[key] = max((_bytes_of(*each) for each in programs_of(work, rows)), default=0)
    return _known[key]


def programs_of(work: Work, rows: int) -> Iterator[tuple[Any, ...]]:
    """The programs of a step, each with what it is called with or the shapes of that; rows: as in `make_small`."""
    task, inputs = Task(work, {}, default_platform()), window_shapes(work)
    for what, state in _statistics(task):
        arguments = task.arguments(0, what.statistic)
        kernel = task.key, what.statistic
        if work.small:
            yield from _programs_of_rows(task, what, state, rows)
            continue
        if what.samples:
            bounds = np.zeros(len(state.of_term), task.key.word)
            bracket = bracket_kernel(*kernel, state.of_term)
            yield bracket, bounds, bounds, *inputs, arguments
            yield chosen_kernel(*kernel), _shape((CHOSEN,), np.int32), *inputs, arguments
        else:
            yield from _programs_of_pieces(task, inputs, arguments, what.statistic)
            place = task.place(what.statistic, 0)
            # the last pass of several holds less
            update = update_kernel(*kernel, last=not what.again)
            yield update, state, piece_shapes(work), arguments, place
    arguments = task.arguments(0)
    if work.small:
        yield combine_rows(task.key), _rows_of(work, rows), _for_rows(arguments, rows)
    else:
        yield from _programs_of_pieces(task, inputs, arguments, None)
        yield combine_kernel(task.key), *inputs, arguments


def _programs_of_rows(task: Task, what: Pass, state: Any, rows: int) -> Iterator[tuple[Any, ...]]:
    """The same for a statistic of small tensors."""
    inputs = _rows_of(task.work, rows)
    arguments = _for_rows(task.arguments(0, what.statistic), rows)
    if what.samples:
        yield terms_rows(task.key, what.statistic), inputs, arguments
    else:
        valid = np.zeros(rows, np.uint32)
        yield fold_rows(task.key, what.statistic), _for_rows(state, rows), inputs, arguments, valid


def _statistics(task: Task) -> Iterator[tuple[Pass, Any]]:
    """The statistics that pieces are read for, each with the shapes of its state; those before it are in the task by
    then."""
    for what in dict.fromkeys(task.work.passes[:-1]):
        state = jax.eval_shape(partial(task.begin, what.statistic), task.found(what.statistic))
        yield what, state
        task.settle(what.statistic, jax.eval_shape(task.statistics[what.statistic].finish, state))


def _rows_of(work: Work, rows: int) -> list[jax.ShapeDtypeStruct]:
    return [_shape((rows, ROW), NUMPY[item.spec.dtype]) for item in work.step.inputs]


def _for_rows(tree: Any, rows: int) -> Any:
    """The shapes of what every row has."""
    return jax.tree.map(lambda each: _shape((rows, *np.shape(each)), each.dtype), tree)


def _shape(shape: tuple[int, ...], dtype: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, dtype)


def _programs_of_pieces(
    task: Task, inputs: Any, arguments: dict[str, Any], until: int | None
) -> Iterator[tuple[Any, ...]]:
    """The same for what the host makes of single pieces; puts the shapes of that into arguments."""
    for number in task.on_host(until):
        program, own = piece_kernel(task.key, number), dict(arguments)
        yield program, *inputs, own
        task.take_in(arguments, number, jax.eval_shape(program, *inputs, own), until)


def _bytes_of(program: Any, *arguments: Any) -> int:
    """What a program allocates: temporary memory, and what it returns, but for a piece of the result and for what
    takes the place of what it was given."""
    analysis = program.lower(*arguments).compile().memory_analysis()
    if analysis is None:  # not every backend has one
        return 0
    shapes = jax.eval_shape(program, *arguments)
    made: int = 0 if isinstance(shapes, Piece) else analysis.output_size_in_bytes
    return int(analysis.temp_size_in_bytes + max(made - analysis.alias_size_in_bytes, 0))


def _statistics_bytes(work: Work) -> int:
    """What is gathered for the statistics of a step."""
    needed = _needed(work)
    if not needed:
        return 0
    step, piece, width = work.step, work.padded(0), work.step.arithmetic.itemsize
    thresholds, states = _gathered(work)
    # where it begins, on its way, put together from devices, and what takes its place
    total = 4 * states
    if thresholds:
        size = step.spec.size
        sample = sample_starts(size, work.candidates).size * SAMPLE_RUN // SAMPLE_STEP
        # of the inputs of two steps, and the keys of one, also sorted and compared
        total += 2 * sample * sum(NUMPY[item.spec.dtype].itemsize for item in step.inputs)
        total += thresholds * sample * (2 * width + 1)
        total += min(size, work.candidates) * _candidate_bytes(work)
        total += 3 * -(-thresholds // IN_A_BYTE) * piece  # places
    for each in needed:  # of two pieces
        if isinstance(each, SortedRows):  # keys as they are and sorted
            total += 2 * len(step.models) * piece * 2 * width
        elif isinstance(each, Masks):
            packed = len(step.models) * step.spec.size // 8
            total += 2 * min(packed, work.candidates * KEPT_BYTES)
            total += 2 * len(step.models) * piece
    return total


def _candidate_bytes(work: Work) -> int:
    """What one candidate of each of a step's searches takes: its position and key, once more while all are put
    together, and the keys sorted; of two steps, since one is settled while the next is read; and on its way there. Or
    what is kept of masks for it, of two steps too."""
    masks = any(isinstance(each, Masks) for each in _needed(work))
    own = 2 * (2 * 8 + 3 * work.step.arithmetic.itemsize) + 16
    return _gathered(work)[0] * own + masks * 2 * KEPT_BYTES


def _needed(work: Work) -> tuple[Statistic, ...]:
    """The statistics of a step."""
    if work.step.method == COPY or is_plain_copy(work.step):
        return ()
    return find_method(work.step.method).needed(work.step.hyperparameters)


def _gathered(work: Work) -> tuple[int, int]:
    """The thresholds that are searched for a step, and the bytes of the largest state of its other statistics."""
    if work.step.method == COPY or is_plain_copy(work.step) or len(work.passes) == 1:
        return 0, 0
    key = kernel_key(work.step), work.padded(0), work.passes, work.place("tensor"), work.group
    if key not in _found:
        thresholds = states = 0
        with kernel_key(work.step).precision():
            for what, state in _statistics(Task(work, {}, default_platform())):
                if what.samples:
                    thresholds = max(thresholds, len(state.of_term))
                else:
                    leaves = jax.tree.leaves(state)
                    states = max(states, sum(each.size * each.dtype.itemsize for each in leaves))
        _found[key] = thresholds, states
    return _found[key]


def _size(nbytes: int) -> str:
    return f"{-(-nbytes // 10**6)} MB"
