"""Whether two models mean the same tokens by the rows of their tables, where a recipe does not align them."""

from __future__ import annotations

from jmerge.ckpt.source import Source
from jmerge.errors import CheckpointError
from jmerge.tokens.model import TOKENIZER, read_tokens


def disagreement(source: Source, donor: Source, rows: int) -> str | None:
    """What to say of two models whose tables, of so many rows, have rows that are different tokens; None when they
    agree, or one has no tokenizer that can be read, which nothing else needs here.

    Ids that only one of them uses agree: a fine-tune may give spare rows a meaning. Files of equal bytes are not parsed.

    Raises:
      RunError: the files cannot be reached.
    """
    both = [TOKENIZER in each.names() for each in (source, donor)]
    if all(both) and source.read(TOKENIZER) == donor.read(TOKENIZER):
        return None
    try:
        own, other = read_tokens(source), read_tokens(donor)
    except CheckpointError:
        return None
    if own is None or other is None:
        return None
    pairs = zip(own.vocabulary.by_id()[:rows], other.vocabulary.by_id(), strict=False)
    differing = [(i, one, two) for i, (one, two) in enumerate(pairs) if one and two and one != two]
    if not differing:
        return None
    i, one, two = differing[0]
    return f"{len(differing)} ids are other tokens than in {donor.label}, such as {i}: {one!r} and {two!r}"
