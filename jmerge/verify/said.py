"""Checks of what else config.json says of the layers: numbers of them, entries for each, second counts."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator

from jmerge.arch.ahead import unkept
from jmerge.arch.config import get_path
from jmerge.arch.infer import (
    EXTRA_LAYER_KEYS,
    LAYER_KEYS,
    Config,
    Stack,
    class_names,
    config_dicts,
    may_count,
)
from jmerge.arch.layer_types import LAYER_NUMBERS, PER_LAYER_TEXT
from jmerge.arch.layer_words import MEMBERS
from jmerge.arch.mentions import Beside, mentions
from jmerge.arch.told import is_numbered, is_numbers_key
from jmerge.verify.folder import Finding, Folder
from jmerge.verify.layers import goes_round, is_guessed

MOST_STACKS = 40  # whose fields are looked at; real models have up to ten that are counted
# How keys end of lists that have an entry for each layer, whatever their entries are
ENTRIES = ("layer_types", "layer_type", "layers_block_type", "layers_types", "layer_pattern")
# Lists of whole numbers that are none of these layers: counts, and numbers of another model's layers
OTHERS = re.compile(r".*(num_|_num|count|target|teacher|draft).*")
# What tells transformers, diffusers and timm which class it is
CLASS_KEYS = ("model_type", "architectures", "_class_name", "architecture")


def said(folder: Folder) -> Iterator[Finding]:
    """What config.json says of layers fits those that there are, and it says what the model is."""
    config = folder.config
    parts = [part for _, part in config_dicts(config)]
    if config and not any(part.get(key) for part in parts for key in CLASS_KEYS):
        message = "says neither model_type nor architectures, so nothing can load the model"
        yield Finding(message, folder.config_file)
    if not folder.whole:
        return
    stacks = [stack for stack in folder.layout.stacks.values() if stack.keys][:MOST_STACKS]
    loose = [name for name, role in folder.layout.roles.items() if role.stack is None]
    depths = {stack.depth for stack in folder.layout.stacks.values()}
    for stack in stacks:
        for message in _counts(config, stack, depths):
            yield Finding(message, folder.config_file)
        for message, harmless in _fields(config, stack, Beside(stacks, loose)):
            yield Finding(message, folder.config_file, warning=harmless)
    yield from _promises(folder)


def _counts(config: Config, stack: Stack, depths: set[int]) -> Iterator[str]:
    """Counts of the same layers that are others than there are."""
    home = stack.home
    part = get_path(config, home) if home else config
    word = stack.prefix.rpartition(".")[2]
    own = (f"num_{word}", f"n_{word}", f"num_hidden_{word}")
    for key in dict.fromkeys((*LAYER_KEYS, *own)):
        count = part.get(key)
        if type(count) is not int or count in depths or count < 1 or goes_round(part):
            continue
        if key == "depth" or is_guessed(part, key):
            continue  # of something else beside the usual key
        if may_count(stack.prefix, (*home, key), config):
            told = ".".join(stack.keys[0])
            yield f"{'.'.join((*home, key))} is {count}, {told} {stack.depth}; '{stack.prefix}' has {stack.depth} layers"


def _fields(config: Config, stack: Stack, beside: Beside) -> Iterator[tuple[str, bool]]:
    """Fields that speak of layers that are not there, and whether a model works all the same."""
    # fields of a map with the counts of several stacks may be of any of them
    depth = max(each.depth for each in beside.stacks if each.home == stack.home)
    behind = sum(
        value
        for _, part in config_dicts(config)
        for key in EXTRA_LAYER_KEYS
        if type(value := part.get(key)) is int and value > 0
    )
    for mention in mentions(config, stack, beside):
        key, value, path = mention.path[-1].lower(), mention.value, ".".join(mention.path)
        if not mention.certain or goes_round(get_path(config, mention.path[:-1]) or config):
            continue
        if isinstance(value, list) and value and all(type(each) is int for each in value):
            numbers = is_numbers_key(key) and not OTHERS.fullmatch(key)
            if numbers and (beyond := _beyond(key, value, depth)):
                message = f"{path} names layer {beyond[0]}; there are {depth} layers"
                yield message, True
        elif isinstance(value, list) and key.endswith(ENTRIES):
            if len(value) not in (depth, depth + behind):
                message = f"{path} has {len(value)} entries; there are {depth} layers"
                yield message, False
        elif isinstance(value, str) and key in PER_LAYER_TEXT:
            if len(value) not in (depth, depth + behind):
                message = f"{path} has {len(value)} characters; there are {depth} layers"
                yield message, False
        elif isinstance(value, dict) and is_numbered(key, value):
            last = max(int(each) for each in value)
            if last >= depth + behind:
                yield f"{path} names layer {last}; there are {depth} layers", False


def _beyond(key: str, value: list[int], depth: int) -> list[int]:
    """Numbers of layers that are not there, in a list that names others that are: all of them are a class's own list, in a
    model made smaller. The last may be `depth` where they count from one, or what is behind."""
    if len(set(value)) != len(value) and key not in LAYER_NUMBERS:
        return []
    most = depth - 1 if key in LAYER_NUMBERS or (MEMBERS.fullmatch(key) and 0 in value) else depth
    beyond = [each for each in value if each > most or each < -depth]
    return beyond if len(beyond) < len(value) else []


def _promises(folder: Folder) -> Iterator[Finding]:
    """Layers behind the last, which foretell more than one token, that are told of and not there."""
    promised = unkept(folder.config, folder.tensors) if class_names(folder.config) else {}
    if promised:
        told = " and ".join(f"{'.'.join(path)} is {json.dumps(v)}" for path, v in promised.items())
        message = f"{told}, and there are no such layers"
        yield Finding(message, folder.config_file, warning=True)
