"""Keys of config.json that say whether a model has something: which way they are turned, and what they speak of."""

from __future__ import annotations

from typing import Any

# Words of keys that say nothing of which tensors there are.
IDLE = frozenset(
    "use num add has have with enable is no n config size model token tokens id ids".split()
)
NEGATIVE = ("no_", "disable_")


def turned_on(key: str, value: Any) -> bool | None:
    """Whether a flag or count says that something is there; `no_bias: false` says so. None for other values."""
    if not isinstance(value, bool | int):
        return None
    return (value > 0) != key.startswith(NEGATIVE)


def spoken_of(key: str) -> set[str]:
    """The words of a key that tell what it speaks of."""
    return set(key.lower().split("_")) - IDLE
