"""Every test runs under JAX's strict modes: no silent dtype or rank promotion."""

from __future__ import annotations

import atexit
import os
import shutil
import tempfile
from pathlib import Path

import pytest

os.environ.setdefault("JAX_PLATFORMS", "cpu")
# kernels that commands compile go where the next command of this run finds them, not into the user's cache
os.environ["XDG_CACHE_HOME"] = tempfile.mkdtemp(prefix="jmerge-tests-")

import jax

atexit.register(shutil.rmtree, os.environ["XDG_CACHE_HOME"], ignore_errors=True)
jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")

CONFORMANCE = Path(
    os.environ.get("JMERGE_CONFORMANCE", Path(__file__).parent / "data" / "conformance")
)


@pytest.fixture(scope="session")
def conformance() -> Path:
    """The folder of conformance data."""
    return CONFORMANCE
