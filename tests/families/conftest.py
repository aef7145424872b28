"""transformers says nothing while these tests run."""

from __future__ import annotations

from collections.abc import Iterable

import pytest
from familychecks import quiet


@pytest.fixture(autouse=True)
def silence() -> Iterable[None]:
    """No progress bars or logging."""
    with quiet():
        yield
