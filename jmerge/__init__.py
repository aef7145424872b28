"""jmerge merges large language model checkpoints: pure JAX functions, planned from file headers, streamed.

    import jmerge

    base, prose, code = (jmerge.load(f"configs/quickstart/{name}") for name in ("base", "prose", "code"))
    merged = jmerge.merge_trees([prose, code], method="ties", base=base, weight=0.5, density=0.5)
    jmerge.save(merged, "merged", like="configs/quickstart/base")

The names below are the public interface. They load on first use, so that `import jmerge` costs nothing.
"""

from __future__ import annotations

import sys
from types import ModuleType

from jmerge.version import VERSION as __version__

TYPE_CHECKING = False  # as in typing, which takes time to import
if TYPE_CHECKING:
    from jmerge import advanced as advanced
    from jmerge import methods as methods

    # files
    from jmerge.api.load import load as load
    from jmerge.api.merge import Merged as Merged
    from jmerge.api.merge import merge as merge
    from jmerge.api.plan import plan as plan
    from jmerge.api.save import save as save
    from jmerge.api.vocabularies import Vocabularies as Vocabularies
    from jmerge.api.vocabularies import align_vocabularies as align_vocabularies
    from jmerge.ckpt.open import Checkpoint as Checkpoint
    from jmerge.ckpt.open import open_checkpoint as open_checkpoint

    # errors
    from jmerge.errors import CancelledError as CancelledError
    from jmerge.errors import CheckpointError as CheckpointError
    from jmerge.errors import JmergeError as JmergeError
    from jmerge.errors import NonFiniteError as NonFiniteError
    from jmerge.errors import PlanError as PlanError
    from jmerge.errors import PluginWarning as PluginWarning
    from jmerge.errors import RecipeError as RecipeError
    from jmerge.errors import RunError as RunError

    # functions of trees: the methods by name go here
    from jmerge.methods.trees import merge_trees as merge_trees
    from jmerge.plan.steps import Plan as Plan
    from jmerge.recipe.recipe import Recipe as Recipe

_LAZY = {
    # files
    "Checkpoint": "jmerge.ckpt.open",
    "Merged": "jmerge.api.merge",
    "Plan": "jmerge.plan.steps",
    "Recipe": "jmerge.recipe.recipe",
    "Vocabularies": "jmerge.api.vocabularies",
    "align_vocabularies": "jmerge.api.vocabularies",
    "load": "jmerge.api.load",
    "merge": "jmerge.api.merge",
    "open_checkpoint": "jmerge.ckpt.open",
    "plan": "jmerge.api.plan",
    "save": "jmerge.api.save",
    # errors
    "CancelledError": "jmerge.errors",
    "CheckpointError": "jmerge.errors",
    "JmergeError": "jmerge.errors",
    "NonFiniteError": "jmerge.errors",
    "PlanError": "jmerge.errors",
    "PluginWarning": "jmerge.errors",
    "RecipeError": "jmerge.errors",
    "RunError": "jmerge.errors",
    # functions of trees: the methods by name go here
    "merge_trees": "jmerge.methods.trees",
}
_MODULES = ("advanced", "methods")

__all__ = ["__version__", *_LAZY, *_MODULES]

if not TYPE_CHECKING:  # type checkers see the imports above, and know of no other name

    def __getattr__(name):
        import importlib

        if name in _MODULES:
            return importlib.import_module(f"jmerge.{name}")
        if name not in _LAZY:
            raise AttributeError(f"module 'jmerge' has no attribute {name!r}")
        return getattr(importlib.import_module(_LAZY[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)


class _Package(ModuleType):
    """This module. Importing a folder of the package makes it an attribute here, but for those named like a function:
    `jmerge.plan` is the function, `from jmerge.plan.steps import Step` still works."""

    def __setattr__(self, name: str, value: object) -> None:
        if not (name in _LAZY and isinstance(value, ModuleType)):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
