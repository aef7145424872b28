"""Build the sdist and the wheel, check what is in them, and try the wheel as its user would.

The wheel goes into a fresh environment, and its commands run in a folder outside the repository. Needs the package
`build`, and a network or what pip has cached.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tarfile
import tempfile
import time
import venv
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
QUICKSTART = (
    "configs/quickstart.yml",
    *(f"configs/quickstart/{m}" for m in ("base", "code", "prose")),
)
# What an sdist needs, besides what makes the wheel: whoever packages jmerge runs its tests.
SOURCES = (
    "jmerge",
    "configs",
    "tests",
    "tools",
    "README.md",
    "BUILD.md",
    "LICENSE",
    "pyproject.toml",
)


def main() -> None:
    """Build, check, install and try."""
    argparse.ArgumentParser(description=__doc__).parse_args()
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name).resolve()
        sdist, wheel = build(folder / "dist")
        print(f"built {sdist.name} and {wheel.name} in {time.perf_counter() - start:.0f} s")
        wrong = problems(files_of(sdist), files_of(wheel), ROOT)
        # of the tree, where `build` made the other one from the sdist
        run(sys.executable, "-m", "build", "--wheel", "--outdir", folder / "tree", ROOT)
        if wheel.read_bytes() != (folder / "tree" / wheel.name).read_bytes():
            wrong.append("the sdist makes another wheel than the repository")
        if wrong:
            sys.exit("\n".join(wrong))
        try_out(wheel, folder)
    print(f"the wheel works; {time.perf_counter() - start:.0f} s")


def build(out: Path) -> tuple[Path, Path]:
    """The sdist, and the wheel made from it."""
    run(sys.executable, "-m", "build", "--outdir", out, ROOT)
    (sdist,), (wheel,) = out.glob("*.tar.gz"), out.glob("*.whl")
    return sdist, wheel


def files_of(archive: Path) -> set[str]:
    """The files in a wheel, or in the one folder of an sdist."""
    if archive.suffix == ".whl":
        with zipfile.ZipFile(archive) as file:
            return set(file.namelist())
    with tarfile.open(archive) as file:
        return {each.name.partition("/")[2] for each in file if each.isfile()}


def below(root: Path, *places: str) -> set[str]:
    """The files at these places of a folder, by their paths in it, without what Python compiled."""
    found = set()
    for place in places:
        path = root / place
        for file in path.rglob("*") if path.is_dir() else (path,):
            if file.is_file() and "__pycache__" not in file.parts:
                found.add(file.relative_to(root).as_posix())
    return found


def problems(sdist: set[str], wheel: set[str], root: Path) -> list[str]:
    """What is wrong with the files of an sdist and a wheel that were built from `root`; a line each.

    A wheel holds the package and the quickstart, whole, and nothing else.
    """
    package = {name for name in wheel if ".dist-info/" not in name}
    wanted = below(root, "jmerge") | {f"jmerge/{name}" for name in below(root, *QUICKSTART)}
    return [
        *(f"the wheel lacks {name}" for name in sorted(wanted - package)),
        *(f"the wheel should not hold {name}" for name in sorted(package - wanted)),
        *(f"the sdist lacks {name}" for name in sorted(below(root, *SOURCES) - sdist)),
    ]


def try_out(wheel: Path, folder: Path) -> None:
    """Install the wheel into an environment in `folder`, and make the README's first merge there."""
    start = time.perf_counter()
    venv.create(folder / "venv", with_pip=True)
    scripts = folder / "venv" / ("Scripts" if os.name == "nt" else "bin")
    run(scripts / "python", "-m", "pip", "install", "--quiet", wheel)
    print(f"installed it in {time.perf_counter() - start:.0f} s")
    # nothing may come from here: not the package, not its environment
    environment = {name: x for name, x in os.environ.items() if not name.startswith("PYTHON")}
    environment["PATH"] = os.pathsep.join([str(scripts), environment["PATH"]])

    def shell(command: str) -> str:
        print(f"$ {command}", flush=True)
        done = subprocess.run(
            command, shell=True, cwd=folder, env=environment, stdout=subprocess.PIPE, text=True
        )
        if done.returncode:
            sys.exit(f"{done.stdout}\n{command}: exit code {done.returncode}")
        return done.stdout

    where = shell('python -c "import jmerge; print(jmerge.__file__)"').strip()
    if not Path(where).resolve().is_relative_to(folder / "venv"):
        sys.exit(f"{where} is not the wheel's")
    written = shell("jmerge quickstart").splitlines()
    (merge,) = (line.removeprefix("next: ") for line in written if line.startswith("next: "))
    shell(merge)
    shell("jmerge verify --deep jmerge-quickstart/merged")
    shell("jmerge help methods")


def run(*command: str | Path) -> None:
    """Run a program; exit with what it printed when it fails."""
    done = subprocess.run(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    if done.returncode:
        sys.exit(f"{done.stdout}\n{' '.join(map(str, command))}: exit code {done.returncode}")


if __name__ == "__main__":
    main()
