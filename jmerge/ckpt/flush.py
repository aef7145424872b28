"""Bringing what is written to the disk while more is being written."""

from __future__ import annotations

import os
import threading

from jmerge.tracer import Tracer

SYNC_BYTES = 1 << 27  # written before the disk is set to work: waiting for it at the end costs time


class Flusher:
    """A thread that brings written files to the disk while others are still being written."""

    def __init__(self, tracer: Tracer) -> None:
        self._tracer = tracer
        self._wake = threading.Condition()
        self._dirty: dict[int, int] = {}  # descriptor -> bytes written since it was last synced
        self._stop = False
        self._error: OSError | None = None
        self._thread = threading.Thread(target=self._run, name="jmerge-flush", daemon=True)
        self._thread.start()

    def wrote(self, descriptor: int, count: int) -> None:
        """Note that `count` bytes were written; raises what an earlier sync failed with."""
        self.check()
        with self._wake:
            self._dirty[descriptor] = self._dirty.get(descriptor, 0) + count
            if self._dirty[descriptor] >= SYNC_BYTES:
                self._wake.notify()

    def stop(self) -> None:
        """End the thread; a sync under way is waited for."""
        with self._wake:
            self._stop = True
            self._wake.notify()
        self._thread.join()

    def check(self) -> None:
        """Raise what a sync failed with: the system says it once, so a later sync may pass over it."""
        if self._error is not None:
            raise self._error

    def _run(self) -> None:
        while True:
            with self._wake:
                self._wake.wait_for(lambda: self._stop or self._ready() is not None)
                descriptor = self._ready()
                if self._stop or descriptor is None:
                    return
                count, self._dirty[descriptor] = self._dirty[descriptor], 0
            try:
                with self._tracer.span("flush", None, count):
                    getattr(os, "fdatasync", os.fsync)(descriptor)
            except OSError as error:
                self._error = error
                return

    def _ready(self) -> int | None:
        return next((fd for fd, count in self._dirty.items() if count >= SYNC_BYTES), None)
