"""What a run allocates: what is foretold of headers, what fits a budget, and what processes really take."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from headers import linear, pair, plan_of, result, source
from said import uncoded
from tokenizers import Tokenizer
from tokenizers.models import WordLevel

import jmerge
from jmerge import cli
from jmerge.dtypes import TensorSpec
from jmerge.engine.memory import LEAST_BUDGET, fit, need_of
from jmerge.engine.run import Arrays, run
from jmerge.engine.schedule import LENGTHS, PIECE, make_schedule
from jmerge.engine.select import MOST_COLLECTED
from jmerge.engine.task import KeptMasks
from jmerge.methods import REGISTRY
from jmerge.plan.steps import Plan
from jmerge.report.methods import minimal_recipe
from jmerge.testing.tiny import write_checkpoint

MB = 10**6


def peak(plan: Plan) -> int:
    """The bytes foretold of a plan."""
    return need_of(make_schedule(plan)).total


# Foretold


def test_memory_does_not_grow_with_tensors_or_their_number() -> None:
    big = peak(plan_of(pair("t", 1 << 24)))
    assert 0 < big < 400 * MB
    assert peak(plan_of(pair("t", 1 << 34))) == big
    many = plan_of(*(pair(f"t{i}", 1 << 30, start=i) for i in range(500)))
    assert peak(many) == big


def test_memory_grows_with_what_is_under_way() -> None:
    two = peak(plan_of(pair("t", 1 << 24)))
    wide = peak(plan_of(pair("t", 1 << 24, "F32")))
    spec = TensorSpec("BF16", (1 << 24,))
    ten = plan_of(linear("t", *(source(i, "t", spec) for i in range(10))))
    assert two < wide and two < peak(ten)
    assert peak(plan_of(pair("t", 100))) <= two


def test_memory_grows_with_what_stays_together() -> None:
    """A tensor that a method needs whole is under way whole, however long."""
    spec = TensorSpec("F32", (3 * PIECE, 2))
    step = dataclasses.replace(
        pair("t", 0),
        spec=spec,
        inputs=(source(0, "t", spec), source(1, "t", spec)),
        method="nuslerp",
        hyperparameters={"weight": (0.5, 0.5), "nuslerp_flatten": False, "nuslerp_row_wise": False},
    )
    rows = peak(plan_of(step))
    together = {**step.hyperparameters, "nuslerp_row_wise": True}
    whole = peak(plan_of(dataclasses.replace(step, hyperparameters=together)))
    assert rows < 64 * 4 * PIECE, "rows are cut into pieces"
    # two inputs in each slot, a result in each and one more, and what the programs take
    assert whole > (4 * 2 + 5 + 1) * spec.nbytes


def test_memory_counts_results_until_their_last_use() -> None:
    spec = TensorSpec("F32", (1 << 24,))  # 67 MB
    plain = plan_of(linear("a", source(0, "a", spec), source(1, "a", spec)))
    hidden = linear("hidden", source(0, "a", spec), written=False)
    one = plan_of(hidden, linear("a", source(1, "a", spec), result(hidden)))
    assert 0.9 * spec.nbytes < peak(one) - peak(plain) < 1.2 * spec.nbytes
    chain = [linear("s0", source(0, "a", spec), source(1, "a", spec), written=False)]
    for i in range(1, 9):
        chain.append(linear(f"s{i}", result(chain[-1]), source(1, "a", spec, i), written=False))
    chain.append(linear("a", result(chain[-1]), source(1, "a", spec)))
    more = peak(plan_of(*chain)) - peak(plain)
    assert 1.8 * spec.nbytes < more < 2.2 * spec.nbytes, "two links at a time, of nine"
    held = [linear(f"h{i}", source(0, f"h{i}", spec, i), written=False) for i in range(4)]
    fan = plan_of(*held, linear("a", *map(result, held)))
    assert peak(fan) - peak(plain) > 3.8 * spec.nbytes


# Within a budget


def test_a_budget_shortens_pieces() -> None:
    plan = plan_of(linear("t", *(source(i, "t", TensorSpec("F32", (1 << 30,))) for i in range(3))))
    free = make_schedule(plan)
    assert fit(plan, None) == fit(plan, 10**9) == free
    small = fit(plan, LEAST_BUDGET)
    assert need_of(small).total <= LEAST_BUDGET < need_of(free).total
    assert small.work[0].padded(0) == LENGTHS[2] < PIECE


def test_a_budget_limits_what_searches_hold() -> None:
    spec = TensorSpec("BF16", (1 << 30,))
    hyperparameters = {"weight": (1.0,) * 8, "density": (0.3,) * 8, "lambda": 1.0}
    step = dataclasses.replace(
        linear("t", *(source(i, "t", spec) for i in range(9))),
        method="ties",
        base=0,
        hyperparameters={**hyperparameters, "normalize": True, "rescale": False},
    )
    plan = plan_of(step)
    assert need_of(make_schedule(plan)).total > 10**9
    for budget in (64 * MB, 128 * MB, 500 * MB):
        assert need_of(fit(plan, budget)).total <= budget


def test_what_cannot_be_cut_is_refused_with_what_would_do() -> None:
    """Rows of 64 M elements of which nothing may be cut."""
    spec = TensorSpec("F32", (4, 1 << 26))
    step = dataclasses.replace(
        pair("wide", 0),
        spec=spec,
        inputs=(source(0, "wide", spec), source(1, "wide", spec)),
        method="nuslerp",
        hyperparameters={"weight": (0.5, 0.5), "nuslerp_flatten": False, "nuslerp_row_wise": False},
    )
    plan = plan_of(pair("t", 100), step)
    with pytest.raises(
        jmerge.PlanError,
        match="^memory: 100 MB is too small: wide .* the smallest limit that works is",
    ) as error:
        fit(plan, 100 * MB)
    least = int(uncoded(str(error.value)).rsplit("works is ")[-1].removesuffix(" MB")) * MB
    assert need_of(fit(plan, least)).total <= least
    with pytest.raises(jmerge.PlanError):
        fit(plan, least - 2 * MB)


def test_budgets_are_sizes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_checkpoint(tmp_path / "a", {"x": np.ones(10, np.float32)})
    (tmp_path / "x.yml").write_text(
        f"merge_method: linear\nmodels:\n- model: {tmp_path / 'a'}\n  parameters: {{weight: 1}}\n"
    )
    assert cli.main(["plan", str(tmp_path / "x.yml"), "--memory", "10MB"]) == 2
    assert "--memory: expected at least 64 MB, found 10 MB" in capsys.readouterr().err
    assert cli.main(["plan", str(tmp_path / "x.yml"), "--memory", "lots"]) == 2
    assert "--memory: expected a size such as 5GB" in capsys.readouterr().err
    assert cli.main(["plan", str(tmp_path / "x.yml"), "--memory", "64MB", "--json"]) == 0
    sums = json.loads(capsys.readouterr().out)["totals"]
    assert 0 < sums["peak_bytes"] < 64 * MB


@pytest.mark.parametrize(
    "method", ["linear", "ties", "slerp", "arcee_fusion", "dare_ties", "della"]
)
def test_a_budget_changes_no_bit(method: str, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for model in ("base", "a", "b", "c"):
        values = rng.standard_normal((3, 200_001), np.float32)
        write_checkpoint(tmp_path / model, {"x": values})
    path = recipe_of(method, tmp_path)
    plan = jmerge.plan(path)
    found = []
    # of masks some are kept, none, and all
    for piece, candidates in ((LENGTHS[0], 1 << 12), (PIECE, 1 << 12), (PIECE, MOST_COLLECTED)):
        sink = Arrays(plan.outputs)
        run(plan, make_schedule(plan, piece, candidates), sink)
        found.append(sink["x"].tobytes())
    assert found[0] == found[1] == found[2]


def test_masks_are_kept_as_long_as_there_is_room() -> None:
    kept = KeptMasks(7)
    first, second = (list(np.random.default_rng(i).random((2, 3, 5)) < 0.5) for i in (0, 1))
    kept.put(0, first)  # of which each takes two bytes
    kept.put(1, second)
    assert kept.take(1, again=True) is None
    for again in (True, False):
        found = kept.take(0, again=again)
        assert found is not None
        np.testing.assert_array_equal(found, first)
    assert kept.take(0, again=True) is None


# Taken


def recipe_of(method: str, folder: Path, names: Sequence[str] = "abc") -> Path:
    """A recipe with a base and these models of a folder, as far as the method wants them."""
    models = [str(folder / name) for name in names]
    path = folder / f"{method}.yml"
    path.write_text(minimal_recipe(REGISTRY[method], models, str(folder / "base")))
    return path


MEASURE = """
import gc, sys
from jmerge.process import prepare
prepare()
import ctypes
from jmerge.engine.memory import fit, need_of
from jmerge.engine.run import run
import jmerge

class Nowhere:
    def write(self, tensor, start, data): pass

def status(key):
    lines = open("/proc/self/status").read().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith(key))

plan = jmerge.plan(sys.argv[1])
schedule = fit(plan, int(sys.argv[2]))
promised = need_of(schedule).total
first = jmerge.plan(sys.argv[3])
run(first, fit(first, int(sys.argv[2])), Nowhere())  # starts threads and compiles
gc.collect()
ctypes.CDLL(None).malloc_trim(0)
open("/proc/self/clear_refs", "w").write("5")
before = status("VmRSS")
run(plan, schedule, Nowhere())
print(status("VmHWM") - before, promised)
"""


def taken(recipe: Path, first: Path, budget: int) -> tuple[int, int]:
    """Bytes by which a process grew at most while it merged, and what was foretold; it had merged another before.

    That starts threads and compiles programs, which are the process and not the run.
    """
    command = [sys.executable, "-c", MEASURE, str(recipe), str(budget), str(first)]
    done = subprocess.run(command, capture_output=True, timeout=300)
    assert done.returncode == 0, done.stderr.decode()
    grown, promised = map(int, done.stdout.split())
    return grown, promised


def write_models(folder: Path, names: Any, tensors: int, rows: int) -> None:
    """Random bf16 models of so many tensors of 8 MB for 1000 rows."""
    rng = np.random.default_rng(1)
    for name in names:
        drawn = {
            f"t{i:03}": (rng.integers(0, 1 << 16, (rows, 4096), np.uint16) & 0xBFFF).view(
                "bfloat16"
            )
            for i in range(tensors)
        }
        write_checkpoint(folder / name, drawn)


@pytest.fixture(scope="module")
def random_models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of models of 100 MB."""
    place = tmp_path_factory.mktemp("models")
    write_models(place, ("base", "a", "b", "c"), 3, 4000)
    return place


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize(
    "method",
    [
        pytest.param(name, marks=() if name in ("linear", "ties") else pytest.mark.slow)
        for name in sorted(REGISTRY)
    ],
)
def test_no_more_is_taken_than_foretold(method: str, random_models: Path) -> None:
    recipe = recipe_of(method, random_models)
    grown, promised = taken(recipe, recipe, 128 * MB)
    assert promised <= 128 * MB
    assert 0.2 * promised < grown <= promised + 4 * MB


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("method", ["linear", "ties", "slerp"])
def test_of_small_tensors_too(method: str, tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    for name in ("base", "a", "b", "c"):
        drawn = {f"n{i}": rng.standard_normal(1 << 14, np.float32) for i in range(4000)}
        write_checkpoint(tmp_path / name, drawn)
    recipe = recipe_of(method, tmp_path)
    grown, promised = taken(recipe, recipe, 128 * MB)
    assert grown <= promised + 4 * MB


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("method", ["linear", "ties"])
def test_memory_is_flat(method: str, tmp_path: Path) -> None:
    """Twice the model, or eight inputs for two: less than 32 MB more within a budget of 128 MB."""
    for size, tensors, rows in (("small", 1, 8), ("half", 8, 8192), ("whole", 16, 8192)):
        write_models(tmp_path / size, ("base", "a", "b"), tensors, rows)  # half is 537 MB

    def grown(size: str, models: int) -> int:
        recipe, first = (
            recipe_of(method, tmp_path / each, ["a", "b"] * (models // 2))
            for each in (size, "small")
        )
        return taken(recipe, first, 128 * MB)[0]

    found = [grown("half", 2), grown("whole", 2), grown("half", 8)]
    assert max(found) - found[0] < 32 * MB, found


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("method", ["linear", "ties"])
def test_token_tables_larger_than_the_budget(method: str, tmp_path: Path) -> None:
    """A union of vocabularies in other orders, with means and padding: a table of 100 MB, 200 MB as it is merged,
    takes less than 96 MB, and about as much as one of half its size."""

    def write(size: str, tokens: int) -> Path:
        for number, name in enumerate(("base", "a", "b", "c")):
            rng = np.random.default_rng(number)
            order = rng.permutation(tokens) if number else np.arange(tokens)
            words = [f"w{i}" for i in order[: tokens - 100 * number]]
            words += [f"x{i}" for i in range(tokens // 4)] if number else []
            words += [f"m{number}x{i}" for i in range(tokens // 4)]
            table = (rng.integers(0, 1 << 16, (len(words), 2048), np.uint16) & 0xBFFF).view(
                "bfloat16"
            )
            folder = write_checkpoint(
                tmp_path / size / name,
                {"model.embed_tokens.weight": table},
                {"vocab_size": len(words)},
            )
            made = Tokenizer(WordLevel({w: i for i, w in enumerate(words)}, unk_token="w0"))
            made.save(str(folder / "tokenizer.json"))
        path = recipe_of(method, tmp_path / size)
        tail = "tokenizer: {source: union, pad_to_multiple_of: 4096}\n"
        path.write_text(f"{path.read_text().rstrip()}\n{tail}")
        return path

    small, half, whole = write("small", 100), write("half", 6_000), write("whole", 12_000)
    plan = jmerge.plan(whole)
    assert plan.steps[0].spec.nbytes > 96 * MB and len(plan.maps) == 1
    found = []
    for recipe in (half, whole):
        grown, promised = taken(recipe, small, 96 * MB)
        assert grown <= promised + 4 * MB and promised <= 96 * MB
        found.append(grown)
    assert found[1] - found[0] < 16 * MB, found
