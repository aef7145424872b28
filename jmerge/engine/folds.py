"""A statistic on its way through the pieces of a tensor, or of all tensors of a group, on the devices where they are."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jmerge.engine.kernel import close_kernel, finish_kernel, update_kernel
from jmerge.engine.schedule import Work
from jmerge.engine.slots import Loaded
from jmerge.engine.task import Task
from jmerge.methods.statistics.fold import NONE, Again


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
