"""Inside of `jax.shard_map`, on eight forced devices in a process of their own."""

from __future__ import annotations

from pathlib import Path

import pytest
from treecases import NUMBERS, on_eight_devices

SCRIPT = Path(__file__).parent / "shard_mapped.py"


@pytest.mark.parametrize(
    "methods",
    [
        ["slerp", "localize_stitch", "dare_ties"],
        pytest.param(list(NUMBERS), marks=pytest.mark.slow, id="all"),
    ],
)
def test_statistics_are_of_all_shards(methods: list[str]) -> None:
    on_eight_devices(SCRIPT, *methods)
