"""The plan in words: letters for models, sizes for people, one row a tensor."""

from __future__ import annotations

from pathlib import Path

import pytest

import jmerge
from jmerge.engine.schedule import make_schedule
from jmerge.report.show import letter, plan_text, size
from jmerge.testing.tiny import llama_tensors, write_llama


@pytest.mark.parametrize(
    ("number", "text"),
    [(0, "A"), (1, "B"), (25, "Z"), (26, "AA"), (51, "AZ"), (52, "BA"), (701, "ZZ"), (702, "AAA")],
)
def test_letters(number: int, text: str) -> None:
    assert letter(number) == text


@pytest.mark.parametrize(
    ("nbytes", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1.00 kB"),
        (1_234_567, "1.23 MB"),
        (13_476_831_232, "13.48 GB"),
        (2 * 10**12, "2.00 TB"),
        (5 * 10**15, "5000.00 TB"),
    ],
)
def test_sizes(nbytes: int, text: str) -> None:
    assert size(nbytes) == text


def test_rows_name_result_method_sources_and_numbers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for seed, name in enumerate("abc"):
        write_llama(tmp_path / name, seed)
    (tmp_path / "x.yml").write_text(
        "merge_method: task_arithmetic\nbase_model: a\nparameters: {lambda: 0.5}\nmodels:\n"
        "- model: b\n  parameters: {weight: [0, 1]}\n- model: c\n  parameters: {weight: -1}\n"
    )
    plan = jmerge.plan("x.yml")
    lines = plan_text(plan, make_schedule(plan), 10**6).splitlines()
    rows = {line.split()[0]: line for line in lines[1 : 1 + len(llama_tensors(0))]}
    assert list(rows) == list(plan.outputs)
    row = rows["model.layers.1.mlp.up_proj.weight"]
    assert "F32[12, 8]" in row and "task_arithmetic" in row
    assert "B C [A]" in row, "the base in brackets"
    assert "weight=[1 -1]" in row and "lambda=0.5" in row and "normalize=false" in row
    assert lines[0].split() == ["tensor", "result", "method", "sources", "numbers"]
    assert not any(line != line.rstrip() for line in lines)


def test_files_that_stay_behind_are_named_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for seed, name in enumerate("ab"):
        write_llama(tmp_path / name, seed)
    (tmp_path / "a" / "runs").mkdir()
    for name in ("optimizer.pt", "x.png", *(f"runs/{i}.tfevents" for i in range(6))):
        (tmp_path / "a" / name).write_bytes(b"x")
    (tmp_path / "x.yml").write_text(
        "merge_method: linear\nparameters: {weight: 1}\nmodels:\n- model: a\n- model: b\n"
    )
    plan = jmerge.plan("x.yml")
    (line,) = [
        line
        for line in plan_text(plan, make_schedule(plan), 10**6).splitlines()
        if "stay behind" in line
    ]
    assert line == (
        "files of a that stay behind: optimizer.pt, runs/ with 6 files (state or log of a training "
        "run); x.png (a picture or document for people)"
    )
