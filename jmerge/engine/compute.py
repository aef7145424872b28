"""The arithmetic of a run: loaded pieces in, pieces of results out, with the statistics of the step in between."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jmerge.engine.kernel import (
    KernelKey,
    Piece,
    combine_kernel,
    kernel_key,
    sums_kernel,
)
from jmerge.engine.schedule import Cutting, Pass, Work
from jmerge.engine.selection import Selection
from jmerge.engine.slots import Loaded, Slot
from jmerge.methods.cuts import Cut, cut_by_partition, make_cut
from jmerge.methods.positions import split_position
from jmerge.methods.reduce import BLOCK, add_blocks, padded_blocks
from jmerge.methods.spec import REGISTRY
from jmerge.plan.steps import COPY, Step

THREADS = 4  # for the host's part in the search for the cuts of several models


class Task:
    """What the computation of one step remembers from pass to pass."""

    def __init__(self, work: Work) -> None:
        self.work = work
        self.key: KernelKey = kernel_key(work.step)
        method = None if work.step.method == COPY else REGISTRY[work.step.method]
        self._reserved = method.reserved if method else frozenset()
        self.selection: Selection | None = None
        self.cuts: Future[dict[Cutting, tuple[int, int]]] | None = None
        self.pairs: list[np.ndarray] = []
        self.sums: jax.Array | None = None
        self._numbers: dict[str, Any] | None = None

    def combine(self, loaded: Loaded) -> Piece:
        """Start making a piece of the result."""
        arguments = self.arguments(loaded.number)
        if "sums" in self._reserved:
            arguments["sums"] = self.sums
        return combine_kernel(self.key)(*loaded.windows(*loaded.turn.inputs), arguments)

    def arguments(self, number: int) -> dict[str, Any]:
        """The keyword arguments of the method for a piece, but for the sums; waits for the cuts."""
        if self._numbers is None:
            self._numbers = jax.device_put(self._make_numbers(self.work.step))
        arguments = dict(self._numbers)
        if "start" in self._reserved:
            start, _ = self.work.pieces[number]
            arguments["start"] = np.asarray(split_position(start), np.uint32)
        return arguments

    def _make_numbers(self, step: Step) -> dict[str, Any]:
        numbers: dict[str, Any] = {}
        method = REGISTRY.get(step.method)
        counts = method.counts_kept(step.numbers, step.spec.size) if method else {}
        for name, value in step.numbers.items():
            if value is None or isinstance(value, bool):
                continue
            if name in counts:
                numbers[name] = self._make_cut(name, counts[name])
            else:
                numbers[name] = np.asarray(value, self.key.compute)
        if "keys" in self._reserved:
            numbers["keys"] = np.asarray(step.keys, np.uint32).reshape(-1, 2)
        return numbers

    def _make_cut(self, parameter: str, counts: tuple[int, ...]) -> Cut:
        size = self.work.step.spec.size
        found = {} if self.cuts is None else self.cuts.result()
        known = {(cutting.parameter, cutting.position): cut for cutting, cut in found.items()}
        everything = 0, size
        nothing = cut_by_partition(np.empty(0, self.key.compute), 0)
        models = [i for i in range(len(self.work.step.inputs)) if i != self.work.step.base]
        cuts = []
        for position, count in zip(models, counts, strict=True):
            cuts.append(known.get((parameter, position), everything if count else nothing))
        bounds, last = zip(*cuts, strict=True)
        return make_cut(bounds, last, self.key.compute)


class Computer:
    """Computes pieces in the order they come; of a step, statistics come before the result."""

    def __init__(
        self,
        load: Callable[[Loaded], None],
        make_slot: Callable[[], Slot],
        release: Callable[[Slot], None],
    ) -> None:
        self._load = load  # reads a piece
        self._make_slot = make_slot
        self._release = release  # takes back the slot of a piece of which no result is made
        self._spare: Slot | None = None  # for pieces that are read again
        self._tasks: dict[str, Task] = {}  # by step
        self._started: list[tuple[Loaded, Callable[[], None]]] = []
        self._pool = ThreadPoolExecutor(THREADS, "jmerge-select")
        self._settler = ThreadPoolExecutor(1, "jmerge-settle")

    def close(self) -> None:
        """End its threads."""
        self._settler.shutdown(cancel_futures=True)
        self._pool.shutdown(cancel_futures=True)

    def feed(self, loaded: Loaded) -> Piece | None:
        """The piece of the result made of `loaded`, or None when it was only looked at for statistics."""
        name = loaded.work.step.name
        task = self._tasks.setdefault(name, Task(loaded.work))
        with task.key.precision():
            if loaded.turn.kind == "select":
                self._select(task, loaded)
            elif loaded.turn.kind == "sums":
                self._add_sums(task, loaded)
            else:
                if loaded.last:
                    del self._tasks[name]
                return task.combine(loaded)
        return None

    def _select(self, task: Task, loaded: Loaded) -> None:
        """Look for the cuts; after the last piece, they are settled beside whatever comes next."""
        if task.selection is None:
            task.selection = Selection(task.key, loaded, self._pool)
        self._later(loaded, task.selection.feed(loaded))
        if loaded.last:
            again = partial(self._again, loaded.work)
            task.cuts = self._settler.submit(task.selection.settle, again)

    def _add_sums(self, task: Task, loaded: Loaded) -> None:
        """Gather the sums of the blocks; with the last piece, add them up."""
        blocks = -(-loaded.elements // BLOCK)
        arguments = task.arguments(loaded.number)
        pairs = sums_kernel(task.key)(*loaded.windows(*loaded.turn.inputs), arguments)
        self._later(loaded, lambda: task.pairs.append(np.asarray(pairs)[:, :blocks]))
        if loaded.last:
            task.sums = _add_up(np.concatenate(task.pairs, axis=1))

    def _later(self, loaded: Loaded, finish: Callable[[], None]) -> None:
        """Finish what was started before this; what was started now runs meanwhile, unless it was the last."""
        self._started.append((loaded, finish))
        while len(self._started) > (0 if loaded.last else 1):
            before, finish = self._started.pop(0)
            finish()
            self._release(before.slot)

    def _again(self, work: Work, turn: Pass, number: int) -> Loaded:
        """Read a piece once more."""
        if self._spare is None:
            self._spare = self._make_slot()
        loaded = Loaded(work, turn, number, self._spare)
        self._load(loaded)
        return loaded


_tree = jax.jit(add_blocks)


def _add_up(pairs: np.ndarray) -> jax.Array:
    """The totals of all blocks, by the same compiled tree that the methods use on whole arrays."""
    blocks = pairs.shape[1]
    padded = np.zeros(
        (pairs.shape[0], padded_blocks(blocks), 2), pairs.dtype
    )  # few lengths, few programs
    padded[:, :blocks] = pairs
    totals: jax.Array = _tree(jnp.asarray(padded))
    return totals
