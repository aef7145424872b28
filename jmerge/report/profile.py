"""The spans of a run as a trace file that Perfetto (ui.perfetto.dev) and chrome://tracing open.

The file is written while the run goes on, by a thread of its own: no thread of the run waits for the disk on its
account, an interrupt does not reach it, and memory does not grow with the model.
"""

from __future__ import annotations

import errno
import json
import os
import queue
import sys
import threading
import time
from pathlib import Path
from types import TracebackType
from typing import IO, Any

from jmerge.ckpt.disk import REASONS
from jmerge.errors import PlanError, Problem, RunError
from jmerge.tracer import STAGES, Span

FIRST = '{"traceEvents":['
WHERE = "--profile"


class Profile:
    """A context manager that writes the spans it is called with to a file; any thread may call it.

    The file is begun with the first span, so a run that ends before leaves what was there, and whole when the context
    ends, however it does.
    """

    def __init__(self, path: str | Path, out: str | Path) -> None:
        """A trace to be.

        Args:
          path: the file, which does not exist or is an older trace.
          out: the folder that the run makes.

        Raises:
          PlanError: the file cannot be there.
        """
        self.path = Path(path)
        _check(self.path, Path(out))
        self._spans: queue.SimpleQueue[Span | None] = queue.SimpleQueue()
        self._origin = time.perf_counter_ns()
        self._thread = threading.Thread(target=self._write_all, name="jmerge-profile", daemon=True)
        self._error: OSError | None = None

    def __call__(self, span: Span) -> None:
        """Add a span, from any thread."""
        self._spans.put(span)

    def __enter__(self) -> Profile:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Raises RunError when the file could not be written, if nothing worse happened."""
        self._spans.put(None)
        self._thread.join()
        if self._error is None:
            return
        reason = REASONS.get(self._error.errno or 0) or self._error.strerror
        if error is None:
            raise RunError(
                f"{self.path}: {reason}; the merge is done, but its trace is incomplete",
                code="JM501",
            )
        warning = Problem(f"{reason}; the trace is incomplete", file=str(self.path), code="JM501")
        print(f"warning: {warning}", file=sys.stderr)

    def _write_all(self) -> None:
        try:
            self._write_to_the_end()
        except OSError as error:
            self._error = error
            while self._spans.get() is not None:
                pass  # the merge is worth more than its trace

    def _write_to_the_end(self) -> None:
        first = self._spans.get()
        if first is None:
            return
        lanes: dict[tuple[int, str], int] = {}
        with self.path.open("w", encoding="utf-8") as file:
            _write(file, FIRST, _named("process_name", 0, "jmerge"))
            span: Span | None = first
            while span is not None:
                if span.thread not in lanes:
                    lanes[span.thread] = len(lanes)
                    _write(file, ",", _named("thread_name", lanes[span.thread], span.thread[1]))
                _write(file, ",", self._event(span, lanes[span.thread]))
                span = self._spans.get()
            file.write("\n]}\n")

    def _event(self, span: Span, lane: int) -> dict[str, Any]:
        """A complete event of the format; its times are microseconds since the profile was made."""
        told: dict[str, Any] = {"bytes": span.nbytes} if span.nbytes else {}
        if span.where is not None:
            told |= {
                "tensor": span.where.step,
                "pass": span.where.kind,
                "piece": span.where.piece,
            }
        return {
            "ph": "X",
            "name": span.what,
            "cat": STAGES.get(span.what, "waiting" if span.what == "wait" else span.what),
            "ts": (span.start - self._origin) / 1000,
            "dur": span.duration / 1000,
            "pid": os.getpid(),
            "tid": lane,
            "args": told,
        }


def _named(what: str, lane: int, name: str) -> dict[str, Any]:
    """A metadata event of the format: what the process or a thread is called."""
    return {"ph": "M", "name": what, "pid": os.getpid(), "tid": lane, "args": {"name": name}}


def _write(file: IO[str], before: str, event: dict[str, Any]) -> None:
    file.write(f"{before}\n{json.dumps(event, ensure_ascii=False)}")


def _check(path: Path, out: Path) -> None:
    """PlanError when a trace cannot be at `path`: found now, it costs no merge."""
    reason = ""
    if path.is_dir():
        reason = f"{path} is a folder; name a file in it, such as {path / 'trace.json'}"
    elif not path.parent.is_dir():
        reason = f"{path.parent} is not a folder; make it first"
    elif not os.access(path if path.exists() else path.parent, os.W_OK):
        reason = f"{path}: {os.strerror(errno.EACCES)}; choose another file"
    elif path.is_file() and not _is_trace(path):
        reason = f"{path} exists and is not a trace of jmerge; choose another file"
    else:
        real = Path(os.path.realpath(path))
        made = Path(os.path.realpath(out))
        names = (made.name, f"{made.name}.jmerge-work", f"{made.name}.jmerge-old")
        if any(made.with_name(name) in (real, *real.parents) for name in names):
            reason = f"{path} is in the folder to be made; choose a file outside of it"
    if reason:
        raise PlanError(Problem(reason, where=WHERE, code="JM409"))


def _is_trace(path: Path) -> bool:
    """Whether a file begins as a trace does, or is empty."""
    try:
        with path.open("rb") as file:
            return file.read(len(FIRST)) in (FIRST.encode(), b"")
    except OSError:
        return False
