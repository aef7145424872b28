"""The arithmetic of a run: loaded pieces in, pieces of results out, with the statistics of the step in between."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from functools import partial
from typing import Any

import jax
import numpy as np

from jmerge.engine.kernel import (
    Piece,
    combine_kernel,
    keys_kernel,
    sums_kernel,
)
from jmerge.engine.pool import TracedPool
from jmerge.engine.radix import Radix
from jmerge.engine.schedule import Cutting, Pass, Turn, Work
from jmerge.engine.selection import Selection
from jmerge.engine.slots import Loaded, LoadedBundle, Slot
from jmerge.engine.small import Small
from jmerge.engine.task import Known, Task
from jmerge.methods.cuts import make_cut
from jmerge.methods.reduce import BLOCK, add_blocks, block_pairs, block_tree, padded_blocks
from jmerge.tracer import Tracer

THREADS = 4  # for the host's part in the search for the cuts of several models


def tree_blocks(blocks: int) -> int:
    """The number of blocks to which so many are padded."""
    return next(
        (few for few in (1, 1 << 5, 1 << 10, 1 << 15) if few >= blocks), padded_blocks(blocks)
    )


class Computer:
    """Computes pieces in the order they come; of a step, statistics come before the result."""

    def __init__(
        self,
        devices: Sequence[jax.Device],
        load: Callable[[Loaded], None],
        make_slot: Callable[[], Slot],
        release: Callable[[Slot], None],
        tracer: Tracer,
    ) -> None:
        self._devices = devices
        self._turns = itertools.cycle(devices)  # in which they take the pieces
        self._load = load  # reads a piece
        self._make_slot = make_slot
        self._release = release  # takes back the slot of a piece of which no result is made
        self._spare: Slot | None = None  # for pieces that are read again
        self._tasks: dict[str, Task] = {}  # by step
        self._groups: dict[str, Known] = {}
        self._started: list[tuple[Loaded, Callable[[], None]]] = []
        self._settling: Future[dict[Cutting, tuple[int, int]]] | None = None
        self._pool = TracedPool(THREADS, "jmerge-select", tracer)
        self._settler = TracedPool(1, "jmerge-settle", tracer)

    def close(self) -> None:
        """End its threads."""
        self._settler.shutdown(cancel_futures=True)
        self._pool.shutdown(cancel_futures=True)

    def feed(self, loaded: Loaded) -> Piece | None:
        """The piece of the result made of `loaded`, or None when it was only looked at for statistics."""
        task = self._task(loaded.work)
        with task.key.precision(), jax.default_device(next(self._turns)):
            match loaded.turn.what.kind:
                case "changes":
                    self._select(task, loaded)
                case "sums":
                    self._add_sums(task, loaded)
                case "cuts":
                    self._count_keys(task, loaded)
                case "combine":
                    if loaded.last:
                        del self._tasks[loaded.work.step.name]
                    kernel = combine_kernel(task.key)
                    inputs = loaded.windows(*loaded.turn.what.inputs)
                    return kernel(*inputs, self._arguments(task, loaded))
        return None

    def feed_small(self, bundle: LoadedBundle, rows: int) -> Piece:
        """The results of small tensors, see `Small`; rows: that programs are made for."""
        with jax.default_device(device := next(self._turns)):
            works = [row.work for row in bundle.rows]
            return Small(works, rows, device.platform).make(bundle.arrays(rows))

    def _arguments(self, task: Task, loaded: Loaded) -> dict[str, Any]:
        """The keyword arguments of the method for a piece, with sorted rows: on CPU the host is better at it than XLA."""
        arguments = task.arguments(loaded.number)
        for number, statistic in enumerate(task.method.statistics if task.method else ()):
            if statistic.kind == "sorted" and task.sorts_on_host:
                inputs = loaded.windows(*range(len(loaded.work.step.inputs)))
                keys = keys_kernel(task.key, number)(*inputs, arguments)
                shaped = [np.asarray(each).reshape(task.row_view) for each in keys]
                arguments[statistic.keyword] = list(
                    self._pool.map(partial(np.sort, axis=1), shaped)
                )
        return arguments

    def _task(self, work: Work) -> Task:
        name, group = work.step.name, work.step.group
        if name not in self._tasks:
            known = self._groups.setdefault(group, Known()) if group else Known()
            self._tasks[name] = Task(work, known, self._devices[0].platform)
        return self._tasks[name]

    def _select(self, task: Task, loaded: Loaded) -> None:
        """Look for the cuts; after the last piece, they are settled beside whatever comes next."""
        if task.selection is None:
            task.selection = Selection(task.key, loaded, task.factors(), self._pool)
        self._later(loaded, task.selection.feed(loaded))
        if loaded.last:
            if self._settling is not None:
                self._settling.result()  # so that what two searches collected is held at most
            again = partial(self._again, loaded.work)
            self._settling = self._settler.submit(task.selection.settle, again)
            task.cuts = self._settling.result
            task.selection = None  # what it collected goes when it is settled

    def _add_sums(self, task: Task, loaded: Loaded) -> None:
        """Gather the sums of the blocks; with the last piece, add them up."""
        what, known = loaded.turn.what, task.known(loaded.turn.what)
        work = loaded.work
        blocks = -(-loaded.elements // BLOCK)
        if work.whole_rows:
            blocks = loaded.elements // work.row
        kernel = sums_kernel(task.key, what.statistic)
        part = kernel(*loaded.windows(*what.inputs), self._arguments(task, loaded))
        self._later(loaded, lambda: task.pairs.append(np.asarray(part)[:, :blocks]))
        if not loaded.last:
            return
        pairs = np.concatenate(task.pairs, axis=1)
        task.pairs = []
        if work.whole_rows:
            pairs = _pairs_of_rows(pairs)
        if what.scope == "model":
            known.totals[work.place.number] = _tree(pairs)
            if not loaded.closes:
                return
            totals, known.totals = known.totals, {}
            pairs = np.concatenate([totals[number] for number in sorted(totals)], axis=1)
        known.found[self._keyword(task, what)] = _add_blocks(_padded(pairs))

    def _count_keys(self, task: Task, loaded: Loaded) -> None:
        """Count the digits of the keys; after the last piece of a round, fix one of every bound."""
        assert task.method is not None
        what, known = loaded.turn.what, task.known(loaded.turn.what)
        if known.radix is None:
            counts = task.method.statistics[what.statistic].counts
            assert counts is not None
            size = loaded.work.place.size if what.scope == "model" else loaded.work.step.spec.size
            found = {keyword: np.asarray(value) for keyword, value in task.found.items()}
            wanted = counts(loaded.work.step.numbers, size, found)
            known.radix = Radix(wanted, size, task.key.word)
        radix, keys = known.radix, self._keys(task, loaded)
        self._later(loaded, lambda: radix.add([np.asarray(k)[: loaded.elements] for k in keys]))
        if loaded.closes:
            radix.end_round()
            if radix.done:
                cuts = radix.cuts(partial(self._pieces, task, loaded))
                bounds, last = zip(*cuts, strict=True)
                cut = make_cut(bounds, last, task.key.word)
                known.found[self._keyword(task, what)] = jax.device_put(cut)
                known.radix = None

    def _keys(self, task: Task, loaded: Loaded) -> list[jax.Array]:
        what = loaded.turn.what
        kernel = keys_kernel(task.key, what.statistic)
        return kernel(*loaded.windows(*what.inputs), task.arguments(loaded.number))

    def _pieces(self, task: Task, loaded: Loaded, term: int) -> Iterator[tuple[int, np.ndarray]]:
        """Every piece of a term's keys, with the position of its first, in order: they are read again."""
        what = loaded.turn.what
        of_group = [each for each in self._members(loaded.work) if what.scope == "model"]
        for work in of_group or [loaded.work]:
            offset = work.place.offset if what.scope == "model" else 0
            for number, (start, _) in enumerate(work.pieces):
                again = self._again(work, what, number)
                keys = self._keys(self._task(work), again)[term]
                yield offset + start, np.asarray(keys)[: again.elements]

    def _members(self, work: Work) -> list[Work]:
        """The steps of a group that statistics are taken over, in the order of their places."""
        tasks = [task.work for task in self._tasks.values() if task.work.step.group]
        members = [each for each in tasks if each.step.group == work.step.group]
        return sorted(members, key=lambda each: each.place.number)

    def _keyword(self, task: Task, what: Pass) -> str:
        assert task.method is not None
        return task.method.statistics[what.statistic].keyword

    def _later(self, loaded: Loaded, finish: Callable[[], None]) -> None:
        """Finish what was started before on this device; what was started now runs meanwhile, unless it was the last."""
        self._started.append((loaded, finish))
        while len(self._started) > (0 if loaded.last else len(self._devices)):
            before, finish = self._started.pop(0)
            finish()
            self._release(before.slot)

    def _again(self, work: Work, what: Pass, number: int) -> Loaded:
        """Read a piece once more."""
        if self._spare is None:
            self._spare = self._make_slot()
        loaded = Loaded(Turn.whole(work, what, closes=False), number, self._spare)
        self._load(loaded)
        return loaded


_block_tree = jax.jit(block_tree)
_block_pairs = jax.jit(block_pairs)
_add_blocks = jax.jit(add_blocks)


def _tree(pairs: np.ndarray) -> np.ndarray:
    """The sum, as one pair [sums, 1, 2], of pairs [sums, blocks, 2], by the same tree that the methods use on whole
    arrays."""
    return pairs if pairs.shape[1] == 1 else np.asarray(_block_tree(_padded(pairs)))


def _padded(pairs: np.ndarray) -> np.ndarray:
    """Pairs [sums, blocks, 2] with zeros, which change no bit of their sum, up to one of few lengths: every length takes
    a program."""
    blocks = pairs.shape[1]
    return np.pad(pairs, ((0, 0), (0, tree_blocks(blocks) - blocks), (0, 0)))


def _pairs_of_rows(rows: np.ndarray) -> np.ndarray:
    """The pairs of blocks [sums, blocks, 2] of numbers [sums, rows]."""
    return np.asarray(_block_pairs(list(np.pad(rows, ((0, 0), (0, -rows.shape[1] % BLOCK))))))
