"""The pictures in jmerge/docs/images: the chart is what its tool makes of the figures beside it."""

from __future__ import annotations

import re
import struct

import benchchart
import diffpicture
import pytest

FIRST = "2026-01-02; other is Another 1.0; x86_64, 2 cores; models of 1.1b, bf16\n"
LINE = (
    "{:<16} {:<6} {:>8.2f} s {:>8.2f} s processor   1.00 x floor   2.00 GB/s  peak RSS {:.2f} GB\n"
)


def test_the_chart_is_current() -> None:
    text = benchchart.RESULTS.read_text(encoding="utf-8")
    assert benchchart.PICTURE.read_text(encoding="utf-8") == benchchart.chart(text)


def test_bars_are_in_proportion() -> None:
    """In the order of the methods, of jmerge, the other program and the floor; one that was not timed has none."""
    text = (
        FIRST + LINE.format("ties", "floor", 2.5, 1, 0.5) + LINE.format("ties", "jmerge", 5, 1, 1)
    )
    text += LINE.format("ties", "other", 100, 1, 8) + LINE.format("slerp", "jmerge", 50, 1, 2)
    svg = benchchart.chart(text)
    bars = re.findall(r'<rect x="(\d+)" .*width="([\d.]+)" height="10"', svg)
    whole = float(bars[1][1])
    assert [float(width) / whole for _, width in bars] == pytest.approx(
        [0.05, 1, 0.025, 0.5, 1 / 8, 1, 0.5 / 8, 2 / 8], abs=2e-3
    )
    for word in (
        "Another 1.0",
        "x86_64, 2 cores; models of 1.1b, bf16; 2026-01-02",
        ">5.00<",
        ">100<",
    ):
        assert word in svg


def test_other_lines_are_refused() -> None:
    with pytest.raises(ValueError, match="not a line of tools/bench.py: 'what"):
        benchchart.read(FIRST + "what is this\n")


def test_the_picture_of_a_page_is_small() -> None:
    data = diffpicture.PICTURE.read_bytes()
    assert data[:8] == b"\x89PNG\r\n\x1a\n" and len(data) <= 150_000
    assert struct.unpack(">II", data[16:24]) == diffpicture.SIZE
