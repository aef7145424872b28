"""The program called in process."""

from __future__ import annotations

import contextlib
import io

from jmerge import cli


class Said:
    """The exit code of the program and what it printed."""

    def __init__(self, *words: str) -> None:
        out, err = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            self.code = cli.main(list(words))
        self.out, self.err = out.getvalue(), err.getvalue()
        self.errors = [line for line in self.err.splitlines() if line.startswith("error: ")]
        self.warnings = [line for line in self.err.splitlines() if line.startswith("warning: ")]
