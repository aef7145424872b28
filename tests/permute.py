"""The plain meaning of `TableRows` for whole matrices, which streaming gathers are tested against."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from jmerge.tokens.rows import ABSENT, TableRows


def permuted(tables: Mapping[int, np.ndarray], rows: TableRows) -> list[np.ndarray]:
    """What the merge method sees of each holder.

    Args:
      tables: model -> float [its rows, ...], with the same axes after the first; of all holders and guests.
      rows: what goes where.

    Returns:
      for each holder float32 [rows.rows, ...], float64 where any table is. Means are sums in the order of `rows.models`
      divided by their number; the mean of padding rows is taken in float64 and rounded.
    """
    double = any(table.dtype == np.float64 for table in tables.values())
    dtype = np.dtype(np.float64 if double else np.float32)
    shape = tables[rows.holders[0]].shape[1:]
    fills = _fills(tables, rows, shape, dtype)
    results = []
    for holder, own in zip(rows.holders, rows.own, strict=True):
        made = np.zeros((rows.rows, *shape), dtype)
        mine = np.flatnonzero(rows.named & (own != ABSENT))
        made[mine] = tables[holder][own[mine]]
        others = np.flatnonzero(rows.named & (own == ABSENT))
        made[others] = fills[rows.fill[others]]
        if rows.padding:
            named = np.flatnonzero(rows.named)
            mean = made[named].mean(axis=0, dtype=np.float64).astype(dtype)
            blank = np.ones(rows.rows, bool)
            blank[named] = False
            made[blank] = mean
        results.append(made)
    return results


def _fills(
    tables: Mapping[int, np.ndarray], rows: TableRows, shape: tuple[int, ...], dtype: np.dtype
) -> np.ndarray:
    """[fills, *shape]: the rows that models lack."""
    counts = np.diff(rows.starts)
    total = np.zeros((counts.size, *shape), dtype)
    for turn in range(
        int(counts.max(initial=0))
    ):  # the turn-th term of every fill that has as many
        fills = np.flatnonzero(counts > turn)
        terms = rows.starts[fills] + turn
        for model in np.unique(rows.models[terms]):
            mine = rows.models[terms] == model
            total[fills[mine]] += tables[int(model)][rows.sources[terms[mine]]].astype(dtype)
    several = counts > 1
    total[several] /= counts[several].astype(dtype).reshape(-1, *[1] * len(shape))
    return total
