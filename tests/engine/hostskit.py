"""Groups of processes on this machine that share a merge, with points at which one of them stops and waits."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from said import uncoded

from jmerge.testing.tiny import write_llama

SIZES: dict[str, Any] = {"layers": 2, "hidden": 64, "inner": 96, "vocab": 300}
PIECE = 4096

# Runs the program with small pieces and short patience. `wait`: from that block on, or at that call, say so in a file
# and wait for what the test does.
PROGRAM = """
import json, sys, time
from pathlib import Path
from jmerge.process import prepare
prepare()
import jmerge.api.merge, jmerge.cli, jmerge.engine.memory
from jmerge.ckpt.writer import OutputFolder
from jmerge.engine import hosts, meeting
from jmerge.engine.schedule import make_schedule
from jmerge.engine.together import Note

wait, mark, patience, piece, meeting.MEETING_SECONDS = json.loads(sys.argv[1])
hosts.PULSE_SECONDS, hosts.SILENCE_SECONDS, hosts.GRACE_SECONDS = 0.2, patience, 3.0
jmerge.engine.memory.make_schedule = lambda plan, *_, devices: make_schedule(
    plan, piece, devices=devices
)

def stop():
    Path(mark).touch()
    time.sleep(600)

note, seen = Note.__call__, []
def count(self, event):
    note(self, event)
    seen.append(event) if type(event).__name__ == "Wrote" else None
    if len(seen) == wait:
        stop()
Note.__call__ = count

def stopping(name, owner, call):
    def stops(*args, **kwargs):
        if wait == name:
            stop()
        return call(*args, **kwargs)
    setattr(owner, call.__name__, stops)

through_jax = meeting._through_jax
def marking(*args):
    Path(mark).touch() if wait == "meeting" else None  # and goes on: the others are not there
    return through_jax(*args)
meeting._through_jax = marking

stopping_at = jmerge.api.merge.make_plan
jmerge.api.merge.make_plan = lambda *a, **k: stop() if wait == "plan" else stopping_at(*a, **k)
stopping("create", OutputFolder, OutputFolder.create)
stopping("publish", OutputFolder, OutputFolder.publish)
del sys.argv[1]
jmerge.cli.program()
"""


class Recipe(NamedTuple):
    """What of a recipe makes a kind of merge."""

    method: str
    own: dict[str, Any] = {}  # of each model
    rest: dict[str, Any] = {}


RECIPES = {
    "linear": Recipe("linear", {"weight": 0.5}),
    "ties": Recipe("ties", {"weight": 0.5, "density": 0.4}),
    "dare_ties": Recipe("dare_ties", {"weight": 0.5, "density": 0.5}),
    "localize_stitch": Recipe("localize_stitch", {}, {"parameters": {"density": 0.1}}),
    "emr": Recipe("emr"),
}


def write_models(folder: Path) -> Path:
    """Models `base`, `a` and `b` and a recipe for each of `RECIPES`, named after it."""
    for seed, name in enumerate(("base", "a", "b")):
        write_llama(folder / name, seed, **SIZES)
    for name, recipe in RECIPES.items():
        models = [{"model": str(folder / m), "parameters": recipe.own} for m in "ab"]
        content: dict[str, Any] = {"merge_method": recipe.method, "models": models, **recipe.rest}
        if recipe.method != "linear":
            content["base_model"] = str(folder / "base")
        (folder / f"{name}.yml").write_text(json.dumps(content))
    return folder


class Ended(NamedTuple):
    """How a process ended."""

    code: int
    out: str
    errors: str
    seconds: float  # since the last thing done to the group

    @property
    def lines(self) -> list[str]:
        """Its error lines; nothing else may be on standard error but warnings and progress."""
        assert "Traceback" not in self.errors and "***" not in self.errors, self.errors
        lines = uncoded(self.errors).splitlines()
        return [line for line in lines if line.startswith("error: ")]


class Running:
    """Processes that were started together, and how they end."""

    def __init__(
        self,
        words: Sequence[str],
        count: int,
        *,
        devices: int = 1,
        waits: dict[int, int | str] | None = None,
        more: dict[int, list[str]] | None = None,
        absent: Sequence[int] = (),
        patience: float = 20.0,
        piece: int = PIECE,
        meeting: float = 90.0,  # JAX's client tries ever less often while host 0 is not there yet
        folder: Path,
    ) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self.marks = {n: folder / f"mark-{port}-{n}" for n in range(count)}
        flags = (
            f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={devices}"
        )
        self.processes = {}
        for n in range(count):
            if n in absent:
                continue
            test = json.dumps([(waits or {}).get(n), str(self.marks[n]), patience, piece, meeting])
            group = [
                f"--coordinator=127.0.0.1:{port}",
                f"--num_processes={count}",
                f"--process_id={n}",
            ]
            self.processes[n] = subprocess.Popen(
                [sys.executable, "-c", PROGRAM, test, *words, "--distributed", *group]
                + (more or {}).get(n, []),
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                env={k: v for k, v in os.environ.items() if "proxy" not in k.lower()}
                | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"},
            )
        self.since = time.monotonic()

    def signal(self, number: int, what: signal.Signals) -> None:
        """Send a signal to a process that waits where it was told to."""
        deadline = time.monotonic() + 60
        while not self.marks[number].exists():
            assert self.processes[number].poll() is None, self.processes[number].communicate()
            assert time.monotonic() < deadline, f"process {number} did not come to its point"
            time.sleep(0.02)
        self.processes[number].send_signal(what)
        self.since = time.monotonic()

    def end(self, *numbers: int) -> dict[int, Ended]:
        """How these processes ended, or all, within two minutes."""
        ended = {}
        try:
            for n in numbers or tuple(self.processes):
                out, errors = self.processes[n].communicate(timeout=120)
                seconds = time.monotonic() - self.since
                ended[n] = Ended(self.processes[n].returncode, out, errors, seconds)
        finally:
            for process in self.processes.values():
                if process.poll() is None and (not numbers or len(ended) < len(numbers)):
                    process.kill()
                    process.communicate()
        return ended
