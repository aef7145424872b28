"""Ids of special tokens in config.json and generation_config.json, when the tokenizer comes from another model."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

from jmerge.arch.config import Change
from jmerge.arch.fields import TOKEN_ID
from jmerge.arch.infer import VISION, KeyPath, config_dicts
from jmerge.tokens.model import NAMED, ModelTokens
from jmerge.tokens.vocabulary import Vocabulary

REASON = "the tokenizer comes from another model"


def special_ids(tokens: ModelTokens, output: Vocabulary) -> dict[str, int]:
    """`bos_token_id` and the like of a tokenizer, of the special tokens that it names and the output has."""
    return {
        f"{name}_id": output.ids[token]
        for name, token in tokens.specials.items()
        if token in output.ids
    }


def moved_ids(tokens: ModelTokens, output: Vocabulary) -> dict[int, int]:
    """The output's id of each token of a tokenizer that the output has, by its own id."""
    found = tokens.vocabulary.ids.items()
    return {own: output.ids[token] for token, own in found if token in output.ids}


def set_special_ids(
    config: dict[str, Any],
    ids: Mapping[str, int],
    own: Mapping[str, Any],
    moved: Mapping[int, int],
) -> tuple[dict[str, Any], list[Change]]:
    """A config.json or generation_config.json with the ids of another model's tokenizer, and what changed.

    A list, such as the ids that end a text, is taken from the file of the tokenizer's model, so that none is lost.
    Other tokens, such as the place of an image, stay the tokens that they are.

    Args:
      config: of the output's donor.
      ids: what `special_ids` gives for the tokenizer.
      own: the file of the same name of the tokenizer's model; empty when it has none.
      moved: what `moved_ids` gives for the donor's own tokenizer.
    """
    edited = copy.deepcopy(config)
    changes = []

    def set_id(path: KeyPath, part: Any, key: str, new: Any) -> None:
        if new != (old := part.get(key)):
            part[key] = new
            changes.append(Change(".".join((*path, key)), old, new, REASON))

    for path, part in config_dicts(edited):
        if VISION.search(".".join(path)):
            continue
        theirs: Any = own
        for key in path:
            theirs = theirs.get(key) if isinstance(theirs, dict) else None
        theirs = theirs if isinstance(theirs, dict) else {}
        for name in NAMED:
            key = f"{name}_id"
            if key not in part and (path or key not in theirs):
                continue
            set_id(path, part, key, _value(ids.get(key), theirs.get(key)))
        for key, value in list(part.items()):
            if TOKEN_ID.fullmatch(key) and key.removesuffix("_id") not in NAMED:
                several = isinstance(value, list)
                old = value if several else [value]
                new = [moved.get(each, each) if type(each) is int else each for each in old]
                set_id(path, part, key, new if several else new[0])
    return edited, changes


def _value(named: int | None, theirs: Any) -> Any:
    """The ids of a special token: the list its model has, else the one its tokenizer names, else its model's."""
    if isinstance(theirs, list):
        return theirs if named is None or named in theirs else [named, *theirs]
    return theirs if named is None else named
