"""Imports point one way, the package needs no torch, and `import jmerge` loads nothing heavy."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

import jmerge

PACKAGE = Path(jmerge.__file__).parent

# Lower layers first: a module may import from its own layer and from those before it.
LAYERS = (
    ("interrupt", "errors", "problems", "names", "version", "sizes", "process", "tracer", "dtypes"),
    ("recipe",),
    ("ckpt",),
    ("arch",),
    ("tokens",),
    ("methods",),
    ("trees",),
    ("plan",),
    ("engine",),
    ("verify",),
    ("diff",),
    ("report",),
    ("api", "advanced"),
    ("options", "quickstart", "commands", "cli", "__main__"),
    ("testing",),
)
LEVEL = {part: level for level, parts in enumerate(LAYERS) for part in parts}

LAZY = {"__init__"}  # names its lazy attributes as text


class Arrow(NamedTuple):
    """One import of one module."""

    file: str
    line: int
    target: str  # module


def module_name(path: Path) -> str:
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts)


def arrows() -> Iterator[Arrow]:
    """Every import anywhere in the package, inside functions and TYPE_CHECKING too."""
    for path in sorted(PACKAGE.rglob("*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        for node in ast.walk(tree):
            if isinstance(node, ast.Import):
                for alias in node.names:
                    yield Arrow(module_name(path), node.lineno, alias.name)
            elif isinstance(node, ast.ImportFrom):
                assert node.level == 0, f"{path}:{node.lineno}: imports are absolute"
                assert node.module is not None
                if node.module == "jmerge":
                    for alias in node.names:
                        yield Arrow(module_name(path), node.lineno, f"jmerge.{alias.name}")
                else:
                    yield Arrow(module_name(path), node.lineno, node.module)


def part(module: str) -> str:
    """The layer-giving part of a module: `plan` for `plan.build`, `jmerge.plan.build`."""
    return module.removeprefix("jmerge.").split(".")[0]


def test_the_walk_sees_the_package() -> None:
    found = list(arrows())
    assert len({arrow.file for arrow in found}) > 30
    assert {part(arrow.target) for arrow in found if arrow.target.startswith("jmerge.")} >= {
        "errors", "recipe", "ckpt", "arch", "methods", "plan", "engine",
    }  # fmt: skip


def test_every_part_has_its_layer() -> None:
    parts = {part(module_name(path)) for path in PACKAGE.rglob("*.py")}
    assert parts - LAZY <= set(LEVEL), "give a new part its place in LAYERS"


def test_imports_point_one_way() -> None:
    wrong = [
        f"jmerge/{arrow.file.replace('.', '/')}.py:{arrow.line}: imports {arrow.target}"
        for arrow in arrows()
        if arrow.target.startswith("jmerge.")
        and arrow.file not in LAZY
        and LEVEL[part(arrow.target)] > LEVEL[part(arrow.file)]
    ]
    assert wrong == []


def test_no_module_reaches_itself() -> None:
    """Within a layer there is an order too."""
    graph: dict[str, set[str]] = {}
    for arrow in arrows():
        if arrow.target.startswith("jmerge."):
            graph.setdefault(f"jmerge.{arrow.file}", set()).add(arrow.target)

    def reaches(start: str) -> set[str]:
        seen: set[str] = set()
        todo = list(graph.get(start, ()))
        while todo:
            if (name := todo.pop()) not in seen:
                seen.add(name)
                todo += graph.get(name, ())
        return seen

    circular = [name for name in graph if name in reaches(name)]
    assert circular == []


FOREIGN = re.compile(r"(torch|transformers|peft|accelerate|mergekit)(\.|$)")


def test_no_torch_anywhere() -> None:
    wrong = [arrow for arrow in arrows() if FOREIGN.match(arrow.target)]
    assert wrong == []
    for path in PACKAGE.rglob("*.py"):
        text = path.read_text(encoding="utf-8")
        assert not re.search(r"import_module\(\s*[\"'](torch|transformers|peft)", text), path


PURE = ("numpy", "jax", "ml_dtypes")


@pytest.mark.parametrize("low", ["errors", "names", "version", "sizes", "tracer"])
def test_the_lowest_layer_is_pure_python(low: str) -> None:
    assert not [a for a in arrows() if a.file == low and a.target.split(".")[0] in PURE]


# Readers of files and recipes work where no array library is needed; only these parts touch JAX.
USES_JAX = {"methods", "trees", "engine", "api", "testing"}


def test_only_some_parts_import_jax() -> None:
    found = {part(a.file) for a in arrows() if a.target.split(".")[0] in ("jax", "jaxlib")}
    assert found <= USES_JAX


HEAVY = (
    *("jax", "jaxlib", "flax", "orbax", "huggingface_hub", "pydantic"),
    *("numpy", "ml_dtypes", "yaml", "rich", "absl"),
    *("tokenizers", "jinja2", "google.protobuf"),
    *("fsspec", "s3fs", "gcsfs", "aiohttp", "botocore"),
)


def loaded_by(code: str, cwd: Path) -> set[str]:
    """Which of the heavy packages a piece of code loads in a fresh process."""
    text = f"{code}\nimport sys\nprint(*[name for name in {HEAVY!r} if name in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", text], cwd=cwd, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    return set(done.stdout.split())


@pytest.mark.parametrize(
    ("code", "allowed"),
    [
        ("import jmerge", set()),
        ("import jmerge; dir(jmerge); jmerge.__all__; jmerge.__version__", set()),
        ("from jmerge import JmergeError, PlanError, RunError", set()),
        ("import jmerge.cli", set()),
        ("from jmerge import open_checkpoint", {"numpy", "ml_dtypes"}),
        (
            "import jmerge.tokens.align, jmerge.tokens.chat, jmerge.tokens.pieces",
            {"numpy", "ml_dtypes", "yaml", "pydantic"},
        ),
        (
            "from jmerge import Recipe",
            {"numpy", "ml_dtypes", "yaml", "pydantic"},
        ),
    ],
)
def test_what_an_import_costs(code: str, allowed: set[str], tmp_path: Path) -> None:
    assert loaded_by(code, tmp_path) <= allowed


def test_the_measure_sees_what_is_loaded(tmp_path: Path) -> None:
    assert {"jax", "numpy", "pydantic", "yaml"} <= loaded_by("from jmerge import merge", tmp_path)
    code = "from jmerge.tokens import library, pieces; pieces.message_class(); library.load('{}')"
    code = f"try:\n    {code}\nexcept ValueError:\n    pass"
    assert {"tokenizers", "google.protobuf"} <= loaded_by(code, tmp_path)
