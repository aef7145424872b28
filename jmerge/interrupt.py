"""Ctrl-C in the program: one line and exit code 130, wherever it comes.

Python turns Ctrl-C into an exception that begins at whatever the main thread does next. That unwinds a merge in good
order, but it is not enough: a callback (of the garbage collector, of a weak reference, of XLA) swallows the exception,
an import turns it into another, and a call that does not return never sees it. So a thread, which the system wakes at
every Ctrl-C, ends the process when it has not ended by itself within a moment. That harms nothing: a merge can be
killed at any time, and goes on from its journal.

Only the program does this, never the library. It is the first thing that the program does, so this file imports next
to nothing.
"""

from __future__ import annotations

import _thread
import os
import signal
import sys
import time

CODE = 130
GRACE = 0.7  # seconds to end in good order


class _State:
    watching = False
    came = False  # Ctrl-C, while there was something to interrupt
    code: int | None = None  # what the process ends with; None: it has not come to its end
    line = "interrupted"
    grace = GRACE
    saying = _thread.allocate_lock()  # taken by who says the line, and never given back


def watch(line: str) -> None:
    """From now on Ctrl-C ends the process with `line` on standard error and exit code 130.

    Where the process was started with Ctrl-C ignored, as jobs in the background are, it stays ignored.
    """
    _State.line = line
    if signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        return
    ear, mouth = os.pipe()
    if hasattr(os, "set_blocking"):
        os.set_blocking(mouth, False)
    _State.watching = True
    sys.excepthook = _excepthook
    sys.unraisablehook = _unraisablehook
    signal.set_wakeup_fd(mouth, warn_on_full_buffer=False)
    signal.signal(signal.SIGINT, _handle)
    _thread.start_new_thread(_wait, (ear,))


def came() -> bool:
    """Whether Ctrl-C has come, so that whatever fails now fails because of it."""
    return _State.came


def say(line: str) -> None:
    """Print what the program says of an interrupt, once."""
    if not _State.watching:
        print(line, file=sys.stderr)
    elif _State.saying.acquire(blocking=False):
        _write(line)


def allow(seconds: float) -> None:
    """Give the process so long to end in good order."""
    _State.grace = seconds


def settle(code: int) -> int:
    """What the process that is about to end with `code` ends with; from now on Ctrl-C interrupts nothing, and only makes
    the end come at once."""
    if _State.came:
        say(_State.line)
        code = CODE
    _State.code = code
    return code


def _handle(number: int, frame: object) -> None:
    """Python's part of Ctrl-C, in the main thread."""
    if _State.code is None and not _State.came:
        _State.came = True
        raise KeyboardInterrupt


def _wait(ear: int) -> None:
    """The thread that hears of every Ctrl-C, also while the main thread is in a call that does not return."""
    os.read(ear, 1)
    _thread.start_new_thread(_end_after, (_State.grace,))
    os.read(ear, 1)  # somebody cannot wait
    _end_after(0.0)


def _end_after(seconds: float) -> None:
    time.sleep(seconds)
    if (code := _State.code) is not None:
        os._exit(code)
    _end()


def _end() -> None:
    if _State.saying.acquire(blocking=False):
        _write(_State.line)
    os._exit(CODE)


def _write(line: str) -> None:
    """Past Python's own file object, of which another thread may hold the lock."""
    clear = "\r\x1b[K\x1b[?25h" if os.isatty(2) else ""  # a progress bar hides the cursor
    try:
        os.write(2, f"{clear}{line}\n".encode())
    except OSError:
        pass


def _excepthook(kind: type[BaseException], error: BaseException, trace: object) -> None:
    if _State.came:
        _end()
    sys.__excepthook__(kind, error, trace)  # type: ignore[arg-type]


def _unraisablehook(unraisable: sys.UnraisableHookArgs) -> None:
    if not _State.came:  # else it is the interrupt that a callback lost, or what came of it
        sys.__unraisablehook__(unraisable)
