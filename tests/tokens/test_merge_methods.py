"""Gathered tables in the engine: every method gives the bytes it gives for tables that were permuted before, whatever
the pieces, devices, hosts and budget, and after an interruption."""

from __future__ import annotations

import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
import ml_dtypes
import numpy as np
import pytest
import tokenkit as kit
from mergeplace import EMBED, HEAD
from permute import permuted

import jmerge
from jmerge.ckpt.open import open_checkpoint
from jmerge.engine.events import Wrote
from jmerge.engine.memory import fit
from jmerge.engine.run import Arrays, run
from jmerge.engine.schedule import LENGTHS, make_schedule
from jmerge.errors import RunError
from jmerge.methods import REGISTRY
from jmerge.plan.inputs import Gathered
from jmerge.plan.steps import Plan
from jmerge.report.methods import minimal_recipe
from jmerge.testing.tiny import llama_config, llama_tensors, write_checkpoint

HIDDEN = 24  # so that pieces end within rows
SIZES: dict[str, Any] = {"layers": 1, "hidden": HIDDEN, "inner": 12}
TOKENS = 700
NAMES = ("base", "a", "b", "c")
TAIL = "tokenizer: {source: union, pad_to_multiple_of: 64, tokens: {w7: {force: true}}}\n"
QUICK = ("linear", "ties", "nuslerp")


def words_of(number: int) -> list[str]:
    """Of TOKENS tokens most are shared; each model but the base has some in other places, and lacks some."""
    rng = np.random.default_rng(number)
    shared = [f"w{i}" for i in range(TOKENS)]
    own = [f"m{number}x{i}" for i in range(20)] + [f"all{i}" for i in range(30)]
    if not number:
        return shared
    kept = [word for word in shared if rng.random() < 0.97]
    return kept[:300] + own + [kept[i] for i in 300 + rng.permutation(len(kept) - 300)]


def write(folder: Path, name: str, tensors: dict[str, np.ndarray], words: list[str]) -> None:
    vocab = tensors[EMBED].shape[0]
    write_checkpoint(folder / name, tensors, llama_config(vocab=vocab, **SIZES))
    kit.folder(folder / name, tokenizer__json=kit.words(*words))


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base and three models with tables in float32, one in bfloat16; biases too."""
    place = tmp_path_factory.mktemp("models")
    for number, name in enumerate(NAMES):
        words = words_of(number)
        tensors = llama_tensors(number, vocab=len(words), **SIZES)
        rng = np.random.default_rng(number)
        tensors["lm_head.bias"] = rng.standard_normal(len(words)).astype(np.float32)
        if name == "c":
            tensors[EMBED] = tensors[EMBED].astype(ml_dtypes.bfloat16)
        write(place, name, tensors, words)
    return place


def write_moved(plan: Plan, folder: Path) -> None:
    """The models of a plan with their tables as the methods are to see them, of one vocabulary."""
    (rows,) = plan.maps
    opened = [open_checkpoint(model.path) for model in plan.models]
    assert rows.holders == tuple(range(len(opened)))
    words = [f"v{i}" for i in range(rows.rows)]
    tables = {
        name: permuted({i: np.asarray(each[name]) for i, each in enumerate(opened)}, rows)
        for name in (EMBED, HEAD, "lm_head.bias")
    }
    for number, each in enumerate(opened):
        tensors = {tensor: np.asarray(each[tensor]) for tensor in each.index}
        tensors |= {tensor: made[number] for tensor, made in tables.items()}
        write(folder, Path(each.path).name, tensors, words)


def recipe_of(method: str, models: Path, folder: Path, tail: str = TAIL) -> Path:
    """A recipe over all models, or as many as the method takes."""
    low, high = REGISTRY[method].counts
    names = NAMES[1 : 1 + (3 if high is None else high)]
    if method == "linear":
        names = NAMES  # its base is one of the models
    text = minimal_recipe(REGISTRY[method], [str(models / n) for n in names], str(models / "base"))
    path = folder / f"{method}.yml"
    text = re.sub("(?m)^dtype:.*$", "dtype: float32", text)
    assert "dtype: float32" in text
    path.write_text(f"{text.rstrip()}\n{tail}")
    return path


def tensors_of(plan: Any, piece: int = LENGTHS[-1], **schedule: Any) -> dict[str, bytes]:
    sink = Arrays(plan.outputs)
    run(plan, make_schedule(plan, piece, **schedule), sink)
    return {name: sink[name].tobytes() for name in plan.outputs}


@pytest.mark.parametrize(
    "method",
    [
        pytest.param(name, marks=() if name in QUICK else pytest.mark.slow)
        for name in sorted(REGISTRY)
    ],
)
def test_methods_see_permuted_tables(method: str, models: Path, tmp_path: Path) -> None:
    """Statistics, samples, rows, pieces: bit for bit as for checkpoints that have these tables."""
    plan = jmerge.plan(recipe_of(method, models, tmp_path))
    gathered = {step.tensor for step in plan.steps for i in step.inputs if isinstance(i, Gathered)}
    assert gathered == {EMBED, HEAD, "lm_head.bias"}
    moved = tmp_path / "moved"
    write_moved(plan, moved)
    wanted = tensors_of(jmerge.plan(recipe_of(method, moved, moved, tail="")))
    assert tensors_of(plan) == wanted
    assert tensors_of(plan, LENGTHS[0], candidates=1 << 12) == wanted


def test_devices(models: Path, tmp_path: Path) -> None:
    """Pieces of a table go to several in turns."""
    plan = jmerge.plan(recipe_of("ties", models, tmp_path))
    devices = jax.local_devices()[:1] * 3
    sink = Arrays(plan.outputs)
    run(plan, make_schedule(plan, LENGTHS[0], devices=3), sink, devices=devices)
    assert {name: sink[name].tobytes() for name in plan.outputs} == tensors_of(plan)


def weights(folder: Path) -> list[bytes]:
    return [path.read_bytes() for path in sorted(folder.glob("*.safetensors"))]


def test_after_an_interruption(
    models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is left of a table is made like the rest; rows of no token too."""
    recipe = recipe_of("linear", models, tmp_path)
    jmerge.merge(recipe, tmp_path / "whole")
    monkeypatch.setattr(
        "jmerge.engine.attempts.fit", lambda plan, *_: make_schedule(plan, LENGTHS[0])
    )
    seen = []

    def stop(event: Any) -> None:
        if isinstance(event, Wrote) and event.block.tensor == EMBED:
            seen.append(event)
            if len(seen) == 2:
                raise RunError("the machine failed")

    with pytest.raises(RunError, match="the machine failed"):
        jmerge.merge(recipe, tmp_path / "out", listeners=(stop,))
    merged = jmerge.merge(recipe, tmp_path / "out")
    assert merged.resumed_bytes
    assert weights(tmp_path / "out") == weights(tmp_path / "whole")
    again = jmerge.merge(recipe, tmp_path / "out")
    assert again.up_to_date


def test_budgets(models: Path, tmp_path: Path) -> None:
    """The least budget does, and changes no bit."""
    plan = jmerge.plan(recipe_of("ties", models, tmp_path))
    sink = Arrays(plan.outputs)
    run(plan, fit(plan, 80_000_000), sink)
    assert {name: sink[name].tobytes() for name in plan.outputs} == tensors_of(plan)


def test_the_plan_is_the_same_text_and_has_maps_once(models: Path, tmp_path: Path) -> None:
    recipe = recipe_of("linear", models, tmp_path)
    one, two = jmerge.plan(recipe), jmerge.plan(recipe)
    assert one == two and one.to_json() == two.to_json() and one.sha256() == two.sha256()
    assert len(one.maps) == 1
    other = recipe.read_text().replace("w7", "w8")
    recipe.write_text(other)
    changed = jmerge.plan(recipe)
    assert changed != one and changed.maps != one.maps


# Hosts


def test_hosts(models: Path, tmp_path: Path) -> None:
    """Two that share a merge make the bytes of one."""
    import socket

    from jmerge.engine.hosts import Hosts

    recipe = recipe_of("linear", models, tmp_path)
    alone = jmerge.merge(recipe, tmp_path / "alone", shard_size=40_000)
    with socket.create_server(("127.0.0.1", 0)) as server:
        far = socket.create_connection(server.getsockname())
        near = server.accept()[0]
    group = [Hosts(0, 2, {1: near}), Hosts(1, 2, {0: far})]

    def one(hosts: Hosts) -> Any:
        return jmerge.merge(recipe, tmp_path / "out", shard_size=40_000, hosts=hosts)

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(one, group))
        list(pool.map(Hosts.close, group))
    found = weights(tmp_path / "out")
    assert len(found) > 2 and found == weights(alone.folder)
    name = "jmerge.tokens.jsonl"
    assert (tmp_path / "out" / name).read_bytes() == (alone.folder / name).read_bytes()
