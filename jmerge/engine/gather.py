"""Rows of token tables, put together as a map says while they are read: no permuted table is ever made.

Which rows a piece has follows from its place alone, and every row from the map alone, so it does not matter how a table
is cut into pieces. Runs of rows that lie together are read at once.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence

import numpy as np

from jmerge.dtypes import NUMPY
from jmerge.engine.threads import StoppedError
from jmerge.plan.inputs import Gathered, Read
from jmerge.tokens.rows import BLANK, MEAN, ZEROS, TableRows

CHUNK = 1 << 20  # bytes that are converted at a time
MOST_ROWS = 1 << 14  # whose origins are looked up at a time
# What all of this takes at most besides single rows, in the thread that reads ahead and the one that computes.
GATHER_BYTES = 2 * (4 * CHUNK + 64 * MOST_ROWS)


class Gatherer:
    """Gathered inputs, by byte ranges, for any thread."""

    def __init__(
        self,
        maps: Sequence[TableRows],
        read: Callable[[Read, int, np.ndarray], None],
        stop: threading.Event,
    ) -> None:
        """read: fills a buffer from a byte of a table; stop: ends what takes long."""
        self._maps = maps
        self._read = read
        self._stop = stop
        self._lock = threading.Lock()
        self._blanks: dict[Gathered, np.ndarray] = {}

    def read(self, item: Gathered, first: int, buffer: np.ndarray) -> None:
        """Fill the byte `buffer` from byte `first` of an input."""
        done, width = 0, item.spec.nbytes // max(item.spec.shape[0], 1)
        while done < buffer.size:
            row, inside = divmod(first + done, width)
            left = buffer.size - done
            if inside or left < width:  # a part of a row
                whole = np.empty(width, np.uint8)
                self._fill(item, row, whole)
                part = whole[inside : inside + left]
                buffer[done : done + part.size] = part
            else:
                part = buffer[done : done + min(left // width, MOST_ROWS) * width]
                self._fill(item, row, part)
            done += part.size

    def _fill(self, item: Gathered, start: int, raw: np.ndarray, *, padded: bool = True) -> None:
        """Fill bytes with whole rows from row `start` on; padding is left as it is where it is not `padded`."""
        made = raw.view(NUMPY[item.spec.dtype])
        width = item.spec.size // item.spec.shape[0]
        made = made.reshape(-1, width)
        rows = self._maps[item.rows]
        tables = {table.model: table for table in (*item.others, item.own)}
        models, sources = rows.origins(rows.holders.index(item.model), start, start + made.shape[0])
        together = (models[1:] == models[:-1]) & ((models[1:] < 0) | (np.diff(sources) == 1))
        bounds = [0, *(np.flatnonzero(~together) + 1).tolist(), made.shape[0]]
        for begin, end in zip(bounds, bounds[1:], strict=False):
            model = int(models[begin])
            if model >= 0:
                self._copy(tables[model], int(sources[begin]), made[begin:end])
            elif model == ZEROS:
                made[begin:end] = 0
            elif model == MEAN:
                for i in range(begin, end):
                    made[i] = self._mean(rows, tables, int(sources[i]), made[i])
            elif model == BLANK and padded:
                made[begin:end] = self._blank(item)

    def _copy(self, table: Read, row: int, made: np.ndarray) -> None:
        """Rows [rows, width] from row `row` of a table on, in the dtype of `made`."""
        dtype, width = NUMPY[table.spec.dtype], made.shape[1]
        if dtype == made.dtype:
            self._read(table, row * width * dtype.itemsize, made.reshape(-1).view(np.uint8))
            return
        step = max(CHUNK // (width * dtype.itemsize), 1)
        for begin in range(0, made.shape[0], step):
            part = made[begin : begin + step]
            found = np.empty(part.shape, dtype)
            raw = found.reshape(-1).view(np.uint8)
            self._read(table, (row + begin) * width * dtype.itemsize, raw)
            part[:] = found

    def _mean(
        self, rows: TableRows, tables: dict[int, Read], fill: int, like: np.ndarray
    ) -> np.ndarray:
        """The mean of the rows of a fill, added in order in the dtype of `like`."""
        terms = range(int(rows.starts[fill]), int(rows.starts[fill + 1]))
        total, row = np.zeros_like(like), np.empty((1, like.size), like.dtype)
        for term in terms:
            self._copy(tables[int(rows.models[term])], int(rows.sources[term]), row)
            total += row[0]
        total /= np.asarray(len(terms), like.dtype)
        return total

    def _blank(self, item: Gathered) -> np.ndarray:
        """What rows of no token are: the mean of all others, added up in float64 in an order of its own."""
        with self._lock:
            if item not in self._blanks:
                self._blanks[item] = self._mean_of_all(item)
            return self._blanks[item]

    def _mean_of_all(self, item: Gathered) -> np.ndarray:
        named, dtype = self._maps[item.rows].named, NUMPY[item.spec.dtype]
        width = item.spec.size // item.spec.shape[0]
        total = np.zeros(width, np.float64)
        step = min(max(CHUNK // (width * 8), 1), MOST_ROWS)
        for start in range(0, named.size, step):
            if self._stop.is_set():
                raise StoppedError
            which = named[start : start + step]
            made = np.zeros((which.size, width), dtype)
            self._fill(item, start, made.reshape(-1).view(np.uint8), padded=False)
            total += made[which].sum(axis=0, dtype=np.float64)
        return (total / max(int(named.sum()), 1)).astype(dtype)
