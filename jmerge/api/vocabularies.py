"""`align_vocabularies`: which row of each model's table is which token of a common vocabulary."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from jmerge.ckpt.open import Checkpoint, open_checkpoint
from jmerge.errors import CheckpointError, Problem, wrong_type
from jmerge.names import did_you_mean
from jmerge.tokens.library import read_vocabulary
from jmerge.tokens.model import read_tokens
from jmerge.tokens.rows import ABSENT, TokenRows, own_rows
from jmerge.tokens.union import unite
from jmerge.tokens.vocabulary import Vocabulary, vocabulary

Vocab = Literal["union", "first"]
VOCABS = ("union", "first")


@dataclass(frozen=True, eq=False)
class Vocabularies:
    """The rows of several models in a common vocabulary.

    Attributes:
      tokens: the common vocabulary by id; None for an id without a token.
      rows: int32 [models, tokens]: the row of each token in each model's table; -1 where the model does not have it.
    """

    tokens: tuple[str | None, ...] = field(repr=False)
    rows: np.ndarray = field(repr=False)

    def align(self, tables: Sequence[Any]) -> list[jax.Array]:
        """Rearrange the models' tables so that row i is token i of the common vocabulary, as a recipe with `tokenizer` does.

        A model without a token gets the first model's row for it, or else the mean of the rows of the models that have it.
        Ids without a token get the mean of all other rows. Works under `jit` and `grad`.

        Args:
          tables: arrays [rows of the model, width], one for each model in the order given; embeddings or heads.

        Returns:
          Arrays [len(tokens), width] in the dtypes of the tables.

        Raises:
          ValueError: the number of tables is not the number of models, or a table has too few rows.
        """
        if len(tables) != len(self.rows):
            raise ValueError(
                f"tables: expected {len(self.rows)}, one for each model, found {len(tables)}"
            )
        for i, (table, own) in enumerate(zip(tables, self.rows, strict=True)):
            needed = int(own.max(initial=ABSENT)) + 1
            if getattr(table, "ndim", 0) != 2 or table.shape[0] < needed:
                found = list(getattr(table, "shape", ()))
                raise ValueError(
                    f"tables[{i}]: expected an array [at least {needed} rows, width], found {found}"
                )
            width = tables[0].shape[1]
            if table.shape[1] != width:
                raise ValueError(
                    f"tables[{i}]: expected rows of {width} numbers, as those of tables[0], found "
                    f"{table.shape[1]}"
                )
        named = np.asarray([token is not None for token in self.tokens], bool)
        none = np.zeros(named.size, bool)
        every = TokenRows(own=self.rows, named=named, forced=none, fillers={}, rows=named.size)
        made = every.of(range(len(tables)))
        wide = [jnp.asarray(table).astype(jnp.float32) for table in tables]
        counts = np.diff(made.starts)
        filled = jnp.zeros((counts.size + 1, wide[0].shape[1]), jnp.float32)
        for number, table in enumerate(wide):
            mine = np.flatnonzero(made.models == number)
            fills = np.searchsorted(made.starts, mine, side="right") - 1
            filled = filled.at[fills].add(table[made.sources[mine]])
        filled = filled[:-1] / np.maximum(counts, 1)[:, None].astype(np.float32)
        aligned = []
        for table, own in zip(wide, self.rows, strict=True):
            rows = jnp.where((own != ABSENT)[:, None], table[np.maximum(own, 0)], 0)
            if counts.size:
                lacks = named & (own == ABSENT)
                rows = jnp.where(lacks[:, None], filled[np.maximum(made.fill, 0)], rows)
            if not named.all():
                rows = jnp.where(named[:, None], rows, rows[named].mean(axis=0))
            aligned.append(rows)
        return [rows.astype(t.dtype) for rows, t in zip(aligned, tables, strict=True)]


def align_vocabularies(models: Sequence[Any], *, vocabulary: Vocab = "union") -> Vocabularies:
    """Find the rows of the same tokens in several models.

    Args:
      models: at least one; each a checkpoint or its place, a tokenizer of `tokenizers` or `transformers`, or a mapping
        from token to id.
      vocabulary: `first` for the tokens of the first model, with its ids; `union` to append the tokens that only other
        models have, in the order of a recipe's `tokenizer: {source: union}`.

    Returns:
      The common vocabulary and the rows in each model.

    Raises:
      CheckpointError: a model has no tokenizer, or its tokenizer cannot be read.
      TypeError, ValueError: an argument has another type or value.
    """
    if isinstance(models, str | Mapping) or not isinstance(models, Sequence) or not models:
        raise wrong_type("models", "a list of at least one model or tokenizer", models)
    if vocabulary not in VOCABS:
        hint = did_you_mean(str(vocabulary), VOCABS)
        raise ValueError(f"vocabulary: expected 'union' or 'first', found {vocabulary!r}{hint}")
    found = [_vocabulary(f"models[{i}]", model) for i, model in enumerate(models)]
    common = unite(found).vocabulary if vocabulary == "union" else found[0]
    tokens = common.by_id()
    rows = np.stack([own_rows(tokens, each, max(each.size, 1)) for each in found])
    return Vocabularies(tuple(tokens), rows)


def _vocabulary(name: str, model: Any) -> Vocabulary:
    """The tokens of one model."""
    if isinstance(model, str | os.PathLike | Checkpoint):
        checkpoint = open_checkpoint(model)
        tokens = read_tokens(checkpoint.main_source)
        if tokens is None:
            message = "has no tokenizer; add its tokenizer.json to the folder"
            raise CheckpointError(Problem(message, name, str(checkpoint.path), code="JM301"))
        return tokens.vocabulary
    if isinstance(model, Mapping):
        for token, i in model.items():
            if not isinstance(token, str) or isinstance(i, bool) or not isinstance(i, int) or i < 0:
                message = f"expected tokens with ids from 0 on, found {token!r}: {i!r}"
                raise ValueError(f"{name}: {message}")
        return vocabulary(model, {})
    inner = getattr(model, "backend_tokenizer", model)  # of transformers, around one of tokenizers
    if hasattr(inner, "get_added_tokens_decoder"):
        return read_vocabulary(inner)
    if callable(getattr(model, "get_vocab", None)):
        return vocabulary(model.get_vocab(), {})
    raise wrong_type(
        name, "a checkpoint or its place, a tokenizer, or a dict from token to id", model
    )
