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

    # recipes and plans
    from jmerge.plan.steps import Plan as Plan
    from jmerge.recipe.recipe import Recipe as Recipe

    # functions of trees
    from jmerge.trees.functions import arcee_fusion as arcee_fusion
    from jmerge.trees.functions import breadcrumbs as breadcrumbs
    from jmerge.trees.functions import breadcrumbs_ties as breadcrumbs_ties
    from jmerge.trees.functions import by_path as by_path
    from jmerge.trees.functions import cabs as cabs
    from jmerge.trees.functions import consensus as consensus
    from jmerge.trees.functions import dare_linear as dare_linear
    from jmerge.trees.functions import dare_ties as dare_ties
    from jmerge.trees.functions import della as della
    from jmerge.trees.functions import della_linear as della_linear
    from jmerge.trees.functions import emr as emr
    from jmerge.trees.functions import karcher as karcher
    from jmerge.trees.functions import linear as linear
    from jmerge.trees.functions import localize_stitch as localize_stitch
    from jmerge.trees.functions import magmax as magmax
    from jmerge.trees.functions import merge_trees as merge_trees
    from jmerge.trees.functions import model_stock as model_stock
    from jmerge.trees.functions import multislerp as multislerp
    from jmerge.trees.functions import nearswap as nearswap
    from jmerge.trees.functions import negmerge as negmerge
    from jmerge.trees.functions import nuslerp as nuslerp
    from jmerge.trees.functions import over_layers as over_layers
    from jmerge.trees.functions import passthrough as passthrough
    from jmerge.trees.functions import pcb as pcb
    from jmerge.trees.functions import ram as ram
    from jmerge.trees.functions import ramplus_tl as ramplus_tl
    from jmerge.trees.functions import sce as sce
    from jmerge.trees.functions import slerp as slerp
    from jmerge.trees.functions import task_arithmetic as task_arithmetic
    from jmerge.trees.functions import ties as ties

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
    # functions of trees
    "arcee_fusion": "jmerge.trees.functions",
    "breadcrumbs": "jmerge.trees.functions",
    "breadcrumbs_ties": "jmerge.trees.functions",
    "by_path": "jmerge.trees.functions",
    "cabs": "jmerge.trees.functions",
    "consensus": "jmerge.trees.functions",
    "dare_linear": "jmerge.trees.functions",
    "dare_ties": "jmerge.trees.functions",
    "della": "jmerge.trees.functions",
    "della_linear": "jmerge.trees.functions",
    "emr": "jmerge.trees.functions",
    "karcher": "jmerge.trees.functions",
    "linear": "jmerge.trees.functions",
    "localize_stitch": "jmerge.trees.functions",
    "magmax": "jmerge.trees.functions",
    "merge_trees": "jmerge.trees.functions",
    "model_stock": "jmerge.trees.functions",
    "multislerp": "jmerge.trees.functions",
    "nearswap": "jmerge.trees.functions",
    "negmerge": "jmerge.trees.functions",
    "nuslerp": "jmerge.trees.functions",
    "over_layers": "jmerge.trees.functions",
    "passthrough": "jmerge.trees.functions",
    "pcb": "jmerge.trees.functions",
    "ram": "jmerge.trees.functions",
    "ramplus_tl": "jmerge.trees.functions",
    "sce": "jmerge.trees.functions",
    "slerp": "jmerge.trees.functions",
    "task_arithmetic": "jmerge.trees.functions",
    "ties": "jmerge.trees.functions",
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
