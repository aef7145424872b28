"""Numbers for people and letters for models."""

from __future__ import annotations

import pytest

from jmerge.report.show import letter, size


@pytest.mark.parametrize(
    ("number", "text"),
    [(0, "A"), (1, "B"), (25, "Z"), (26, "AA"), (51, "AZ"), (52, "BA"), (701, "ZZ"), (702, "AAA")],
)
def test_letters(number: int, text: str) -> None:
    assert letter(number) == text


@pytest.mark.parametrize(
    ("nbytes", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1.00 kB"),
        (1_234_567, "1.23 MB"),
        (13_476_831_232, "13.48 GB"),
        (2 * 10**12, "2.00 TB"),
        (5 * 10**15, "5000.00 TB"),
    ],
)
def test_sizes(nbytes: int, text: str) -> None:
    assert size(nbytes) == text
