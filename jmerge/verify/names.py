"""Checks of names: every tensor has one, and none that a program left over when it wrapped the model."""

from __future__ import annotations

import re
from collections.abc import Callable, Hashable, Iterator, Mapping
from itertools import combinations
from typing import Any

from jmerge.arch.guess import letters
from jmerge.arch.infer import LAYER_KEYS, NUMBER, Config
from jmerge.arch.match import NOISE, PART, plain_name, reduce_name
from jmerge.verify.folder import Finding, Folder
from jmerge.verify.layers import goes_round
from jmerge.verify.tables import HEADED, class_name

# A word that some classes have inside of names: left over only at the beginning of one
WORD_OF_CLASSES = "module"
# What libraries call the one weight of a module, of which it has one
LAST = re.compile(r"[._](weight|kernel|scale|gamma|embedding)$")
MOST_STACKS = 40  # of which all pairs are looked at
ALIKE = 0.8  # of the tensors of two stacks: else they have some names in common


def names(folder: Folder) -> Iterator[Finding]:
    """Every tensor is there under one name, and under one that a class can have."""
    for key in (plain_name, reduce_name):
        found = _spelled_twice(folder, key)
        if found:
            first, other = next(iter(found.items()))
            message = f"is there as '{other}' too{_and_more(found, 'pairs')}: one model in two spellings, of which one is loaded"
            yield Finding(message, tensor=first)
            return
    found = _spelled_twice(
        folder, lambda name: (letters(LAST.sub("", name)), folder.tensors[name].spec.shape)
    )
    for first, other in list(found.items())[:1]:
        message = f"stands in one place with '{other}'{_and_more(found, 'pairs')} and has its shape: one tensor in two spellings, of which one is loaded"
        yield Finding(message, tensor=first)
    for word in NOISE:
        left = [
            name
            for name in folder.tensors
            if (name.startswith(f"{word}.") if word == WORD_OF_CLASSES else word in name.split("."))
        ]
        if left:
            message = f"'{word}' in its name is left over from a program that wrapped the model{_and_more(left, 'names')}; no class loads it"
            yield Finding(message, tensor=left[0])
    for first, other, count in _twins(folder):
        message = f"'{other}' has the same tensors as '{first}' ({count} of equal names and shapes), and no class has both"
        yield Finding(message, folder.config_file)


def _and_more(found: Any, what: str) -> str:
    return f" ({len(found) - 1} more {what})" if len(found) > 1 else ""


def _spelled_twice(folder: Folder, key: Callable[[str], Hashable]) -> dict[str, str]:
    """Names, each with the next that reduces to the same key."""
    first: dict[Hashable, str] = {}
    found: dict[str, str] = {}
    for name in folder.tensors:
        other = first.setdefault(key(name), name)
        if other != name:
            found[other] = name
    return found


def _twins(folder: Folder) -> Iterator[tuple[str, str, int]]:
    """Two stacks with the same tensors that are one: those of two whole models, each with a token table, or those of a
    class that has one stack, where config.json describes no more.

    Returns:
      What stands before the names of either, and how many tensors they share.
    """
    stacks: dict[str, set[tuple[str, tuple[int, ...]]]] = {}
    for name, entry in folder.tensors.items():
        number = NUMBER.search(name)
        prefix = name[: number.start()].removesuffix(".") if number else ""
        if number and prefix in folder.layout.stacks:
            stacks.setdefault(prefix, set()).add((name[number.start() :], entry.spec.shape))
    largest = max(stacks, key=lambda prefix: len(stacks[prefix]), default="")
    one = class_name(folder.config).endswith(HEADED) and not goes_round(folder.config)
    depths = {prefix: folder.layout.stacks[prefix].depth for prefix in stacks}
    for first, other in combinations(sorted(stacks, key=len)[:MOST_STACKS], 2):
        if depths[first] != depths[other] or depths[first] < 2:
            continue
        shared = stacks[first] & stacks[other]
        if len(shared) < ALIKE * max(len(stacks[other]), len(stacks[first])):
            continue
        spelled = _longer(first.split("."), other.split("."))
        single = _described(folder.config, depths[first]) < 2
        counted = one and single and largest in (first, other)
        if counted or ((spelled or single) and _two_tables(folder, first, other)):
            yield first, other, len(shared)


def _two_tables(folder: Folder, first: str, other: str) -> bool:
    """Whether two stacks are parts of models each of which has a token table of its own, of one name and shape."""
    one, two = first.split("."), other.split(".")
    while one and two and one[-1] == two[-1]:
        one.pop()
        two.pop()
    if all(PART.search(".".join(words)) for words in (one, two)) and not _longer(one, two):
        return False  # `text_encoder` and `text_decoder`
    roots = ["".join(f"{word}." for word in words) for words in (one, two)]
    for table in folder.layout.embeddings:
        for root, there in (roots, roots[::-1]):
            twin = there + table.removeprefix(root)
            if table.startswith(root) and twin != table and twin in folder.tensors:
                return folder.tensors[twin].spec.shape == folder.tensors[table].spec.shape
    return False


def _longer(one: list[str], two: list[str]) -> bool:
    """Whether one name is the other with words put in."""
    short, long = sorted((one, two), key=len)
    left = iter(long)
    return all(word in left for word in short)


def _described(config: Config, depth: int) -> int:
    """How many counts of so many layers there are in config.json."""
    parts: list[Mapping[str, Any]] = [config]
    for part in parts:  # grows while it is walked
        parts += [value for value in part.values() if isinstance(value, dict)]
    return sum(part.get(key) == depth for part in parts for key in LAYER_KEYS)
