"""Merge methods: pure functions of arrays, one file each, listed here once.

Importing this package registers every built-in method and those of installed packages that declare the entry
point group `jmerge.methods`.
"""

from jmerge.methods import (  # noqa: F401  (each registers itself)
    arcee_fusion,
    breadcrumbs,
    cabs,
    consensus,
    dare,
    della,
    emr,
    karcher,
    linear,
    localize_stitch,
    magmax,
    model_stock,
    multislerp,
    nearswap,
    negmerge,
    nuslerp,
    passthrough,
    pcb,
    ram,
    sce,
    slerp,
    task_arithmetic,
    ties,
)
from jmerge.methods.spec import (
    REGISTRY,
    Method,
    PerModel,
    Shared,
    Switch,
    merge_method,
    register_installed,
)
from jmerge.methods.whole import apply
from jmerge.methods.wrap import find_method

register_installed()

__all__ = [
    "REGISTRY",
    "Method",
    "PerModel",
    "Shared",
    "Switch",
    "apply",
    "find_method",
    "merge_method",
]
