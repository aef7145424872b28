"""Models of every kind, as transformers saves them, are found sound: a check that cries wolf is not looked at."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from goldens import CONFORMANCE

from jmerge.ckpt.dtypes import TensorSpec
from jmerge.ckpt.safetensors import encode_header
from jmerge.ckpt.source import LocalSource
from jmerge.testing.tiny import write_checkpoint
from jmerge.verify.checks import verify

HEADERS = json.loads((CONFORMANCE / "arch_headers.json").read_text())


@pytest.mark.parametrize("name", HEADERS)
def test_a_model_of_transformers_is_sound(name: str, tmp_path: Path) -> None:
    model = HEADERS[name]
    specs = {key: TensorSpec("F32", tuple(shape)) for key, shape in model["tensors"].items()}
    with (tmp_path / "model.safetensors").open("wb") as file:
        head = encode_header(specs)
        file.write(head)
        file.truncate(len(head) + sum(spec.nbytes for spec in specs.values()))
    (tmp_path / "config.json").write_text(json.dumps(model["config"]))
    (found,) = verify(LocalSource(tmp_path))
    assert [each for check in found.checks for each in check.faults] == []
    # classes that keep the default ids of a large vocabulary at a tiny size
    strange = [each for check in found.checks for each in check.findings]
    assert all("token_id is 50256" in each.message for each in strange)


def test_two_layers_of_two_kinds_are_layers(tmp_path: Path) -> None:
    """Too unlike for a stack, as the first layers of a hybrid are."""
    names = {
        0: ("mamba.in_proj", "mamba.out_proj", "mamba.x_proj", "mamba.dt_proj"),
        1: ("attn.q_proj", "attn.k_proj", "attn.v_proj", "attn.o_proj"),
    }
    tensors = {
        f"model.layers.{i}.{name}.weight": np.ones((8, 8), np.float32)
        for i, each in names.items()
        for name in each
    }
    config = {"architectures": ["HybridModel"], "num_hidden_layers": 2, "hidden_size": 8}
    write_checkpoint(tmp_path, tensors, config)
    (found,) = verify(LocalSource(tmp_path))
    assert [each for check in found.checks for each in check.findings] == []
