"""Checks for tensors that the class has no place for, by its name and by what config.json turns on and off."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator

from jmerge.arch.infer import VISION, KeyPath, config_dicts, is_classifier
from jmerge.arch.place import ADAPTER
from jmerge.arch.switches import spoken_of, turned_on
from jmerge.arch.ties import is_headless
from jmerge.verify.folder import Finding, Folder
from jmerge.verify.tables import HEADED, called_heads, class_name

# The first projections of attention and of an MLP, which have biases where any has
ATTENTION = r"(attn|attention)\w*\.(\w+\.)?((q|k|v|qkv)_proj|query|key|value|w?qkv|c_attn|query_key_value|w[qkv])"
MLP = r"(mlp|ffn|feed_forward)\w*\.((gate|up|down|gate_up)_proj|fc[12]|dense_h_to_4h|c_fc|w[123])"
# What keys that turn biases on and off may speak of besides; one that speaks of neither is of both
WORDS = {ATTENTION: {"attention", "attn", "qkv"}, MLP: {"mlp", "ffn", "feed", "forward"}}


def places(folder: Folder) -> Iterator[Finding]:
    """The class has a place for every tensor, by its name and by what config.json turns on."""
    yield from _heads(folder)
    yield from _biases(folder)
    yield from _towers(folder)
    yield from _adapters(folder)


def _heads(folder: Folder) -> Iterator[Finding]:
    named = class_name(folder.config)
    if named.endswith(HEADED):
        for name, role in folder.layout.roles.items():
            if role.stack is None and is_classifier(name):
                yield Finding(f"is a classifier's; {named} has none", tensor=name)
                return
    if is_headless(folder.config, folder.layout) and not named.endswith("Model"):
        for name in called_heads(folder):
            yield Finding(f"is a head; {named} has none", tensor=name)


def _biases(folder: Folder) -> Iterator[Finding]:
    stacks = folder.layout.stacks
    sizes = Counter(role.stack for role in folder.layout.roles.values() if role.stack is not None)
    largest = max(sizes, key=lambda prefix: sizes[prefix], default=None)
    homes: dict[KeyPath, list[str]] = {}
    for prefix, stack in stacks.items():
        for path in stack.keys[:1]:
            seen = VISION.search(".".join(path[:-1])) and VISION.search(prefix)
            if seen or prefix == largest:  # others may be of parts that a map tells nothing of
                homes.setdefault(path[:-1], []).append(f"{prefix}." if prefix else "")
    for path, part in config_dicts(folder.config):
        for key, value in part.items() if path in homes else ():
            if not isinstance(value, bool) or not (modules := _biased(key)):
                continue
            pattern = re.compile(rf".*({'|'.join(modules)})\.bias", re.IGNORECASE)
            on = turned_on(key, value)
            inside = [n for n in folder.tensors if n.startswith(tuple(homes[path]))]
            found = [n for n in inside if pattern.fullmatch(n)]
            told = ".".join((*path, key))
            if found and not on:
                more = f" ({len(found) - 1} more like it)" if len(found) > 1 else ""
                yield Finding(f"is there{more}, and {told} is {json.dumps(value)}", tensor=found[0])
            of = [n for n in inside if pattern.fullmatch(n.removesuffix("weight") + "bias")]
            blocks = {n.rpartition(".")[0].rpartition(".")[0] for n in of}
            biased = any(n.endswith(".bias") and n.startswith(tuple(blocks)) for n in inside)
            if on and of and not found and not biased:
                message = f"{told} is {json.dumps(value)}, and there is no bias beside {of[0]}"
                yield Finding(message, folder.config_file)


def _biased(key: str) -> list[str]:
    """The modules whose biases a key of config.json speaks of, as a pattern each; empty when it speaks of others."""
    words = spoken_of(key)
    if "bias" not in words:
        return []
    rest = words - {"bias", "linear"}
    return [modules for modules, known in WORDS.items() if not rest or rest <= known]


def _adapters(folder: Folder) -> Iterator[Finding]:
    """Tensors of an adapter that was not merged, where config.json speaks of none."""
    found = [name for name in folder.tensors if ADAPTER.search(name)]
    if found and "lora" not in str(folder.config).lower():
        more = f" (as are {len(found) - 1} more)" if len(found) > 1 else ""
        message = f"is an adapter's{more}, and config.json describes none; merge it into its model"
        yield Finding(message, tensor=found[0])


def _towers(folder: Folder) -> Iterator[Finding]:
    """Layers of pictures or sounds in a class for text whose config.json speaks of neither."""
    if not class_name(folder.config).endswith(HEADED) or VISION.search(str(folder.config).lower()):
        return
    for prefix, stack in folder.layout.stacks.items():
        if VISION.search(prefix):
            first = next(n for n in folder.tensors if n.startswith(f"{prefix}.{stack.indices[0]}."))
            message = f"is of layers ('{prefix}') that config.json does not describe"
            yield Finding(message, tensor=first)
            return
