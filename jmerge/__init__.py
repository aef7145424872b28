"""jmerge merges large language model checkpoints: pure JAX functions, planned from file headers, streamed.

The names below are the public interface. They load on first use, so that `import jmerge` costs nothing.
"""

from __future__ import annotations

from jmerge.version import VERSION as __version__

TYPE_CHECKING = False  # as in typing, which takes time to import
if TYPE_CHECKING:
    from typing import Any

    from jmerge.errors import CheckpointError as CheckpointError
    from jmerge.errors import JmergeError as JmergeError
    from jmerge.errors import NonFiniteError as NonFiniteError
    from jmerge.errors import PlanError as PlanError
    from jmerge.errors import RecipeError as RecipeError
    from jmerge.errors import RunError as RunError

_LAZY = {
    "CheckpointError": "jmerge.errors",
    "JmergeError": "jmerge.errors",
    "NonFiniteError": "jmerge.errors",
    "PlanError": "jmerge.errors",
    "RecipeError": "jmerge.errors",
    "RunError": "jmerge.errors",
    "merge": "jmerge.jobs",
    "plan_recipe": "jmerge.jobs",
    "load_recipe": "jmerge.recipe.parse",
    "open_checkpoint": "jmerge.ckpt.open",
    "build_plan": "jmerge.plan.build",
    "make_schedule": "jmerge.engine.schedule",
    "run": "jmerge.engine.run",
    "Tracer": "jmerge.tracer",
    "Arrays": "jmerge.engine.sinks",
    "merge_trees": "jmerge.methods.trees",
    "methods": "jmerge.methods",
}

__all__ = ["__version__", *_LAZY]


def __getattr__(name: str) -> Any:
    import importlib

    if name not in _LAZY:
        raise AttributeError(f"module 'jmerge' has no attribute {name!r}")
    module = importlib.import_module(_LAZY[name])
    return module if name == "methods" else getattr(module, name)


def __dir__() -> list[str]:
    return sorted(__all__)
