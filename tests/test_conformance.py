"""MergeKit's own results: every stored case whose method is here, by value.

The rule is that of `data/conformance/check.py`: float32 to 64 units in the last place (reductions
are summed in another order), bf16 and f16 to 2. Cases with `.error` must be refused and leave
nothing behind.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml
from goldens import CONFORMANCE

import jmerge
from jmerge import cli
from jmerge.ckpt.open import Checkpoint, open_checkpoint
from jmerge.testing.close import assert_close, assert_same_bytes

ULP = {"F32": 64, "BF16": 2, "F16": 2}


def method(case: Path) -> str:
    found = re.search(r"^merge_method:\s*(\S+)", case.read_text(), re.MULTILINE)
    assert found is not None
    return found[1]


ALL = sorted((CONFORMANCE / "cases").glob("*.yml"))
CASES = [
    case for case in ALL if case.stem.startswith("e_") or method(case) in jmerge.methods.REGISTRY
]
REFUSED = [case for case in CASES if (CONFORMANCE / "golden" / f"{case.stem}.error").exists()]
MADE = [case for case in CASES if case not in REFUSED]
THROUGH_THE_PROGRAM = ("linear_bf16", "slices_offset", "e_slerp_three")


def name(case: Path) -> str:
    return case.stem


def write_recipe(case: Path, folder: Path) -> Path:
    """The recipe of a case with the place of its models filled in."""
    path = folder / "x.yml"
    path.write_text(case.read_text().replace("{M}", str((CONFORMANCE / "models").resolve())))
    return path


def golden(case: Path, folder: Path) -> Checkpoint:
    """What MergeKit made of a case."""
    (folder / "golden").mkdir(exist_ok=True)
    link = folder / "golden" / "model.safetensors"
    link.symlink_to((CONFORMANCE / "golden" / f"{case.stem}.safetensors").resolve())
    return open_checkpoint(link.parent)


def assert_conforms(found: Checkpoint, wanted: Checkpoint) -> None:
    """Same names, dtypes and shapes, and values within the rule."""
    assert {key: entry.spec for key, entry in found.index.items()} == {
        key: entry.spec for key, entry in wanted.index.items()
    }
    for key in wanted:
        kind = wanted.index[key].spec.dtype
        if kind in ULP:
            assert np.isfinite(np.asarray(wanted[key]).astype(np.float64)).all()
            assert_close(found[key], wanted[key], ULP[kind])
        else:
            assert_same_bytes(found[key], wanted[key])


def test_the_data_are_there() -> None:
    """A folder that is not found would make every test below pass."""
    assert len(ALL) >= 43 and len(MADE) >= 18 and len(REFUSED) >= 7
    stems = {case.stem for case in ALL}
    goldens = {path.stem for path in (CONFORMANCE / "golden").iterdir()}
    assert stems == goldens


def test_the_rule_is_a_rule() -> None:
    """A value just beyond the allowed distance fails."""
    wanted = np.ones(10, np.float32)
    found = wanted.copy()
    found[3] += 64 * np.finfo(np.float32).eps
    assert_close(found, wanted, ULP["F32"])
    found[3] += np.finfo(np.float32).eps
    with pytest.raises(AssertionError):
        assert_close(found, wanted, ULP["F32"])


@pytest.mark.parametrize("case", MADE, ids=name)
def test_a_case_comes_out_as_mergekit_makes_it(case: Path, tmp_path: Path) -> None:
    merged = jmerge.merge(write_recipe(case, tmp_path), tmp_path / "out")
    assert_conforms(open_checkpoint(merged.folder), golden(case, tmp_path))


@pytest.mark.parametrize("case", REFUSED, ids=name)
def test_a_wrong_case_is_refused_and_leaves_nothing(case: Path, tmp_path: Path) -> None:
    recipe = write_recipe(case, tmp_path)
    with pytest.raises(jmerge.JmergeError) as caught:
        jmerge.merge(recipe, tmp_path / "out")
    assert caught.value.exit_code == 2
    for problem in caught.value.problems:
        assert str(problem).startswith(f"{recipe}:") and "\n" not in str(problem)
    assert [path.name for path in tmp_path.iterdir()] == ["x.yml"]


@pytest.mark.parametrize("case", REFUSED, ids=name)
def test_the_program_says_why_it_refuses(case: Path, tmp_path: Path) -> None:
    recipe = write_recipe(case, tmp_path)
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        assert cli.main(["--config", str(recipe), "--out", str(tmp_path / "out")]) == 2
    lines = err.getvalue().splitlines()
    errors = [line for line in lines if line.startswith(f"error: {recipe}:")]
    assert errors and out.getvalue() == ""
    count = f"{len(errors)} errors; nothing was written"
    assert lines == (errors if len(errors) == 1 else [*errors, count])
    assert [path.name for path in tmp_path.iterdir()] == ["x.yml"]


def assert_as_told(case: Path, folder: Path, code: int, errors: str) -> None:
    """What check.py checks, of a run in `folder` that ended with this code."""
    assert "Traceback" not in errors
    if case in REFUSED:
        assert code == 2 and "error: " in errors
        assert [path.name for path in folder.iterdir()] == ["x.yml"]
    else:
        assert code == 0, errors
        assert_conforms(open_checkpoint(folder / "out"), golden(case, folder))


@pytest.mark.parametrize(
    "case", [case for case in CASES if case.stem in THROUGH_THE_PROGRAM], ids=name
)
def test_cases_through_the_program(case: Path, tmp_path: Path) -> None:
    """Each in a process of its own."""
    recipe = write_recipe(case, tmp_path)
    done = subprocess.run(
        [
            *(sys.executable, "-c", "from jmerge.cli import program; program()"),
            *("--config", str(recipe), "--out", str(tmp_path / "out")),
        ],
        cwd=tmp_path,
        env=os.environ | {"JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert_as_told(case, tmp_path, done.returncode, done.stderr)


# The program in one process for many recipes, which is set up as that of the command is, and not as that of the tests.
IN_TURN = """
import contextlib, io, json, os, sys
from jmerge.process import prepare
prepare()
from jmerge.cli import main

for folder in json.load(sys.stdin):
    os.chdir(folder)
    errors, said = io.StringIO(), io.StringIO()
    with contextlib.redirect_stderr(errors), contextlib.redirect_stdout(said):
        code = main(["--config", folder + "/x.yml", "--out", folder + "/out"])
    print(json.dumps([code, errors.getvalue()]))
"""


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, int, str]]:
    """Of every case the folder, the exit code, and what was printed on standard error."""
    folders = [tmp_path_factory.mktemp(case.stem) for case in CASES]
    for case, folder in zip(CASES, folders, strict=True):
        write_recipe(case, folder)
    done = subprocess.run(
        [sys.executable, "-c", IN_TURN],
        input=json.dumps([str(folder) for folder in folders]),
        env=os.environ | {"JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr
    lines = map(json.loads, done.stdout.splitlines())
    return {
        case.stem: (folder, *line) for case, folder, line in zip(CASES, folders, lines, strict=True)
    }


@pytest.mark.slow
@pytest.mark.xdist_group("conformance")
@pytest.mark.parametrize("case", CASES, ids=name)
def test_every_case_through_the_program(case: Path, told: dict[str, tuple[Path, int, str]]) -> None:
    assert_as_told(case, *told[case.stem])


def test_every_case_can_be_read() -> None:
    """Also those whose method is not here yet are YAML and name a method."""
    for case in ALL:
        assert yaml.safe_load(case.read_text())["merge_method"] == method(case)
