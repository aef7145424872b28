"""config.json that promises layers which foretell more tokens, and weights with and without them."""

from __future__ import annotations

from typing import Any

import pytest

from jmerge.arch.ahead import without_ahead

LAYERS = [f"model.layers.{i}.mlp.up_proj.weight" for i in range(3)]
PROMISES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "deepseek": ({"num_nextn_predict_layers": 1}, {"num_nextn_predict_layers": 0}),
    "qwen": (
        {"mtp_num_hidden_layers": 1, "mtp_use_dedicated_embeddings": False},
        {"mtp_num_hidden_layers": 0},
    ),
    "minimax": (
        {"use_mtp": True, "num_mtp_modules": 3, "mtp_transformer_layers": 1},
        {"use_mtp": False, "num_mtp_modules": 0, "mtp_transformer_layers": 0},
    ),
    "a part": (
        {"text_config": {"num_hidden_layers": 3, "num_mtp_layers": 2}},
        {"text_config": {"num_hidden_layers": 3, "num_mtp_layers": 0}},
    ),
}


@pytest.mark.parametrize("case", PROMISES)
@pytest.mark.parametrize(
    "tensor", ["mtp.fc.weight", "model.layers.3.eh_proj.weight", "model.mtp.0.norm.weight"]
)
def test_promises(case: str, tensor: str) -> None:
    """They are taken back where nothing keeps them, and stay where a tensor is called so or numbered behind the rest."""
    told, wanted = PROMISES[case]
    config = {"num_hidden_layers": 3, "hidden_size": 8} | told
    edited, changes = without_ahead(config, LAYERS)
    assert edited == config | wanted | {k: v for k, v in told.items() if k not in wanted}
    assert all(not change.new and change.old for change in changes) and changes
    assert without_ahead(config, [*LAYERS, tensor]) == (config, [])
    assert config["hidden_size"] == 8 and config | told == config


@pytest.mark.parametrize(
    "other",
    [
        {"num_nextn_predict_layers": 0},
        {"mtp_loss_factor": 0.3},
        {"mtp_num_attention_heads": 8},
        {"mtp_token_id": 7},
        {"use_mtp": False},
    ],
)
def test_no_promise(other: dict[str, Any]) -> None:
    """Nothing else changes."""
    config = {"num_hidden_layers": 3} | other
    assert without_ahead(config, LAYERS) == (config, [])


def test_layers_of_another_part_are_none_behind() -> None:
    """A tower with fewer layers than the text has is not counted by the numbers of the text's."""
    text = {"num_hidden_layers": 3, "num_nextn_predict_layers": 1}
    config = {"text_config": text, "vision_config": {"depth": 2, "num_hidden_layers": 2}}
    edited, changes = without_ahead(config, LAYERS)
    assert edited["text_config"] == text | {"num_nextn_predict_layers": 0} and len(changes) == 1
    assert without_ahead(config, [*LAYERS, "model.layers.3.eh_proj.weight"]) == (config, [])
