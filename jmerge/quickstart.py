"""`jmerge quickstart`: the README's first recipe and its models, from wherever jmerge is installed."""

from __future__ import annotations

import shutil
from pathlib import Path

from jmerge.ckpt.disk import environment_errors
from jmerge.errors import PlanError

PACKAGE = Path(__file__).resolve().parent
RECIPE = Path("configs", "quickstart.yml")
MODELS = [Path("configs", "quickstart", name) for name in ("base", "prose", "code")]


def home() -> Path:
    """The folder whose configs/ is nearest: the package's own, as in a wheel, or the one beside it, as in a clone.

    Raises:
      PlanError: neither is there.
    """
    for folder in (PACKAGE, PACKAGE.parent):
        if (folder / RECIPE).is_file():
            return folder
    message = f"{PACKAGE} has lost {RECIPE.as_posix()}; install jmerge again"
    raise PlanError(message, code="JM418")


def write_quickstart(folder: Path) -> int:
    """Write the recipe and its models into a folder that is empty or does not exist.

    Paths are those of the repository, so every command of the README works in the folder.

    Returns:
      The bytes written.

    Raises:
      PlanError: the folder is not empty, or jmerge came without these files.
      RunError: the files cannot be written; what was written of them is removed.
    """
    start = home()
    files = [
        start / RECIPE,
        *(file for model in MODELS for file in sorted((start / model).iterdir())),
    ]
    with environment_errors(folder):
        if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
            message = f"{folder} exists and is not an empty folder; choose another folder"
            raise PlanError(message, code="JM601")
        try:
            for file in files:
                target = folder / file.relative_to(start)
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(file, target)
        except OSError:
            shutil.rmtree(folder / RECIPE.parent, ignore_errors=True)
            raise
    return sum(file.stat().st_size for file in files)
