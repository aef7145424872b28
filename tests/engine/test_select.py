"""The search for cuts: what a full sort would keep, whatever the sample says and however little may be remembered."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import jax
import numpy as np
import pytest
from enginekit import carry_out, checkpoints, plan_of, read, step

from jmerge.engine import select
from jmerge.engine.select import SAMPLE_RUN, SAMPLE_STEP, Search, sample_starts
from jmerge.methods import apply, find_method
from jmerge.methods.statistics.thresholds import by_sorting

SIZE = 600_000
SWITCHES = {"normalize": True, "rescale": True}
PIECE = 1 << 16


def kinds() -> dict[str, np.ndarray]:
    """Magnitudes of many shapes."""
    rng = np.random.default_rng(5)
    normal = np.abs(rng.standard_normal(SIZE))
    return {
        "normal": normal,
        "few values": normal.round(1),
        "mostly zeros": normal * (rng.random(SIZE) < 0.1),
        "one value": np.ones(SIZE),
        "rows of very different size": normal
        * np.repeat(10.0 ** rng.integers(-6, 6, SIZE // 1000), 1000),
        "sorted": np.sort(normal),
        "one half zero": normal * (np.arange(SIZE) < SIZE // 2),
        "tiny": normal * 1e-44,
    }


KINDS = {name: values.astype(np.float32) for name, values in kinds().items()}


def search_for(magnitude: np.ndarray, count: int, sample: np.ndarray | None) -> Search:
    """A search that has ended, fed as the engine does."""
    bits = magnitude.view(f"u{magnitude.itemsize}")
    search = Search(count, bits.size, bits.dtype, select.MOST_COLLECTED)
    if sample is not None:
        search.take_sample(sample)
    passes = 0
    while search.cut is None:
        for number in filter(search.wants, range(-(-bits.size // PIECE))):
            piece = bits[number * PIECE : (number + 1) * PIECE]
            inside = (piece >= search.low) & (piece <= search.high)
            above = int(np.count_nonzero(piece > search.high))
            if search.count_in(number, above, int(np.count_nonzero(inside))):
                # with others that another search wants
                given = np.flatnonzero(inside | (piece & 7 == 0))
                search.collect(piece[given], number * PIECE + given)
        search.settle()
        passes += 1
        assert passes < 100, "it does not end"
    return search


def honest(magnitude: np.ndarray) -> np.ndarray:
    """The sample that the engine takes."""
    runs = sample_starts(magnitude.size)[:, None] + np.arange(0, SAMPLE_RUN, SAMPLE_STEP)
    sample: np.ndarray = magnitude.view(f"u{magnitude.itemsize}")[runs]
    return sample


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("most", [1 << 21, 3000, 10])
def test_finds_the_cut(kind: str, most: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(select, "MOST_COLLECTED", most)
    magnitude = KINDS[kind]
    for count in (1, 2, SIZE // 5, SIZE // 2, SIZE - 1):
        found = search_for(magnitude, count, honest(magnitude)).cut
        assert found == by_sorting(magnitude.view(f"u{magnitude.itemsize}"), count)


@pytest.mark.parametrize("kind", ["normal", "few values", "rows of very different size"])
def test_a_sample_that_misleads(kind: str) -> None:
    """Of zeros only, of the largest only, of noise: the cut is the same."""
    magnitude = KINDS[kind]
    bits = magnitude.view(np.uint32)
    shape = honest(magnitude).shape
    rng = np.random.default_rng(0)
    liars = [
        np.zeros(shape, np.uint32),
        np.full(shape, bits.max()),
        np.full(shape, 0x7F800000, np.uint32),
        rng.integers(0, 1 << 31, shape, np.uint32),
    ]
    for liar in liars:
        for count in (1, SIZE // 3, SIZE - 1):
            assert search_for(magnitude, count, liar).cut == by_sorting(
                magnitude.view(f"u{magnitude.itemsize}"), count
            )


@pytest.mark.parametrize(
    ("kind", "most"), [("normal", 0.1), ("one half zero", 0.2), ("sorted", 0.3)]
)
def test_regions_that_differ_hardly_widen_the_bracket(kind: str, most: float) -> None:
    """Such as rows of a table that did not change: few elements of the others lie inside."""
    search = Search(SIZE // 4, SIZE, np.dtype(np.uint32))
    search.take_sample(honest(KINDS[kind]))
    bits = KINDS[kind].view(np.uint32)
    inside = np.count_nonzero((bits >= search.low) & (bits <= search.high))
    assert 0 < inside < most * SIZE


def test_one_pass_is_the_rule() -> None:
    """Of many tensors nearly all are settled by the first bracket, or by a look at one piece."""
    again = 0
    for seed in range(100):
        rng = np.random.default_rng(seed)
        magnitude = np.abs(rng.standard_normal(SIZE, np.float32))
        search = Search(SIZE // 2, SIZE, np.dtype(np.uint32))
        search.take_sample(honest(magnitude))
        bits = magnitude.view(np.uint32)
        inside = int(np.count_nonzero((bits >= search.low) & (bits <= search.high)))
        assert inside < SIZE // 10
        rank = search.count - int(np.count_nonzero(bits > search.high))
        again += not 1 <= rank <= inside
    assert again <= 5


def test_float64() -> None:
    magnitude = 1 + np.arange(SIZE) * 1e-12
    for sample in (None, honest(magnitude)):
        found = search_for(magnitude, SIZE // 4, sample).cut
        assert found == by_sorting(magnitude.view(np.uint64), SIZE // 4)


@pytest.mark.parametrize("size", [1, SAMPLE_RUN, (1 << 18) + 1, 10**6, 3 * 10**9])
def test_samples_lie_inside(size: int) -> None:
    """In order, all over the tensor, and not too many to read."""
    starts = sample_starts(size)
    assert starts.size == 0 or (starts.min() >= 0 and starts.max() <= size - SAMPLE_RUN)
    assert np.all(np.diff(starts) >= 0) and starts.size <= 1024
    assert starts.size > 0 or size <= 1 << 18
    if size > 10**6:
        assert starts[0] < size / 10 and starts[-1] > 0.9 * size


@pytest.mark.parametrize("dtype", ["float32", "float64", "float16"])
def test_little_memory_changes_no_byte(
    dtype: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The engine reads pieces again when it may not remember, and makes the same of them."""
    rng = np.random.default_rng(3)
    shape = (300_001,)
    tensors = [{"x": rng.standard_normal(shape).astype(dtype).round(2)} for _ in range(3)]
    models = checkpoints(tmp_path, *tensors)
    hyperparameters = {
        "weight": (1.0, 0.5),
        "density": (0.3, 0.6),
        "lambda": 1.0,
        "normalize": True,
        "rescale": True,
    }
    inputs = [read(models, i, "x") for i in range(3)]
    ties = dataclasses.replace(step("x", inputs, "ties", hyperparameters=hyperparameters), base=0)
    plan = plan_of(models, ties)
    whole, _ = carry_out(plan)
    if dtype == "float32":
        base, *others = (tensor["x"] for tensor in tensors)
        traced = {"weight": hyperparameters["weight"], "lambda": 1.0}
        static = {"density": hyperparameters["density"], **SWITCHES}

        def by_hand(delta: jax.Array, traced: dict[str, jax.Array]) -> jax.Array:
            return apply(find_method("ties"), (delta,), {**traced, **static})

        traced = {name: np.asarray(value, np.float32) for name, value in traced.items()}
        change = jax.jit(by_hand)(np.stack([other - base for other in others]), traced)
        np.testing.assert_array_equal(whole["x"], np.asarray(base + change))
    for most in (1 << 21, 100):
        monkeypatch.setattr(select, "MOST_COLLECTED", most)
        cut, _ = carry_out(plan, piece=1 << 14)
        assert whole["x"].tobytes() == cut["x"].tobytes()
