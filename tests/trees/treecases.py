"""Every method with numbers for it, for tests and for the scripts that they run with several devices."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import jmerge

Tree = dict[str, Any]

# Numbers for each method, as keywords; the continuous ones as floats or lists of them.
NUMBERS: dict[str, dict[str, Any]] = {
    "linear": {"weight": [0.3, 0.5, 0.33]},
    "slerp": {"t": 0.3},
    "nuslerp": {"weight": [0.3, 0.5]},
    "multislerp": {"weight": [0.3, 0.5, 0.33]},
    "karcher": {},
    "passthrough": {"scale": [0.7]},
    "task_arithmetic": {"weight": [0.3, 0.5, 0.33], "scale": 0.7},
    "ties": {"weight": [0.3, 0.5, 0.33], "density": 0.4},
    "dare_linear": {"weight": [0.3, 0.5, 0.33], "density": 0.4},
    "dare_ties": {"weight": [0.3, 0.5, 0.33], "density": 0.4},
    "della": {"weight": [0.3, 0.5, 0.33], "density": 0.4},
    "della_linear": {"weight": [0.3, 0.5, 0.33], "density": 0.4},
    "breadcrumbs": {"weight": [0.3, 0.5, 0.33], "density": 0.4, "gamma": 0.1},
    "breadcrumbs_ties": {"weight": [0.3, 0.5, 0.33], "density": 0.4, "gamma": 0.1},
    "model_stock": {},
    "nearswap": {"t": 0.1},
    "arcee_fusion": {},
    "sce": {"select_topk": 0.4},
    "ram": {},
    "ramplus_tl": {"r": 0.3, "epsilon": 0.1},
    "magmax": {"scale": 0.7},
    "negmerge": {"scale": 0.7},
    "consensus": {"scale": 0.7},
    "cabs": {"weight": [0.3, 0.5, 0.33], "n": 4, "m": 16},
    "pcb": {"weight": [0.3, 0.5, 0.33], "rho": 0.2},
    "localize_stitch": {"density": 0.2},
    "emr": {},
    "equalize(ties)": {"weight": [0.3, 0.5, 0.33], "density": 0.4},
    "inverse_norm(task_arithmetic)": {"weight": [0.3, 0.5, 0.33]},
}
# Each test compiles anew, so most methods are tried by the slow suite; these are one of each kind.
OF_EACH_KIND = {"linear", "slerp", "ties", "dare_linear", "della", "sce", "localize_stitch", "emr"}


def on_eight_devices(script: Path, *words: str) -> None:
    """Run a script, in a process of its own with eight forced devices; AssertionError with what it said if it fails."""
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=8"
    environment = {**os.environ, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}
    done = subprocess.run(
        [sys.executable, str(script), *words],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def merge(
    method: str, base: Tree | None, models: list[Tree], hyperparameters: dict[str, Any]
) -> Any:
    """The call under test."""
    return jmerge.merge_trees(models, method=method, base=base, **hyperparameters)
