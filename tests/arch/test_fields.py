"""Which differences between two config.json matter, field by field."""

from __future__ import annotations

from typing import Any

import pytest

from jmerge.arch.fields import FIELDS, KNOWN, differences

YARN = {"rope_type": "yarn", "factor": 4.0}
LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0}
Pair = tuple[dict[str, Any], dict[str, Any]]

REFUSED: list[tuple[str, Pair]] = [
    ("hidden_act", ({"hidden_act": "silu"}, {"hidden_act": "gelu"})),
    ("hidden_act", ({"hidden_act": "silu"}, {"activation_function": "relu"})),
    ("num_attention_heads", ({"num_attention_heads": 4}, {"num_attention_heads": 8})),
    ("num_key_value_heads", ({"num_key_value_heads": 4}, {"num_key_value_heads": 2})),
    ("head_dim", ({"head_dim": 64}, {"head_dim": 128})),
    ("rope_theta", ({"rope_theta": 1e4}, {"rope_theta": 1e6})),
    ("rope_theta", ({"rope_theta": 1e4}, {"rope_parameters": {"rope_theta": 5e5}})),
    ("rope_scaling", ({"rope_theta": 1e4}, {"rope_theta": 1e4, "rope_scaling": YARN})),
    ("rope_scaling", ({"rope_scaling": YARN}, {"rope_scaling": {**YARN, "factor": 2.0}})),
    (
        "rope_scaling",
        ({"rope_scaling": None}, {"rope_parameters": {"rope_theta": 1e4, **LLAMA3}}),
    ),
    ("rms_norm_eps", ({"rms_norm_eps": 1e-5}, {"rms_norm_eps": 1e-3})),
    ("query_pre_attn_scalar", ({"query_pre_attn_scalar": 144}, {"query_pre_attn_scalar": 256})),
]
TOLD: list[tuple[str, Pair]] = [
    ("hidden_act", ({"hidden_act": "gelu"}, {"hidden_act": "gelu_pytorch_tanh"})),
    ("rms_norm_eps", ({"rms_norm_eps": 1e-5}, {"rms_norm_eps": 1e-6})),
    ("rms_norm_eps", ({"layer_norm_eps": 1e-12}, {"layer_norm_eps": 1e-5})),
    ("rope_scaling", ({"rope_theta": 1, "rope_scaling": {"type": "dynamic"}}, {"rope_theta": 1})),
    ("max_position_embeddings", ({"max_position_embeddings": 4}, {"n_positions": 8})),
    ("eos_token_id", ({"eos_token_id": 2}, {"eos_token_id": [2, 3]})),
    ("pad_token_id", ({"pad_token_id": None}, {"pad_token_id": 0})),
    ("sliding_window", ({"sliding_window": 4096}, {"sliding_window": 512})),
    ("layer_types", ({"layer_types": ["a", "b"]}, {"layer_types": ["b", "b"]})),
    ("model_type", ({"model_type": "llama"}, {"model_type": "mistral"})),
]
SAME: list[Pair] = [
    ({"hidden_act": "silu"}, {"hidden_act": "silu"}),
    ({"rope_theta": 10000}, {"rope_theta": 10000.0}),
    ({"rope_theta": 1e4}, {"rope_parameters": {"rope_theta": 1e4, "rope_type": "default"}}),
    (
        {"rope_theta": 1e6, "rope_scaling": {"type": "yarn", "factor": 4.0}},
        {"rope_parameters": {"rope_theta": 1e6, **YARN}},
    ),
    (
        {"rope_theta": 1e6, "rope_local_base_freq": 1e4},
        {
            "rope_parameters": {
                "full_attention": {"rope_theta": 1e6, "rope_type": "default"},
                "sliding_attention": {"rope_theta": 1e4, "rope_type": "default"},
            }
        },
    ),
    # text has one position for all three of mrope's
    (
        {"rope_theta": 1e6},
        {"rope_theta": 1e6, "rope_scaling": {"type": "mrope", "mrope_section": [1, 2]}},
    ),
    # what one does not say is not compared
    ({"hidden_act": "silu"}, {}),
    ({"head_dim": 64}, {"head_dim": None}),
    ({"rope_scaling": YARN}, {"hidden_act": "silu"}),
    # what concerns no weight
    ({"use_cache": True, "torch_dtype": "x"}, {"use_cache": False, "torch_dtype": "y"}),
]


@pytest.mark.parametrize(("name", "pair"), REFUSED)
def test_refused(name: str, pair: Pair) -> None:
    """Both ways round, with a reason."""
    for own, donor in (pair, pair[::-1]):
        (found,) = differences(own, (), donor, ())
        assert (found.field.name, found.verdict) == (name, "refused")
        assert found.field.why


@pytest.mark.parametrize(("name", "pair"), TOLD)
def test_told(name: str, pair: Pair) -> None:
    for own, donor in (pair, pair[::-1]):
        (found,) = differences(own, (), donor, ())
        assert (found.field.name, found.verdict) == (name, "told")


@pytest.mark.parametrize("pair", SAME)
def test_same(pair: Pair) -> None:
    for own, donor in (pair, pair[::-1]):
        assert list(differences(own, (), donor, ())) == []


def test_homes() -> None:
    """A part is compared with a part; a language model's falls back on what stands around it, a tower's does not."""
    donor = {"eos_token_id": 1, "text_config": {"rope_theta": 1e6}, "vision_config": {"depth": 2}}
    own = {"rope_theta": 1e4, "eos_token_id": 2, "hidden_act": "silu"}
    found = {each.field.name: each for each in differences(own, (), donor, ("text_config",))}
    assert found.keys() == {"rope_theta", "eos_token_id"}
    assert found["rope_theta"].own.path == ("rope_theta",)
    assert found["rope_theta"].donor.path == ("text_config", "rope_theta")
    assert found["eos_token_id"].donor.path == ("eos_token_id",)
    tower = {"hidden_act": "gelu", "vision_config": {"num_heads": 2}}
    other = {"hidden_act": "silu", "vision_config": {"num_heads": 4}}
    home = ("vision_config",)
    assert [each.field.name for each in differences(tower, home, other, home)] == [
        "num_attention_heads"
    ]


def test_the_table() -> None:
    """No key belongs to two fields, and whatever is refused has a reason."""
    assert len(KNOWN) == sum(len(field.keys) for field in FIELDS)
    first, second = {"a": 1}, {"b": 1}
    for field in FIELDS:
        refuses = field.compare(first, second) == "refused"
        assert bool(field.why) == (refuses or field.name == "rope_scaling")
