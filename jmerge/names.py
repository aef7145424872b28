"""Did-you-mean: the nearest valid name for a misspelt one."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def nearest(word: str, names: Iterable[str], likeness: float = 0.6) -> str | None:
    """The valid name that looks most like `word`, or None when nothing is so like it (1: equal)."""
    by_lower = {name.lower(): name for name in names}
    found = difflib.get_close_matches(str(word).lower(), list(by_lower), n=1, cutoff=likeness)
    return by_lower[found[0]] if found else None


def did_you_mean(word: str, names: Iterable[str], show: int = 12) -> str:
    """A tail for a message: `; did you mean 'x'?`, else a list of the valid names when it is short."""
    names = list(names)
    best = nearest(word, names)
    if best is not None:
        return f"; did you mean '{best}'?"
    return f"; known: {', '.join(names)}" if 0 < len(names) <= show else ""
