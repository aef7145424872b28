"""What alignment has to know of an opened model."""

from __future__ import annotations

from jmerge.arch.config import vocabulary_size
from jmerge.arch.infer import Layout, config_dicts
from jmerge.ckpt.open import Checkpoint
from jmerge.errors import CheckpointError, Problem
from jmerge.tokens.align import Input
from jmerge.tokens.model import read_tokens


def token_tables(checkpoint: Checkpoint, layout: Layout) -> tuple[str, ...]:
    """The embeddings, heads and biases that have a row for each token, in this order.

    A model may have tables of another vocabulary too, such as codes of sounds: those have as many rows as another part
    of config.json counts.
    """
    names = (*layout.embeddings, *layout.heads, *layout.vocab_biases)
    rows = {name: checkpoint.index[name].spec.shape[0] for name in names}
    counts = [part.get("vocab_size") for _, part in config_dicts(checkpoint.config)]
    others = [count for count in counts if not names or count != rows[names[0]]]
    return tuple(name for name in names if rows[name] not in others)


def table_rows(checkpoint: Checkpoint, layout: Layout) -> int:
    """The rows that each of a model's embeddings and heads has; CheckpointError when it has no input embedding."""
    if not layout.embeddings:
        message = "has no tensor that looks like a token embedding, so its tokens have no rows"
        raise CheckpointError(Problem(message, file=str(checkpoint.path), code="JM303"))
    tables = [n for n in token_tables(checkpoint, layout) if n not in layout.vocab_biases]
    return min(checkpoint.index[name].spec.shape[0] for name in tables)


def read_input(checkpoint: Checkpoint, layout: Layout) -> Input:
    """The tokenizer of a model with the rows of its tables: those that each of its embeddings and heads has.

    Raises:
      CheckpointError: it has no input embedding, or a file of its tokenizer is not what its name says.
      RunError: its files cannot be reached.
    """
    rows = table_rows(checkpoint, layout)
    first = checkpoint.index[layout.embeddings[0]].spec.shape[0]
    return Input(
        read_tokens(checkpoint.main_source), rows, vocabulary_size(checkpoint.config, first)
    )
