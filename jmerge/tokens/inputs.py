"""What alignment has to know of an opened model."""

from __future__ import annotations

from jmerge.arch.config import vocabulary_size
from jmerge.arch.infer import Layout
from jmerge.ckpt.open import Checkpoint
from jmerge.errors import CheckpointError, Fault
from jmerge.tokens.align import Input
from jmerge.tokens.model import read_tokens


def read_input(checkpoint: Checkpoint, layout: Layout) -> Input:
    """The tokenizer of a model with the rows of its tables: those that each of its embeddings and heads has.

    Raises:
      CheckpointError: it has no input embedding, or a file of its tokenizer is not what its name says.
      RunError: its files cannot be reached.
    """
    if not layout.embeddings:
        message = "has no tensor that looks like a token embedding, so its tokens have no rows"
        raise CheckpointError(Fault(message, file=str(checkpoint.path)))
    tables = (*layout.embeddings, *layout.heads)
    rows = min(checkpoint.index[name].spec.shape[0] for name in tables)
    return Input(read_tokens(checkpoint.source), rows, vocabulary_size(checkpoint.config))
