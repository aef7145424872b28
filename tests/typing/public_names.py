"""What type checkers see of jmerge; `test_public_names` runs mypy on this file, nobody runs it."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, assert_type

import jax
import numpy as np

import jmerge
from jmerge import advanced

recipe = jmerge.Recipe.from_dict({"merge_method": "linear"})
assert_type(recipe, jmerge.Recipe)
assert_type(jmerge.Recipe.from_text("merge_method: linear"), jmerge.Recipe)
assert_type(jmerge.Recipe.from_file(Path("x.yml")), jmerge.Recipe)

assert_type(jmerge.plan(recipe), jmerge.Plan)
assert_type(jmerge.plan({"merge_method": "linear"}, seed=1), jmerge.Plan)
assert_type(jmerge.plan("x.yml").to_json(), str)

assert_type(jmerge.merge("x.yml", "out"), jmerge.Merged)
assert_type(jmerge.merge(recipe, Path("out"), overwrite=True).folder, Path)
arrays = jmerge.merge({"merge_method": "linear"})
assert_type(arrays, advanced.Arrays)
assert_type(arrays["x"], np.ndarray[tuple[Any, ...], np.dtype[Any]])
mapping: Mapping[str, np.ndarray] = jmerge.merge(recipe, None, seed=1)


class Own:
    """A sink."""

    def write(self, tensor: str, start: int, data: memoryview) -> None:
        """Take bytes."""


assert_type(jmerge.merge(recipe, Own()), Own)

checkpoint = jmerge.open_checkpoint("org/name")
assert_type(checkpoint, jmerge.Checkpoint)
assert_type(jmerge.open_checkpoint({"x": np.ones(1)}, config={}), jmerge.Checkpoint)
mapping = checkpoint

assert_type(jmerge.load("a"), dict[str, jax.Array])
assert_type(jmerge.save({"x": np.ones(1)}, "b", like=checkpoint), Path)
vocabularies = jmerge.align_vocabularies(["a", {"x": 0}], vocabulary="first")
assert_type(vocabularies, jmerge.Vocabularies)
assert_type(vocabularies.align([np.ones((1, 1))]), list[jax.Array])

error: type[ValueError] = jmerge.PlanError
failure: type[RuntimeError] = jmerge.CancelledError

# what is wrong is an error: each of these has to be ignored, or mypy says that nothing is to be
print(jmerge.nonexistent)  # type: ignore[attr-defined]
jmerge.plan(5)  # type: ignore[arg-type]
jmerge.merge(recipe, "out", sed=1)  # type: ignore[call-overload]
jmerge.merge(recipe, None, overwrite=True)  # type: ignore[call-overload]
jmerge.align_vocabularies(["a"], vocabulary="unoin")  # type: ignore[arg-type]
