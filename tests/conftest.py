"""Every test runs under JAX's strict modes: no silent dtype or rank promotion."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax

jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")

CONFORMANCE = Path(
    os.environ.get("JMERGE_CONFORMANCE", Path(__file__).parent / "data" / "conformance")
)


@pytest.fixture(scope="session")
def conformance() -> Path:
    """The folder of conformance data."""
    return CONFORMANCE
