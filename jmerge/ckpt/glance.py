"""A folder as it is looked at for what it holds: its files and folders, what small files say, and what to name."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import NamedTuple

from jmerge.ckpt.filekinds import is_state
from jmerge.ckpt.source import Source
from jmerge.errors import CheckpointError

MAX_SMALL = 1_000_000  # bytes of a file that is looked into for a name


class Place(NamedTuple):
    """A folder: its label, its files, and the folders in it."""

    source: Source
    label: str
    names: Sequence[str]
    folders: Sequence[str]

    def ending(self, *ends: str) -> list[str]:
        """The files that end so, but for states of a training run."""
        return [name for name in self.names if name.endswith(ends) and not is_state(name)]


def holds_model(source: Source, folder: str) -> bool:
    """Whether a folder in that of `source` looks as if it held safetensors weights of a model."""
    return any(
        name.startswith(("model", "consolidated", "diffusion_pytorch_model"))
        and name.endswith((".safetensors", ".safetensors.index.json"))
        for name in source.names(folder)
    )


def said(place: Place, file: str, *keys: str) -> str:
    """The text that a small JSON file has at a path of keys; empty when it has none."""
    try:
        size = place.source.size(file)
        value = json.loads(place.source.read(file)) if size and size < MAX_SMALL else None
    except (CheckpointError, ValueError, RecursionError):
        return ""
    for key in keys:
        value = value.get(key) if isinstance(value, dict) else None
    return value if isinstance(value, str) else ""


def number(name: str) -> tuple[list[int], str]:
    """Sorts names by the numbers in them, so that the last is the latest."""
    return [int(each) for each in re.findall(r"\d+", name)], name


def below(place: Place, folder: str) -> str:
    """A folder inside, as a recipe would name it; of a remote model, whose folders no recipe can name, with the way."""
    if "://" in place.label:
        return f"{folder} (download the model, then name that folder)"
    return f"{place.label}/{folder}"
