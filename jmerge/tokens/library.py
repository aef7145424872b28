"""The `tokenizers` library as judge: what a tokenizer.json says, with the ids that inference will use."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import groupby
from typing import TYPE_CHECKING

from jmerge.tokens.vocabulary import Added, Vocabulary, vocabulary

if TYPE_CHECKING:
    from tokenizers import Tokenizer


def load(text: str) -> Tokenizer:
    """The tokenizer that the text of a tokenizer.json describes; ValueError with one line when it is none."""
    from tokenizers import Tokenizer

    try:
        return Tokenizer.from_str(text)
    except Exception as error:
        raise ValueError(" ".join(str(error).split())) from error
    except BaseException as error:  # a panic of the library is no Exception
        if type(error).__name__ != "PanicException":
            raise
        raise ValueError(f"the tokenizers library failed: {error}") from error


def kind_of(tokenizer: Tokenizer) -> str:
    """`BPE`, `Unigram`, `WordPiece` or `WordLevel`."""
    return type(tokenizer.model).__name__


def add(tokenizer: Tokenizer, tokens: Mapping[str, Added]) -> None:
    """Give a tokenizer these added tokens too, with the next ids in their order."""
    from tokenizers import AddedToken

    # in runs of a kind: every call builds the search for all of them anew
    for special, run in groupby(tokens.items(), lambda item: item[1].special):
        each = [
            AddedToken(token, **{**flags._asdict(), "special": special}) for token, flags in run
        ]
        (tokenizer.add_special_tokens if special else tokenizer.add_tokens)(each)


def read_vocabulary(tokenizer: Tokenizer) -> Vocabulary:
    """All tokens of a tokenizer with the ids it gives them."""
    ids = tokenizer.get_vocab(with_added_tokens=True)
    added = {
        each.content: Added(*(bool(getattr(each, flag)) for flag in Added._fields))
        for each in tokenizer.get_added_tokens_decoder().values()
    }
    return vocabulary(ids, added)
