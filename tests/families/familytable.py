"""The docs' table of families: a line for each row of the matrix, made of merges that were done and hold."""

from __future__ import annotations

from pathlib import Path

from familychecks import STACK, Matrix, quiet
from familykit import Family
from familyreference import METHODS
from matrix import FAMILIES

HEADER = "| family | tensors | methods | stack | loads |\n|---|---|---|---|---|\n"


def families_markdown(folder: Path) -> str:
    """The table, after merges of every family in an empty folder; AssertionError tells what of them does not hold."""
    matrix = Matrix(folder)
    with quiet():
        return HEADER + "".join(line(family, matrix) for family in FAMILIES)


def line(family: Family, matrix: Matrix) -> str:
    """The line of one family: how many tensors its merged models have, and in which ways it was merged, each of which
    was loaded and run."""
    try:
        counts = {matrix.check(family, method) for method in METHODS}
        stacked = 0 if family.no_stack else matrix.check(family, STACK)
    except AssertionError as error:
        raise AssertionError(f"{family.name}: {error}") from None
    assert len(counts) == 1, counts
    stack = f"yes, {stacked} tensors" if stacked else f"no: {family.no_stack}"
    return f"| `{family.name}` | {counts.pop()} | {', '.join(METHODS)} | {stack} | yes |\n"
