"""The package is typed: mypy sees the types of every public name, and that there is no other."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import jmerge

ROOT = Path(__file__).parents[2]


def test_mypy_sees_the_types_of_public_names() -> None:
    command = [sys.executable, "-m", "mypy", "--strict", "tests/typing/public_names.py"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_package_says_that_it_is_typed() -> None:
    assert (Path(jmerge.__file__).parent / "py.typed").is_file()


def test_type_checkers_and_programs_see_the_same_names() -> None:
    """Each is imported for the one and listed for the other."""
    tree = ast.parse(Path(jmerge.__file__).read_text(encoding="utf-8"))
    (block,) = [
        node
        for node in tree.body
        if isinstance(node, ast.If) and getattr(node.test, "id", "") == "TYPE_CHECKING"
    ]
    typed = {
        a.asname for node in block.body if isinstance(node, ast.ImportFrom) for a in node.names
    }
    assert typed == set(jmerge.__all__) - {"__version__"}
