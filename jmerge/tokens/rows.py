"""Which rows of which models make the rows of an output table: maps, and what fills what a model lacks."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np

from jmerge.tokens.vocabulary import Vocabulary

ABSENT = -1
ZEROS, MEAN, BLANK = -1, -2, -3  # instead of models, in `TableRows.origins`


class Filler(NamedTuple):
    """What a recipe fills a token with."""

    model: int  # number of a model; ABSENT: zeros
    row: int  # of that model's table


@dataclass(frozen=True, eq=False)
class TokenRows:
    """Rows of every model for every token of the output, before it is known which models have a tensor.

    Attributes:
      own: int32 [models, tokens]: the row of a token in a model's table; ABSENT where the model lacks it. The first
        model is the base. Models whose rows are only named in the recipe lack every token.
      named: bool [tokens]: whether the id is that of a token; ids between others may be of none.
      forced: bool [tokens]: models that have the token get what fills it too.
      fillers: id -> what the recipe fills it with.
      rows: of the output's table: tokens rounded up to what the recipe asks for.
    """

    own: np.ndarray
    named: np.ndarray
    forced: np.ndarray
    fillers: Mapping[int, Filler]
    rows: int

    def of(self, holders: Sequence[int]) -> TableRows:
        """The rows of one table, such as the input embedding.

        Args:
          holders: numbers of the models that have this table and are merged, in recipe order without repeats; the base
            too when it has the table, merged or not, since it is asked first for what fills a row.
        """
        chosen = np.asarray(holders, np.intp)
        before = self.own[chosen]  # [holders, tokens]
        own = np.where(self.forced, np.int32(ABSENT), before)
        ids = np.flatnonzero(self.named & (own == ABSENT).any(axis=0))
        fill = np.full(self.named.size, ABSENT, np.int32)
        fill[ids] = np.arange(ids.size, dtype=np.int32)

        has = before[:, ids] != ABSENT  # [holders, fills]
        if 0 in holders:
            base = list(holders).index(0)
            others = np.arange(chosen.size) != base
            has &= ~(has[base] & others[:, None])
        given = {int(fill[i]): filler for i, filler in self.fillers.items() if fill[i] != ABSENT}
        has[:, list(given)] = False
        holder, number = np.nonzero(has)
        terms = [(n, f.model, f.row) for n, f in given.items() if f.model != ABSENT]
        more = np.asarray(terms, np.intp).reshape(-1, 3)
        numbers = np.concatenate([number, more[:, 0]])
        models = np.concatenate([chosen[holder], more[:, 1]])
        sources = np.concatenate([before[holder, ids[number]], more[:, 2]])
        order = np.argsort(numbers, kind="stable")
        return TableRows(
            holders=tuple(holders),
            own=own,
            named=self.named,
            fill=fill,
            starts=np.searchsorted(numbers[order], np.arange(ids.size + 1)).astype(np.int64),
            models=models[order].astype(np.int32),
            sources=sources[order].astype(np.int32),
            rows=self.rows,
        )


@dataclass(frozen=True, eq=False)
class TableRows:
    """How the rows of one output table are made, as each of the models merged is to see it.

    Row i of holder h is, where i < tokens and `named[i]`: row `own[h, i]` of its own table; where that is ABSENT, fill
    number f = `fill[i]`: the mean of the rows `sources[k]` of the models `models[k]`, `starts[f] <= k < starts[f + 1]`,
    zeros when there are none. Every other row is padding: the mean of the holder's rows made so.

    Attributes:
      holders: numbers of the models, in recipe order.
      own: int32 [holders, tokens].
      named: bool [tokens].
      fill: int32 [tokens]; ABSENT where every holder has a row of its own.
      starts: int64 [fills + 1].
      models: int32 [terms]: numbers of models, which may be none of the holders where a recipe names their rows.
      sources: int32 [terms].
      rows: at least as many as tokens.
    """

    holders: tuple[int, ...]
    own: np.ndarray
    named: np.ndarray
    fill: np.ndarray
    starts: np.ndarray
    models: np.ndarray
    sources: np.ndarray
    rows: int

    @cached_property
    def guests(self) -> tuple[int, ...]:
        """Models that are none of the holders, but whose rows fill tokens: they need a table of this kind."""
        return tuple(int(m) for m in np.unique(self.models) if m not in self.holders)

    @cached_property
    def empty(self) -> np.ndarray:
        """int [n]: the tokens filled with zeros because nothing has a row for them or the recipe says so."""
        zero = np.flatnonzero(np.diff(self.starts) == 0)
        ids = np.flatnonzero(self.fill != ABSENT)
        return ids[zero]

    def copies(self, holder: int, table_rows: int) -> bool:
        """Whether the holder at this position, whose table has so many rows, is seen just as it is."""
        tokens = np.arange(self.named.size)
        return self.rows == table_rows == tokens.size and np.array_equal(self.own[holder], tokens)

    @property
    def padding(self) -> int:
        """How many rows belong to no token."""
        return self.rows - int(self.named.sum())

    def fills_of(self, holder: int) -> tuple[tuple[int, ...], bool]:
        """The models whose rows the holder at this position gets, and whether means of several are among them."""
        lacks = np.zeros(self.starts.size - 1, bool)
        lacks[self.fill[self.named & (self.own[holder] == ABSENT)]] = True
        counts = np.diff(self.starts)
        models = np.unique(self.models[np.repeat(lacks, counts)])
        return tuple(models.tolist()), bool(self.padding or (counts[lacks] > 1).any())

    def origins(self, holder: int, start: int, stop: int) -> tuple[np.ndarray, np.ndarray]:
        """Where rows [start, stop) of the holder at this position come from.

        Returns:
          int32 [stop - start]: the number of a model, ZEROS, MEAN of several rows, or BLANK for padding; int32 of the
          same shape: the row of that model's table, or the number of the mean's fill.
        """
        models = np.full(stop - start, BLANK, np.int32)
        sources = np.zeros(stop - start, np.int32)
        named, own, fill = (each[start:stop] for each in (self.named, self.own[holder], self.fill))
        mine = np.flatnonzero(named & (own != ABSENT))
        models[mine], sources[mine] = self.holders[holder], own[mine]
        others = np.flatnonzero(named & (own == ABSENT))
        fills = fill[others]
        first = self.starts[fills]
        counts = self.starts[fills + 1] - first
        several, one = counts > 1, counts == 1
        models[others[counts == 0]] = ZEROS
        models[others[several]], sources[others[several]] = MEAN, fills[several]
        models[others[one]] = self.models[first[one]]
        sources[others[one]] = self.sources[first[one]]
        return models, sources

    def plain(self) -> dict[str, object]:
        """The same as lists for JSON: rows in runs of [first row, row of the model, how many]."""
        own = [_runs(part) for part in self.own]
        return {
            "holders": list(self.holders),
            "own": own,
            "unnamed": np.flatnonzero(~self.named).tolist(),
            "fill": _runs(self.fill),
            "starts": self.starts.tolist(),
            "models": self.models.tolist(),
            "sources": self.sources.tolist(),
            "rows": self.rows,
        }

    def __eq__(self, other: object) -> bool:
        return isinstance(other, TableRows) and self.plain() == other.plain()

    def without(self, models: Collection[int]) -> TableRows:
        """The same where these models have no such table: what only they would fill is zeros."""
        keep = ~np.isin(self.models, list(models))
        counts = np.concatenate([[0], np.cumsum(keep)])
        return TableRows(
            holders=self.holders,
            own=self.own,
            named=self.named,
            fill=self.fill,
            starts=counts[self.starts].astype(np.int64),
            models=self.models[keep],
            sources=self.sources[keep],
            rows=self.rows,
        )


def own_rows(tokens: Sequence[str | None], vocabulary: Vocabulary, limit: int) -> np.ndarray:
    """int32 [tokens]: the id of each token in a model, below `limit`; ABSENT where it has none."""
    ids = vocabulary.ids
    found = [ABSENT if token is None else ids.get(token, ABSENT) for token in tokens]
    rows = np.asarray(found, np.int32)
    rows[rows >= limit] = ABSENT
    return rows


def _runs(rows: np.ndarray) -> list[list[int]]:
    """Numbers that are not ABSENT as runs of numbers that rise by one: [place of the first, the first, how many]."""
    known = rows != ABSENT
    begins = known.copy()
    begins[1:] &= ~known[:-1] | (np.diff(rows) != 1)
    ends = known.copy()
    ends[:-1] &= ~known[1:] | (np.diff(rows) != 1)
    first, last = np.flatnonzero(begins), np.flatnonzero(ends)
    runs: list[list[int]] = np.stack([first, rows[first], last - first + 1], axis=1).tolist()
    return runs
