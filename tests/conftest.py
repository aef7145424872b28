"""Every test runs under JAX's strict modes: no silent dtype or rank promotion."""

from __future__ import annotations

import atexit
import gc
import os
import shutil
import signal
import tempfile
from pathlib import Path

import pytest
from goldens import CONFORMANCE

os.environ.setdefault("JAX_PLATFORMS", "cpu")
# Nothing of a run goes into the user's cache: it has a folder of its own, which the workers of pytest-xdist share.
if "PYTEST_XDIST_WORKER" not in os.environ:
    os.environ["XDG_CACHE_HOME"] = tempfile.mkdtemp(prefix="jmerge-tests-")
    atexit.register(shutil.rmtree, os.environ["XDG_CACHE_HOME"], ignore_errors=True)
    # A shell starts jobs in the background with Ctrl-C ignored, which workers and the programs of tests would inherit.
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)

# No test asks a network for a model that a recipe names; those of remote sources start servers of their own.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_HUB_CACHE"] = os.path.join(os.environ["XDG_CACHE_HOME"], "hub")

# What a run compiles it compiles once, whichever of its processes needs it: workers, and programs that tests start.
# JMERGE_TEST_CACHE names a folder for it that is kept for the next run. JAX reads all this when it is imported.
os.environ["JAX_COMPILATION_CACHE_DIR"] = os.path.abspath(
    os.environ.get("JMERGE_TEST_CACHE") or os.path.join(os.environ["XDG_CACHE_HOME"], "kernels")
)
os.environ["JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES"] = "-1"
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"

import jax

jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")

EVERY, MOST_MAPS = (
    20,
    12_000,
)  # tests; parts of memory that a process has mapped, of at most 65,530 on Linux


def pytest_runtest_logfinish(nodeid: str, location: tuple[str, int | None, str]) -> None:
    """Let go of compiled programs where they have become many: each maps some memory, and what a process may map has a
    limit, at which it dies. They come back from the folder of compiled programs."""
    _count[0] += 1
    maps = Path("/proc/self/maps")
    if _count[0] % EVERY == 0 and maps.exists() and maps.read_bytes().count(b"\n") > MOST_MAPS:
        jax.clear_caches()
        gc.collect()


_count = [0]


@pytest.fixture(scope="session")
def conformance() -> Path:
    """The folder of conformance data."""
    return CONFORMANCE
