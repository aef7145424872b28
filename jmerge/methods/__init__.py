"""Merge methods: pure functions of arrays, one file each, listed here once.

Importing this package registers every built-in method and those of installed packages that declare the entry
point group `jmerge.methods`.
"""

from jmerge.methods import (  # noqa: F401  (each registers itself)
    breadcrumbs,
    dare,
    karcher,
    linear,
    magmax,
    model_stock,
    multislerp,
    nearswap,
    negmerge,
    nuslerp,
    passthrough,
    ram,
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

register_installed()

__all__ = ["REGISTRY", "Method", "PerModel", "Shared", "Switch", "merge_method"]
