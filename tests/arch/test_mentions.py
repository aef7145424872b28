"""Whose layers a field of config.json speaks of: told by the map it stands in and by its words, never by numbers."""

from __future__ import annotations

from typing import Any

import pytest

from jmerge.arch.config import Layers, set_depth, unsaid
from jmerge.arch.infer import Config, KeyPath, Stack, infer_layout
from jmerge.arch.mentions import Beside
from jmerge.dtypes import TensorSpec


def stack(prefix: str, *keys: KeyPath, depth: int = 3) -> Stack:
    """Three layers counted by these keys."""
    return Stack(prefix, tuple(range(depth)), keys)


def changed(
    config: Config, *stacks: Stack, names: tuple[str, ...] = ()
) -> tuple[set[str], set[str]]:
    """Fields that change, and those that are refused, where the first of the stacks gets its last layer twice."""
    first = stacks[0]
    layers = [Layers(config, first, i) for i in (*range(first.depth), first.depth - 1)]
    beside = Beside(stacks, names)
    _, changes = set_depth(dict(config), first, layers, beside)
    counted = {".".join(path) for path in first.keys}
    said = unsaid(config, first, layers, beside)
    assert all(each.why for each in said)
    return {change.key for change in changes} - counted, {each.key for each in said}


TEXT: KeyPath = ("text_config", "num_hidden_layers")
VISION: KeyPath = ("vision_config", "depth")
TWO = {"text_config": {"num_hidden_layers": 3}, "vision_config": {"depth": 3}}


def test_fields_around_a_part() -> None:
    """Of a field at the top only its words tell which part it is about."""
    text, vision = stack("model.language_model.layers", TEXT), stack("visual.blocks", VISION)
    config = {**TWO, "vision_feature_layer": -2, "feature_layer": -2, "num_hidden_layers": 3}
    assert changed(config, vision, text) == (
        {"vision_feature_layer"},
        {"feature_layer", "num_hidden_layers"},
    )
    assert changed(config, text, vision) == (set(), {"feature_layer", "num_hidden_layers"})
    config["text_config"] = {"num_hidden_layers": 5}
    other = stack("model.language_model.layers", TEXT, depth=5)
    assert changed(config, vision, other) == (
        {"num_hidden_layers", "vision_feature_layer"},
        {"feature_layer"},
    )


def test_fields_of_another_part_stay() -> None:
    """A part beside has fields of the same names and numbers."""
    parts = {key: value | {"layer_types": ["a", "b", "c"]} for key, value in TWO.items()}
    text, vision = stack("model.language_model.layers", TEXT), stack("visual.blocks", VISION)
    assert changed(parts, text, vision) == ({"text_config.layer_types"}, set())
    assert changed(parts, vision, text) == ({"vision_config.layer_types"}, set())


def test_maps_inside_a_part() -> None:
    """What is no model of its own belongs to the part; what is one belongs to nobody else."""
    config = {
        "num_hidden_layers": 3,
        "linear_attn_config": {"full_attn_layers": [0], "kda_layers": [1, 2]},
        "layer_groups": {"a": [0, 2], "b": [1]},
        "draft_config": {"num_hidden_layers": 3, "layer_types": ["a", "b", "c"]},
        "rope_parameters": {"full": {"theta": 3}},
    }
    assert changed(config, stack("model.layers", ("num_hidden_layers",))) == (
        {"linear_attn_config.kda_layers"},
        {"layer_groups.a"},
    )


def test_a_map_named_after_the_stack() -> None:
    """FastSpeech 2 counts a layer of its encoder twice, once in a map of its own."""
    config = {"encoder_layers": 3, "encoder_config": {"layers": 3}, "decoder_config": {"layers": 3}}
    encoder = stack("encoder.conformer_layers", ("encoder_layers",))
    decoder = stack("decoder.conformer_layers", ("decoder_layers",))
    assert changed(config, encoder, decoder) == ({"encoder_config.layers"}, set())


def test_sides_of_one_map() -> None:
    """A field that names a side is that side's; one that names none is told by no number."""
    config = {
        "encoder_layers": 3,
        "decoder_layers": 3,
        "decoder_layer_types": ["a", "b", "c"],
        "attention_window": [4, 4, 8],
    }
    encoder = stack("model.encoder.layers", ("encoder_layers",))
    decoder = stack("model.decoder.layers", ("decoder_layers",))
    assert changed(config, encoder, decoder) == (set(), {"attention_window"})
    assert changed(config, decoder, encoder) == ({"decoder_layer_types"}, {"attention_window"})
    longer = stack("model.decoder.layers", ("decoder_layers",), depth=5)
    config["decoder_layers"] = 5
    assert changed(config, encoder, longer) == ({"attention_window"}, set())


def test_what_tells_layers_of_an_outer_map_apart() -> None:
    """By their numbers, whether a rule is known or only its kind: it is of the layers that its own map counts."""
    config = {
        "num_hidden_layers": 4,
        "aligner_num_add_layers": 2,
        "num_inserted_layers": 2,
        "alternate_attention": True,
        "net_config": {"num_hidden_layers": 3},
    }
    outer = stack("layers", ("num_hidden_layers",), depth=4)
    inner = stack("net.layers", ("net_config", "num_hidden_layers"))
    assert changed(config, inner, outer) == (set(), set())
    del config["aligner_num_add_layers"]
    stuck = changed(config, outer, inner)
    assert stuck == (set(), {"num_inserted_layers", "alternate_attention"})


def test_words_of_tensors_outside_layers() -> None:
    """A list as long as the layers is of what it is called like, where the model has that."""
    config = {"num_hidden_layers": 3, "num_adapter_layers": 3, "conv_dim": [8, 8, 8]}
    layers = stack("encoder.layers", ("num_hidden_layers",))
    names = ("adapters.norm.weight", "features.conv.weight", "encoder.postnet.weight")
    config["encoder_postnet_layers"] = 3
    assert changed(config, layers, names=names) == (set(), set())
    assert changed(config, layers) == (
        set(),
        {"conv_dim", "encoder_postnet_layers"},
    )


def names(*prefixes: str) -> dict[str, TensorSpec]:
    """Three layers below each prefix."""
    spec = TensorSpec("F32", (2, 2))
    return {
        f"{each}.{i}.{part}.weight": spec for each in prefixes for i in range(3) for part in "ab"
    }


@pytest.mark.parametrize(
    ("config", "first", "second", "doubtful"),
    [
        # one key for both sides
        ({"num_hidden_layers": 3}, "encoder.blocks", "decoder.blocks", True),
        ({"encoder_layers": 3, "decoder_layers": 3}, "encoder.blocks", "decoder.blocks", False),
        # two parts of one length, and no name that pairs them with the maps
        (
            {"a_config": {"num_layers": 3}, "b_config": {"num_layers": 3}},
            "one.layers",
            "two.layers",
            True,
        ),
        (
            {"one_config": {"num_layers": 3}, "two_config": {"num_layers": 3}},
            "one.layers",
            "two.layers",
            False,
        ),
        (TWO, "model.language_model.layers", "model.visual.blocks", False),
    ],
)
def test_equal_depths_do_not_tell_whose_a_count_is(
    config: dict[str, Any], first: str, second: str, doubtful: bool
) -> None:
    """Where names do not either, no stack of the two may change."""
    layout = infer_layout(names(first, second), config)
    stacks = [each for each in layout.stacks.values() if each.keys]
    assert stacks and all(bool(each.doubtful) == doubtful for each in stacks)
    for each in stacks:
        layers = [Layers(config, each, i) for i in (0, 1, 2, 2)]
        said = unsaid(config, each, layers, Beside(tuple(layout.stacks.values())))
        assert bool(said) == doubtful
        assert all("counts as many layers" in one.why for one in said)
        assert unsaid(config, each, layers[:3], Beside(tuple(layout.stacks.values()))) == []


def test_a_count_of_the_other_side_is_none_of_a_stack_s() -> None:
    """The last of the sides in a name is the stack's."""
    config = {"decoder_layers": 3, "encoder_layers": 3}
    layout = infer_layout(names("pixel.decoder.encoder.layers", "text.decoder.layers"), config)
    keys = {prefix: each.keys for prefix, each in layout.stacks.items()}
    assert keys == {
        "pixel.decoder.encoder.layers": (("encoder_layers",),),
        "text.decoder.layers": (("decoder_layers",),),
    }
    layout = infer_layout(names("encoder.subsampling.layers"), {"num_decoder_layers": 3})
    assert layout.stacks["encoder.subsampling.layers"].keys == ()
