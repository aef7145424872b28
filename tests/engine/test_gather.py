"""Gathered rows: those of the plain meaning of a map, in any pieces, of any dtype."""

from __future__ import annotations

import threading
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from permute import permuted

from jmerge.dtypes import NUMPY, SAFETENSORS, TensorSpec
from jmerge.engine import gather
from jmerge.engine.gather import Gatherer
from jmerge.engine.threads import StoppedError
from jmerge.plan.inputs import Gathered, Read
from jmerge.tokens.rows import ABSENT, Filler, TableRows, TokenRows

BF16 = np.dtype(ml_dtypes.bfloat16)


class Case:
    """Tables of models and a map of them."""

    def __init__(
        self, rows: TableRows, tables: dict[int, np.ndarray], stop: threading.Event | None = None
    ) -> None:
        self.rows, self.tables, self.reads = rows, tables, 0
        self.gatherer = Gatherer([rows], self.read, stop or threading.Event())

    def read(self, table: Read, first: int, buffer: np.ndarray) -> None:
        """Bytes of a table, as if from a file."""
        self.reads += 1
        raw = np.ascontiguousarray(self.tables[table.model]).reshape(-1).view(np.uint8)
        assert 0 <= first and first + buffer.size <= raw.size
        buffer[:] = raw[first : first + buffer.size]

    def item(self, holder: int, dtype: Any) -> Gathered:
        """What the planner makes of a holder, in a dtype."""
        reads = {}
        for model, table in self.tables.items():
            spec = TensorSpec(SAFETENSORS[table.dtype], table.shape)
            reads[model] = Read(model=model, name="t", file="f", start=0, spec=spec)
        own = self.rows.holders[holder]
        others = [reads[model] for model in self.rows.fills_of(holder)[0] if model != own]
        shape = (self.rows.rows, *self.tables[own].shape[1:])
        spec = TensorSpec(SAFETENSORS[np.dtype(dtype)], shape)
        return Gathered(rows=0, own=reads[own], others=tuple(others), spec=spec)

    def gathered(self, item: Gathered, cuts: list[int]) -> np.ndarray:
        """The whole of an input, read in pieces that end at these bytes."""
        raw = np.full(item.spec.nbytes, 0xAB, np.uint8)
        bounds = [0, *sorted(cuts), raw.size]
        order = list(zip(bounds, bounds[1:], strict=False))
        for start, stop in order[::-1]:  # from any place, in any order
            self.gatherer.read(item, start, raw[start:stop])
        return raw.view(NUMPY[item.spec.dtype]).reshape(item.spec.shape)


def random_rows(rng: np.random.Generator, sizes: list[int]) -> TokenRows:
    """Some tokens of some models, a few of none, forced ones, named fillers and padding."""
    tokens = int(rng.integers(1, 40))
    own = np.full((len(sizes), tokens), ABSENT, np.int32)
    for part, size in zip(own, sizes, strict=True):
        if rng.random() < 0.5:  # most tokenizers are mostly alike
            part[: min(size, tokens)] = np.arange(min(size, tokens))
        else:
            part[:] = rng.integers(0, size, tokens)
        part[rng.random(tokens) < 0.3] = ABSENT
    fillers = {}
    for i in np.flatnonzero(rng.random(tokens) < 0.1).tolist():
        model = int(rng.integers(-1, len(sizes)))
        fillers[i] = Filler(model, 0 if model < 0 else int(rng.integers(0, sizes[model])))
    named = rng.random(tokens) < 0.9
    named[0] = True
    more = int(rng.integers(0, 5))
    forced = rng.random(tokens) < 0.1
    return TokenRows(own=own, named=named, forced=forced, fillers=fillers, rows=tokens + more)


@pytest.mark.parametrize("seed", range(60))
def test_rows_are_those_of_the_map(seed: int) -> None:
    rng = np.random.default_rng(seed)
    sizes = rng.integers(1, 30, 3).tolist()
    shape = [(), (1,), (3,), (2, 5)][seed % 4]
    kinds = [[np.float32] * 3, [BF16] * 3, [BF16, np.float16, np.float32], [np.float64, BF16, BF16]]
    tables = {
        model: rng.standard_normal((size, *shape)).astype(dtype)
        for model, (size, dtype) in enumerate(zip(sizes, kinds[seed // 4 % 4], strict=True))
    }
    holders = [0, 1, 2] if seed % 3 else [1, 2]
    rows = random_rows(rng, sizes).of(holders)
    case = Case(rows, tables)
    wanted = permuted(tables, rows)
    for holder, expected in enumerate(wanted):
        item = case.item(holder, expected.dtype)
        width = item.spec.nbytes // item.spec.shape[0]
        unit = expected.dtype.itemsize
        cuts = (rng.integers(0, item.spec.nbytes // unit, 6) * unit).tolist()
        cuts += [width * int(rng.integers(0, item.spec.shape[0]))]
        np.testing.assert_array_equal(case.gathered(item, cuts), expected)


def test_dtypes_stay_where_no_row_is_made() -> None:
    """Rows that are only moved are the very bytes, NaN with its payload too."""
    table = np.arange(12, dtype=np.uint16).reshape(4, 3)
    table[2] = [0x7FC1, 0xFF81, 0x0001]
    table = table.view(BF16)
    own = np.array([[2, 0, 1]], np.int32)
    named, forced = np.ones(3, bool), np.zeros(3, bool)
    rows = TokenRows(own=own, named=named, forced=forced, fillers={}, rows=3).of([0])
    case = Case(rows, {0: table})
    assert rows.fills_of(0) == ((), False)
    found = case.gathered(case.item(0, BF16), [])
    assert found.tobytes() == table[[2, 0, 1]].tobytes()


def long_map(tokens: int, padding: int) -> TableRows:
    """A model whose rows are all where they were, and a few that belong to no token."""
    own = np.arange(tokens, dtype=np.int32)[None]
    named, forced = np.ones(tokens, bool), np.zeros(tokens, bool)
    made = TokenRows(own=own, named=named, forced=forced, fillers={}, rows=tokens + padding)
    return made.of([0])


def test_runs_are_read_at_once() -> None:
    """Rows that lie together are one read, whatever their number."""
    table = np.random.default_rng(0).standard_normal((5000, 4)).astype(np.float32)
    case = Case(long_map(4000, 0), {0: table})
    found = case.gathered(case.item(0, np.float32), [])
    np.testing.assert_array_equal(found, table[:4000])
    assert case.reads == 1


@pytest.mark.parametrize("width", [1, 7])
def test_padding_is_added_up_once_and_in_chunks(
    width: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However many rows: in float64, and the same from whatever piece asks first."""
    monkeypatch.setattr(gather, "CHUNK", 1000)
    table = np.random.default_rng(0).standard_normal((3000, width)).astype(BF16) + BF16.type(1e3)
    case = Case(long_map(3000, 2), {0: table})
    item = case.item(0, np.float32)
    last = case.gathered(item, [3001 * width * 4])
    reads = case.reads
    wanted = table.astype(np.float64).mean(axis=0).astype(np.float32)
    np.testing.assert_array_equal(last[3000:], [wanted, wanted])
    case.gatherer.read(item, 3000 * width * 4, np.empty(8 * width, np.uint8))
    assert case.reads == reads


def test_a_long_sum_ends_with_the_run() -> None:
    stop = threading.Event()
    stop.set()
    case = Case(long_map(3000, 1), {0: np.ones((3000, 2), np.float32)}, stop)
    with pytest.raises(StoppedError):
        case.gathered(case.item(0, np.float32), [])


def test_maps_compare_and_print_in_runs() -> None:
    """A vocabulary that one model has as it is takes a few numbers in a plan."""
    one, two = long_map(100_000, 8), long_map(100_000, 8)
    assert one == two and one != long_map(100_000, 7)
    assert one.plain()["own"] == [[[0, 0, 100_000]]]
    own = np.array([[3, 4, ABSENT, 5, 5, 6]], np.int32)
    named, forced = np.ones(6, bool), np.zeros(6, bool)
    rows = TokenRows(own=own, named=named, forced=forced, fillers={}, rows=6).of([0])
    assert rows.plain()["own"] == [[[0, 3, 2], [3, 5, 1], [4, 5, 2]]]
