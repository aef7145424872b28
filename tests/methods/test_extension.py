"""A package that adds a merge method: that of the guide, built, installed and used as anyone's would be."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import jmerge
from jmerge.ckpt.open import open_checkpoint
from jmerge.methods import REGISTRY
from jmerge.testing.close import assert_close
from jmerge.testing.laws import LAWS
from jmerge.testing.tiny import write_llama

ROOT = Path(__file__).parents[2]
JMERGE = Path(jmerge.__file__).parents[1]  # where the children find the jmerge of this process
FILE = re.compile(r"^```\w+\n(# (\S+)\n.*?)^```$", re.MULTILINE | re.DOTALL)
QUICK = ("equal_inputs", "order", "reference", "recipe")  # all take half a minute


def child(*words: str | Path, cwd: Path, path: Path | None = None) -> str:
    """What a fresh interpreter prints, with the folder `path` among those it finds packages in."""
    places = [str(each) for each in (path, JMERGE) if each]
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PYTEST_")}
    done = subprocess.run(
        [sys.executable, *words],
        cwd=cwd,
        env=environment | {"PYTHONPATH": os.pathsep.join(places)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The package's files, as jmerge/docs/plugins.md has them."""
    folder = tmp_path_factory.mktemp("source")
    section = (ROOT / "jmerge/docs/plugins.md").read_text().partition("\n## In a package\n")[2]
    for text, name in FILE.findall(section.partition("\n## ")[0]):
        (folder / name).write_text(text)
    names = {"pyproject.toml", "jmerge_median.py", "test_median.py"}
    assert {path.name for path in folder.iterdir()} == names
    return folder


@pytest.fixture(scope="module")
def installed(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the package installed from its wheel, without a network."""
    folder = tmp_path_factory.mktemp("installed")
    pip = ("-m", "pip", "--disable-pip-version-check")
    offline = ("--no-index", "--no-deps")
    child(*pip, "wheel", *offline, "--no-build-isolation", "-w", "dist", ".", cwd=source)
    (wheel,) = (source / "dist").iterdir()
    child(*pip, "install", *offline, "--target", folder, wheel, cwd=source)
    assert {path.name for path in folder.glob("*.py")} == {"jmerge_median.py"}
    return folder


def test_an_installed_method_is_explained(installed: Path, tmp_path: Path) -> None:
    """By the command, as those of jmerge itself, and only where it is installed."""
    assert "median" not in REGISTRY
    text = child("-m", "jmerge", "methods", "median", cwd=tmp_path, path=installed)
    assert text.startswith("median: Median\n\nAdds to the base the median")
    assert "lambda     factor of the median change (one for all, default: 1)" in text


def test_an_installed_method_merges(installed: Path, tmp_path: Path) -> None:
    """A recipe with its name gives what numpy makes of the models in float64."""
    for seed, name in enumerate(("base", "a", "b", "c")):
        write_llama(tmp_path / name, seed)
    (tmp_path / "x.yml").write_text(
        "merge_method: median\nbase_model: base\nparameters: {lambda: 0.7}\n"
        "models: [{model: a}, {model: b}, {model: c}]\n"
    )
    call = "import jmerge; jmerge.merge('x.yml', 'out')"
    child("-c", call, cwd=tmp_path, path=installed)
    base, *models = (open_checkpoint(tmp_path / name) for name in ("base", "a", "b", "c"))
    merged = open_checkpoint(tmp_path / "out")
    assert list(merged) == list(base)
    for name in base:
        own = base[name].astype(np.float64)
        changes = [model[name].astype(np.float64) - own for model in models]
        assert_close(merged[name], own + 0.7 * np.median(changes, axis=0))


def laws_pass(source: Path, installed: Path, laws: tuple[str, ...]) -> None:
    """The package's own tests of these laws pass, and are that many."""
    options = ("-q", "-p", "no:cacheprovider", "-W", "error", "-k", " or ".join(laws))
    told = child("-m", "pytest", *options, "test_median.py", cwd=source, path=installed)
    assert f"{len(laws)} passed" in told


def test_an_installed_method_obeys_laws(source: Path, installed: Path) -> None:
    laws_pass(source, installed, QUICK)


@pytest.mark.slow
def test_an_installed_method_obeys_all_laws(source: Path, installed: Path) -> None:
    laws_pass(source, installed, tuple(LAWS))
