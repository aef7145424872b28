"""The workflow for GitHub fits its schema, and runs the commands of the README and of `.ci/run`."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parent.parent
FILE = ROOT / ".github" / "workflows" / "ci.yml"
TEXT = FILE.read_text(encoding="utf-8")
WORKFLOW: dict[Any, Any] = yaml.safe_load(TEXT)
JOBS: dict[str, Any] = WORKFLOW["jobs"]
CPU_TORCH = "pip install torch --index-url https://download.pytorch.org/whl/cpu"


def commands(job: str) -> list[str]:
    """What the steps of a job run."""
    return [step["run"] for step in JOBS[job]["steps"] if "run" in step]


def check(path: Path) -> subprocess.CompletedProcess[str]:
    """The verdict of the schema that GitHub's workflows have."""
    words = ["check_jsonschema", "--builtin-schema", "vendor.github-workflows", str(path)]
    return subprocess.run([sys.executable, "-m", *words], capture_output=True, text=True)


def test_it_fits_the_schema() -> None:
    done = check(FILE)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("word", ["runs-on", "steps", "permissions", "cancel-in-progress"])
def test_the_schema_sees_a_misspelt_key(word: str, tmp_path: Path) -> None:
    wrong = tmp_path / "ci.yml"
    wrong.write_text(TEXT.replace(f"{word}:", f"{word}x:"), encoding="utf-8")
    assert check(wrong).returncode == 1


def test_all_systems_and_versions_run_the_readme_command() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    (line,) = re.findall(r"^pip install .*pytest.*$", readme, re.MULTILINE)
    assert commands("test") == [CPU_TORCH, line]
    matrix = JOBS["test"]["strategy"]["matrix"]
    assert matrix["os"] == ["ubuntu-latest", "macos-latest", "windows-latest"]
    assert matrix["python"] == ["3.11", "3.12", "3.13"]
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert project["requires-python"] == f">={matrix['python'][0]}"


def test_the_rest_is_what_ci_runs() -> None:
    """What is added to `.ci/run` besides tests is added here too."""
    ci = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    checks = re.findall(r"^(?:ruff|mypy|python tools/).*$", ci, re.MULTILINE)
    assert commands("lint") + commands("wheel") == [
        CPU_TORCH, "pip install -e '.[dev]'", *checks[:-1], "pip install build", checks[-1]
    ]  # fmt: skip
    assert commands("docs") == ["pip install -e '.[docs]'", "python tools/docs.py --site"]


def test_it_reads_only_and_stops_what_is_superseded() -> None:
    assert WORKFLOW["permissions"] == {"contents": "read"}
    assert not any("permissions" in job for job in JOBS.values())
    assert WORKFLOW["concurrency"]["cancel-in-progress"] is True
    assert "secrets." not in TEXT


def test_actions_are_pinned_to_major_versions_and_pip_is_cached() -> None:
    """Each job has a limit on its time."""
    for job in JOBS.values():
        assert job["timeout-minutes"] <= 60
        used = [step["uses"] for step in job["steps"] if "uses" in step]
        assert used[:2] == ["actions/checkout@v6", "actions/setup-python@v6"]
        assert all(re.fullmatch(r"actions/[\w-]+@v\d+", each) for each in used)
        (setup,) = (step["with"] for step in job["steps"] if "setup-python" in str(step))
        assert setup["cache"] == "pip" and (ROOT / setup["cache-dependency-path"]).is_file()
