"""The run: right values for every dtype and shape, pieces, results of results, problems."""

from __future__ import annotations

import dataclasses
import gc
import os
import random
import subprocess
import sys
import threading
import zlib
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import jax
import ml_dtypes
import numpy as np
import pytest
from enginekit import (
    COUNT,
    NUMBERS,
    Memory,
    carry_out,
    checkpoints,
    contents,
    expected,
    plan_of,
    read,
    result,
    step,
    two_models,
    within,
    write_recipe,
)

from jmerge.ckpt.open import open_checkpoint
from jmerge.ckpt.safetensors import encode_header
from jmerge.dtypes import FLOATS, NUMPY, TensorSpec
from jmerge.engine.events import Event, Finished, Started, Wrote
from jmerge.engine.events import Read as Took
from jmerge.engine.memory import need_of
from jmerge.engine.run import run
from jmerge.engine.schedule import make_schedule
from jmerge.errors import CheckpointError, JmergeError, NonFiniteError, RunError
from jmerge.methods import apply, find_method
from jmerge.methods.linear import linear
from jmerge.methods.task_arithmetic import task_arithmetic
from jmerge.plan.inputs import Read, Result
from jmerge.plan.steps import Plan
from jmerge.testing.close import TO_ROUNDING, assert_close, assert_same_bytes

METHODS = tuple(NUMBERS)
SHAPES = ((), (0,), (1,), (2, 0, 3), (7,), (5, 3), (4096,), (4097,), (3, 5000))
PIECE = 4096
SLACK = {"F64": TO_ROUNDING, "F32": TO_ROUNDING}  # one rounding in every narrower dtype
ONE_ROUNDING = 0.51


def normal(shape: tuple[int, ...], seed: int = 0, dtype: str = "F32") -> np.ndarray:
    values = np.random.default_rng(seed).standard_normal(shape)
    return np.asarray(values).astype(NUMPY[dtype])


def plan_for(
    folder: Path, method: str, arrays: dict[str, list[np.ndarray]], dtype: str = ""
) -> Plan:
    """A plan of one step for each name, made of the tensors of that name in the models."""
    count = COUNT.get(method, 2)
    models = checkpoints(folder, *({n: a[i] for n, a in arrays.items()} for i in range(count)))
    steps = [
        step(name, [read(models, i, name) for i in range(count)], method, dtype=dtype)
        for name in arrays
    ]
    return plan_of(models, *steps)


def shapes(dtype: str = "F32") -> dict[str, list[np.ndarray]]:
    """A tensor of every shape in two models."""
    return {
        f"t{i}": [normal(shape, 2 * i + j, dtype) for j in range(2)]
        for i, shape in enumerate(SHAPES)
    }


# Values


@pytest.mark.parametrize("method", METHODS)
def test_every_method_and_shape(method: str, tmp_path: Path) -> None:
    arrays = shapes()
    sink, outcome = carry_out(plan_for(tmp_path, method, arrays))
    for name, pair in arrays.items():
        wanted = expected(method, pair[: COUNT.get(method, 2)], NUMBERS[method])
        assert sink[name].dtype == np.float32
        assert_close(sink[name], wanted)
    assert outcome.nonfinite == {}


@pytest.mark.parametrize("out", ["F64", "F32", "F16", "BF16"])
@pytest.mark.parametrize("dtype", FLOATS)
def test_every_dtype_in_and_out(dtype: str, out: str, tmp_path: Path) -> None:
    arrays = {"x": [normal((40, 50), j, dtype) for j in range(2)]}
    sink, _ = carry_out(plan_for(tmp_path, "linear", arrays, out))
    assert sink["x"].dtype == NUMPY[out]
    wanted = expected("linear", arrays["x"], NUMBERS["linear"])
    if out == "F64" and dtype != "F64":  # the arithmetic is float32, the dtype on disk is wider
        assert_close(sink["x"].astype(np.float32), wanted)
    else:
        assert_close(sink["x"], wanted, SLACK.get(out, ONE_ROUNDING))


@pytest.mark.parametrize("method", ["linear", "slerp", "task_arithmetic"])
@pytest.mark.parametrize("dtype", ["F64", "F8_E4M3", "F8_E5M2", "F8_E4M3FNUZ", "F8_E5M2FNUZ"])
def test_doubles_and_eighths_stay_what_they_are(method: str, dtype: str, tmp_path: Path) -> None:
    arrays = {"x": [normal((70, 70), j, dtype) for j in range(2)]}
    sink, _ = carry_out(plan_for(tmp_path, method, arrays))
    assert sink["x"].dtype == NUMPY[dtype]
    wanted = expected(method, arrays["x"], NUMBERS[method])
    assert_close(sink["x"], wanted, SLACK.get(dtype, ONE_ROUNDING))
    assert not jax.config.jax_enable_x64  # type: ignore[attr-defined]


@pytest.mark.parametrize("method", ["linear", "slerp", "task_arithmetic"])
@pytest.mark.parametrize(
    ("dtypes", "out"),
    [
        (("BF16", "F32"), "F32"),
        (("F32", "BF16"), "BF16"),
        (("F16", "BF16"), "F32"),
        (("F64", "F16"), "F64"),
        (("F32", "F64"), "F16"),
        (("F8_E4M3", "BF16"), "BF16"),
    ],
)
def test_mixed_dtypes(method: str, dtypes: tuple[str, str], out: str, tmp_path: Path) -> None:
    arrays = {"x": [normal((60, 60), j, dtype) for j, dtype in enumerate(dtypes)]}
    sink, _ = carry_out(plan_for(tmp_path, method, arrays, out))
    assert sink["x"].dtype == NUMPY[out]
    wanted = expected(method, arrays["x"], NUMBERS[method])
    assert_close(sink["x"], wanted, SLACK.get(out, ONE_ROUNDING))


def test_doubles_beyond_float32(tmp_path: Path) -> None:
    """Neither range nor digits go through float32 on the way."""
    arrays = {"x": [np.array([1e150, 3, 1 + 2.0**-50]), np.array([3e150, 1, 1 - 2.0**-50])]}
    sink, _ = carry_out(plan_for(tmp_path, "linear", arrays))
    wanted = expected("linear", arrays["x"], NUMBERS["linear"])
    np.testing.assert_allclose(sink["x"], wanted, rtol=2.0**-51)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("pattern", ["zeros", "equal", "opposite", "huge", "tiny"])
def test_corners(method: str, pattern: str, tmp_path: Path) -> None:
    first = normal((33, 3))
    second = normal((33, 3), 1)
    pair = {
        "zeros": [np.zeros_like(first), np.zeros_like(first)],
        "equal": [first, first],
        "opposite": [first, -first],
        "huge": [first * np.float32(1e18), second * np.float32(1e18)],
        "tiny": [first * np.float32(1e-18), second * np.float32(1e-18)],
    }[pattern]
    sink, _ = carry_out(plan_for(tmp_path, method, {"x": pair}))
    assert np.isfinite(sink["x"]).all()
    if pattern not in ("huge", "tiny") or method != "slerp":  # float32 squares decide those
        wanted = expected(method, pair[: COUNT.get(method, 2)], NUMBERS[method])
        scale = np.abs(np.stack(pair)).max(initial=1e-30)
        np.testing.assert_allclose(sink["x"], wanted, atol=4e-6 * scale, rtol=0)


def test_the_engine_equals_the_functions_by_hand(tmp_path: Path) -> None:
    """Bit for bit, under jit, for tensors of several blocks and an uneven end."""
    arrays = {"x": [normal((3, 5001), j) for j in range(2)]}
    a, b = (jax.device_put(item) for item in arrays["x"])
    pair = jax.device_put(np.stack(arrays["x"]))
    hyperparameters = NUMBERS["task_arithmetic"]
    by_hand = {
        "linear": jax.jit(partial(linear, normalize=True))(
            pair, weight=np.asarray(NUMBERS["linear"]["weight"], np.float32)
        ),
        "slerp": jax.jit(
            lambda base, models, t: apply(find_method("slerp"), (base, models), {"t": t})
        )(a, b[None], np.float32(NUMBERS["slerp"]["t"])),
        "task_arithmetic": jax.jit(
            lambda base, model, **rest: (
                base + task_arithmetic((model - base)[None], normalize=False, **rest)
            )
        )(
            a,
            b,
            weight=np.asarray(hyperparameters["weight"], np.float32),
            scale=np.float32(hyperparameters["lambda"]),
        ),
    }
    for method, values in by_hand.items():
        sink, _ = carry_out(plan_for(tmp_path / method, method, arrays))
        assert_same_bytes(sink["x"], np.asarray(values))


# Pieces


@pytest.mark.parametrize("dtype", ["F32", "BF16", "F64", "F8_E4M3"])
@pytest.mark.parametrize("method", METHODS)
def test_pieces_change_no_bit(method: str, dtype: str, tmp_path: Path) -> None:
    arrays = {
        f"t{size}": [normal((size,), size + j, dtype) for j in range(2)]
        for size in (1, PIECE - 1, PIECE, PIECE + 1, 3 * PIECE + 5, 9 * PIECE + 4095)
    }
    plan = plan_for(tmp_path, method, arrays)
    whole, outcome = carry_out(plan)
    for piece in (PIECE, 3 * PIECE):
        cut, other = carry_out(plan, piece=piece)
        for name in arrays:
            assert_same_bytes(cut[name], whole[name])
        assert other.crc32 == outcome.crc32
    assert outcome.crc32 == {name: zlib.crc32(whole[name].tobytes()) for name in arrays}


def test_tensors_longer_than_the_largest_kernel(tmp_path: Path) -> None:
    """More elements than any piece holds, with an uneven end, through the default schedule."""
    size = 2_500_011
    arrays = {"x": [normal((size,), j, "BF16") for j in range(2)]}
    for method in ("linear", "slerp"):
        plan = plan_for(tmp_path / method, method, arrays)
        whole, _ = carry_out(plan)
        wanted = expected(method, arrays["x"], NUMBERS[method])
        assert_close(whole["x"], wanted, ONE_ROUNDING)
        cut, _ = carry_out(plan, piece=64 * PIECE)
        assert_same_bytes(cut["x"], whole["x"])


# Copies


@pytest.mark.parametrize("dtype", [d for d in NUMPY if d not in FLOATS])
def test_what_is_not_a_weight_is_copied(dtype: str, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    raw = rng.integers(0, 2 if dtype == "BOOL" else 254, 10_000 * NUMPY[dtype].itemsize, np.uint8)
    array = raw.view(NUMPY[dtype])
    models = checkpoints(tmp_path, {"x": array}, {"x": array.copy()})
    plan = plan_of(models, step("x", [read(models, i, "x") for i in range(2)], "copy"))
    for piece in (None, PIECE):
        sink, _ = carry_out(plan, piece=piece)
        assert_same_bytes(sink["x"], array)


@pytest.mark.parametrize("dtype", [d for d in NUMPY if d not in FLOATS])
@pytest.mark.parametrize("place", [0, 4_096, 9_999])
def test_unequal_copies_are_refused(dtype: str, place: int, tmp_path: Path) -> None:
    one, other = np.zeros(10_000, NUMPY[dtype]), np.zeros(10_000, NUMPY[dtype])
    other[place] = 1
    models = checkpoints(tmp_path, {"x": one}, {"x": other})
    plan = plan_of(models, step("x", [read(models, i, "x") for i in range(2)], "copy"))
    for piece in (None, PIECE):
        for allow in (False, True):
            with pytest.raises(JmergeError, match="differs") as caught:
                carry_out(plan, piece=piece, allow_nonfinite=allow)
            assert all(word in str(caught.value) for word in ("x: ", "m0", "m1"))


@pytest.mark.parametrize(("dtype", "nbytes"), [("F4", 10_000), ("F6_E2M3", 15_000)])
def test_packed_floats_are_copied(dtype: str, nbytes: int, tmp_path: Path) -> None:
    data = np.random.default_rng(0).integers(0, 256, nbytes, np.uint8).tobytes()
    spec = TensorSpec(dtype, (20_000,))
    models = []
    for i in range(2):
        (tmp_path / f"m{i}").mkdir()
        (tmp_path / f"m{i}" / "model.safetensors").write_bytes(encode_header({"x": spec}) + data)
        models.append(open_checkpoint(tmp_path / f"m{i}"))
    plan = plan_of(models, step("x", [read(models, i, "x") for i in range(2)], "copy"))
    for piece in (None, PIECE):
        sink, outcome = carry_out(plan, piece=piece)
        assert sink.data["x"] == data and outcome.crc32 == {"x": zlib.crc32(data)}


def test_a_copy_may_widen(tmp_path: Path) -> None:
    array = normal((40, 40), dtype="BF16")
    models = checkpoints(tmp_path, {"x": array})
    plan = plan_of(models, step("x", [read(models, 0, "x")], "copy", dtype="F32"))
    assert_same_bytes(carry_out(plan)[0]["x"], array.astype(np.float32))


def test_passthrough_copies_every_bit(tmp_path: Path) -> None:
    """Minus zero and subnormals too, which arithmetic might lose."""
    bits = np.arange(0x7F80, dtype=np.uint16)  # every finite bf16 that is not negative
    array = np.concatenate([bits, bits | 0x8000]).view(ml_dtypes.bfloat16)
    models = checkpoints(tmp_path, {"x": array})
    plan = plan_of(
        models, step("x", [read(models, 0, "x")], "passthrough", hyperparameters={"scale": None})
    )
    assert_same_bytes(carry_out(plan)[0]["x"], array)


# Results of results


def test_a_step_made_of_another(tmp_path: Path) -> None:
    """The mean of two models is made first, never written, and used by two steps."""
    models = checkpoints(tmp_path, *({"x": normal((3, 5000), i)} for i in range(3)))
    mean = step("mean", [read(models, 0, "x"), read(models, 1, "x")], written=False)
    arc = step("arc", [read(models, 2, "x"), result(mean)], "slerp")
    change = step("change", [result(mean), read(models, 2, "x")], "task_arithmetic")
    plan = plan_of(models, arc, mean, change)
    a, b, c = (model["x"] for model in models)
    middle = expected("linear", [a, b], NUMBERS["linear"])
    for piece in (None, PIECE):
        sink, outcome = carry_out(plan, piece=piece)
        assert_close(sink["arc"], expected("slerp", [c, middle], NUMBERS["slerp"]), 32)
        assert_close(
            sink["change"],
            expected("task_arithmetic", [middle, c], NUMBERS["task_arithmetic"]),
            32,
        )
        assert set(outcome.crc32) == {"arc", "change"}


def test_a_chain_of_results_in_its_own_dtypes(tmp_path: Path) -> None:
    """Each link is rounded to its own dtype, as if it had been written and read again."""
    models = checkpoints(tmp_path, *({"x": normal((9000,), i)} for i in range(5)))
    narrow = step(
        "narrow", [read(models, 0, "x"), read(models, 1, "x")], dtype="BF16", written=False
    )
    wide = step("wide", [result(narrow), read(models, 2, "x")], dtype="F64", written=False)
    again = step("again", [result(wide), read(models, 3, "x")], dtype="F32", written=False)
    weights = {"weight": (1.0, -0.5, 0.25), "normalize": False}
    inputs: list[Read | Result] = [result(again), result(narrow), read(models, 4, "x")]
    last = step("last", inputs, dtype="F32", hyperparameters=weights)
    arrays = [model["x"] for model in models]
    hyperparameters = NUMBERS["linear"]
    one = expected("linear", arrays[:2], hyperparameters).astype(ml_dtypes.bfloat16)
    two = expected("linear", [one, arrays[2]], hyperparameters)
    three = expected("linear", [two, arrays[3]], hyperparameters)
    four = expected("linear", [three, one, arrays[4]], weights)
    for piece in (None, PIECE):
        for order in ((narrow, wide, again, last), (last, again, wide, narrow)):
            sink, _ = carry_out(plan_of(models, *order), piece=piece)
            # a bf16 on the edge between two values may fall either way
            near = np.abs(sink["last"] - four) <= 1e-5
            assert near.mean() > 0.99
            np.testing.assert_allclose(sink["last"], four, atol=0.02)


def test_results_of_whole_numbers_and_of_nothing(tmp_path: Path) -> None:
    hyperparameters = np.arange(10_000, dtype=np.int64) << 40
    models = checkpoints(
        tmp_path,
        {
            "i": hyperparameters,
            "e": np.empty((0, 3), np.float32),
            "s": np.array(2, np.float32),
        },
    )
    hidden = [step(f"h{n}", [read(models, 0, n)], "copy", written=False) for n in "ies"]
    shown = [step(f"o{h.name}", [result(h)], "copy") for h in hidden]
    for piece in (None, PIECE):
        sink, _ = carry_out(plan_of(models, *hidden, *shown), piece=piece)
        assert_same_bytes(sink["ohi"], hyperparameters)
        assert sink["ohe"].shape == (0, 3)
        assert sink["ohs"] == np.float32(2)


def test_a_result_may_be_written_and_used(tmp_path: Path) -> None:
    """A kept stage: a step of the output that another step is made of."""
    models = checkpoints(tmp_path, *({"x": normal((9000,), i)} for i in range(3)))
    stage = step("stage", [read(models, 0, "x"), read(models, 1, "x")])
    last = step("last", [result(stage), read(models, 2, "x")])
    plan = plan_of(models, stage, last)
    assert need_of(make_schedule(plan)).held == stage.spec.nbytes
    sink, _ = carry_out(plan, piece=PIECE)
    a, b, c = (model["x"] for model in models)
    assert_close(sink["stage"], expected("linear", [a, b], NUMBERS["linear"]))
    assert_close(sink["last"], expected("linear", [sink["stage"], c], NUMBERS["linear"]))


# Events and order


def test_events_tell_the_whole_story(tmp_path: Path) -> None:
    events: list[Event] = []
    plan = plan_for(tmp_path, "linear", shapes())
    sink, outcome = carry_out(plan, piece=PIECE, listeners=(events.append, lambda event: None))
    assert events[0] == Started(plan.read_bytes, plan.write_bytes)
    assert sum(isinstance(event, Started) for event in events) == 1
    assert sum(event.nbytes for event in events if isinstance(event, Took)) == plan.read_bytes
    written: dict[str, int] = {}
    for event in events:
        if isinstance(event, Wrote):
            written[event.tensor] = written.get(event.tensor, 0) + event.nbytes
        elif isinstance(event, Finished):
            assert written[event.tensor] == plan.outputs[event.tensor].nbytes
            assert event.crc32 == zlib.crc32(sink[event.tensor].tobytes())
    finished = [event for event in events if isinstance(event, Finished)]
    assert sorted(event.tensor for event in finished) == sorted(plan.outputs)
    assert outcome.crc32 == {event.tensor: event.crc32 for event in finished}


def test_reading_is_told_from_the_first_pass_on(tmp_path: Path) -> None:
    """As much as the plan says, the passes of statistics before anything is written."""
    events: list[Event] = []
    arrays = {"x": [normal((3 * PIECE + 7,), i) for i in range(2)]}
    plan = plan_for(tmp_path, "slerp", arrays)
    carry_out(plan, piece=PIECE, listeners=(events.append,))
    assert isinstance(events[0], Started) and isinstance(events[1], Took)
    read = sum(event.nbytes for event in events if isinstance(event, Took))
    assert events[0].read_bytes == read > plan.read_bytes
    first = next(i for i, event in enumerate(events) if isinstance(event, Wrote))
    before = sum(event.nbytes for event in events[:first] if isinstance(event, Took))
    assert before > plan.read_bytes


def test_files_are_read_front_to_back(tmp_path: Path) -> None:
    """Whatever the order of the steps, tensors finish in the order they lie in the first model."""
    arrays = {f"t{i:02d}": [normal((64,), i), normal((64,), -i % 100)] for i in range(20)}
    plan = plan_for(tmp_path, "linear", arrays)
    steps = list(plan.steps)
    random.Random(0).shuffle(steps)
    order: list[str] = []

    def note(event: Event) -> None:
        if isinstance(event, Finished):
            order.append(event.tensor)

    carry_out(dataclasses.replace(plan, steps=tuple(steps)), listeners=(note,))
    place = [(item.start, s.name) for s in plan.steps if isinstance(item := s.inputs[0], Read)]
    assert order == [name for _, name in sorted(place)]
    assert len(order) == 20


# NaN, infinity, overflow


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("word", ["nan", "inf", "-inf"])
@pytest.mark.parametrize("method", ["linear", "copy"])
def test_a_bad_number_in_an_input(dtype: str, word: str, method: str, tmp_path: Path) -> None:
    value = np.array(float(word)).astype(NUMPY[dtype])
    if np.isfinite(value.astype(np.float64)):
        pytest.fail(f"{dtype} has no {word}; numpy gave {value}")
    count = COUNT.get(method, 2)
    arrays = [{"x": normal((5000,), i, dtype), "y": normal((9,), i, dtype)} for i in range(count)]
    arrays[-1]["x"][[0, 17, 4999]] = value
    models = checkpoints(tmp_path, *arrays)
    plan = plan_of(
        models, *(step(n, [read(models, i, n) for i in range(count)], method) for n in "xy")
    )
    with pytest.raises(NonFiniteError) as caught:
        carry_out(plan)
    (problem,) = caught.value.problems
    assert problem.where == "x"
    assert "3 elements" in problem.message and f"m{count - 1}" in problem.message
    assert "allow_nonfinite=True" in problem.message
    for piece in (None, PIECE):
        sink, outcome = carry_out(plan, piece=piece, allow_nonfinite=True)
        assert outcome.nonfinite == {"x": 3}
        bad = ~np.isfinite(sink["x"].astype(np.float64))
        assert list(np.flatnonzero(bad)) == [0, 17, 4999]
        assert np.isfinite(sink["y"].astype(np.float64)).all()


@pytest.mark.parametrize("place", [0, 4095, 4096, 12_287, 12_292])
def test_a_bad_number_is_found_wherever_it_is(place: int, tmp_path: Path) -> None:
    arrays = {"x": [normal((12_293,), i) for i in range(2)]}
    arrays["x"][1][place] = np.nan
    plan = plan_for(tmp_path, "slerp", arrays)
    for piece in (None, PIECE):
        with pytest.raises(NonFiniteError, match="1 elements of 'x' in m1"):
            carry_out(plan, piece=piece)


@pytest.mark.parametrize(
    ("out", "size"), [("F16", 4e4), ("BF16", 3e38), ("F32", 3e38), ("F8_E4M3", 400)]
)
def test_a_result_that_does_not_fit(out: str, size: float, tmp_path: Path) -> None:
    one = np.full((3000,), 1, np.float32)
    one[[5, 2999]] = size, -size
    models = checkpoints(tmp_path, {"x": one}, {"x": one})
    inputs = [read(models, i, "x") for i in range(2)]
    hyperparameters = {"weight": (1.0, 1.0), "normalize": False}
    plan = plan_of(models, step("x", inputs, dtype=out, hyperparameters=hyperparameters))
    with pytest.raises(NonFiniteError, match="2 elements of the result do not fit") as caught:
        carry_out(plan)
    assert out in str(caught.value) and "out_dtype" in str(caught.value)
    sink, outcome = carry_out(plan, allow_nonfinite=True)
    assert outcome.nonfinite == {"x": 2}
    assert np.flatnonzero(~np.isfinite(sink["x"].astype(np.float64))).tolist() == [5, 2999]


def test_masks_hold_infinity(tmp_path: Path) -> None:
    """What is added to scores that are masked is minus infinity on purpose; what is trained never is."""
    mask = np.full((1, 1, 3, 3), -np.inf, np.float32)
    models = checkpoints(tmp_path, {"h.0.attn.bias": mask, "h.0.attn.masked_bias": mask[0, 0, 0]})
    names = ("h.0.attn.bias", "h.0.attn.masked_bias")
    plan = plan_of(models, *(step(n, [read(models, 0, n)], "copy") for n in names))
    sink, _ = carry_out(plan)
    assert np.isneginf(sink["h.0.attn.bias"]).all()
    models = checkpoints(tmp_path / "other", {"gain": mask})
    with pytest.raises(NonFiniteError):
        carry_out(plan_of(models, step("gain", [read(models, 0, "gain")], "copy")))


def test_counts_do_not_depend_on_pieces(tmp_path: Path) -> None:
    """The ledger holds them, and equal merges give equal ledgers whatever the pieces."""
    one, other = normal((10_000,)), normal((10_000,), 1)
    one[3] = other[3] = np.nan
    one[5000] = other[5000] = 60_000  # overflows in the sum
    models = checkpoints(tmp_path, {"x": one}, {"x": other})
    inputs = [read(models, i, "x") for i in range(2)]
    hyperparameters = {"weight": (1.0, 1.0), "normalize": False}
    plan = plan_of(models, step("x", inputs, dtype="F16", hyperparameters=hyperparameters))
    whole, cut = (carry_out(plan, piece=p, allow_nonfinite=True)[1] for p in (None, PIECE))
    assert whole.nonfinite == cut.nonfinite


def test_a_count_is_of_the_whole_tensor(tmp_path: Path) -> None:
    """The message says how many there are, not how many the first piece has."""
    arrays = {"x": [normal((3 * PIECE,), i) for i in range(2)]}
    arrays["x"][0][::1000] = np.inf
    plan = plan_for(tmp_path, "linear", arrays)
    messages = set()
    for piece in (None, PIECE):
        with pytest.raises(NonFiniteError) as caught:
            carry_out(plan, piece=piece)
        messages.add(str(caught.value))
    assert len(messages) == 1 and "13 elements" in messages.pop()


# Problems: whatever fails, the run ends, says so, and leaves no thread and no open file


class BrokenError(Exception):
    """Raised on purpose."""


class BrokenSink(Memory):
    """A sink that fails at its fifth write."""

    count = 0

    def write(self, tensor: str, start: int, data: memoryview) -> None:
        self.count += 1
        if self.count == 5:
            raise RunError("the sink broke")
        super().write(tensor, start, data)


def many(folder: Path, method: str = "slerp") -> Plan:
    """Far more pieces than can be under way at once."""
    return plan_for(
        folder, method, {f"t{i}": [normal((20_000,), i + j) for j in range(2)] for i in range(10)}
    )


def ends_cleanly(
    action: Callable[[], Any], error: type[BaseException], match: str | None = None
) -> None:
    """`action` raises `error` in time and leaves neither threads nor open files behind."""
    gc.collect()
    threads = set(threading.enumerate())
    files = len(os.listdir("/dev/fd"))
    with pytest.raises(error, match=match):
        within(action)
    assert set(threading.enumerate()) <= threads
    assert len(os.listdir("/dev/fd")) <= files


@pytest.mark.parametrize("error", [BrokenError, KeyboardInterrupt, SystemExit])
@pytest.mark.parametrize("kind", [Started, Wrote, Finished])
def test_a_listener_that_fails(kind: type, error: type[BaseException], tmp_path: Path) -> None:
    def listener(event: Event) -> None:
        if isinstance(event, kind):
            raise error

    plan = many(tmp_path)
    schedule = make_schedule(plan, piece=PIECE)
    ends_cleanly(lambda: run(plan, schedule, Memory(plan), listeners=(listener,)), error)


def test_a_sink_that_fails(tmp_path: Path) -> None:
    plan = many(tmp_path)
    schedule = make_schedule(plan, piece=PIECE)
    ends_cleanly(lambda: run(plan, schedule, BrokenSink(plan)), RunError, "the sink broke")


@pytest.mark.parametrize("harm", ["cut", "deleted", "a folder"])
def test_an_input_that_is_gone(harm: str, tmp_path: Path) -> None:
    plan = many(tmp_path)
    path = tmp_path / "m1" / "model.safetensors"
    if harm == "cut":
        os.truncate(path, path.stat().st_size // 2)
    else:
        path.unlink()
    if harm == "a folder":
        path.mkdir()
    schedule = make_schedule(plan, piece=PIECE)
    ends_cleanly(lambda: run(plan, schedule, Memory(plan)), CheckpointError, str(path))


def test_a_problem_of_the_arithmetic(tmp_path: Path) -> None:
    """A method that cannot run: its numbers do not fit the number of models."""
    models = checkpoints(tmp_path, *({"x": normal((20_000,), i)} for i in range(2)))
    inputs = [read(models, i, "x") for i in range(2)]
    bad = step(
        "x", inputs, hyperparameters={"weight": (1.0, 1.0), "normalize": True, "unknown": 3.0}
    )
    plan = plan_of(models, bad)
    schedule = make_schedule(plan, piece=PIECE)
    ends_cleanly(lambda: run(plan, schedule, Memory(plan)), Exception, "unknown")


def test_a_problem_while_a_result_is_awaited(tmp_path: Path) -> None:
    """The reader may be waiting for a result that will never come."""
    models = checkpoints(tmp_path, *({"x": normal((40_000,), i)} for i in range(2)))
    inputs = [read(models, i, "x") for i in range(2)]
    first = step("first", inputs, written=False)
    last = step("last", [result(first), inputs[0]])
    plan = plan_of(models, first, last)
    path = tmp_path / "m1" / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-10])
    schedule = make_schedule(plan, piece=PIECE)
    ends_cleanly(lambda: run(plan, schedule, Memory(plan)), CheckpointError, str(path))


def test_a_run_can_be_repeated(tmp_path: Path) -> None:
    """Nothing of a failed run sticks to plan or schedule."""
    plan = many(tmp_path)
    schedule = make_schedule(plan, piece=PIECE)
    with pytest.raises(RunError):
        run(plan, schedule, BrokenSink(plan))
    one, two = Memory(plan), Memory(plan)
    first = within(lambda: run(plan, schedule, one))
    second = within(lambda: run(plan, schedule, two))
    assert first == second and one.data == two.data


def test_a_plan_of_nothing_but_empty_tensors(tmp_path: Path) -> None:
    arrays = {"x": [np.empty((0, 4), np.float32)] * 2}
    for method in METHODS:
        sink, outcome = carry_out(plan_for(tmp_path / method, method, arrays))
        assert sink["x"].shape == (0, 4) and outcome.crc32 == {"x": 0}


# The same bytes whatever the process

TWICE = """
import sys
import jmerge, jmerge.cli
recipe, out = sys.argv[1:]
jmerge.merge(recipe, out, shard_size=2000)
sys.exit(jmerge.cli.main(["plan", recipe, "--json"]))
"""


def test_hash_seeds_and_processes_change_no_byte(tmp_path: Path) -> None:
    two_models(tmp_path)
    recipe = write_recipe(tmp_path, extra="name: warns\nparameters: {normalize: false}\n")
    found = []
    for seed in ("0", "12345"):
        (tmp_path / seed).mkdir()
        done = subprocess.run(
            [sys.executable, "-c", TWICE, str(recipe), str(tmp_path / seed / "out")],
            cwd=tmp_path,
            env=os.environ | {"PYTHONHASHSEED": seed},
            capture_output=True,
            timeout=120,
        )
        assert done.returncode == 0, done.stderr.decode()
        found.append((contents(tmp_path / seed / "out"), done.stdout))
    assert found[0] == found[1]
    folder, plan = found[0]
    assert len(folder) > 6 and plan.startswith(b"{")
