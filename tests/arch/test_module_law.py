"""The law of modules: every tensor is in a module that recipes can name, and a recipe without `modules:` merges all."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jmerge.arch.families import MODULES
from jmerge.arch.infer import Layout, infer_layout
from jmerge.dtypes import TensorSpec

HEADERS = json.loads((Path(__file__).parents[1] / "data/conformance/arch_headers.json").read_text())


def infer(shapes: Mapping[str, Any], config: Mapping[str, Any]) -> Layout:
    """The layout of float32 tensors of these shapes."""
    return infer_layout({name: TensorSpec("F32", tuple(s)) for name, s in shapes.items()}, config)


def check(layout: Layout) -> None:
    """No tensor is in a module that is not listed, no module is listed twice or nameless."""
    strange = {
        name: role for name, role in layout.roles.items() if role.module not in layout.modules
    }
    assert not strange
    assert len(set(layout.modules)) == len(layout.modules) and all(layout.modules)


@pytest.mark.parametrize("name", HEADERS)
def test_published_classes(name: str) -> None:
    """Under their own class, and under every class whose modules are in the table."""
    tensors, config = HEADERS[name]["tensors"], HEADERS[name]["config"]
    check(infer(tensors, config))
    check(infer(tensors, config | {"architectures": []}))
    for other in MODULES:
        check(infer(tensors, config | {"architectures": [other]}))


@pytest.mark.parametrize("name", HEADERS)
def test_published_classes_with_a_list_beside_the_stacks(name: str) -> None:
    """Something numbered that config.json does not count, below every word of the names that there are."""
    tensors, config = HEADERS[name]["tensors"], HEADERS[name]["config"]
    starts = {".".join(each.split(".")[:count]) for each in tensors for count in (0, 1, 2)}
    lists = {
        f"{start}.beside.{i}.weight".removeprefix("."): (5, 5) for start in starts for i in range(2)
    }
    check(infer(tensors | lists, config))


WORDS = st.sampled_from(["model", "text", "vision", "layers", "0", "1", "2", "proj", "weight", "x"])
NAMES = st.lists(WORDS, min_size=1, max_size=5).map(".".join)
COUNTS = st.dictionaries(
    st.sampled_from(["num_hidden_layers", "depth", "n_layer"]), st.integers(0, 3)
)


@settings(max_examples=200, deadline=None)
@given(
    names=st.lists(NAMES, unique=True, max_size=16),
    counts=st.lists(COUNTS, min_size=3, max_size=3),
    architecture=st.sampled_from([None, *MODULES]),
)
def test_any_names(
    names: list[str], counts: list[dict[str, int]], architecture: str | None
) -> None:
    """Whatever is numbered and counted."""
    top, text, vision = counts
    config = {"vocab_size": 7, **top, "text_config": text, "vision_config": vision}
    if architecture:
        config["architectures"] = [architecture]
    check(infer(dict.fromkeys(names, (7, 7)), config))


def test_a_numbered_projector_between_two_towers() -> None:
    """As in GIT and MiniCPM-V: no config key counts it, and it is a module all the same."""
    tensors: dict[str, tuple[int, ...]]
    tensors = {"model.text.embed_tokens.weight": (64, 16), "lm_head.weight": (64, 16)}
    tensors |= {f"model.text.layers.{i}.mlp.weight": (16, 16) for i in range(3)}
    tensors |= {f"model.vision.layers.{i}.mlp.weight": (16, 16) for i in range(4)}
    tensors |= {f"model.projector.{i}.bias": (16,) for i in range(2)}
    parts = {"text_config": {"num_hidden_layers": 3, "vocab_size": 64}}
    layout = infer(tensors, parts | {"vision_config": {"num_hidden_layers": 4}})
    assert layout.modules == ("text", "vision", "projector")
    assert layout.roles["model.projector.0.bias"].module == "projector"
    assert layout.roles["lm_head.weight"].module == "text"
