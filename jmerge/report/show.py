"""Numbers and names for people: 1.23 GB, 1.10 B, model C."""

from __future__ import annotations


def letter(number: int) -> str:
    """A short name for an input model: A, B, ... Z, AA, ..."""
    text = ""
    number += 1
    while number:
        number, rest = divmod(number - 1, 26)
        text = chr(65 + rest) + text
    return text


def size(nbytes: int) -> str:
    """Bytes for people: 1.23 GB."""
    value, units = float(nbytes), ["B", "kB", "MB", "GB", "TB"]
    while value >= 1000 and len(units) > 1:
        value /= 1000
        units.pop(0)
    return f"{value:.0f} {units[0]}" if units[0] == "B" else f"{value:.2f} {units[0]}"


def count(number: int) -> str:
    """A number of parameters for people: 1.10 B."""
    for unit, name in ((10**9, "B"), (10**6, "M"), (10**3, "k")):
        if number >= unit:
            return f"{number / unit:.2f} {name}"
    return str(number)


def several(number: int, noun: str) -> str:
    """How many of something that gets an s: 1 file, 2 files."""
    return f"{number:,} {noun}{'s' if number != 1 else ''}"


def tensors(number: int) -> str:
    """How many tensors."""
    return several(number, "tensor")
