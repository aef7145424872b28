"""Inside of `jax.shard_map`, on eight forced devices in a process of their own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from treecases import NUMBERS

SCRIPT = Path(__file__).parent / "shard_mapped.py"


@pytest.mark.parametrize(
    "methods",
    [
        ["slerp", "localize_stitch", "dare_ties"],
        pytest.param(list(NUMBERS), marks=pytest.mark.slow, id="all"),
    ],
)
def test_statistics_are_of_all_shards(methods: list[str]) -> None:
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=8"
    environment = {**os.environ, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}
    done = subprocess.run(
        [sys.executable, str(SCRIPT), *methods],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
