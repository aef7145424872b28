"""What planning finds to say about a recipe: faults, which end it, and warnings."""

from __future__ import annotations

from collections.abc import Sequence

from jmerge.errors import Fault
from jmerge.recipe.recipe import Recipe
from jmerge.recipe.yamltree import Path


class Notes:
    """Faults and warnings, each at its line of the recipe."""

    def __init__(self, recipe: Recipe) -> None:
        self.recipe = recipe
        self.faults: list[Fault] = []
        self.warnings: list[Fault] = []

    def fault(self, message: str, path: Path) -> None:
        """Note what makes the merge impossible."""
        self.faults.append(self.recipe.fault(message, path))

    def warn(self, message: str, path: Path) -> None:
        """Note what the user may not have meant."""
        self.warnings.append(self.recipe.fault(message, path))


def and_more(names: Sequence[str]) -> str:
    """The first name, and how many others there are."""
    return names[0] + (f" and {len(names) - 1} more" if len(names) > 1 else "")
