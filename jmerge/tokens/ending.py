"""Does a model that answers know where its turn ends? The token that a chat template puts there has to end a text."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from jmerge.tokens.chat import MARK
from jmerge.tokens.model import ModelTokens
from jmerge.tokens.vocabulary import Vocabulary

ID = "eos_token_id"


def ending_token(after: str, known: Vocabulary) -> str | None:
    """The token that ends a turn, by what the template writes after it; None when that is text, or eos_token."""
    after = after.lstrip()
    found = [token for token in known.added if after.startswith(token)]
    if (mark := MARK.match(after)) and mark[0] in known.ids:
        found.append(mark[0])
    return max(found, key=len, default=None)


def ending_ids(
    tokens: ModelTokens, known: Vocabulary, generation: Mapping[str, Any], config: Mapping[str, Any]
) -> list[int]:
    """The ids that end a text.

    Args:
      tokens: the tokenizer, which names one.
      known: the output's tokens.
      generation, config: the output's generation_config.json and config.json, of which the first counts.
    """
    said = generation.get(ID, config.get(ID))
    found = [each for each in (said if isinstance(said, list) else [said]) if type(each) is int]
    named = known.ids.get(tokens.specials.get("eos_token", ""))
    return list(dict.fromkeys([*found, *([] if named is None else [named])]))


def never_ends(token: str, known: Vocabulary, ids: list[int]) -> str:
    """What to say of a template that ends turns with a token that ends no text."""
    texts = known.by_id()
    ends = ", ".join(
        f"{texts[i]} ({i})" if 0 <= i < len(texts) and texts[i] else str(i) for i in ids
    )
    number = known.ids[token]
    return (
        f"ends a turn with {token}, but generation ends at {ends or 'no token'}, so answers would not stop: "
        f"add {number} to {ID} in the output's generation_config.json ({ID}: {[*ids, number]})"
    )
