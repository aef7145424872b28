"""The union of vocabularies: ids of the base never change, what it lacks follows in recipe order."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from jmerge.tokens.vocabulary import PLAIN, Added, Vocabulary


class Union(NamedTuple):
    """The tokens of several models."""

    vocabulary: Vocabulary
    ordinary: tuple[str, ...]  # what the base lacks and no model has as an added token, by id
    added: tuple[str, ...]  # the other new tokens, by id
    differing: tuple[
        tuple[int, str], ...
    ]  # (model, token): its flags are others than the ones taken


def unite(vocabularies: Sequence[Vocabulary], ordinary_as: Added | None = PLAIN) -> Union:
    """The union of the usable tokens of models, the base first.

    A token that any model has as an added token becomes one, with the flags of the first that has; a token of the base
    keeps its id. New ids go first to ordinary tokens, then to added ones, each in the order of models and of their ids.

    Args:
      ordinary_as: the flags with which new ordinary tokens become added tokens; None: they stay ordinary.
    """
    base = vocabularies[0]
    flags: dict[str, Added] = {}
    differing = []
    for number, each in enumerate(vocabularies):
        for token, own in each.added.items():
            if flags.setdefault(token, own) != own:
                differing.append((number, token))
    ordinary: dict[str, None] = {}
    for each in vocabularies[1:]:
        # "" is a token that no text has and that the library drops
        ordinary |= dict.fromkeys(t for t in each.ids if t not in base.ids and t not in flags and t)
    added = [token for token in flags if token not in base.ids]
    ids = dict(base.ids)
    ids |= {token: base.size + i for i, token in enumerate([*ordinary, *added])}
    every = dict(flags)
    if ordinary_as is not None:
        every |= dict.fromkeys(ordinary, ordinary_as)
    united = Vocabulary(ids, {token: every[token] for token in ids if token in every})
    return Union(united, tuple(ordinary), tuple(added), tuple(differing))
