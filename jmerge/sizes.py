"""Sizes on the command line: `5GB`, `2GiB`, `1.5GB`, `5B` (MergeKit's billion), or plain bytes."""

from __future__ import annotations

import re

from jmerge.errors import PlanError, Problem

UNITS = {
    "": 1,
    "k": 10**3,
    "m": 10**6,
    "b": 10**9,
}  # MergeKit's, which count in thousands without a B for bytes
UNITS |= {"kb": 10**3, "mb": 10**6, "gb": 10**9, "tb": 10**12}
UNITS |= {"g": 10**9, "t": 10**12, "kib": 2**10, "mib": 2**20, "gib": 2**30, "tib": 2**40}


def parse_size(text: int | str, where: str) -> int:
    """The number of bytes that `text` means; PlanError that names the flag `where` when it means none."""
    if isinstance(text, int):
        return text
    found = re.fullmatch(r"\s*(-?\d+(?:\.\d+)?)\s*([a-zA-Z]*)\s*", text)
    if not found or found[2].lower() not in UNITS:
        raise PlanError(
            Problem(
                f"expected a size such as 5GB, 2GiB or a number of bytes, found '{text}'",
                where,
                code="JM405",
            )
        )
    return int(float(found[1]) * UNITS[found[2].lower()])
