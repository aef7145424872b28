"""Checks for weights that are no plain numbers: codes of quantised ones, and what other processes hold."""

from __future__ import annotations

import re
from collections.abc import Iterator

from jmerge.arch.quantised import PLAIN, Quantised
from jmerge.plan.storage import why_sharded
from jmerge.verify.folder import Finding, Folder

# Names of what codes are multiplied by, and of nothing that a class has beside plain numbers
SCALE = re.compile(r"(.*)\.((weight|input)_scale(_inv)?|scale_(weight|input))")


def numbers(folder: Folder) -> Iterator[Finding]:
    """Weights are plain numbers, or config.json says how they are quantised."""
    if reason := why_sharded(folder.view, ()):
        yield Finding(reason)
        return
    found = Quantised(folder.specs, folder.config)
    if found.left_over:
        message = f"{found.keys} says that the weights are quantised, and all are plain numbers"
        yield Finding(message, folder.config_file, warning=True)
    elif not found.told and found.reason:
        yield Finding(f"{found.reason}; config.json does not say so", folder.config_file)
    elif not found.told and (beside := _beside_plain(folder)):
        more = f" ({len(beside) - 1} more like it)" if len(beside) > 1 else ""
        message = (
            f"is a scale{more} beside plain numbers: codes were cast without it, or it is left over"
        )
        yield Finding(message, tensor=beside[0])


def _beside_plain(folder: Folder) -> list[str]:
    """Scales of quantised weights, where the weights are floats."""
    specs = folder.specs
    return [
        name
        for name in specs
        if (found := SCALE.fullmatch(name))
        if (weight := specs.get(f"{found[1]}.weight")) and weight.dtype in PLAIN
    ]
