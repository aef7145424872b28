"""The same bytes from any thread count, device count, length of pieces, memory budget and hash seed, for every method."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from test_devices import write_models, write_recipe

from jmerge.engine.schedule import LENGTHS
from jmerge.methods import REGISTRY

MERGE = """
import hashlib, json, os, sys
os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: int(sys.argv[3])])
from pathlib import Path
import jax
import jmerge
import jmerge.engine.attempts as attempts
from jmerge.engine.schedule import make_schedule

place, settings, recipes = Path(sys.argv[1]), json.loads(sys.argv[2]), sys.argv[4:]
jax.config.update("jax_num_cpu_devices", settings.get("devices", 1))
if (piece := settings.pop("piece", None)) is not None:
    attempts.fit = lambda plan, budget, devices, longest: make_schedule(plan, piece, 1 << 12, devices)
found = {}
for recipe in recipes:
    out = place / Path(recipe).stem
    jmerge.merge(recipe, out, seed=3, **settings)
    for path in sorted(path for path in out.rglob("*") if path.is_file()):
        found[path.relative_to(place).as_posix()] = hashlib.sha256(path.read_bytes()).hexdigest()
print(json.dumps(found))
"""
QUICK = ("linear", "dare_linear", "ties")
OTHERS = sorted(set(REGISTRY) - set(QUICK))


def merged(place: Path, recipes: list[str], cores: int, seed: str, **settings: Any) -> Any:
    """The hashes of all files that a fresh process makes."""
    place.mkdir()
    done = subprocess.run(
        [sys.executable, "-c", MERGE, str(place), json.dumps(settings), str(cores), *recipes],
        capture_output=True,
        text=True,
        timeout=1200,
        env=os.environ | {"PYTHONHASHSEED": seed},
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="sets the cores of a process")
@pytest.mark.parametrize(
    "methods", [QUICK, pytest.param(OTHERS, marks=pytest.mark.slow, id="others")]
)
def test_the_same_bytes(methods: Any, tmp_path: Path) -> None:
    write_models(tmp_path)
    recipes = [str(write_recipe(tmp_path, method)) for method in methods]
    wanted = merged(tmp_path / "plain", recipes, cores=2, seed="0")
    assert len(wanted) >= 4 * len(recipes)
    # All that may change changes at once: a byte that any of it moves shows, and a process for each compiles every
    # method again. Pieces this short go to all eight devices.
    for name, cores, settings in (
        ("pieces", 1, {"piece": LENGTHS[0], "devices": 8}),
        ("budget", 2, {"memory": "64MB"}),
    ):
        found = merged(
            tmp_path / name, recipes, cores=cores, seed=name[0].encode().hex(), **settings
        )
        assert found == wanted, name
