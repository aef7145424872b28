"""Every test runs under JAX's strict modes: no silent dtype or rank promotion."""

from __future__ import annotations

import atexit
import os
import shutil
import tempfile
from pathlib import Path

import pytest
from goldens import CONFORMANCE

os.environ.setdefault("JAX_PLATFORMS", "cpu")
# What a run compiles, here and in commands, it compiles once: it goes into a folder of this run, which the workers of
# pytest-xdist share, and not into the user's cache. JMERGE_TEST_CACHE names a folder that is kept for the next run.
if "PYTEST_XDIST_WORKER" not in os.environ:
    os.environ["XDG_CACHE_HOME"] = tempfile.mkdtemp(prefix="jmerge-tests-")
    atexit.register(shutil.rmtree, os.environ["XDG_CACHE_HOME"], ignore_errors=True)

# No test asks a network for a model that a recipe names; those of remote sources start servers of their own.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_HUB_CACHE"] = os.path.join(os.environ["XDG_CACHE_HOME"], "hub")

import jax

KERNELS = os.environ.get("JMERGE_TEST_CACHE") or os.environ["XDG_CACHE_HOME"]
jax.config.update("jax_compilation_cache_dir", KERNELS)
jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")


@pytest.fixture(scope="session")
def conformance() -> Path:
    """The folder of conformance data."""
    return CONFORMANCE
