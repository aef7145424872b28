"""config.json of the output: fields that the merge makes untrue change, all others stay."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from jmerge.arch.config import (
    Change,
    Layers,
    Unsaid,
    get_path,
    set_depth,
    set_dtype,
    set_vocabulary_size,
    unsaid,
    untie,
    vocabulary_size,
)
from jmerge.arch.infer import KeyPath, Stack

FULL, SLIDING = "full_attention", "sliding_attention"


def stack(depth: int, *keys: KeyPath) -> Stack:
    """A stack of `depth` layers counted by `keys`."""
    return Stack("model.layers", tuple(range(depth)), keys or (("num_hidden_layers",),))


def source(config: dict[str, Any], depth: int, *layers: int) -> list[Layers]:
    """Layers of one model."""
    return [Layers(config, stack(depth), layer) for layer in layers]


def deepen(config: dict[str, Any], old: int, *layers: int) -> dict[str, Any]:
    """`config` of a model of `old` layers after its `layers` were stacked."""
    return set_depth(config, stack(old), source(config, old, *layers))[0]


# set_depth


def test_depth_is_written_and_recorded() -> None:
    """Only the count changes; the donor's config is left alone."""
    config = {"hidden_size": 8, "num_hidden_layers": 3, "vocab_size": 3}
    before = copy.deepcopy(config)
    edited, changes = set_depth(config, stack(3), source(config, 3, 0, 1, 1, 2))
    assert edited == {"hidden_size": 8, "num_hidden_layers": 4, "vocab_size": 3}
    assert changes == [Change("num_hidden_layers", 3, 4, changes[0].reason)]
    assert changes[0].reason
    assert config == before


def test_every_synonym_of_the_depth_is_written() -> None:
    """Mamba counts its layers twice."""
    config = {"n_layer": 3, "num_hidden_layers": 3}
    keys = (("num_hidden_layers",), ("n_layer",))
    edited, changes = set_depth(config, stack(3, *keys), source(config, 3, 0, 2))
    assert edited == {"n_layer": 2, "num_hidden_layers": 2}
    assert {change.key for change in changes} == {"n_layer", "num_hidden_layers"}


def test_no_key_no_change() -> None:
    """A stack whose depth config.json does not hold."""
    config = {"num_hidden_layers": 7}
    assert set_depth(config, Stack("a", (0, 1), ()), source(config, 2, 1, 0)) == (config, [])


def test_same_depth_in_another_order() -> None:
    """The count stays and the lists follow."""
    config = {"num_hidden_layers": 3, "layer_types": [SLIDING, SLIDING, FULL]}
    edited, changes = set_depth(config, stack(3), source(config, 3, 2, 1, 0))
    assert edited == {"num_hidden_layers": 3, "layer_types": [FULL, SLIDING, SLIDING]}
    assert [change.key for change in changes] == ["layer_types"]


PER_LAYER = [
    ("layer_types", [SLIDING, FULL, SLIDING], [SLIDING, FULL, FULL, SLIDING]),
    ("no_rope_layers", [1, 1, 0], [1, 1, 1, 0]),
    ("layers_block_type", ["mamba", "attention", "moe"], ["mamba", *["attention"] * 2, "moe"]),
    ("num_key_value_heads_per_layer", [4, 2, 1], [4, 2, 2, 1]),
    ("hybrid_override_pattern", "M*-", "M**-"),
    ("intermediate_size", [24, 32, 24], [24, 32, 32, 24]),  # Gemma 3n
    ("moe_intermediate_size", [8, 16, 8], [8, 16, 16, 8]),  # HunYuan
]


@pytest.mark.parametrize(("key", "old", "new"), PER_LAYER)
def test_an_entry_per_layer_follows_its_layer(key: str, old: Any, new: Any) -> None:
    """Lists, and the one text with a letter per layer, as long as the stack."""
    config = {"num_hidden_layers": 3, key: old}
    assert deepen(config, 3, 0, 1, 1, 2) == {"num_hidden_layers": 4, key: new}


@pytest.mark.parametrize(
    ("key", "donor", "other", "wanted"),
    [
        ("layer_types", [SLIDING, FULL, SLIDING], [FULL, FULL, FULL, SLIDING], [SLIDING, SLIDING]),
        ("hybrid_override_pattern", "M*-", "---*", "M*"),
        ("mlp_only_layers", [2], [3], [1]),
        ("mlp_only_layers", [0], [0, 1, 3], [0, 1]),
    ],
)
def test_a_layer_brings_what_its_own_model_says(
    key: str, donor: Any, other: Any, wanted: Any
) -> None:
    """Layer 0 of the donor and the last layer of a deeper model whose config differs."""
    config = {"num_hidden_layers": 3, key: donor}
    deeper = {"num_hidden_layers": 4, key: other}
    layers = [*source(config, 3, 0), *source(deeper, 4, 3)]
    edited, _ = set_depth(config, stack(3), layers)
    assert edited == {"num_hidden_layers": 2, key: wanted}


def test_an_empty_list_of_layer_numbers_counts() -> None:
    """No layer of the second model is dense, whatever the donor's numbers say."""
    config = {"num_hidden_layers": 3, "mlp_only_layers": [0, 2]}
    other = {"num_hidden_layers": 3, "mlp_only_layers": []}
    layers = [*source(config, 3, 0, 1), *source(other, 3, 0, 1, 2)]
    edited, _ = set_depth(config, stack(3), layers)
    assert edited == {"num_hidden_layers": 5, "mlp_only_layers": [0]}


def test_a_model_without_the_list_takes_the_donor_s() -> None:
    """An older config.json of the same architecture may lack a list."""
    config = {"num_hidden_layers": 2, "layer_types": [SLIDING, FULL]}
    layers = [*source(config, 2, 0), *source({"num_hidden_layers": 2}, 2, 0, 1)]
    edited, _ = set_depth(config, stack(2), layers)
    assert edited["layer_types"] == [SLIDING, SLIDING, FULL]


def test_the_other_model_may_keep_its_list_elsewhere() -> None:
    """The list is looked up beside the layer count of each model's own config."""
    config = {"text_config": {"num_hidden_layers": 2, "layer_types": [SLIDING, FULL]}}
    flat = {"num_hidden_layers": 2, "layer_types": [FULL, SLIDING]}
    nested = stack(2, ("text_config", "num_hidden_layers"))
    layers = [Layers(config, nested, 0), Layers(flat, stack(2), 0), Layers(flat, stack(2), 1)]
    edited, changes = set_depth(config, nested, layers)
    assert edited == {
        "text_config": {"num_hidden_layers": 3, "layer_types": [SLIDING, FULL, SLIDING]}
    }
    assert {change.key for change in changes} == {
        "text_config.num_hidden_layers",
        "text_config.layer_types",
    }


@pytest.mark.parametrize(
    ("key", "old", "new"),
    [
        ("mlp_only_layers", [0, 2], [0, 4]),
        ("mlp_only_layers", [], []),
        ("mlp_only_layers", [0, 1, 2], [0, 1, 2, 3, 4]),
        ("full_attn_idxs", [1], [1, 2, 3]),
        ("attn_layer_indices", [1, 2], [1, 2, 3, 4]),
        ("cross_attention_layers", [0], [0]),
        ("moe_layers", [0, 1, 2], [0, 1, 2, 3, 4]),  # Llama 4 Scout
        ("moe_layers", [1], [1, 2, 3]),  # Llama 4 Maverick
        ("fullatt_block_indexes", [2], [4]),  # the vision tower of Qwen2.5-VL
    ],
)
def test_layer_numbers_are_renumbered(key: str, old: list[int], new: list[int]) -> None:
    """Layers 0, 1, 1, 1, 2 of three."""
    config = {"num_hidden_layers": 3, key: old}
    assert deepen(config, 3, 0, 1, 1, 1, 2) == {"num_hidden_layers": 5, key: new}


@pytest.mark.parametrize(
    ("value", "layers", "wanted"),
    [(3, (0, 1), 2), (3, (0, 1, 1, 2), 3), (1, (0, 1), 1), (28, (0, 1), 28), (0, (0,), 0)],
)
def test_max_window_layers_is_clipped(value: int, layers: tuple[int, ...], wanted: int) -> None:
    """To the new depth; a value beyond the old one never counted layers."""
    config = {"num_hidden_layers": 3, "max_window_layers": value}
    assert deepen(config, 3, *layers)["max_window_layers"] == wanted


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("eos_token_id", [1, 2, 3]),
        ("mrope_section", [16, 24, 24]),
        ("image_mean", [0.5, 0.4, 0.3]),
        ("image_std", [0.5, 0.4, 0.3]),
        ("conv_kernel", [10, 3, 3]),
        ("window_size", [1, 2, 3]),
        ("rope_parameters", {"mrope_section": [1, 1, 2]}),
        ("id2label", {"0": "a", "1": "b", "2": "c"}),
        ("hidden_act", "elu"),
    ],
)
def test_lists_as_long_as_the_stack_by_chance_stay(key: str, value: Any) -> None:
    """Three layers, and three of something else."""
    config = {"num_hidden_layers": 3, key: value}
    assert deepen(config, 3, 0, 1, 1, 2) == {"num_hidden_layers": 4, key: value}


def test_tokens_of_a_whisper_with_two_decoder_layers_stay() -> None:
    """Distilled ones have as many layers as tokens that must not come first."""
    config = {
        "begin_suppress_tokens": [220, 50257],
        "decoder_layers": 2,
        "forced_decoder_ids": [[1, 50259], [2, 50359]],
    }
    decoder = stack(2, ("decoder_layers",))
    layers = [Layers(config, decoder, i) for i in (0, 1, 1)]
    assert set_depth(config, decoder, layers)[0] == config | {"decoder_layers": 3}


def test_architectures_of_a_model_with_one_layer_stay() -> None:
    """One class, one layer."""
    config = {"num_hidden_layers": 1, "architectures": ["A"], "layer_types": [FULL]}
    assert deepen(config, 1, 0, 0) == {
        "num_hidden_layers": 2,
        "architectures": ["A"],
        "layer_types": [FULL, FULL],
    }


def test_only_the_part_with_the_layer_count_changes() -> None:
    """Vision and top level have lists of the same length."""
    text = {"num_hidden_layers": 3, "layer_types": [SLIDING, FULL, SLIDING]}
    config = {
        "layer_types": ["a", "b", "c"],
        "text_config": text,
        "vision_config": {"num_hidden_layers": 3, "layer_types": ["x", "y", "z"]},
    }
    nested = stack(3, ("text_config", "num_hidden_layers"))
    edited, changes = set_depth(config, nested, [Layers(config, nested, i) for i in (0, 1)])
    assert edited == config | {
        "text_config": {"num_hidden_layers": 2, "layer_types": [SLIDING, FULL]}
    }
    assert {change.key: (change.old, change.new) for change in changes} == {
        "text_config.num_hidden_layers": (3, 2),
        "text_config.layer_types": ([SLIDING, FULL, SLIDING], [SLIDING, FULL]),
    }


RULES = [
    # layers of the output, what the config says before and after; None: no value says it
    ({"first_k_dense_replace": 1}, (0, 1, 2), {"first_k_dense_replace": 1}),
    ({"first_k_dense_replace": 1}, (0, 0, 1, 2), {"first_k_dense_replace": 2}),
    ({"first_k_dense_replace": 1}, (1, 2), {"first_k_dense_replace": 0}),
    ({"first_k_dense_replace": 1}, (1, 0), None),
    (
        {"first_k_dense_replace": 1, "moe_layer_freq": 2},  # experts in layer 2 alone
        (0, 1, 2, 2),
        {"first_k_dense_replace": 2, "moe_layer_freq": 1},
    ),
    ({"num_dense_layers": 2}, (0, 1, 1, 2), {"num_dense_layers": 3}),
    ({"num_kv_shared_layers": 1}, (0, 1, 2, 2), {"num_kv_shared_layers": 2}),
    ({"num_kv_shared_layers": 1}, (2, 0), None),
    # with keys of another layer than of that before it
    ({"num_kv_shared_layers": 1}, (1, 0, 2), None),
    ({"num_kv_shared_layers": 1}, (0, 1, 0, 1, 2), {"num_kv_shared_layers": 1}),
    ({"num_kv_shared_layers": 0}, (1, 0, 2), {"num_kv_shared_layers": 0}),
    (
        {"num_kv_shared_layers": 1, "layer_types": [FULL, SLIDING, FULL]},
        (1, 0, 2),
        {"layer_types": [SLIDING, FULL, FULL]},
    ),
    # adapters in all of three layers, or in the last
    ({"aligner_num_add_layers": 2}, (0, 1, 2, 1, 2), {"aligner_num_add_layers": 3}),
    ({"aligner_num_add_layers": 1}, (0, 1, 1, 2), {"aligner_num_add_layers": 1}),
    ({"aligner_num_add_layers": 1}, (0, 2, 0, 2), {"aligner_num_add_layers": 2}),
    ({"aligner_num_add_layers": 1}, (2, 0), None),
    (
        {"decoder_sparse_step": 2, "mlp_only_layers": []},
        (0, 1, 2, 1),
        {"decoder_sparse_step": 2, "mlp_only_layers": []},
    ),
    (  # what a class reads is written where config.json has it not, and only then
        {"model_type": "qwen2_moe", "decoder_sparse_step": 2},
        (0, 1, 1, 2),
        {"decoder_sparse_step": 1, "mlp_only_layers": [0, 3]},
    ),
    ({"model_type": "nllb-moe", "decoder_sparse_step": 2}, (0, 1, 1, 2), None),
    ({"model_type": "nllb-moe", "decoder_sparse_step": 4}, (0, 1, 2, 1), None),
    ({"model_type": "nllb-moe", "decoder_sparse_step": 2}, (0, 1, 2, 1), {}),
    (
        {"decoder_sparse_step": 1, "mlp_only_layers": [1]},
        (0, 1, 1, 2),
        {"decoder_sparse_step": 1, "mlp_only_layers": [1, 2]},
    ),
    (
        {"attn_layer_period": 2, "attn_layer_offset": 1},
        (0, 1, 0, 1, 2),
        {"attn_layer_period": 2, "attn_layer_offset": 1},
    ),
    (
        {"attn_layer_period": 2, "attn_layer_offset": 1},
        (0, 2, 1, 2, 0, 1),
        {"attn_layer_period": 3, "attn_layer_offset": 2},
    ),
    (
        {"attn_layer_period": 2, "attn_layer_offset": 1},
        (0, 2),
        {"attn_layer_period": 3, "attn_layer_offset": 2},
    ),
    ({"attn_layer_period": 2, "attn_layer_offset": 1}, (0, 1, 1, 2), None),
    (
        {"expert_layer_period": 2, "expert_layer_offset": 0},
        (0, 1, 1, 2),
        {"expert_layer_period": 3, "expert_layer_offset": 0},
    ),
    ({"expert_layer_period": 2, "expert_layer_offset": 0}, (0, 0, 1), None),
    ({"full_attention_interval": 3}, (0, 2, 1, 2), {"full_attention_interval": 2}),
    ({"full_attention_interval": 3}, (2, 0, 1), None),
    ({"sliding_window_pattern": 2}, (1, 2), None),
    ({"sliding_window_pattern": 2, "layer_types": [SLIDING, FULL, SLIDING]}, (1, 2), ...),
    ({"global_attn_every_n_layers": 3}, (0, 1, 2, 0), {"global_attn_every_n_layers": 3}),
    ({"global_attn_every_n_layers": 3}, (0, 0, 1), None),
    ({"interleave_moe_layer_step": 2}, (0, 2, 1), {"interleave_moe_layer_step": 3}),
    ({"no_rope_layer_interval": 2}, (1, 0), None),
    ({"use_sliding_window": True, "max_window_layers": 2}, (0, 1, 1, 2), {"max_window_layers": 3}),
    ({"use_sliding_window": True, "max_window_layers": 2}, (2, 0), None),
    ({"use_sliding_window": False, "max_window_layers": 2}, (2, 0), {"max_window_layers": 2}),
    (
        {"moe_layer_start_index": 1, "moe_layer_end_index": 2, "moe_layer_interval": 1},
        (0, 0, 1, 2),
        {"moe_layer_start_index": 2, "moe_layer_end_index": 3, "moe_layer_interval": 1},
    ),
    ({"deepstack_visual_indexes": [0, 2]}, (0, 1, 1, 2), {"deepstack_visual_indexes": [0, 3]}),
    ({"deepstack_visual_indexes": [0, 2]}, (0, 1), None),
    ({"deepstack_visual_indexes": [0, 2]}, (2, 0), None),
]


@pytest.mark.parametrize(("config", "layers", "wanted"), RULES)
def test_rules_that_tell_layers_by_number(
    config: dict[str, Any], layers: tuple[int, ...], wanted: Any
) -> None:
    """Of three layers: other numbers where they say the new order, a problem where none do."""
    config = {"num_hidden_layers": 3, **config}
    found = unsaid(config, stack(3), source(config, 3, *layers))
    assert (not found) == (wanted is not None)
    if wanted is None:
        assert {each.key for each in found} <= config.keys()
        return
    edited, changes = set_depth(config, stack(3), source(config, 3, *layers))
    if wanted is not ...:
        assert edited == config | wanted | {"num_hidden_layers": len(layers)}
    for key, old, new, reason in changes:
        assert (config.get(key), edited[key]) == (old, new)
        assert old != new
        assert reason


def test_a_rule_of_each_model_tells_its_own_layers() -> None:
    """The donor's first layer is dense, of the other model the first two."""
    config = {"num_hidden_layers": 3, "first_k_dense_replace": 1}
    other = {"num_hidden_layers": 3, "first_k_dense_replace": 2}
    layers = [*source(config, 3, 0), *source(other, 3, 1, 2)]
    assert unsaid(config, stack(3), layers) == []
    edited, _ = set_depth(config, stack(3), layers)
    assert edited == {"num_hidden_layers": 3, "first_k_dense_replace": 2}
    wrong = [*source(config, 3, 0, 2), *source(other, 3, 1)]
    assert unsaid(config, stack(3), wrong) == [
        Unsaid("first_k_dense_replace", [0, 2], "mlp_layer_types")
    ]


def test_a_stack_without_a_key_has_no_rules() -> None:
    """Nothing stands beside its length."""
    assert unsaid({"attn_layer_period": 2}, Stack("a", (0, 1), ()), source({}, 2, 1, 0)) == []


def test_rules_are_found_quickly() -> None:
    """A hundred layers in an order that nothing says."""
    order = [0, *range(99), 0]
    keys = {
        "moe_layer_start_index": 3,
        "moe_layer_end_index": 98,
        "moe_layer_interval": 1,
        "attn_layer_period": 8,
        "attn_layer_offset": 4,
        "first_k_dense_replace": 3,
        "sliding_window_pattern": 6,
    }
    config = {"num_hidden_layers": 100, **keys}
    found = unsaid(config, stack(100), source(config, 100, *order))
    assert [each.key for each in found] == ["first_k_dense_replace", "sliding_window_pattern"]


def test_a_rule_that_only_the_class_knows() -> None:
    """Gemma 2 alternates whatever config.json says, but for a list."""
    config = {"num_hidden_layers": 3, "model_type": "gemma2"}
    assert unsaid(config, stack(3), source(config, 3, 1, 2)) == [
        Unsaid("sliding_window_pattern", [0], "layer_types", written=True)
    ]
    edited, (*_, change) = set_depth(config, stack(3), source(config, 3, 1, 2))
    assert edited == config | {"num_hidden_layers": 2, "layer_types": [FULL, SLIDING]}
    assert change == ("layer_types", None, [FULL, SLIDING], "the layers of the output")
    for fields, order in (({}, (0, 1, 0)), ({"layer_types": [SLIDING, FULL, SLIDING]}, (1, 2))):
        layers = source(config | fields, 3, *order)
        assert unsaid(config | fields, stack(3), layers) == []
        edited, _ = set_depth(config | fields, stack(3), layers)
        assert edited.keys() == (config | fields).keys()


# set_dtype


@pytest.mark.parametrize(
    ("config", "wanted"),
    [
        ({"dtype": "float32"}, {"dtype": "bfloat16"}),
        ({"torch_dtype": "float32"}, {"torch_dtype": "bfloat16"}),
        ({"torch_dtype": None}, {"torch_dtype": "bfloat16"}),
        ({"dtype": "float16", "torch_dtype": "float32"}, None),
        ({"hidden_size": 8}, {"hidden_size": 8, "torch_dtype": "bfloat16"}),
        (
            {"dtype": "float32", "text_config": {"dtype": "float32"}, "vision_config": {"n": 1}},
            {"dtype": "bfloat16", "text_config": {"dtype": "bfloat16"}, "vision_config": {"n": 1}},
        ),
        (
            {"text_config": {"torch_dtype": "float16", "deep_config": {"dtype": "float32"}}},
            {
                "text_config": {"torch_dtype": "bfloat16", "deep_config": {"dtype": "bfloat16"}},
                "torch_dtype": "bfloat16",
            },
        ),
        ({"dtype": "bfloat16"}, {"dtype": "bfloat16"}),
        ({}, {}),
    ],
)
def test_dtype_is_written_under_the_key_in_use(config: dict[str, Any], wanted: Any) -> None:
    """`dtype` or `torch_dtype`, at every level that has one; added at the top if missing."""
    before = copy.deepcopy(config)
    edited, changes = set_dtype(config, "BF16")
    assert edited == (dict.fromkeys(config, "bfloat16") if wanted is None else wanted)
    assert config == before
    for key, old, new, reason in changes:
        path = tuple(key.split("."))
        assert (get_path(before, path), get_path(edited, path)) == (old, new)
        assert old != new
        assert reason
    assert (edited == before) == (not changes)


@pytest.mark.parametrize(
    ("dtype", "word"),
    [("F64", "float64"), ("F32", "float32"), ("F16", "float16"), ("BF16", "bfloat16")],
)
def test_words_for_dtypes(dtype: str, word: str) -> None:
    """As torch spells them."""
    assert set_dtype({"dtype": "?"}, dtype)[0] == {"dtype": word}


@pytest.mark.parametrize("dtype", ["I64", "U8", "F8_E4M3"])
def test_dtypes_without_a_word_change_nothing(dtype: str) -> None:
    """Most bytes of a quantised copy are not floats."""
    config = {"dtype": "bfloat16"}
    assert set_dtype(config, dtype) == (config, [])


# untie


@pytest.mark.parametrize(
    ("config", "wanted"),
    [
        ({"tie_word_embeddings": True}, {"tie_word_embeddings": False}),
        ({"tie_word_embeddings": False}, {"tie_word_embeddings": False}),
        ({"a": 1}, {"a": 1, "tie_word_embeddings": False}),  # many classes tie by default
        (
            {"tie_word_embeddings": True, "text_config": {"tie_word_embeddings": True}},
            {"tie_word_embeddings": False, "text_config": {"tie_word_embeddings": False}},
        ),
        (
            {"tie_word_embeddings": False, "text_config": {"tie_word_embeddings": True}},
            {"tie_word_embeddings": False, "text_config": {"tie_word_embeddings": False}},
        ),
        (
            {"tie_word_embeddings": True, "text_config": {"vocab_size": 4}},
            {"tie_word_embeddings": False, "text_config": {"vocab_size": 4}},
        ),
    ],
)
def test_untie(config: dict[str, Any], wanted: dict[str, Any]) -> None:
    """Every level says that the head is a tensor of its own, and what changed is recorded."""
    before = copy.deepcopy(config)
    edited, changes = untie(config)
    assert edited == wanted
    assert config == before
    assert (edited == before) == (not changes)
    for key, old, new, _ in changes:
        path = tuple(key.split("."))
        assert (get_path(before, path), get_path(edited, path)) == (old, new)


# Vocabulary sizes

NESTED = {
    "vision_config": {"vocab_size": 7},
    "text_config": {"vocab_size": 20, "audio_config": {"vocab_size": 20}},
}


def test_vocabulary_size() -> None:
    """Of the language model: at the top, else where it is nested; never that of another sense."""
    assert vocabulary_size({"vocab_size": 9, **NESTED}) == 9
    assert vocabulary_size(NESTED) == 20
    assert vocabulary_size({"vision_config": {"vocab_size": 7}}) is None
    assert vocabulary_size({"vocab_size": "9"}) is None and vocabulary_size({}) is None


def test_set_vocabulary_size() -> None:
    """Every place that counted the same tokens says the new number; the config given stays."""
    config = {"vocab_size": 20, **copy.deepcopy(NESTED)}
    before = copy.deepcopy(config)
    edited, changes = set_vocabulary_size(config, 24)
    assert config == before
    assert edited == {
        "vocab_size": 24,
        "vision_config": {"vocab_size": 7},
        "text_config": {"vocab_size": 24, "audio_config": {"vocab_size": 20}},
    }
    assert [(c.key, c.old, c.new) for c in changes] == [
        ("vocab_size", 20, 24),
        ("text_config.vocab_size", 20, 24),
    ]
    assert set_vocabulary_size(config, 20) == (config, [])
    assert set_vocabulary_size({"x": 1}, 20) == ({"x": 1}, [])
