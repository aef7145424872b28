"""The process of the command line: how it is set up, which using jmerge as a library changes nothing of, and its size."""

from __future__ import annotations

import atexit
import ctypes
import gc
import hashlib
import io
import os
import platform
import sys
import threading
from pathlib import Path
from typing import NoReturn

from jmerge.errors import RunError
from jmerge.interrupt import settle

# Of glibc's mallopt: blocks up to this many bytes come from memory that was freed before, and that is kept. Fresh
# memory for the result of every kernel costs a page fault every 4 kB.
TRIM_THRESHOLD, MMAP_THRESHOLD, ARENA_MAX = -1, -3, -8
KEPT_BYTES = 1 << 25  # the most it takes
# The name of a thread that is in a call of JAX which nothing interrupts: what JAX does at the end waits for it.
STUCK = "jmerge-meeting"


def prepare() -> None:
    """Set up the process, before JAX is imported; what the user's environment says stays."""
    defaults = {
        "TF_CPP_MIN_LOG_LEVEL": "2",  # keeps XLA's start-up messages off the terminal
        "JAX_COMPILATION_CACHE_DIR": str(compile_cache()),
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }
    for name, value in defaults.items():
        os.environ.setdefault(name, value)
    if isinstance(sys.stdout, io.TextIOWrapper):  # as standard error does what it cannot encode
        sys.stdout.reconfigure(errors="backslashreplace")
    gc.set_threshold(100_000)  # importing and tracing make many objects and no garbage worth it
    if sys.platform == "linux":
        mallopt = getattr(ctypes.CDLL(None), "mallopt", lambda option, value: None)
        mallopt(MMAP_THRESHOLD, KEPT_BYTES)
        mallopt(TRIM_THRESHOLD, 4 * KEPT_BYTES)
        mallopt(ARENA_MAX, 1)  # kept once, and not once for every thread


def compile_cache() -> Path:
    """The folder of compiled kernels: the user's, and one for each kind of processor, which a shared home may see."""
    if sys.platform == "win32":
        home = os.environ.get("LOCALAPPDATA", Path.home() / "AppData" / "Local")
    else:
        home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    kind = platform.machine() + platform.processor()
    if os.path.exists("/proc/cpuinfo"):
        with open("/proc/cpuinfo", encoding="utf-8", errors="replace") as file:
            kind += next((line for line in file if line.startswith(("flags", "Features"))), "")
    return Path(home, "jmerge", "kernels-" + hashlib.sha256(kind.encode()).hexdigest()[:8])


def resident_bytes() -> int:
    """The memory that this process takes; its most so far on macOS; 0 on Windows, which does not say."""
    if sys.platform == "win32":
        return 0
    try:
        with open("/proc/self/statm", encoding="ascii") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        import resource

        unit = 1 if sys.platform == "darwin" else 1024
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def leave(code: int) -> NoReturn:
    """End the process with this exit code, without taking apart first what the system takes back anyway."""
    code = settle(code)
    if all(thread.name != STUCK for thread in threading.enumerate()):
        atexit._run_exitfuncs()
    try:
        print(end="", flush=True)
    except BrokenPipeError:
        pass  # its reader has read enough
    except OSError as error:
        print(f"error: standard output: {error.strerror or error}", file=sys.stderr)
        code = code or RunError.exit_code
    print(end="", file=sys.stderr, flush=True)
    os._exit(code)
