"""The arithmetic of a run: loaded pieces in, pieces of results out, with the statistics of the step in between."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jmerge.engine.kernel import (
    Piece,
    close_kernel,
    combine_kernel,
    finish_kernel,
    piece_kernel,
    update_kernel,
)
from jmerge.engine.schedule import Turn, Work
from jmerge.engine.selection import Selection
from jmerge.engine.slots import Loaded, LoadedBundle, Slot
from jmerge.engine.small import make_small
from jmerge.engine.task import Found, Task
from jmerge.engine.threads import TracedPool
from jmerge.methods.statistics.fold import NONE, Again
from jmerge.tracer import Tracer


class Fold:
    """One statistic; begins with the task of its first piece. To be used where JAX's default device is the one that
    the piece is for."""

    def __init__(self, task: Task, number: int) -> None:
        self._number = number
        self._statistic = task.statistics[number]
        self._began = task.begin(number)  # the state of this pass before its first piece
        self._states: dict[jax.Device, Any] = {}
        self._passes = self._statistic.passes(task.key.compute)  # that are left
        self._tasks: dict[int, Task] = {}  # by the number of their first piece

    def feed(
        self, task: Task, loaded: Loaded, arguments: dict[str, Any], device: jax.Device
    ) -> jax.Array:
        """Take in a piece, with the arguments of the terms; gives what is ready when that is done."""
        self._tasks[task.work.place(self._statistic.scope).first] = task
        if device not in self._states:
            self._states[device] = jax.tree.map(
                lambda each: jnp.array(each, copy=True), self._began
            )
        state = self._states[device]
        self._states[device], ready = self._update(state, task, loaded, arguments)
        return ready

    def close(self, work: Work, device: jax.Device) -> None:
        """End a tensor."""
        states = list(self._states.values())
        number = np.uint32(work.place(self._statistic.scope).number)
        state = close_kernel(type(self._statistic))(states, number)
        self._states = {device: state}

    def finish(self, read: Callable[[Work, int], Loaded]) -> Any:
        """End a pass over all pieces; gives the value, or None while more of them are needed.

        read: gives a piece of a step again, which the next call overwrites.
        """
        (state,) = self._states.values()
        value = self._finish(state)
        if isinstance(value, Again) and value.only is not None and self._passes == 1:
            state, together = value.state, int(value.state.pieces)
            for group in sorted({*np.asarray(value.only).tolist()} - {NONE}):
                for piece in range(group * together, (group + 1) * together):
                    first = max(each for each in self._tasks if each <= piece)
                    task = self._tasks[first]
                    if piece - first < len(task.work.pieces):
                        again = read(task.work, piece - first)
                        arguments = task.arguments(again.number, self._number)
                        state, ready = self._update(state, task, again, arguments)
                        ready.block_until_ready()  # before it is overwritten
            value = self._finish(state)
        if isinstance(value, Again):
            self._began, self._states = value.state, {}
            return None
        return value

    def _update(
        self, state: Any, task: Task, loaded: Loaded, arguments: dict[str, Any]
    ) -> tuple[Any, jax.Array]:
        place = task.place(self._number, loaded.number)
        program = update_kernel(task.key, self._number, self._passes == 1)
        return program(state, loaded.pieces(), arguments, place)

    def _finish(self, state: Any) -> Any:
        self._passes -= 1
        last = self._passes == 0
        return finish_kernel(type(self._statistic), last)(state)


THREADS = 4  # for the host's part in the search for several thresholds


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
        self._looking_back = threading.Lock()  # for who uses it
        self._tasks: dict[str, Task] = {}  # by step
        self._groups: dict[str, Found] = {}
        self._under_way: dict[tuple[str, int], Fold | Selection] = {}
        self._started: list[tuple[Loaded, Callable[[], Any]]] = []
        self._settling: Future[Any] | None = None
        self._pool = TracedPool(THREADS, "jmerge-select", tracer)
        self._settler = TracedPool(1, "jmerge-settle", tracer)

    def close(self) -> None:
        """End its threads."""
        self._settler.shutdown(cancel_futures=True)
        self._pool.shutdown(cancel_futures=True)

    def feed(self, loaded: Loaded) -> Piece | None:
        """The piece of the result made of `loaded`, or None when it was only looked at for statistics."""
        task, what, device = self._task(loaded.work), loaded.turn.what, next(self._turns)
        with task.key.precision(), jax.default_device(device):
            if what.samples:
                self._select(task, loaded)
            elif not what.combines:
                self._fold(task, loaded, device)
            else:
                if loaded.last:
                    del self._tasks[loaded.work.step.name]
                return combine_kernel(task.key)(*loaded.windows(), self._arguments(task, loaded))
        return None

    def feed_small(self, bundle: LoadedBundle, rows: int) -> Piece:
        """The results of small tensors; rows: that programs are made for."""
        with jax.default_device(device := next(self._turns)):
            tasks = [Task(row.work, {}, device.platform) for row in bundle.rows]
            return make_small(tasks, bundle.arrays(rows))

    def _arguments(self, task: Task, loaded: Loaded, until: int | None = None) -> dict[str, Any]:
        """The keyword arguments of the method for a piece, with what the host is better at than XLA."""
        arguments, masks = task.arguments(loaded.number, until), task.masks(until)
        if masks is not None and (kept := task.kept.take(loaded.number, again=until is not None)):
            return arguments | {masks.keyword: kept}
        for number in task.on_host(until):
            terms = piece_kernel(task.key, number)(*loaded.windows(), arguments)
            statistic = task.statistics[number]
            made = self._pool.map(lambda each, of=statistic: of.on_host([np.asarray(each)]), terms)
            task.take_in(arguments, number, list(itertools.chain(*made)), until)
        if masks is not None and until is not None:
            task.kept.put(loaded.number, arguments[masks.keyword])
        return arguments

    def _task(self, work: Work) -> Task:
        name, group = work.step.name, work.step.group
        if name not in self._tasks:
            found = self._groups.setdefault(group, {}) if group else {}
            self._tasks[name] = Task(work, found, self._devices[0].platform)
        return self._tasks[name]

    def _select(self, task: Task, loaded: Loaded) -> None:
        """Look for thresholds; after the last piece, they are settled beside whatever comes next."""
        number, name = (
            loaded.turn.what.statistic,
            (loaded.work.step.name, loaded.turn.what.statistic),
        )
        if name not in self._under_way:
            self._under_way[name] = Selection(task, number, loaded.slot.samples)
        selection = self._under_way[name]
        assert isinstance(selection, Selection)
        self._later(loaded, selection.feed(loaded))
        if loaded.last:
            if self._settling is not None:
                self._settling.result()  # so that what two searches collected is held at most
            del self._under_way[name]  # what it collected goes when it is settled
            read = partial(self._again, loaded.work, loaded.turn)
            self._settling = self._settler.submit(self._settle, task, selection, read)
            task.settle(number, self._settling)

    def _settle(self, task: Task, selection: Selection, read: Callable[[int], Loaded]) -> Any:
        with task.key.precision(), self._looking_back:
            return selection.settle(read, self._pool)

    def _fold(self, task: Task, loaded: Loaded, device: jax.Device) -> None:
        """Take a piece into a statistic."""
        what, step = loaded.turn.what, loaded.work.step
        name = step.group if what.scope == "model" else step.name, what.statistic
        if name not in self._under_way:
            self._under_way[name] = Fold(task, what.statistic)
        fold = self._under_way[name]
        assert isinstance(fold, Fold)
        arguments = self._arguments(task, loaded, what.statistic)
        self._later(loaded, fold.feed(task, loaded, arguments, device).block_until_ready)
        if loaded.last:
            fold.close(loaded.work, device)
        if loaded.closes:
            with self._looking_back:
                value = fold.finish(lambda work, number: self._again(work, loaded.turn, number))
            if value is not None:
                task.settle(what.statistic, value)
                del self._under_way[name]

    def _later(self, loaded: Loaded, finish: Callable[[], Any]) -> None:
        """Finish what was started before on this device; what was started now runs meanwhile, unless it was the last."""
        self._started.append((loaded, finish))
        while len(self._started) > (0 if loaded.last else len(self._devices)):
            before, finish = self._started.pop(0)
            finish()
            self._release(before.slot)

    def _again(self, work: Work, turn: Turn, number: int) -> Loaded:
        """Read a piece once more."""
        if self._spare is None:
            self._spare = self._make_slot()
        what = turn.what._replace(samples=False)
        loaded = Loaded(Turn.whole(work, what, closes=False), number, self._spare)
        self._load(loaded)
        return loaded
