"""The tokens of a tokenizer: text, id, and what sets added ones apart."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple


class Added(NamedTuple):
    """How a token that the tokenizer finds before its model runs is looked for in a text."""

    single_word: bool = False
    lstrip: bool = False
    rstrip: bool = False
    normalized: bool = True
    special: bool = False

    def entry(self, token: str) -> dict[str, Any]:
        """The token as `added_tokens_decoder` of tokenizer_config.json has it."""
        flags = {name: getattr(self, name) for name in sorted(self._fields)}
        return {"content": token, **flags}


PLAIN = Added()  # what a token becomes that a recipe or another model's vocabulary adds
SPECIAL = Added(normalized=False, special=True)


@dataclass(frozen=True)
class Vocabulary:
    """Every token of a tokenizer.

    Attributes:
      ids: token -> id, of ordinary and added tokens alike; in order of ids.
      added: the added tokens, in order of ids; some may be in the model's own vocabulary too.
    """

    ids: Mapping[str, int]
    added: Mapping[str, Added]

    @cached_property
    def size(self) -> int:
        """1 + the largest id: rows that a table needs."""
        return max(self.ids.values(), default=-1) + 1

    def below(self, limit: int) -> Vocabulary:
        """The tokens with an id less than `limit`; itself when that is all of them."""
        if self.size <= limit:
            return self
        ids = {token: i for token, i in self.ids.items() if i < limit}
        return Vocabulary(ids, {t: flags for t, flags in self.added.items() if t in ids})

    def with_added(self, tokens: Mapping[str, Added]) -> Vocabulary:
        """These tokens too: those it has become added tokens, the others follow with the next ids in their order."""
        ids, size = dict(self.ids), self.size
        for token in tokens:
            if token not in ids:
                ids[token] = size
                size += 1
        return vocabulary(ids, {**self.added, **tokens})

    def by_id(self) -> list[str | None]:
        """The token of each id in [0, size); None where there is none, an added one where there are two."""
        found: list[str | None] = [None] * self.size
        for token, i in self.ids.items():
            found[i] = token
        for token in self.added:
            found[self.ids[token]] = token
        return found


def vocabulary(ids: Mapping[str, int], added: Mapping[str, Added]) -> Vocabulary:
    """The vocabulary of these tokens, sorted; `added` may only hold tokens that have an id."""
    order = sorted(ids, key=ids.__getitem__)
    if len(set(ids.values())) < len(
        ids
    ):  # rare, and then the order must not be that of a hash table
        order = sorted(ids, key=lambda token: (ids[token], token))
    return Vocabulary(
        {token: ids[token] for token in order}, {t: added[t] for t in order if t in added}
    )
