"""Merges of models in two forms: the bytes of a merge in which all have the donor's, however the work is cut."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import layoutkit
import numpy as np
import pytest
from hostskit import Running
from layoutkit import ROWS
from said import Said

import jmerge
from jmerge.ckpt.writer import LEDGER
from jmerge.engine import attempts
from jmerge.engine.events import Resumed, Wrote
from jmerge.engine.schedule import LENGTHS, make_schedule
from jmerge.errors import NonFiniteError, RunError

METHODS = {
    "linear": "models:\n- model: {0}\n- model: {1}\nparameters: {{weight: 0.3}}",
    "slerp": "base_model: {0}\nmodels:\n- model: {0}\n- model: {1}\nparameters: {{t: 0.3}}",
    "ties": "base_model: {0}\nmodels:\n- model: {0}\n- model: {1}\n"
    "parameters: {{weight: 0.7, density: 0.4}}",
    "passthrough": "slices:\n- sources: [{{model: {0}, layer_range: [0, 2]}}]\n"
    "- sources: [{{model: {1}, layer_range: [1, 3]}}]",
    "dare_ties": "base_model: {0}\nmodels:\n- model: {0}\n- model: {1}\n"
    "parameters: {{weight: 0.7, density: 0.4}}",
    "pcb": "base_model: {0}\nmodels:\n- model: {0}\n- model: {1}\n"
    "parameters: {{weight: 0.7, rho: 0.4}}",
}
FORMS = {"apart": "together", "together": "apart"}


def write_models(folder: Path, name: str) -> None:
    """Models 0 and 1, each in both forms."""
    for seed in range(2):
        for form, stored in zip(FORMS, ROWS[name](seed), strict=True):
            stored.write(folder / f"{form}{seed}")


def merge(folder: Path, method: str, first: str, second: str, out: str, **how: Any) -> str:
    """The digest of the weights of a merge."""
    models = METHODS[method].format(folder / first, folder / second)
    (folder / "x.yml").write_text(f"merge_method: {method}\n{models}\n")
    jmerge.merge(folder / "x.yml", folder / out, seed=5, **how)
    return hashlib.sha256((folder / out / "model.safetensors").read_bytes()).hexdigest()


@pytest.fixture
def large(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tensors of several pieces."""
    monkeypatch.setattr(layoutkit, "HIDDEN", 96)
    monkeypatch.setattr(layoutkit, "INNER", 80)


def both_ways(folder: Path, method: str) -> None:
    for form, other in FORMS.items():
        want = merge(folder, method, f"{form}0", f"{form}1", f"{method}-{form}")
        assert (
            merge(folder, method, f"{form}0", f"{other}1", f"{method}-{other}-into-{form}") == want
        )


@pytest.mark.parametrize("name", ["mixtral", "phi3"])
def test_the_bytes_of_one_form(name: str, tmp_path: Path) -> None:
    write_models(tmp_path, name)
    both_ways(tmp_path, "linear")
    both_ways(tmp_path, "passthrough")


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", ROWS)
def test_the_bytes_of_one_form_by_any_method(
    name: str, method: str, large: None, tmp_path: Path
) -> None:
    write_models(tmp_path, name)
    both_ways(tmp_path, method)


@pytest.mark.parametrize("method", ["linear", pytest.param("ties", marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", ["transposed_experts", "falcon"])
def test_the_bytes_of_any_pieces(
    name: str, method: str, large: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of pieces of any length, within any budget."""
    write_models(tmp_path, name)
    models = "apart0", "together1"
    want = merge(tmp_path, method, "apart0", "apart1", "want")
    assert merge(tmp_path, method, *models, "whole") == want
    assert merge(tmp_path, method, *models, "least", memory="70MB") == want
    cut_short(monkeypatch)
    assert merge(tmp_path, method, *models, "short") == want
    again = merge(tmp_path, method, "together0", "together1", "want2")
    assert merge(tmp_path, method, "together0", "apart1", "short2") == again


def cut_short(monkeypatch: pytest.MonkeyPatch) -> None:
    """The shortest pieces."""

    def fit(plan: Any, budget: Any, devices: int, longest: int) -> Any:
        return make_schedule(plan, LENGTHS[0], 1 << 12, devices)

    monkeypatch.setattr(attempts, "fit", fit)


@pytest.mark.parametrize("after", [1, 9])
def test_the_bytes_after_an_interruption(
    after: int, large: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_models(tmp_path, "two_packed")
    cut_short(monkeypatch)
    want = merge(tmp_path, "linear", "together0", "together1", "want")
    wrote: list[Wrote] = []

    def stop(event: Any) -> None:
        if isinstance(event, Wrote):
            wrote.append(event)
        if len(wrote) == after:
            raise RunError("the machine failed")

    with pytest.raises(RunError, match="the machine failed"):
        merge(tmp_path, "linear", "together0", "apart1", "out", listeners=[stop])
    resumed: list[Any] = []
    assert merge(tmp_path, "linear", "together0", "apart1", "out", listeners=[resumed.append]) == want  # fmt: skip
    assert any(isinstance(event, Resumed) and event.kept_bytes for event in resumed)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["mixtral", "transposed_experts"])
def test_the_bytes_of_two_hosts_of_two_devices(name: str, large: None, tmp_path: Path) -> None:
    write_models(tmp_path, name)
    want = merge(tmp_path, "ties", "apart0", "together1", "want")
    words = [
        str(tmp_path / "x.yml"),
        str(tmp_path / "out"),
        "--seed=5",
        "--shard_size=0",
        "--devices=2",
    ]
    ended = Running(words, 2, devices=2, folder=tmp_path).end()
    assert [each.code for each in ended.values()] == [0, 0], ended
    weights = (tmp_path / "out" / "model.safetensors").read_bytes()
    assert hashlib.sha256(weights).hexdigest() == want


def test_every_input_tensor_is_in_the_ledger(tmp_path: Path) -> None:
    """With which part of it is where; the parts make up the tensor, as NumPy says."""
    write_models(tmp_path, "qwen3_moe")
    merge(tmp_path, "linear", "together0", "apart1", "out")
    ledger = json.loads((tmp_path / "out" / LEDGER).read_text())
    own = ROWS["qwen3_moe"](1)
    used = set()
    for name, entry in ledger["tensors"].items():
        source = entry["sources"][1]
        assert source["tensor"] == name
        if "parts" not in source:
            used.add(name)
            continue
        made = np.zeros(source["view"], np.float32)
        for part in source["parts"]:
            used.add(part["tensor"])
            flat = own.apart.tensors[part["tensor"]].reshape(-1)
            box = tuple(slice(*axis) for axis in part["box"])
            steps = [stride * 4 for stride in part["strides"]]
            made[box] = np.lib.stride_tricks.as_strided(
                flat[part["start"] :], made[box].shape, steps
            )
        np.testing.assert_array_equal(
            made.reshape(entry["shape"]), own.together.tensors[name], err_msg=name
        )
    assert used == own.apart.tensors.keys() and ledger["unused"] == []
    (warning,) = ledger["warnings"]
    assert "experts one by one" in warning and "packed experts" in warning


def test_the_plan_in_words(tmp_path: Path) -> None:
    write_models(tmp_path, "qwen3_moe")
    text = METHODS["linear"].format(tmp_path / "together0", tmp_path / "apart1")
    (tmp_path / "x.yml").write_text(f"merge_method: linear\n{text}\n")
    said = Said("plan", str(tmp_path / "x.yml"))
    assert said.code == 0 and len(said.warnings) == 1
    lines = said.out.splitlines()
    (at,) = [i for i, line in enumerate(lines) if "layers.{0..2}.mlp.experts.down" in line]
    heading = next(line for line in reversed(lines[:at]) if not line.startswith(" "))
    assert "B+" in heading.split()
    assert "A+ put together from tensors that the model stores differently" in said.out
    assert Said("inspect", str(tmp_path / "apart1")).code == 0


def test_a_nan_is_told_with_where_it_may_be(tmp_path: Path) -> None:
    for seed in range(2):
        row = ROWS["qwen3_moe"](seed)
        if seed:
            row.apart.tensors["model.layers.1.mlp.experts.2.up_proj.weight"][3, 4] = np.nan
        row.apart.write(tmp_path / f"apart{seed}")
        row.together.write(tmp_path / f"together{seed}")
    with pytest.raises(NonFiniteError) as error:
        merge(tmp_path, "linear", "together0", "apart1", "out")
    told = str(error.value).replace(f"{tmp_path}/", "")
    name = "model.layers.1.mlp.experts.gate_up_proj"
    assert f"1 elements of '{name}' in apart1" in told
    assert "made of model.layers.1.mlp.experts.0.gate_proj.weight and others" in told
