"""The bytes of a run's inputs: local files and arrays where they lie, remote files fetched ahead of their use."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from jmerge.ckpt.find import is_local, is_remote
from jmerge.ckpt.source import Source
from jmerge.engine.assemble import Assembler, place_of, spans_of
from jmerge.engine.fetch import Fetcher, Span
from jmerge.engine.gather import Gatherer
from jmerge.engine.local import Files, Maps
from jmerge.engine.schedule import Schedule, Turn
from jmerge.plan.inputs import Assembled, Gathered, Item, Read, Stored
from jmerge.plan.steps import Plan


class Inputs:
    """The files of all models of a plan, read by position from any thread."""

    def __init__(
        self,
        plan: Plan,
        schedule: Schedule,
        scratch: Path | None,
        stop: threading.Event,
        maps: Maps,
    ) -> None:
        self._plan = plan
        self._files = Files()
        self._paths: dict[tuple[int, str], Path | None] = {}
        self._sources: dict[int, Source] = {
            number: plan.source(number)
            for number, model in enumerate(plan.models)
            if not is_local(model.path)
        }
        self._fetcher = Fetcher(schedule, self._fetched, scratch, stop)
        self._gatherer = Gatherer(plan.maps, self._glance, stop)
        self._maps = maps
        self._assembler = Assembler(self._glance, self._window)

    def path(self, item: Read) -> Path | None:
        """Where the file of an input lies on this machine; None when it is fetched."""
        key = item.model, item.file
        if key not in self._paths:
            source = self._sources.get(item.model)
            folder = self._plan.models[item.model].path
            self._paths[key] = source.path(item.file) if source else Path(folder, item.file)
        return self._paths[key]

    def place(self, item: Item, first: int, size: int) -> tuple[Path, int] | None:
        """The file on this machine that has `size` bytes of an input from byte `first` on in one run, and where they
        begin there; None when there is none."""
        if isinstance(item, Assembled):
            found = place_of(item, first, size)
            return None if found is None else self.place(found[0], found[1], size)
        if not isinstance(item, Read) or (path := self.path(item)) is None:
            return None
        return path, item.start + first

    def read(
        self, item: Stored | Gathered, first: int, buffer: np.ndarray, *, glance: bool = False
    ) -> None:
        """Fill the byte `buffer` from byte `first` of an input; `glance`: besides what the schedule reads."""
        if isinstance(item, Gathered):
            self._gatherer.read(item, first, buffer)
            return
        if isinstance(item, Assembled):
            self._assembler.read(item, first, buffer)
            if not glance:
                self._end(spans_of(item, first, first + buffer.size))
            return
        path = self.path(item)
        if path is not None:
            self._files.read(path, item.start + first, buffer)
        elif self._fetched(item) is None:
            self._sources[item.model].read_into(item.file, item.start + first, buffer)
        else:
            self._fetcher.read(item, item.start + first, buffer, glance=glance)

    def end(self, turn: Turn) -> None:
        """Let go of the tables of gathered inputs, of which any piece may need any row, after the last of a turn."""
        for item in turn.work.step.inputs:
            if isinstance(item, Gathered):
                self._end((table, 0, table.spec.nbytes) for table in item.reads)

    def _end(self, spans: Iterable[tuple[Read, int, int]]) -> None:
        """Count one read of an input that needs these bytes of tensors."""
        found = [Span(r, r.start + a, r.start + b) for r, a, b in spans if self._fetched(r)]
        if found:
            self._fetcher.end(*found)

    def _glance(self, item: Read, first: int, buffer: np.ndarray) -> None:
        self.read(item, first, buffer, glance=True)

    @contextmanager
    def _window(self, item: Read, first: int, size: int) -> Iterator[np.ndarray | None]:
        """The bytes of a tensor in its mapped file; None where they have to be read instead."""
        place = self.place(item, first, size)
        found = self._maps.window(*place, size) if place is not None else None
        if found is None:
            yield None
            return
        around, skip = found
        yield around[skip : skip + size]
        self._maps.release(around)

    def check(self) -> None:
        """Raise CheckpointError when a remote file is known to have changed since it was planned with."""
        for source in self._sources.values():
            name = source.changed()
            if name is not None:
                raise source.broken(
                    name,
                    "changed while it was being read; run the same command again",
                    code="JM111",
                )

    def close(self) -> None:
        """Close every file and give up what is being fetched."""
        self._fetcher.close()
        self._files.close()

    def _fetched(self, item: Read) -> Source | None:
        """Where an input is fetched from; None when it lies on this machine."""
        remote = is_remote(self._plan.models[item.model].path)
        return self._sources[item.model] if remote and self.path(item) is None else None
