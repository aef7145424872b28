"""The schedule: order, when results go, memory that does not grow, few programs."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import jax
import pytest
from headers import hollow_llama, linear, pair, plan_of, result, source

import jmerge
from jmerge import cli
from jmerge.dtypes import TensorSpec
from jmerge.engine.memory import need_of
from jmerge.engine.schedule import PIECE, Schedule, make_schedule, padded_length
from jmerge.methods.reduce import BLOCK
from jmerge.plan.inputs import Read, Result
from jmerge.plan.steps import Step
from jmerge.report.plan import totals

MB = 10**6


def order(schedule: Schedule) -> list[str]:
    return [work.step.name for work in schedule.work]


# Order and frees


def test_steps_follow_the_first_file() -> None:
    steps = [pair(f"t{start}", 10, start=start) for start in (30, 10, 20, 0)]
    assert order(make_schedule(plan_of(*steps))) == ["t0", "t10", "t20", "t30"]


def test_a_step_follows_what_it_is_made_of() -> None:
    late = pair("late", 10, start=100)
    middle = linear("middle", result(late), source(0, "x", late.spec, 0))
    last = linear("last", source(0, "y", late.spec, 0), result(middle))
    early = pair("early", 10, start=50)
    found = order(make_schedule(plan_of(last, middle, early, late)))
    assert sorted(found) == ["early", "last", "late", "middle"]
    assert found.index("late") < found.index("middle") < found.index("last")


def test_a_result_goes_after_its_last_use() -> None:
    spec = TensorSpec("F32", (10,))
    hidden = linear("hidden", source(0, "a", spec), written=False)
    other = linear("other", source(0, "b", spec, 40), written=False)
    users = [linear(f"u{i}", source(1, f"u{i}", spec, i), result(hidden)) for i in range(3)]
    users[1] = linear("u1", source(1, "u1", spec, 1), result(hidden), result(other))
    schedule = make_schedule(plan_of(*users, other, hidden))
    freed = {name: work.step.name for work in schedule.work for name in work.frees}
    assert sum(len(work.frees) for work in schedule.work) == len(freed) == 2
    found = order(schedule)
    for made in (hidden, other):
        uses = [found.index(user.name) for user in users if result(made) in user.inputs]
        assert found.index(freed[made.name]) == max(uses)


def test_a_chain_of_many_stages() -> None:
    spec = TensorSpec("F32", (4,))
    steps = [linear("s0", source(0, "x", spec), written=False)]
    for i in range(1, 200):
        steps.append(linear(f"s{i}", result(steps[-1]), written=i == 199))
    assert order(make_schedule(plan_of(*reversed(steps)))) == [f"s{i}" for i in range(200)]


def slerp(name: str, *inputs: Read | Result) -> Step:
    """A step with statistics."""
    return dataclasses.replace(
        linear(name, *inputs), method="slerp", base=0, hyperparameters={"t": 0.5}
    )


def turns(*steps: Step) -> list[str]:
    """The passes of a schedule in order, as 'name kind'."""
    schedule = make_schedule(plan_of(*steps))
    found = [f"{turn.work.step.name} {turn.what.name}" for turn in schedule.turns]
    whole = [f"{work.step.name} {turn.name}" for work in schedule.work for turn in work.passes]
    assert sorted(found) == sorted(whole), "every pass once"
    return found


def test_statistics_come_a_step_ahead() -> None:
    """What follows from them on the host is worked out while the step before is combined."""
    spec = TensorSpec("F32", (10,))
    steps = [slerp(n, source(0, n, spec, i), source(1, n, spec, i)) for i, n in enumerate("abc")]
    plain = linear("d", source(0, "d", spec, 9))
    assert turns(*steps, plain) == [
        *("a sums", "b sums", "a combine", "c sums", "b combine"),
        *("c combine", "d combine"),
    ]


def test_statistics_of_results_wait_for_them() -> None:
    """A step that reads another's result comes after it whole, statistics too."""
    spec = TensorSpec("F32", (10,))
    first = slerp("first", source(0, "x", spec), source(1, "x", spec))
    second = slerp("second", result(first), source(1, "y", spec, 99))
    third = slerp("third", source(0, "z", spec, 200), source(1, "z", spec, 200))
    assert turns(third, second, first) == [
        *("first sums", "third sums", "first combine", "third combine"),
        *("second sums", "second combine"),
    ]


@pytest.mark.parametrize("size", [0, 1, PIECE // 4, PIECE - 1, PIECE, PIECE + 1, 11_534_336])
def test_pieces_cover_a_tensor_once(size: int) -> None:
    """In order, at whole blocks, and with little padding."""
    (work,) = make_schedule(plan_of(pair("x", size))).work
    stops = [0, *(stop for _, stop in work.pieces)]
    assert [start for start, _ in work.pieces] == stops[:-1] and stops[-1] == size
    assert all(start % BLOCK == 0 for start, _ in work.pieces)
    padded = sum(padded_length(stop - start) for start, stop in work.pieces)
    assert padded - size <= max(PIECE // 4, BLOCK)


# Programs


@pytest.fixture
def compiled() -> Iterator[list[str]]:
    """The events of JAX that mean compiling, as they come."""
    events: list[str] = []

    def listen(event: str, duration_secs: float, **rest: str | int) -> None:
        if "compile" in event:
            events.append(event)

    jax.monitoring.register_event_duration_secs_listener(listen)
    yield events
    jax.monitoring.unregister_event_duration_listener(listen)


def test_the_watch_for_compiling_works(compiled: list[str]) -> None:
    jax.jit(lambda x: x * 3.5 + 1)(1.25).block_until_ready()
    assert compiled


def test_a_llama_needs_one_program(tmp_path: Path, compiled: list[str]) -> None:
    """Twenty-two layers, five shapes, a gradient and filters: the numbers are traced."""
    for name in "ab":
        hollow_llama(tmp_path / name, 22, 2048, 5632)
    recipe = tmp_path / "x.yml"
    recipe.write_text(
        f"merge_method: slerp\nbase_model: {tmp_path / 'a'}\n"
        f"models:\n- model: {tmp_path / 'a'}\n- model: {tmp_path / 'b'}\n"
        "parameters:\n  t:\n  - {filter: mlp, value: [0, 0.3, 1]}\n  - value: 0.5\n"
    )
    plan = jmerge.plan(recipe)
    assert len({step.hyperparameters["t"] for step in plan.steps}) > 20
    assert len(plan.outputs) == 22 * 9 + 3
    assert len(make_schedule(plan).kernels) == 1
    assert compiled == []


def test_programs_are_counted_by_what_differs() -> None:
    spec = TensorSpec("F32", (10,))
    same = [pair("a", 10), pair("b", 1 << 22), pair("c", 0)]
    wide = pair("d", 10, "F32")
    narrow = linear("e", source(0, "e", spec), source(1, "e", spec), spec=TensorSpec("BF16", (10,)))
    assert len(make_schedule(plan_of(*same)).kernels) == 1
    assert len(make_schedule(plan_of(*same, wide)).kernels) == 2
    assert len(make_schedule(plan_of(*same, wide, narrow)).kernels) == 3


def bytes_read() -> int:
    """What this process has read of files, where the system says so."""
    counts = Path("/proc/self/io")
    return int(counts.read_text().split()[1]) if counts.exists() else 0


def test_seven_billion_are_planned_at_once(
    tmp_path: Path, compiled: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    """Two models of 13 GB, all holes, of which nothing but the headers is read."""
    for name in "ab":
        hollow_llama(tmp_path / name, 32, 4096, 11008)
    recipe = tmp_path / "x.yml"
    models = "".join(f"- model: {tmp_path / n}\n  parameters: {{weight: 1}}\n" for n in "ab")
    recipe.write_text(f"merge_method: linear\nmodels:\n{models}")
    before = bytes_read()
    plan = jmerge.plan(recipe)
    schedule = make_schedule(plan)
    sums = totals(plan, schedule, need_of(schedule).total)
    assert bytes_read() - before < 50 * MB
    assert sums["tensors"] == 32 * 9 + 3 and sums["kernels"] == 1
    assert sums["write_bytes"] == 13_476_831_232
    assert sums["read_bytes"] == 2 * sums["write_bytes"]
    assert sums["peak_bytes"] < 400 * MB
    assert cli.main(["plan", str(recipe)]) == 0
    assert "13.48 GB" in capsys.readouterr().out
    assert sum("backend_compile" in event for event in compiled) <= 2, "to know what it allocates"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b", "x.yml"]
