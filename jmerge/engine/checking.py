"""From pieces that kernels make to bytes that may be written: waits for them, adds them up, stops at NaN."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
from zlib_ng import zlib_ng

from jmerge.arch.infer import is_buffer
from jmerge.dtypes import BITS, count_nonfinite
from jmerge.engine.events import Event, Nonfinite
from jmerge.engine.kernel import Piece
from jmerge.engine.slots import Loaded, LoadedBundle
from jmerge.errors import NonFiniteError, Problem
from jmerge.plan.inputs import Assembled, Gathered, Item, Result
from jmerge.plan.steps import Plan, Step
from jmerge.tracer import Tracer


class Tally:
    """How many elements of one step's inputs and result are NaN or infinite."""

    def __init__(self) -> None:
        self._inputs: dict[int, int] = {}
        self._result = 0

    def count(self, loaded: Loaded, raw: np.ndarray) -> int:
        """Add those of a piece whose result is `raw`, and say how many the result has."""
        step = loaded.work.step
        for position, item in enumerate(step.inputs):
            found = count_nonfinite(loaded.raw(position), item.spec.dtype)
            if found:
                self._inputs[position] = self._inputs.get(position, 0) + found
        result = count_nonfinite(raw, step.spec.dtype)
        self._result += result
        return result

    def take(self) -> tuple[dict[int, int], int]:
        """The counts by position of the input, and that of the result; from here on they start at zero."""
        counts = self._inputs, self._result
        self._inputs, self._result = {}, 0
        return counts


class Made(NamedTuple):
    """A piece of a result, or the results of small tensors, perhaps still being computed."""

    loaded: Loaded | LoadedBundle
    piece: Piece | None  # None for a plain copy: the result is in the slot


class Checked(NamedTuple):
    """The bytes of a piece of a result."""

    loaded: Loaded
    raw: np.ndarray
    crc32: int  # 0 when it is not written
    nonfinite: int  # elements of it that are NaN or infinite


class Checker:
    """Checks pieces in the order in which they are made."""

    def __init__(
        self, plan: Plan, allow_nonfinite: bool, tracer: Tracer, tell: Callable[[Event], None]
    ) -> None:
        """tell: called with the tensors in whose inputs there is NaN or infinity, where that is allowed."""
        self._plan = plan
        self._allow_nonfinite = allow_nonfinite
        self._tracer = tracer
        self._tell = tell
        self._tally = Tally()

    def check(self, made: Made) -> Iterator[Checked]:
        """What was made; NonFiniteError when a tensor that is complete holds NaN or infinity, or cannot be copied."""
        for loaded, raw, suspicious in self._results(made):
            step = loaded.work.step
            with self._tracer.span("check", loaded.where, raw.size):
                if made.piece is None:
                    self._compare(loaded)
                nonfinite = self._tally.count(loaded, raw) if suspicious else 0
                crc32 = zlib_ng.crc32(raw) if step.written else 0
            if loaded.last:
                self._judge(step)
            yield Checked(loaded, raw, crc32, nonfinite)

    def _results(self, made: Made) -> Iterator[tuple[Loaded, np.ndarray, bool]]:
        """The bytes of every result, and whether there may be NaN or infinity in its inputs or in it."""
        loaded, piece = made
        if isinstance(loaded, LoadedBundle):
            assert piece is not None
            with self._tracer.span("result", loaded.where, loaded.result_bytes):
                values = np.asarray(piece.values)
                hit = np.asarray(piece.bits)
            for row, small in enumerate(loaded.rows):
                result = values[row, : small.elements].view(np.uint8)
                yield small, result, bool(hit[row].any())
        elif piece is None:
            yield loaded, loaded.raw(0), True
        else:
            size = loaded.elements * BITS[loaded.work.step.spec.dtype] // 8
            with self._tracer.span("result", loaded.where, size):
                raw = np.asarray(piece.values).view(np.uint8)[:size]
                suspicious = bool(np.asarray(piece.bits).any())
            yield loaded, raw, suspicious

    def _compare(self, loaded: Loaded) -> None:
        """A copy of several inputs is only right when they are equal."""
        step = loaded.work.step
        first, *others = step.inputs
        for position, item in enumerate(others, 1):
            if not np.array_equal(loaded.raw(position), loaded.raw(0)):
                message = f"differs between {self._owner(first)} and {self._owner(item)}"
                message += (
                    "; it is not floating point, so it cannot be merged; take it from one model"
                )
                message += f" with 'except: [{step.tensor}]'"
                raise NonFiniteError(Problem(message, where=step.name, code="JM128"))

    def _judge(self, step: Step) -> None:
        """Stop when a tensor that is complete holds NaN or infinity, unless that is allowed or a mask is made of it."""
        inputs, result = self._tally.take()
        if not (result or inputs) or is_buffer(step.tensor, step.spec):
            return
        if self._allow_nonfinite:
            items = (step.inputs[position] for position in inputs)
            models = {item.model for item in items if not isinstance(item, Result)}
            self._tell(Nonfinite(step.name, tuple(sorted(models))))
            return
        code = "JM127"
        message = (
            f"{result} elements of the result do not fit {step.spec.dtype}; set a wider out_dtype"
        )
        if inputs:
            code = "JM126"
            position, count = next(iter(inputs.items()))
            message = (
                f"{count} elements of {self._owner(step.inputs[position])} are NaN or infinite"
            )
        raise NonFiniteError(
            Problem(f"{message}; allow_nonfinite=True merges anyway", where=step.name, code=code)
        )

    def _owner(self, item: Item) -> str:
        if isinstance(item, Result):
            return f"'{item.step}'"
        owner = f"'{item.name}' in {self._plan.models[item.model].ref}"
        if isinstance(item, Gathered) and item.others:
            others = ", ".join(self._plan.models[other.model].ref for other in item.others)
            owner += f" (where tokens are filled from {others})"
        if isinstance(item, Assembled):
            names = [read.name for read in item.reads]
            owner += f" (made of {names[0]}" + (" and others)" if len(names) > 1 else ")")
        return owner
