"""tools/trywheel.py sees what is wrong with the files of a wheel or an sdist. It builds real ones when it runs."""

from __future__ import annotations

from pathlib import Path

import pytest
import trywheel

from jmerge.quickstart import MODELS, RECIPE

PACKAGE = {"jmerge/__init__.py", "jmerge/py.typed", "jmerge/docs/methods.md"}
REST = {"tests/test_a.py", "tools/b.py", "README.md", "BUILD.md", "LICENSE", "pyproject.toml"}
MODEL_FILES = {f"configs/quickstart/{m}/config.json" for m in ("base", "code", "prose")}
QUICKSTART = {"configs/quickstart.yml"} | MODEL_FILES
HELDOUT = "configs/quickstart/heldout/code.txt"
METADATA = "jmerge-0.1.0.dist-info/RECORD"
SDIST = PACKAGE | REST | QUICKSTART | {HELDOUT, "PKG-INFO"}
WHEEL = PACKAGE | {f"jmerge/{name}" for name in QUICKSTART} | {METADATA}


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A small repository, in which Python has run."""
    compiled = "jmerge/__pycache__/__init__.cpython-311.pyc"
    for name in PACKAGE | REST | QUICKSTART | {HELDOUT, compiled}:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    return tmp_path


def test_what_is_whole_is_fine(tree: Path) -> None:
    assert trywheel.problems(SDIST, WHEEL, tree) == []


@pytest.mark.parametrize("lost", sorted(WHEEL - {METADATA}))
def test_every_file_of_the_wheel_is_missed(lost: str, tree: Path) -> None:
    assert trywheel.problems(SDIST, WHEEL - {lost}, tree) == [f"the wheel lacks {lost}"]


@pytest.mark.parametrize("more", ["tests/test_a.py", f"jmerge/{HELDOUT}", "configs/quickstart.yml"])
def test_nothing_else_belongs_into_the_wheel(more: str, tree: Path) -> None:
    found = trywheel.problems(SDIST, WHEEL | {more}, tree)
    assert found == [f"the wheel should not hold {more}"]


@pytest.mark.parametrize("lost", sorted(SDIST - {"PKG-INFO"}))
def test_every_source_is_missed(lost: str, tree: Path) -> None:
    assert trywheel.problems(SDIST - {lost}, WHEEL, tree) == [f"the sdist lacks {lost}"]


def test_the_quickstart_is_what_the_command_writes() -> None:
    wanted = {path.as_posix() for path in (RECIPE, *MODELS)}
    assert set(trywheel.QUICKSTART) == wanted
