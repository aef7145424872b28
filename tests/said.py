"""The program called in process, and as a process that gets signals."""

from __future__ import annotations

import contextlib
import io
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from jmerge import cli


def uncoded(text: str) -> str:
    """Messages without the codes at their ends."""
    return re.sub(r" \[JM\d{3}\]$", "", text, flags=re.MULTILINE)


class Said:
    """The exit code of the program and what it printed; `errors` and `warnings` are lines without their codes."""

    def __init__(self, *words: str) -> None:
        out, err = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            self.code = cli.main(list(words))
        self.out, self.err = out.getvalue(), err.getvalue()
        lines = uncoded(self.err).splitlines()
        self.errors = [line for line in lines if line.startswith("error: ")]
        self.warnings = [line for line in lines if line.startswith("warning: ")]


def until(true: Callable[[], bool], seconds: float = 60.0) -> None:
    """Wait for something that a process does."""
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.01)


# Jobs in the background begin with Ctrl-C ignored, and what they start does too.
BEGIN = "import os, signal, sys; signal.signal(signal.SIGINT, signal.{0}); os.execv(sys.executable, [sys.executable, *sys.argv[1:]])"


def start(
    cwd: Path, *words: str, code: str = "", signals: str = "SIG_DFL", **environment: str
) -> subprocess.Popen[str]:
    """The program (or other code with these words) in a process of its own.

    signals: what it does at Ctrl-C before it decides that itself, SIG_DFL or SIG_IGN.
    """
    what = ("-c", code) if code else ("-m", "jmerge")
    return subprocess.Popen(
        [sys.executable, "-c", BEGIN.format(signals), *what, *words],
        cwd=cwd,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | environment,
    )
