"""What a field says of layers follows them, is left where it is true still, and is refused where nothing known says it."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jmerge.arch.moved import Moved, Stuck, follow
from jmerge.arch.told import first_number, is_overruled, kinds_of

AGAIN = (0, 1, 2, 3, 1, 2, 3)  # layers of the output, of four
CUT = (0, 1, 2)
STUCK = object()


def moved(layers: tuple[int, ...], **fields: Any) -> Moved:
    """Four layers in this order."""
    return Moved(4, layers, **fields)


def said(key: str, value: Any, layers: tuple[int, ...], **fields: Any) -> Any:
    """What the field says then; `STUCK` when that is not known."""
    try:
        return follow(key, value, moved(layers, **fields), lambda _: value)
    except Stuck as why:
        assert str(why)
        return STUCK


FIELDS = [
    # counts
    ("num_blocks", 4, 7, 3),
    ("n_layers", 4, 7, 3),
    ("num_encoder_blocks", 4, 7, 3),
    ("layer_count", 4, 7, 3),
    ("num_blocks", 6, 6, 6),
    ("num_attention_heads", 4, 4, 4),
    ("num_random_blocks", 4, 4, 4),
    ("num_first_full_attention_layers", 2, STUCK, 2),
    ("num_last_full_attention_layers", 2, STUCK, 1),
    ("c2f_num_blocks", 4, 7, 3),
    # layers of a kind, counted from 0
    ("global_attn_indexes", [1], [1, 4], [1]),
    ("window_block_indices", [0, 2], [0, 2, 5], [0, 2]),
    ("moe_layer_ids", [1, 3], [1, 3, 4, 6], [1]),
    ("global_attn_indexes", [2, 5, 8], [2, 5], [2]),  # of a class with more layers by default
    ("rope_scaling_layers", [0, 1, 2, 3], [0, 1, 2, 3, 4, 5, 6], [0, 1, 2]),
    ("residual_block_indices", [], [], []),
    # layers from which something is taken: as before, where all before them or all behind them are
    ("out_indices", [4], [7], [3]),
    ("out_indices", [1, 4], [1, 7], [1, 3]),
    ("out_features", ["stage4"], ["stage7"], ["stage3"]),
    ("out_features", ["stage2"], ["stage2"], ["stage2"]),
    ("stage_names", ["stem", "s1", "s2", "s3", "s4"], ..., ["stem", "s1", "s2", "s3"]),
    ("extract_layers", [0], [0], [0]),
    ("extract_layers", [-2, -1], [-2, -1], [-1, -1]),
    ("intermediate_layers_indices", [1, 2], [1, 2], [1, 2]),
    ("feature_layer", -1, -1, -1),
    ("feature_layer", -2, -2, -1),
    ("insert_layer_id", 2, STUCK, 2),
    ("loop_layer_index_end", 4, 7, 3),
    ("early_exit_layer", 3, STUCK, STUCK),
    ("kv_source_layers", [0, 1, 2, 3], [0, 1, 2, 3, 4, 5, 6], [0, 1, 2]),
    ("kv_source_layers", [0, 0, 2, 2], [0, 0, 2, 2, 0, STUCK], [0, 0, 2]),
    # an entry a layer
    ("block_configs", [{"a": 1}, {"a": 2}, {}, {}], ..., [{"a": 1}, {"a": 2}, {}]),
    ("num_heads_per_layer", [1, 2, 3, 4], [1, 2, 3, 4, 2, 3, 4], [1, 2, 3]),
    ("swiglu_limits", [7.0, 7.0, 8.0, 9.0], [7.0, 7.0, 8.0, 9.0, 7.0, 8.0, 9.0], [7.0, 7.0, 8.0]),
    ("sliding_windows", [[4, 1], [4, 0], [4, 1], [4, 0]], ..., [[4, 1], [4, 0], [4, 1]]),
    ("layer_types", ["a", "b", "a", "b", "c"], list("ababbabc"), list("abac")),
    ("strides", [1, 2, 2, 2], STUCK, STUCK),
    ("hidden_sizes", [1, 2, 2, 2], [1, 2, 2, 2], [1, 2, 2, 2]),
    # runs, repeats, text
    ("attention_types", [[["g", "l"], 2]], ..., [[["g"], 1], [["l"], 1], [["g"], 1]]),
    (
        "attn_runs",
        [["full", 1], ["slide", 3]],
        [["full", 1], ["slide", 6]],
        [["full", 1], ["slide", 2]],
    ),
    ("block_types", ["r", "r", "a"], ["r", "r", "a"], ["r", "r", "a"]),
    ("block_types", ["r", "a"], STUCK, ["r", "a"]),
    ("window_pattern", "SL", STUCK, "SL"),
    ("window_pattern", "SSLL", "SSLLSLL", "SSL"),
    ("swa_layers", "0,2", STUCK, "0,2"),
    ("model_type", "bert", "bert", "bert"),
    # spans, sums, shares
    ("layer_ranges", [[0, 1]], STUCK, [[0, 1]]),
    ("layer_ranges", [[0, 2], [2, 4]], STUCK, STUCK),
    ("block_sizes", [2, 2], STUCK, STUCK),
    ("hybrid_ratio", 0.25, STUCK, STUCK),
    ("full_attention_ratio", "3:1", STUCK, "3:1"),
    ("mlp_ratio", 2.0, 2.0, 2.0),
    ("mlp_ratio", 4, 4, 4),
    # periods
    ("cross_attention_frequency", 2, STUCK, 2),
    ("cross_attention_frequency", 3, 3, 3),
    ("encoder_sparse_step", 5, STUCK, 5),
    ("layers_per_group", 2, STUCK, 2),
    ("rescale_every", 6, 6, 6),
    ("rope_local_base_freq", 2, 2, 2),
    # every second layer
    ("stagger_local_blocks", True, STUCK, True),
    ("stagger_local_blocks", False, False, False),
    ("alternate_attention", True, STUCK, True),
    ("shift_odd_layers", True, STUCK, True),
    ("interleaved_sliding_window", True, STUCK, True),
    ("use_alternative_attention", True, True, True),
    ("rope_interleave", True, True, True),
    # what is spread over the layers
    ("num_inserted_layers", 2, STUCK, STUCK),
    ("num_added_blocks", 4, STUCK, STUCK),
    ("num_added_tokens", 4, 4, 4),
    # maps by number
    ("per_layer_config", {"1": {"d": 4}}, {"1": {"d": 4}, "4": {"d": 4}}, {"1": {"d": 4}}),
    ("pruned_heads", {"3": [0]}, {"3": [0], "6": [0]}, {}),
    ("id2label", {"0": "a", "1": "b"}, {"0": "a", "1": "b"}, {"0": "a", "1": "b"}),
    # what depends on the number itself
    ("scale_attn_by_inverse_layer_idx", True, STUCK, True),
    ("scale_attn_by_inverse_layer_idx", False, False, False),
    ("no_split", ["model.layers.2"], STUCK, ["model.layers.2"]),
    ("no_split", ["vision.blocks.2"], ["vision.blocks.2"], ["vision.blocks.2"]),
    ("eos_token_id", [1, 2], [1, 2], [1, 2]),
    ("mtp_layers", [0, 1], [0, 1], [0, 1]),
]


@pytest.mark.parametrize(("key", "value", "again", "cut"), FIELDS)
def test_a_field_follows_the_layers(key: str, value: Any, again: Any, cut: Any) -> None:
    """Of four layers: three of them once more, and without the last."""
    for layers, wanted in ((AGAIN, again), (CUT, cut)):
        if wanted is not ... and not (isinstance(wanted, list) and STUCK in wanted):
            assert said(key, value, layers, prefix="model.layers") == wanted
        elif wanted is not ...:
            assert said(key, value, layers) is STUCK


@pytest.mark.parametrize(("key", "value"), [(key, value) for key, value, *_ in FIELDS])
@pytest.mark.parametrize("certain", [True, False])
def test_where_no_layer_moved_nothing_changes(key: str, value: Any, certain: bool) -> None:
    """Whatever a field says is true still."""
    order = moved((0, 1, 2, 3), prefix="model.layers", counts=certain)
    assert follow(key, value, order, lambda _: value, certain=certain) == value


@given(st.lists(st.integers(0, 3), min_size=1, max_size=9), st.sets(st.integers(0, 3), min_size=1))
def test_layers_of_a_kind_are_those_that_were_of_it(layers: list[int], kind: set[int]) -> None:
    """As numbers, as entries, as letters and as a map."""
    order = tuple(layers)
    wanted = [layer in kind for layer in layers]
    numbers = said("global_attn_indexes", sorted(kind), order)
    assert [i in numbers for i in range(len(layers))] == wanted
    flags = [layer in kind for layer in range(4)]
    assert said("layer_flags", flags, order) == wanted
    text = "".join("*M"[flag] for flag in flags)
    assert said("hybrid_override_pattern", text, order) == "".join("*M"[flag] for flag in wanted)
    by_number = said("per_layer_config", {str(n): {"x": 1} for n in kind}, order)
    assert [str(i) in by_number for i in range(len(layers))] == wanted


@given(st.lists(st.integers(0, 5), min_size=1, max_size=9), st.integers(2, 7))
def test_a_period_stays_where_every_layer_has_its_place_in_it(
    layers: list[int], period: int
) -> None:
    """The last of each period, as most classes count, and the first, are those that they were."""
    order = Moved(6, tuple(layers))
    try:
        follow("cross_layer_interval", period, order, lambda _: period)
    except Stuck:
        return
    for place in (0, period - 1):
        assert [i % period == place for i in range(len(layers))] == [
            n % period == place for n in layers
        ]


def test_a_switch_of_every_second_layer_tells_layers_apart() -> None:
    """Where all keep their places among the even and the odd, nothing changes; a list of kinds says more."""
    assert kinds_of("stagger_local_blocks", True, 4) == [0, 1, 0, 1]
    assert kinds_of("stagger_local_blocks", False, 4) is None
    assert said("stagger_local_blocks", True, (0, 1, 2, 3, 2, 3)) is True
    kinds = {"layer_types": ["a", "b", "a", "b"]}
    assert is_overruled("alternate_attention", True, kinds, 4)
    assert not is_overruled("alternate_attention", True, {"layer_types": list("aabb")}, 4)
    assert not is_overruled("use_cache", True, kinds, 4)


def test_numbers_that_begin_with_one() -> None:
    """Kimi Linear's lists share out the numbers from 1; to others it is not known when they may be such numbers."""
    part = {"full_attn_layers": [4], "kda_layers": [1, 2, 3], "head_dim": 4}
    assert first_number(part, 4) == 1
    assert first_number({"full_attn_layers": [3], "kda_layers": [0, 1, 2]}, 4) == 0
    assert first_number({"global_attn_indexes": [2, 4, 8]}, 4) == 0
    unknown = first_number({"full_attn_layers": [2, 4]}, 4)
    assert said("full_attn_layers", [2, 4], AGAIN, first=unknown) is STUCK
    assert kinds_of("full_attn_layers", [2, 4], 4, unknown) is None
    assert said("full_attn_layers", [4], AGAIN, first=1) == [4, 7]
    assert said("kda_layers", [1, 2, 3], AGAIN, first=1) == [1, 2, 3, 5, 6]
    assert kinds_of("full_attn_layers", [4], 4, 1) == [False, False, False, True]


def test_each_model_tells_of_its_own_layers() -> None:
    """An entry comes from the config of the model that the layer comes from, if that has one."""
    order = Moved(2, (0, 1, 1))
    other = {"per_layer_config": {"1": "b"}, "layer_types": ["x", "y"], "moe_layer_ids": []}
    fields = {"per_layer_config": {"1": "a"}, "layer_types": ["u", "v"], "moe_layer_ids": [1]}
    made = {
        key: follow(key, value, order, [fields[key], fields[key], other[key]].__getitem__)
        for key, value in fields.items()
    }
    assert made == {
        "per_layer_config": {"1": "a", "2": "b"},
        "layer_types": ["u", "v", "y"],
        "moe_layer_ids": [1],
    }


def test_taps_that_are_as_many_as_there_are_layers() -> None:
    """Counted from the end, and some beyond the beginning: they are no entries of layers."""
    assert said("vision_feature_layers", [-2, -5, -8, 3], AGAIN) == [-2, -5, -8, 3]


@pytest.mark.parametrize("key", ["num_dense_blocks", "num_cross_attention_layers"])
def test_a_count_of_a_kind_of_layers_is_not_rewritten(key: str) -> None:
    """All of them are of that kind, or as many by chance: refused, but where their number stays."""
    assert said(key, 4, AGAIN, counts=False) is STUCK
    assert said(key, 4, (3, 2, 1, 0), counts=False) == 4


@pytest.mark.parametrize("key", ["num_adapter_layers", "postnet_layers", "c2f_num_blocks"])
def test_a_count_of_something_else_stays(key: str) -> None:
    """As many by chance."""
    assert said(key, 4, AGAIN, counts=False) == 4


def test_a_field_that_may_speak_of_others() -> None:
    """It is only rewritten where no other stack has as many layers; what would not change stays."""
    order = moved(AGAIN)
    for value, key in ((["a", "b", "c", "d"], "layer_types"), ([1], "global_attn_indexes")):

        def field_of(_: int, value: Any = value) -> Any:
            return value

        with pytest.raises(Stuck, match="to others"):
            follow(key, value, order, field_of, certain=False)
    unique = order._replace(unique=True)
    kinds = ["a", "b", "c", "d"]
    made = follow("layer_types", kinds, unique, lambda _: kinds, certain=False)
    assert made == ["a", "b", "c", "d", "b", "c", "d"]
    with pytest.raises(Stuck):
        follow("global_attn_indexes", [1], unique, lambda _: [1], certain=False)


def test_a_scale_by_the_square_root_of_the_depth() -> None:
    """MiniCPM divides `scale_depth` by the root of the number of layers: what it multiplies by stays."""
    assert said("scale_depth", 1.5, (0, 1, 2, 3) * 4) == pytest.approx(3.0)
    assert said("scale_depth", 1.5, (3, 2, 1, 0)) == 1.5
