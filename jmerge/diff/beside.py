"""What differs beside the weights: fields of config.json, files, tokens."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Literal, NamedTuple

import numpy as np

from jmerge.arch.infer import Config
from jmerge.ckpt.donor import donor_files, is_tokenizer_file
from jmerge.ckpt.open import Checkpoint
from jmerge.errors import CheckpointError
from jmerge.tokens.model import read_tokens

STRIDE = 1 << 22  # bytes of a file that are compared at a time

State = Literal["same", "differs", "only in A", "only in B"]


class FieldChange(NamedTuple):
    """A field of config.json with two values, or in one model only."""

    key: str  # dotted
    values: Mapping[str, Any]  # of "a" and "b", as far as they have it


class Tokens(NamedTuple):
    """How the tokens of two models differ."""

    same: int  # in both, with one id
    moved: int  # in both, with another id
    only_a: int
    only_b: int


class Beside(NamedTuple):
    """What was found."""

    config: tuple[FieldChange, ...]
    files: Mapping[str, State]  # those that go with weights, in name order
    tokens: Tokens | None  # None when their files are the same, or a model has none
    unreadable: str  # why there is nothing to say of tokens; empty when there is


def compare_beside(a: Checkpoint, b: Checkpoint) -> Beside:
    """What differs in config.json, in the files that a merge would take over, and in the tokens."""
    names = [
        set(donor_files(each.source, each.modules, [file.name for file in each.files]))
        for each in (a, b)
    ]
    files = {name: _state(name, a, b, *names) for name in sorted(names[0] | names[1])}
    tokens, unreadable = None, ""
    if any(is_tokenizer_file(name, a.home) and state != "same" for name, state in files.items()):
        try:
            tokens = _tokens(a, b)
        except CheckpointError as error:
            unreadable = str(error)
    return Beside(tuple(_fields(a.config, b.config, "")), files, tokens, unreadable)


def _fields(a: Config, b: Config, prefix: str) -> Iterator[FieldChange]:
    for key in dict.fromkeys((*a, *b)):
        name = f"{prefix}{key}"
        found = {side: each[key] for side, each in (("a", a), ("b", b)) if key in each}
        one, other = found.get("a"), found.get("b")
        if isinstance(one, dict) and isinstance(other, dict):
            yield from _fields(one, other, f"{name}.")
        elif len(found) < 2 or one != other or isinstance(one, bool) != isinstance(other, bool):
            yield FieldChange(name, found)


def _state(name: str, a: Checkpoint, b: Checkpoint, in_a: set[str], in_b: set[str]) -> State:
    if name not in in_a or name not in in_b:
        return "only in A" if name in in_a else "only in B"
    size = a.source.size_of(name)
    if size != b.source.size_of(name):
        return "differs"
    for start in range(0, size, STRIDE):
        one, other = (np.empty(min(STRIDE, size - start), np.uint8) for _ in range(2))
        a.source.read_into(name, start, one)
        b.source.read_into(name, start, other)
        if not np.array_equal(one, other):
            return "differs"
    return "same"


def _tokens(a: Checkpoint, b: Checkpoint) -> Tokens | None:
    found = [read_tokens(each.main_source) for each in (a, b)]
    if found[0] is None or found[1] is None:
        return None
    one, other = (each.vocabulary.ids for each in found if each is not None)
    shared = one.keys() & other.keys()
    same = sum(one[token] == other[token] for token in shared)
    return Tokens(same, len(shared) - same, len(one) - len(shared), len(other) - len(shared))
