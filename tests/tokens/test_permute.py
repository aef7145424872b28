"""What a merge method sees of tables: the rules of filling, one by one and against a loop that says them again."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from permute import permuted

from jmerge.tokens.rows import ABSENT, Filler, TokenRows, own_rows
from jmerge.tokens.vocabulary import vocabulary


def token_rows(
    own: object,
    *,
    forced: tuple[int, ...] = (),
    named: object = None,
    rows: int = 0,
    **fillers: Filler,
) -> TokenRows:
    """Rows of models over tokens; `t3=...` fills token 3."""
    table = np.asarray(own, np.int32)
    flags = np.zeros(table.shape[1], bool)
    flags[list(forced)] = True
    has = np.ones(table.shape[1], bool) if named is None else np.asarray(named, bool)
    given = {int(key[1:]): filler for key, filler in fillers.items()}
    return TokenRows(own=table, named=has, forced=flags, fillers=given, rows=rows or table.shape[1])


TABLES = {0: np.array([[1.0, 2.0], [3.0, 4.0]]), 1: np.array([[10.0, 20.0], [30.0, 40.0], [50.0, 60.0]]),
          2: np.array([[100.0, 200.0]])}  # fmt: skip
TABLES = {key: table.astype(np.float32) for key, table in TABLES.items()}


def seen(rows: TokenRows, *holders: int) -> list[list[float]]:
    """The first column of what each holder is seen as."""
    return [part[:, 0].tolist() for part in permuted(TABLES, rows.of(holders))]


def test_own_rows_move() -> None:
    """A token that a model has comes from the row it has there."""
    rows = token_rows([[0, 1, -1], [2, 0, 1], [-1, 0, -1]])
    assert seen(rows, 1) == [[50, 10, 30]]


def test_the_base_fills_first() -> None:
    """What a model lacks is the base's row, whoever else has one."""
    assert seen(token_rows([[1], [0], [-1]]), 0, 1, 2) == [[3], [10], [3]]


def test_one_model_fills_alone() -> None:
    """The only model that has a token gives its row to all."""
    assert seen(token_rows([[-1], [2], [-1]]), 0, 1, 2) == [[50], [50], [50]]


def test_several_models_fill_with_their_mean() -> None:
    """Of a token that the base lacks."""
    assert seen(token_rows([[-1], [2], [0]]), 0, 1, 2) == [[75], [50], [100]]


def test_nobody_has_it() -> None:
    """Then it is zeros, and is named as such."""
    rows = token_rows([[-1, 0], [-1, 0]])
    assert seen(rows, 0, 1) == [[0, 1], [0, 10]]
    assert rows.of([0, 1]).empty.tolist() == [0]


def test_only_holders_give_rows() -> None:
    """A model without the table gives none: neither the base nor others."""
    rows = token_rows([[0, -1], [-1, 1], [-1, 0]])
    assert seen(rows, 1, 2) == [[0, 30], [0, 100]]
    assert seen(rows, 0, 1) == [[1, 30], [1, 30]]


def test_zero_and_rows_that_the_recipe_names() -> None:
    """They fill what a model lacks; what it has it keeps, unless forced."""
    rows = token_rows(
        [[0, 1, -1], [-1, 1, 2]], t0=Filler(ABSENT, 0), t1=Filler(2, 0), t2=Filler(1, 0)
    )
    assert seen(rows, 0, 1) == [[1, 3, 10], [0, 30, 50]]
    assert rows.of([0, 1]).guests == ()
    forced = token_rows(
        rows.own, forced=(0, 1, 2), t0=Filler(ABSENT, 0), t1=Filler(2, 0), t2=Filler(1, 0)
    )
    assert seen(forced, 0, 1) == [[0, 100, 10], [0, 100, 10]]
    assert forced.of([0, 1]).guests == (2,)
    assert seen_without(forced, 2) == [[0, 0, 10], [0, 0, 10]]


def seen_without(rows: TokenRows, gone: int) -> list[list[float]]:
    """As `seen` by models 0 and 1, where a model has no such table."""
    left = {key: table for key, table in TABLES.items() if key != gone}
    return [part[:, 0].tolist() for part in permuted(left, rows.of([0, 1]).without({gone}))]


def test_force_without_a_source() -> None:
    """All get the row that would have filled it: here the base's, there the mean."""
    assert seen(token_rows([[0], [1]], forced=(0,)), 0, 1) == [[1], [1]]
    assert seen(token_rows([[-1], [1], [0]], forced=(0,)), 0, 1, 2) == [[65], [65], [65]]


def test_padding_is_the_mean_of_each() -> None:
    """Rows of no token, after the last and between, are each model's mean of the others."""
    rows = token_rows([[0, 1], [1, 2]], rows=4)
    assert seen(rows, 0, 1) == [[1, 3, 2, 2], [30, 50, 40, 40]]
    holes = token_rows([[0, -1, 1], [0, -1, 2]], named=[1, 0, 1], rows=3)
    assert seen(holes, 0, 1) == [[1, 2, 3], [10, 30, 50]]
    assert holes.of([0]).padding == 1


def test_vectors_are_tables_of_one_column() -> None:
    """Biases with an entry per token."""
    biases = {0: np.array([1.0, 2.0], np.float32), 1: np.array([3.0], np.float32)}
    rows = token_rows([[1, 0], [-1, 0]], rows=3)
    assert [part.tolist() for part in permuted(biases, rows.of([0, 1]))] == [
        [2, 1, 1.5],
        [2, 3, 2.5],
    ]


def test_spec_numbers() -> None:
    """Weights of models that lack a token count: (1 mean + 2 x1 + 3 x2) / 6; and changes are from the mean."""
    x1, x2 = np.float32(0.5), np.float32(2.0)
    tables = {0: np.zeros((1, 1), np.float32), 1: np.full((1, 1), x1), 2: np.full((1, 1), x2)}
    base, one, two = (
        part.item() for part in permuted(tables, token_rows([[-1], [0], [0]]).of([0, 1, 2]))
    )
    mean = (x1 + x2) / 2
    assert (base, one, two) == (mean, x1, x2)
    assert (1 * base + 2 * one + 3 * two) / 6 == (1 * mean + 2 * x1 + 3 * x2) / 6
    assert base + (one - base) + (two - base) == mean + (x1 - mean) + (x2 - mean)


def test_dtypes() -> None:
    """float32 of anything smaller, with means that are not rounded to it; float64 stays."""
    half: dict[int, np.ndarray] = {
        0: np.array([[1.0]], np.float16),
        1: np.array([[2049.0]], np.float32),
        2: np.array([[1.0]], np.float16),
    }
    found = permuted(half, token_rows([[-1], [0], [0]]).of([0, 1, 2]))
    assert found[0].dtype == np.float32 and found[0].item() == 1025
    double = {0: np.array([[1.0]]), 1: np.array([[1e-300]], np.float64)}
    assert permuted(double, token_rows([[0], [0]]).of([0, 1]))[1].item() == 1e-300


def test_copies() -> None:
    """A model is seen as it is when every row stays where it is and none comes or goes."""
    rows = token_rows([[0, 1], [1, 0], [0, -1]]).of([0, 1, 2])
    assert [rows.copies(h, 2) for h in range(3)] == [True, False, False]
    assert not rows.copies(0, 3)
    assert not token_rows([[0, 1]], rows=3).of([0]).copies(0, 3)


def test_own_rows_stop_at_the_limit() -> None:
    """A token with an id beyond is as absent as one that the model has not."""
    known = vocabulary({"a": 0, "b": 5, "c": 2}, {})
    found = own_rows(["c", None, "b", "x", "a"], known, 5)
    assert found.tolist() == [2, -1, -1, -1, 0] and found.dtype == np.int32
    assert own_rows([], known, 5).shape == (0,)


class World(NamedTuple):
    """Tables, rows and the models that have the tensor."""

    tables: dict[int, np.ndarray]
    rows: TokenRows
    holders: list[int]


@st.composite
def worlds(draw: st.DrawFn) -> World:
    """Anything that alignment can come to."""
    models, tokens = draw(st.integers(1, 4)), draw(st.integers(1, 6))
    sizes = draw(st.lists(st.integers(1, 5), min_size=models, max_size=models))
    numbers = hnp.from_dtype(np.dtype(np.float32), min_value=-8, max_value=8, allow_subnormal=False)
    tables = {
        m: draw(hnp.arrays(np.float32, (sizes[m], 2), elements=numbers)) for m in range(models)
    }
    named = np.asarray(draw(st.lists(st.booleans(), min_size=tokens, max_size=tokens)))
    named[draw(st.integers(0, tokens - 1))] = True
    drawn = [[draw(st.integers(-1, sizes[m] - 1)) for _ in range(tokens)] for m in range(models)]
    own = np.where(named, np.asarray(drawn, np.int32), -1).astype(np.int32)
    fillers = {}
    for i in np.flatnonzero(named):
        if draw(st.booleans()):
            model = draw(st.integers(-1, models - 1))
            fillers[int(i)] = Filler(
                model, 0 if model < 0 else draw(st.integers(0, sizes[model] - 1))
            )
    forced = np.asarray([draw(st.booleans()) for _ in range(tokens)]) & named
    rows = TokenRows(
        own=own, named=named, forced=forced, fillers=fillers, rows=tokens + draw(st.integers(0, 3))
    )
    holders = sorted(draw(st.sets(st.integers(0, models - 1), min_size=1)))
    return World(tables, rows, holders)


def said_again(world: World) -> list[np.ndarray]:
    """The rules, token by token, in float64."""
    tables, rows, holders = world
    made = []
    for m in holders:
        table = np.full((rows.rows, 2), np.nan)
        for i in np.flatnonzero(rows.named):
            has = [k for k in holders if rows.own[k, i] >= 0]
            if rows.own[m, i] >= 0 and not rows.forced[i]:
                row = tables[m][rows.own[m, i]]
            elif i in rows.fillers:
                model, number = rows.fillers[int(i)]
                row = np.zeros(2) if model < 0 else tables[model][number]
            elif 0 in has:
                row = tables[0][rows.own[0, i]]
            elif has:
                row = np.mean([tables[k][rows.own[k, i]].astype(np.float64) for k in has], axis=0)
            else:
                row = np.zeros(2)
            table[i] = row
        table[np.isnan(table[:, 0])] = np.nanmean(table, axis=0)
        made.append(table)
    return made


@settings(deadline=None)
@given(worlds())
def test_the_rules(world: World) -> None:
    """Every row is what the rules say, and every map leads into a table."""
    rows = world.rows.of(world.holders)
    for found, wanted in zip(permuted(world.tables, rows), said_again(world), strict=True):
        np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-5)
    sizes = {m: len(table) for m, table in world.tables.items()}
    for h, m in enumerate(rows.holders):
        assert ((rows.own[h] >= -1) & (rows.own[h] < sizes[m])).all()
        lacking = world.rows.named & (rows.own[h] == ABSENT)
        assert (rows.fill[lacking] >= 0).all() and (rows.fill < len(rows.starts) - 1).all()
    assert rows.starts[0] == 0 and rows.starts[-1] == rows.models.size == rows.sources.size
    assert all(
        0 <= s < sizes[m] for m, s in zip(rows.models.tolist(), rows.sources.tolist(), strict=True)
    )
    assert set(rows.guests).isdisjoint(rows.holders) and set(rows.models.tolist()) <= {
        *rows.guests,
        *rows.holders,
    }
    kinds = (rows.own, rows.fill, rows.models, rows.sources)
    assert {each.dtype for each in kinds} == {np.dtype(np.int32)} and rows.starts.dtype == np.int64


def test_a_quarter_of_a_million_tokens() -> None:
    """Nothing is quadratic: four models, a vocabulary as large as there are."""
    tokens, models = 262_144, 4
    generator = np.random.default_rng(0)
    own = generator.integers(-tokens, tokens, (models, tokens)).clip(-1).astype(np.int32)
    rows = token_rows(own, rows=tokens + 64).of(range(models))
    assert rows.fill.max() + 2 == rows.starts.size and rows.starts.size > tokens // 2
