"""Ctrl-C in the program: one line and exit code 130, wherever it comes.

Python makes of Ctrl-C an exception that begins at whatever the main thread does next. That is no good here: a callback
(of the garbage collector, of a weak reference, of XLA) swallows it, an import turns it into another, a call that does
not return never sees it, and a library that was not written for it may crash. So in the program Ctrl-C raises nothing.
A thread, which the system wakes, ends the process: at once, or after a moment in which a merge that is under way stops
by itself, at places where it asks (`check`). That harms nothing: a merge can be killed at any time, and goes on from
its journal.

The library leaves Ctrl-C as Python has it. The program begins with this, so this file imports next to nothing.
"""

from __future__ import annotations

import _thread
import os
import signal
import sys
import time

TYPE_CHECKING = False  # as in typing, which takes time to import
if TYPE_CHECKING:
    from collections.abc import Callable
    from types import FrameType

CODE = 130
MOMENT = 0.7  # seconds in which what is under way may stop by itself


class _State:
    watching = False
    came = False  # Ctrl-C, before the process came to its end
    code: int | None = None  # what the process ends with; None: it has not come to its end
    line = "interrupted"
    grace = 0.0  # seconds
    farewell: Callable[[], None] | None = None
    said = False
    saying = _thread.allocate_lock()


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
    signal.set_wakeup_fd(mouth, warn_on_full_buffer=False)
    signal.signal(signal.SIGINT, _take_note)
    _thread.start_new_thread(_wait, (ear,))


def came() -> bool:
    """Whether Ctrl-C has come, so that whatever fails now fails because of it."""
    return _State.came


def check() -> None:
    """Raise KeyboardInterrupt where Ctrl-C has come; for those who wait, in any thread."""
    if _State.came:
        raise KeyboardInterrupt


class Gently:
    """While this context is open, something is under way that stops by itself soon after Ctrl-C."""

    def __init__(self, seconds: float = MOMENT) -> None:
        """seconds: how long it may take."""
        self._seconds = seconds

    def __enter__(self) -> None:
        self._before, _State.grace = _State.grace, self._seconds
        check()

    def __exit__(self, *_: object) -> None:
        if not _State.came:  # else the process may take the time that is left
            _State.grace = self._before


def say(line: str) -> None:
    """Print what the program says of an interrupt, once."""
    if not _State.watching:
        print(line, file=sys.stderr)
    elif _State.saying.acquire(timeout=MOMENT):  # else somebody is saying it, and is not heard
        if not _State.said:
            _write(line)
        _State.said = True
        _State.saying.release()


def part(farewell: Callable[[], None]) -> None:
    """Call `farewell` last, when Ctrl-C ends the process in the middle; it may take a few seconds."""
    _State.farewell = farewell


def settle(code: int) -> int:
    """What the process that is about to end with `code` ends with; from now on Ctrl-C only makes the end come soon."""
    _State.code = code  # first: from here on `came` stays what it is
    if _State.came:
        _State.code = CODE
        say(_State.line)
    return _State.code


def _take_note(number: int, frame: FrameType | None) -> None:
    """Python's part of Ctrl-C, in the main thread. The system's part has woken `_wait`, which may come too late."""
    if _State.code is None:
        _State.came = True


def _wait(ear: int) -> None:
    """The thread that hears of every Ctrl-C, also while the main thread is in a call that does not return."""
    os.read(ear, 1)
    if _State.code is None:
        _State.came = True
        _thread.start_new_thread(_end_after, (_State.grace,))
    else:
        _thread.start_new_thread(_end_after, (MOMENT,))
    os.read(ear, 1)  # somebody cannot wait
    _end_after(0.0)


def _end_after(seconds: float) -> None:
    time.sleep(seconds)
    if _State.code is None or _State.came:
        say(_State.line)
        try:
            if _State.farewell is not None:
                _State.farewell()
        finally:
            os._exit(CODE)
    os._exit(_State.code)


def _write(line: str) -> None:
    """Past Python's own file object, of which another thread may hold the lock."""
    clear = "\r\x1b[K\x1b[?25h" if os.isatty(2) else ""  # a progress bar hides the cursor
    try:
        os.write(2, f"{clear}{line}\n".encode())
    except OSError:
        pass
