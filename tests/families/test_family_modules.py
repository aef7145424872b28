"""The law of modules over all families: every tensor is in a module of the layout, so nothing is left unmentioned."""

from __future__ import annotations

import pytest
import torch
from familykit import Family
from matrix import FAMILIES

from jmerge.arch.infer import infer_layout
from jmerge.dtypes import TensorSpec


@pytest.mark.parametrize("family", FAMILIES, ids=[family.name for family in FAMILIES])
def test_every_tensor_is_in_a_module(family: Family) -> None:
    """By names and shapes alone: the model is built without memory."""
    with torch.device("meta"):
        model = family.model(family.config(False))
    config = model.config.to_dict() | {"architectures": [family.model.__name__]}
    specs = {name: TensorSpec("F32", tuple(t.shape)) for name, t in model.state_dict().items()}
    layout = infer_layout(specs, config)
    assert {role.module for role in layout.roles.values()} <= {*layout.modules}
    unnamed = infer_layout(specs, config | {"architectures": []})
    assert {role.module for role in unnamed.roles.values()} <= {*unnamed.modules}
