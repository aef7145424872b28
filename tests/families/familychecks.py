"""Merges of the families' models, and the checks of a result.

It must have the tensors that `familyreference` makes of the same files, load without a complaint, with the config of a
model built that way, and compute what a model filled with the numpy tensors computes.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
import yaml
from familykit import Family, Tensors
from familyreference import METHODS, read_model, stack_recipe, stack_tensors
from safetensors.numpy import save_file
from transformers import PretrainedConfig, PreTrainedModel

import jmerge
from jmerge.testing.close import TO_ROUNDING, assert_close, assert_same_bytes

MODELS = {"a": 1, "b": 2, "c": 3}  # name -> seed; c is the base of ties
STACK = "stack"


@contextmanager
def quiet() -> Iterator[None]:
    """No progress bars or logging of transformers."""
    logging = transformers.utils.logging
    level = logging.get_verbosity()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    yield
    logging.set_verbosity(level)
    logging.enable_progress_bar()


class Matrix:
    """Models, merges and checks of the families in one folder; each is made once."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.made: dict[str, Path] = {}
        self.held: dict[tuple[str, str], int] = {}

    def inputs(self, family: Family) -> Path:
        """The folder with the models a, b and c of a family."""
        if family.name not in self.made:
            home = self.root / family.name
            for name, seed in MODELS.items():
                new_model(family, seed).save_pretrained(home / name)
                stored = family.stored(read_model(home / name))
                save_file(stored, home / name / "model.safetensors", metadata={"format": "pt"})
            self.made[family.name] = home
        return self.made[family.name]

    def check(self, family: Family, kind: str) -> int:
        """How many tensors a merge of the family by the method `kind`, or STACK, has, all of which hold; AssertionError
        tells what does not."""
        if (family.name, kind) not in self.held:
            folder = self.inputs(family)
            a, b, c = (read_model(folder / name) for name in "abc")
            out = folder / f"{kind}-out"
            if kind == STACK:
                merge(stack_recipe(family), folder, out)
                wanted = stack_tensors(family, a, b)
                check(family, out, wanted, stacked=True, exact=True)
            else:
                method = METHODS[kind]
                merge(method.recipe, folder, out)
                models = {"a": a, "b": b, "c": c}
                base = models[method.recipe.get("base_model", "a")]
                wanted = {
                    name: base[name]
                    if re.fullmatch(family.copied, name)
                    else method.merge(*(each[name] for each in models.values()))[0].value
                    for name in base
                }
                check(family, out, wanted)
            self.held[family.name, kind] = len(wanted)
        return self.held[family.name, kind]


def new_model(family: Family, seed: int) -> PreTrainedModel:
    """A model whose parameters and buffers, norms and biases too, are seeded noise, so that each shows."""
    model = family.model(family.config(False)).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in stored_tensors(model).items():
            scale = 0.3 if name.endswith("bias") else 1.0
            if tensor.ndim > 1:
                scale = family.noise * tensor.shape[-1] ** -0.5
            tensor.copy_(scale * torch.randn(tensor.shape, generator=generator))
    return model


def stored_tensors(model: PreTrainedModel) -> dict[str, torch.Tensor]:
    """Parameters by name, each once, and the buffers of floats that are saved with them."""
    saved = model.state_dict(keep_vars=True)
    buffers = {name: x for name, x in model.named_buffers() if name in saved}
    return dict(model.named_parameters()) | {
        name: x for name, x in buffers.items() if x.is_floating_point()
    }


def merge(recipe: dict[str, Any], folder: Path, out: Path) -> None:
    """Run jmerge on `recipe`, whose models are named by their folders inside `folder`; it must see nothing strange."""
    text = re.sub(r"\b(model|base_model): ([abc])\b", rf"\1: {folder}/\2", yaml.safe_dump(recipe))
    path = out.with_suffix(".yml")
    path.write_text(text)
    made = jmerge.merge(path, out, listeners=())
    assert (*made.plan.warnings, *made.strange) == ()


def check(
    family: Family, out: Path, wanted: Tensors, *, stacked: bool = False, exact: bool = False
) -> None:
    """Tensors, config, loading and forward pass of the merged model in `out`.

    Args:
      family: of the model.
      out: its folder.
      wanted: its tensors.
      stacked: it has the depths of the stacked merge.
      exact: its tensors are copies.
    """
    found = read_model(out)
    assert found.keys() == wanted.keys()
    for name, tensor in wanted.items():
        copied = exact or re.fullmatch(family.copied, name)
        assert_tensor(name, found[name], tensor, copied=bool(copied))
    config = family.config(stacked)
    check_config(family, out, config)
    model = load(family, out)
    for name in family.tied:
        assert model.get_parameter(name) is model.get_parameter(family.tied[0]), name
    logits = forward(family, model)
    assert torch.isfinite(logits).all()
    filled = load(family, None, config=config, state_dict=as_torch(wanted))
    wide = family.tolerance
    torch.testing.assert_close(logits, forward(family, filled), rtol=wide, atol=wide)


def assert_tensor(name: str, found: np.ndarray, wanted: np.ndarray, *, copied: bool) -> None:
    """Closeness, or that all bits are those of `wanted`, with the tensor's name in the message."""
    try:
        if copied:
            assert_same_bytes(found, wanted)
        else:
            assert found.dtype == np.float32, found.dtype
            assert_close(found, wanted, TO_ROUNDING)
    except AssertionError as error:
        raise AssertionError(f"{name}: {error}") from None


def check_config(family: Family, out: Path, wanted: PretrainedConfig) -> None:
    """config.json says what a config built for these tensors says, and names class and dtype."""
    raw = json.loads((out / "config.json").read_text())
    assert raw["architectures"] == [family.model.__name__]
    assert raw["dtype"] == "float32"
    found = type(wanted).from_pretrained(out)
    about_files = {"architectures", "dtype", "transformers_version", "_name_or_path"}
    for key, value in wanted.to_dict().items():
        if key not in about_files:
            assert without(found.to_dict()[key], about_files) == without(value, about_files), key


def without(value: Any, keys: set[str]) -> Any:
    """`value`, if it is a map without some of its keys."""
    return {k: v for k, v in value.items() if k not in keys} if isinstance(value, dict) else value


def load(family: Family, source: Path | None, **rest: Any) -> PreTrainedModel:
    """The model transformers reads; it must use every tensor and lack none."""
    model, info = family.model.from_pretrained(source, output_loading_info=True, **rest)
    problems = ("missing_keys", "unexpected_keys", "mismatched_keys", "error_msgs")
    assert {key: info[key] for key in problems if info[key]} == {}
    return model.eval()


def as_torch(tensors: Tensors) -> dict[str, torch.Tensor]:
    """The tensors as torch has them, in float32 what is float64."""
    narrow = {np.dtype(np.float64): np.dtype(np.float32)}
    return {
        name: torch.from_numpy(np.asarray(x, narrow.get(x.dtype))) for name, x in tensors.items()
    }


def forward(family: Family, model: PreTrainedModel, *, gradients: bool = False) -> torch.Tensor:
    """What the model makes of the family's inputs, in one row."""
    with torch.set_grad_enabled(gradients):
        found = model(**family.inputs())
    return torch.cat([found[name].flatten() for name in family.outputs])


def influences(family: Family, model: PreTrainedModel) -> dict[str, float]:
    """How much each stored tensor matters to the output: its largest gradient, of the least used expert where several
    are packed; of one without gradients, such as a bias of a router, the change when it is turned round."""
    output = forward(family, model, gradients=True)
    generator = torch.Generator().manual_seed(7)
    (output * torch.randn(output.shape, generator=generator)).sum().backward()
    found = {}
    for name, tensor in stored_tensors(model).items():
        if tensor.grad is None:
            kept = tensor.detach().clone()
            with torch.no_grad():
                tensor.neg_()
                found[name] = float((forward(family, model) - output).abs().max())
                tensor.copy_(kept)
        else:
            sizes = tensor.grad.abs()
            found[name] = float(sizes.flatten(1).amax(1).min() if sizes.ndim == 3 else sizes.max())
    return found
