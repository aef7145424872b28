"""Layers that foretell more tokens than the next, as config.json promises them: fine-tunes keep the promise, not the layers."""

from __future__ import annotations

import copy
import re
from collections.abc import Collection
from typing import Any

from jmerge.arch.config import Change, get_path
from jmerge.arch.infer import LAYER_KEYS, NUMBER, Config, KeyPath, config_dicts

WORD = re.compile(r"(^|[._])(mtp|nextn)([._]|$)")
COUNT = re.compile(
    r"layers|modules|depths?|^n(um)?_(mtp|nextn)(_heads)?$"
)  # not of heads in a layer
SWITCH = re.compile(r"(use|with|has|enable)_(mtp|nextn)")


def unkept(config: Config, tensors: Collection[str]) -> dict[KeyPath, int]:
    """Where config.json promises such layers, and what it says, where none of the `tensors` is of one.

    They are called so, or are numbered behind the layers that config.json counts.
    """
    if any(WORD.search(name) for name in tensors):
        return {}
    found = {}
    for path, part in config_dicts(config):
        for key, told in part.items():
            count = WORD.search(key) and COUNT.search(key) and type(told) is int and told > 0
            if count or (SWITCH.fullmatch(key) and told is True):
                found[(*path, key)] = told
    depths = {path: _depths(get_path(config, path[:-1])) for path in found}
    anywhere = {depth for _, part in config_dicts(config) for depth in _depths(part)}
    return {
        path: told
        for path, told in found.items()
        if not _behind(depths[path] or anywhere, tensors)  # the layers of its own part first
    }


def without_ahead(
    config: dict[str, Any], tensors: Collection[str]
) -> tuple[dict[str, Any], list[Change]]:
    """`config` that promises no such layers where none of the `tensors` is of one, and what changed."""
    promised = unkept(config, tensors)
    edited = copy.deepcopy(config) if promised else config
    changes = []
    for path, told in promised.items():
        new = type(told)(0)
        get_path(edited, path[:-1])[path[-1]] = new
        name = ".".join(path)
        changes.append(Change(name, told, new, "the output has no such layer"))
    return edited, changes


def _depths(part: Config) -> set[int]:
    """How many layers a part of config.json says that there are."""
    return {part[key] for key in LAYER_KEYS if type(part.get(key)) is int and part[key] > 0}


def _behind(depths: Collection[int], tensors: Collection[str]) -> bool:
    """Whether a list of layers goes on behind its last, as config.json counts them."""
    numbers: dict[str, set[int]] = {}
    for name in tensors:
        if found := NUMBER.search(name):
            numbers.setdefault(name[: found.start()], set()).add(int(found[0]))
    return any({depth - 1, depth} <= own for depth in depths for own in numbers.values())
