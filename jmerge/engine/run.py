"""Run a schedule: one thread reads ahead, this one computes, one writes behind.

Pieces travel through bounded queues in a few reused slots of aligned buffers. A slot goes back to the reader when
the piece made of it is written, so memory depends on the slots and not on the model.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import jax
import numpy as np

from jmerge.ckpt.journal import Block, joined_crc32
from jmerge.dtypes import BITS, NUMPY, TensorSpec, view
from jmerge.engine.checking import Checked, Checker, Made
from jmerge.engine.compute import Computer
from jmerge.engine.devices import device_memory_errors
from jmerge.engine.events import Finished, Listener, Read, Started, Wrote
from jmerge.engine.inputs import Inputs
from jmerge.engine.kernel import is_plain_copy
from jmerge.engine.local import Maps
from jmerge.engine.schedule import ROW, Schedule, Turn, Work
from jmerge.engine.select import SAMPLE_RUN, SAMPLE_STEP, sample_starts
from jmerge.engine.slots import Loaded, LoadedBundle, Slot, View, bundle_in
from jmerge.engine.small import bundled
from jmerge.engine.threads import Channel, StoppedError
from jmerge.plan.inputs import Item, Result
from jmerge.plan.steps import Plan
from jmerge.tracer import OpenSpan, Tracer


class Arrays(Mapping[str, np.ndarray]):
    """The merged tensors of a run as numpy arrays by name; make it from `plan.outputs` and hand it to `run`."""

    def __init__(self, outputs: Mapping[str, TensorSpec]) -> None:
        self._specs = dict(outputs)
        self._raw = {name: np.zeros(spec.nbytes, np.uint8) for name, spec in outputs.items()}

    def write(self, tensor: str, start: int, data: memoryview) -> None:
        """Put `data` at byte `start` of a tensor."""
        self._raw[tensor][start : start + len(data)] = data

    def __getitem__(self, name: str) -> np.ndarray:
        return view(self._raw[name], self._specs[name])

    def __iter__(self) -> Iterator[str]:
        return iter(self._specs)

    def __len__(self) -> int:
        return len(self._specs)


class Sink(Protocol):
    """Where results go."""

    def write(self, tensor: str, start: int, data: memoryview) -> None:
        """Put `data` at byte `start` of a tensor."""


class Outcome(NamedTuple):
    """What a run found out."""

    crc32: dict[str, int]  # of every written tensor's bytes
    nonfinite: dict[str, int]  # tensor -> elements of it that are NaN or infinite, if any


def run(
    plan: Plan,
    schedule: Schedule,
    sink: Sink,
    *,
    listeners: Sequence[Listener] = (),
    allow_nonfinite: bool = False,
    kept: Mapping[str, Sequence[Block]] | None = None,
    scratch: Path | None = None,
    devices: Sequence[jax.Device] = (),
    tracer: Tracer | None = None,
    stop: threading.Event | None = None,
) -> Outcome:
    """Make every tensor of `plan` in the order of `schedule` and hand its bytes to `sink`.

    kept: by tensor, the blocks that are written already and that `schedule` leaves out, see `resume.left_to_do`;
    scratch: where a temporary file keeps what methods read of remote models more than once, by default where the
    system keeps such files; devices: which share the work, by default the one that JAX prefers; tracer: adds up where
    the time goes, and tells spans; stop: when it is set, the run ends at once; set at the end of every run.

    Raises:
      StoppedError: `stop` was set.
      NonFiniteError: an input holds NaN or infinity, or a result does not fit its dtype, unless allowed.
      CheckpointError: an input cannot be read, or a remote one was changed.
      RunError: a remote input could not be fetched.
      DeviceMemoryError: a piece does not fit a device; shorter ones may.
    """
    chosen = tuple(devices or jax.local_devices()[:1])
    parts = tuple(listeners), allow_nonfinite, kept or {}, scratch
    with device_memory_errors():
        return _Run(
            plan, schedule, sink, *parts, chosen, tracer or Tracer(), stop or threading.Event()
        ).run()


class _Run:
    def __init__(
        self,
        plan: Plan,
        schedule: Schedule,
        sink: Sink,
        listeners: tuple[Listener, ...],
        allow_nonfinite: bool,
        kept: Mapping[str, Sequence[Block]],
        scratch: Path | None,
        devices: Sequence[jax.Device],
        tracer: Tracer,
        stop: threading.Event,
    ) -> None:
        self.devices = devices
        self.plan = plan
        self.schedule = schedule
        self.sink = sink
        self.listeners = listeners
        self.allow_nonfinite = allow_nonfinite
        self.tracer = tracer
        self.maps = Maps()
        self.slots: list[Slot] = []
        self.stop = stop
        self.inputs = Inputs(plan, schedule, scratch, self.stop, self.maps)
        self.free = Channel(self.stop)
        self.loaded = Channel(self.stop)
        self.made = Channel(self.stop)
        self.held = {name: threading.Event() for name in schedule.held}
        self.values: dict[str, np.ndarray] = {}  # of results that others need
        self.error: BaseException | None = None
        self.outcome = Outcome({}, {})
        self.blocks = {name: list(blocks) for name, blocks in kept.items()}  # written, by tensor

    def run(self) -> Outcome:
        self.tracer.started()
        self._tell(Started(self.schedule.read_bytes, self.plan.write_bytes))
        for name in self.blocks:
            self._conclude(name)  # for good, if nothing of it is left to do
        for _ in range(self.schedule.slots):
            self.free.put(self._make_slot())
        threads = [
            threading.Thread(target=self._guard, args=(part,), name=name, daemon=True)
            for name, part in (("jmerge-read", self._read_all), ("jmerge-write", self._write_all))
        ]
        stopped: StoppedError | None = None
        try:
            for thread in threads:
                thread.start()
            self._compute_all()
            threads[-1].join()
            if self.stop.is_set():
                raise StoppedError
        except StoppedError as error:
            stopped = error
        finally:
            self.stop.set()
            for thread in threads:
                if thread.ident is not None:  # an interrupt may come before it is started
                    thread.join()
            for slot in self.slots:
                self._empty(slot)
            self.inputs.close()
            self.maps.close()
        if self.error is not None:
            raise self.error
        if stopped is not None:
            raise stopped
        self.inputs.check()
        return self.outcome

    def _guard(self, part: Callable[[], None]) -> None:
        try:
            part()
        except StoppedError:
            pass
        except BaseException as error:
            self.error = self.error or error
            self.stop.set()

    def _tell(self, event: Any) -> None:
        for listener in self.listeners:
            listener(event)

    # Reading

    def _read_all(self) -> None:
        for turn in bundled(self.schedule):
            if isinstance(turn, Turn):
                self._read_turn(turn)
                continue
            bundle = bundle_in(turn, self._next(self.free))
            with self._reading(bundle):
                for row in bundle.rows:
                    self._load(row)
            self.loaded.put(bundle)
        self.loaded.put(None)

    def _read_turn(self, turn: Turn) -> None:
        for number in turn.pieces:
            with self.tracer.span("wait"):
                loaded = Loaded(turn, number, self.free.get())
                for item in loaded.results:  # which is no reading
                    self._wait_for(item)
            with self._reading(loaded):
                self._load(loaded)
            self.loaded.put(loaded)
        self.inputs.end(turn)

    def _load_again(self, loaded: Loaded) -> None:
        """Load what a later pass reads too."""
        with self._reading(loaded):
            self._load(loaded, glance=True)

    def _reading(self, loaded: Loaded | LoadedBundle) -> OpenSpan:
        return self.tracer.span("read", loaded.where, loaded.read_bytes)

    def _load(self, loaded: Loaded, *, glance: bool = False) -> None:
        self._empty(loaded.slot)
        if loaded.number == 0 and loaded.turn.what.samples:
            items = loaded.work.step.inputs
            loaded.slot.samples = [self._sample(item, loaded.work.candidates) for item in items]
        start, stop = loaded.work.pieces[loaded.number]
        length = ROW if loaded.work.small else loaded.work.padded(loaded.number)
        # only these can lie where they are: others go on with zeros, or with the next row
        whole = (stop - start == length and not loaded.work.small) or is_plain_copy(
            loaded.work.step
        )
        for position, item in enumerate(loaded.work.step.inputs):
            buffer = loaded.slot.buffers[position]
            bits = BITS[item.spec.dtype]
            first, size = start * bits // 8, (stop - start) * bits // 8
            loaded.slot.views[position] = View(buffer, 0, mapped=False)
            if isinstance(item, Result):
                buffer[:size] = self._wait_for(item)[first : first + size]
            else:
                window = None
                place = self.inputs.place(item, first, size) if whole else None
                if place is not None and place[1] * 8 % bits == 0:
                    window = self.maps.window(*place, size)
                if window is not None and not (window[1] and loaded.turn.what.adds):
                    loaded.slot.views[position] = View(*window, mapped=True)
                    continue
                if window is not None:
                    around, skip = window
                    buffer[:size] = around[skip : skip + size]
                    self.maps.release(around)
                else:
                    self.inputs.read(item, first, buffer[:size], glance=glance)
            # a kernel works on a fixed length; zeros are neutral in every sum and never NaN
            buffer[size : length * bits // 8] = 0

    def _sample(self, item: Item, candidates: int) -> np.ndarray:
        """Elements from all over an input [runs, elements], for the search for thresholds."""
        dtype = NUMPY[item.spec.dtype]
        starts = sample_starts(item.spec.size, candidates)
        sample = np.empty((starts.size, SAMPLE_RUN // SAMPLE_STEP), dtype)
        run = np.empty(SAMPLE_RUN * dtype.itemsize, np.uint8)
        for row, start in zip(sample, starts * dtype.itemsize, strict=True):
            if isinstance(item, Result):
                run = self._wait_for(item)[start : start + run.size]
            else:
                self.inputs.read(item, int(start), run, glance=True)
            row[:] = run.view(dtype)[::SAMPLE_STEP]
        return sample

    def _wait_for(self, item: Result) -> np.ndarray:
        """The bytes of another step's result, once it is there."""
        while not self.held[item.step].wait(0.05):
            if self.stop.is_set():
                raise StoppedError
        return self.values[item.step]

    def _make_slot(self) -> Slot:
        self.slots.append(Slot.of_sizes(self.schedule.buffers))
        return self.slots[-1]

    def _empty(self, slot: Slot) -> None:
        """Let go of what a slot was loaded with."""
        for window in slot.views.values():
            if window.mapped:
                self.maps.release(window.around)
        slot.views.clear()
        slot.samples = []
        slot.made = None

    # Computing

    def _compute_all(self) -> None:
        computer = Computer(
            self.devices, self._load_again, self._make_slot, self.free.put, self.tracer
        )
        try:
            while (loaded := self._next(self.loaded)) is not None:
                if isinstance(loaded, Loaded) and is_plain_copy(loaded.work.step):
                    self.made.put(Made(loaded, None))
                    continue
                with self.tracer.span("compute", loaded.where, loaded.read_bytes):
                    piece = (
                        computer.feed_small(loaded, self.schedule.rows)
                        if isinstance(loaded, LoadedBundle)
                        else computer.feed(loaded)
                    )
                # the writer tells of all that happens, so that listeners are called by one thread
                self.made.put(Read(loaded.read_bytes) if piece is None else Made(loaded, piece))
            self.made.put(None)
        finally:
            computer.close()

    def _next(self, channel: Channel) -> Any:
        with self.tracer.span("wait"):
            return channel.get()

    # Writing

    def _write_all(self) -> None:
        checker = Checker(self.plan, self.allow_nonfinite, self.tracer, self._tell)
        while (made := self._next(self.made)) is not None:
            if isinstance(made, Read):
                self._tell(made)
                continue
            self._tell(Read(made.loaded.read_bytes))
            slot = made.loaded.slot
            # Freeing an array of JAX waits for the interpreter's lock: that is left to whoever loads the slot next.
            slot.made = made.piece
            for checked in checker.check(made):
                self._write(checked)
                if checked.loaded.last:
                    self._finish(checked.loaded.work)
            self.free.put(slot)

    def _write(self, checked: Checked) -> None:
        loaded, raw, crc32, nonfinite = checked
        step = loaded.work.step
        start, _ = loaded.work.pieces[loaded.number]
        first = start * BITS[step.spec.dtype] // 8
        if step.written:
            with self.tracer.span("write", loaded.where, raw.size):
                self.sink.write(step.name, first, raw.data)
                block = Block(step.name, first, first + raw.size, crc32, nonfinite)
                self.blocks.setdefault(step.name, []).append(block)
                self._tell(Wrote(block))
        if step.name in self.held:
            if start == 0:
                self.values[step.name] = np.empty(step.spec.nbytes, np.uint8)
            self.values[step.name][first : first + raw.size] = raw

    def _finish(self, work: Work) -> None:
        step = work.step
        if step.name in self.held:
            self.held[step.name].set()
        if step.written:
            self._conclude(step.name)
            self._tell(Finished(step.name, self.outcome.crc32[step.name]))
        for name in work.frees:
            del self.values[name]

    def _conclude(self, tensor: str) -> None:
        """Put down what the blocks of a tensor amount to."""
        blocks = self.blocks[tensor]
        self.outcome.crc32[tensor] = joined_crc32(blocks)
        if count := sum(block.nonfinite for block in blocks):
            self.outcome.nonfinite[tensor] = count
