"""Fields of config.json that a model's weights depend on: which may differ between merged models, and which may not.

The output has one config.json. A field whose other value makes the weights of a model compute something else, at once
and everywhere, is *refused*: such a model under the donor's config is broken before anything is merged. A field that
bounds where a model was trained, or names tokens, is only *told*.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Literal, NamedTuple

from jmerge.arch.infer import VISION, Config, KeyPath

Verdict = Literal["same", "told", "refused"]

# What a norm gives changes by the share (eps - eps') / (2 m), m the mean square of its input, which is 1e-4 at least in
# what is trained: a twentieth for this difference.
EPS_DIFFERENCE = 1.01e-5

# Names of one function, or of functions that differ by less than 0.0005.
ALIKE = (
    ("silu", "swish"),
    ("gelu", "gelu_new", "gelu_fast", "gelu_python", "gelu_accurate", "gelu_pytorch_tanh"),
)
# Of modules of Sentence Transformers
MODULE_SIZES = ("in_features", "out_features", "bias", "word_embedding_dimension", "dimension")
POOLING = {"cls_token": "cls"}
TOKEN_ID = re.compile(r"(\w+_)?token_(ids?|index)")


class Field(NamedTuple):
    """One field, by all the keys that configs have for it."""

    keys: tuple[str, ...]  # the first is how it is called here
    compare: Callable[[Any, Any], Verdict]
    why: str = ""  # a model's weights do not suit another value

    @property
    def name(self) -> str:
        """The name by which recipes allow it to differ."""
        return self.keys[0]


class Value(NamedTuple):
    """What a config says of a field."""

    path: KeyPath  # where
    value: Any


class Difference(NamedTuple):
    """A field in which a model's config differs from the donor's."""

    field: Field
    own: Value
    donor: Value
    verdict: Verdict


def _refused(one: Any, other: Any) -> Verdict:
    return "same" if one == other else "refused"


def _told(one: Any, other: Any) -> Verdict:
    return "same" if one == other else "told"


def _number(one: Any, other: Any) -> Verdict:
    if one == other or not _finite(one) or not _finite(other):
        return _refused(one, other)
    return "same" if abs(one - other) <= 1e-6 * max(abs(one), abs(other)) else "refused"


def _eps(one: Any, other: Any) -> Verdict:
    if one == other or not _finite(one) or not _finite(other):
        return _refused(one, other)
    return "refused" if abs(one - other) > EPS_DIFFERENCE else "told"


def _finite(value: Any) -> bool:
    """Whether it is a number that float64 can hold."""
    return isinstance(value, int | float) and abs(value) <= sys.float_info.max


def _activation(one: Any, other: Any) -> Verdict:
    if one == other:
        return "same"
    return "told" if any(one in row and other in row for row in ALIKE) else "refused"


def _scaling(one: Any, other: Any) -> Verdict:
    """Dynamic scaling begins beyond the trained length: up to there the model is the same."""
    one, other = _plain_scaling(one), _plain_scaling(other)
    if one == other:
        return "same"
    none = ("default", "dynamic")
    return "told" if one["rope_type"] in none and other["rope_type"] in none else "refused"


def _plain_scaling(value: Any) -> dict[str, Any]:
    """Rope scaling without what spells it or concerns pictures only: text has one position for all of mrope's."""
    part = dict(value) if isinstance(value, dict) else {}
    kind = part.pop("type", None)
    kind = part.setdefault("rope_type", kind or "default")
    if kind in ("mrope", "default"):
        return {"rope_type": "default"}
    return {key: each for key, each in part.items() if not key.startswith("mrope_")}


HEADS = "attention weights are divided into heads, and would be divided differently"
TURN = "queries and keys are rotated by angles that the weights were trained for"
SCALE = "the weights were trained for values of this scale"
ORDER = "the weights are used at another point of the computation"
CONTEXT = ("max_position_embeddings", "n_positions", "max_seq_len", "n_ctx")  # tokens
PICTURE = "the projector was trained for other parts of the picture"

FIELDS = (
    Field(
        ("hidden_act", "hidden_activation", "activation_function", "activation", "ffn_hidden_act"),
        _activation,
        "the weights after the activation were trained for its output",
    ),
    Field(("feed_forward_proj", "dense_act_fn"), _refused, "the activation function differs"),
    Field(("num_attention_heads", "n_head", "n_heads", "num_heads"), _refused, HEADS),
    Field(("num_key_value_heads", "num_kv_heads", "multi_query_group_num"), _refused, HEADS),
    Field(("head_dim", "kv_channels", "d_kv"), _refused, HEADS),
    Field(("encoder_attention_heads",), _refused, HEADS),
    Field(("decoder_attention_heads",), _refused, HEADS),
    Field(("qk_rope_head_dim",), _refused, HEADS),
    Field(("qk_nope_head_dim",), _refused, HEADS),
    Field(("rope_theta", "rotary_emb_base", "rope_base"), _number, TURN),
    Field(("rope_scaling", "rope_parameters"), _scaling, TURN),
    Field(("rope_local_base_freq",), _number, TURN),
    Field(("partial_rotary_factor", "rotary_pct"), _number, TURN),
    Field(("rotary_dim",), _refused, TURN),
    Field(("no_rope_layers",), _refused, TURN),
    Field(("position_embedding_type",), _refused, TURN),
    Field(("alibi",), _refused, TURN),
    Field(
        ("rms_norm_eps", "layer_norm_eps", "layer_norm_epsilon", "layernorm_epsilon", "norm_eps"),
        _eps,
        "norms of small values differ",
    ),
    Field(("parallel_attn", "use_parallel_residual"), _refused, ORDER),
    Field(("do_layer_norm_before",), _refused, ORDER),
    Field(("apply_residual_connection_post_layernorm",), _refused, ORDER),
    Field(("query_pre_attn_scalar",), _number, SCALE),
    Field(("attention_multiplier",), _number, SCALE),
    Field(("embedding_multiplier", "scale_emb"), _number, SCALE),
    Field(("residual_multiplier", "scale_depth"), _number, SCALE),
    Field(("logits_scaling", "logit_scale"), _number, SCALE),
    Field(("scale_embedding",), _refused, SCALE),
    Field(("scale_attn_weights",), _refused, SCALE),
    Field(("scale_attn_by_inverse_layer_idx",), _refused, SCALE),
    Field(("routed_scaling_factor",), _number, SCALE),
    Field(("norm_topk_prob",), _refused, SCALE),
    Field(("scoring_func",), _refused, SCALE),
    Field(("spatial_merge_size",), _refused, PICTURE),
    Field(("vision_feature_layer",), _refused, PICTURE),
    Field(("vision_feature_select_strategy",), _refused, PICTURE),
    Field(
        ("pooling_mode",), _refused, "the weights were trained for another pooling of the tokens"
    ),
    # Told: where a model was trained, what its tokens are, how it is used
    Field(("model_type",), _told),
    Field(CONTEXT, _told),
    Field(("sliding_window", "attention_window", "attention_chunk_size"), _told),
    Field(("use_sliding_window",), _told),
    Field(("max_window_layers",), _told),
    Field(("layer_types",), _told),
    Field(("attn_logit_softcapping",), _told),
    Field(("final_logit_softcapping",), _told),
    Field(("num_experts_per_tok", "num_experts_per_token"), _told),
    Field(("image_size",), _told),
    Field(("id2label",), _told),
    Field(("problem_type",), _told),
)
REFUSABLE = {key: field for field in FIELDS if field.compare is not _told for key in field.keys}
KNOWN = {key: field for field in FIELDS for key in field.keys}


def differences(
    own: Config, home: KeyPath, donor: Config, donor_home: KeyPath
) -> Iterator[Difference]:
    """Where the part of a model's config at `home` and that of the donor's at `donor_home` differ.

    What one of them does not say is not compared: its class decides.
    """
    one, other = _values(own, home), _values(donor, donor_home)
    for name in [name for name in one if name in other]:
        field = KNOWN.get(name) or Field((name,), _told)
        verdict = field.compare(one[name].value, other[name].value)
        if verdict != "same":
            yield Difference(field, one[name], other[name], verdict)


def _values(config: Config, home: KeyPath) -> dict[str, Value]:
    """What a config says of its part at `home`, by names of fields; what the part of a language model does not say is
    looked up around it, as older classes have it there."""
    found: dict[str, Value] = {}
    paths = [home[:end] for end in range(len(home), -1, -1)]
    for path in paths[:1] if VISION.search(".".join(home)) else paths:
        part: Any = config
        for key in path:
            part = part.get(key) if isinstance(part, Mapping) else None
        if not isinstance(part, Mapping):
            continue
        for name, key, value in (*_rope(part), *_plain(part)):
            found.setdefault(name, Value((*path, key), value))
    return found


def module_differences(
    own: Config, donor: Config, path: KeyPath, donor_path: KeyPath
) -> Iterator[Difference]:
    """Where a module of a Sentence Transformers model is told something else than the donor's; its paths name it."""
    one, other = _told_of(own), _told_of(donor)
    for name in [name for name in one if name in other]:
        field = KNOWN.get(name) or Field((name,), _told)
        verdict = field.compare(one[name], other[name])
        if verdict != "same":
            values = (
                Value((*path, name), one[name]),
                Value((*donor_path, name), other[name]),
            )
            yield Difference(field, *values, verdict)


def _told_of(part: Config) -> dict[str, Any]:
    """What a module is told, but for sizes, which shapes tell; how it pools in one word for each of its ways."""
    told = {
        key: value
        for key, value in part.items()
        if key not in MODULE_SIZES and not key.startswith("pooling_mode")
    }
    modes = [key for key, on in part.items() if key.startswith("pooling_mode_") and on is True]
    ways = sorted(key.removeprefix("pooling_mode_").removesuffix("_tokens") for key in modes)
    if "pooling_mode" in part:
        named = part["pooling_mode"]
        ways = sorted(map(str, named)) if isinstance(named, list) else [str(named)]
    return told | ({"pooling_mode": [POOLING.get(way, way) for way in ways]} if ways else {})


def _plain(part: Mapping[str, Any]) -> Iterator[tuple[str, str, Any]]:
    """Field, key, value of what stands there as it is."""
    for key, value in part.items():
        if TOKEN_ID.fullmatch(key):
            yield key, key, value
        elif key in KNOWN and KNOWN[key].compare is not _scaling and value is not None:
            yield KNOWN[key].name, key, value


def _rope(part: Mapping[str, Any]) -> Iterator[tuple[str, str, Any]]:
    """Rope as releases of transformers before and after 5 write it: in fields, or in one map, which may be of maps."""
    whole = part.get("rope_parameters")
    if isinstance(whole, Mapping):
        kinds = {key: each for key, each in whole.items() if isinstance(each, Mapping)}
        main = kinds.get("full_attention") or (whole if not kinds else {})
        local = kinds.get("sliding_attention", {})
        taken = ("rope_theta", "partial_rotary_factor")
        for key in taken:
            if key in main:
                yield key, "rope_parameters", main[key]
        if "rope_theta" in local:
            yield "rope_local_base_freq", "rope_parameters", local["rope_theta"]
        rest = {key: each for key, each in main.items() if key not in taken}
        yield "rope_scaling", "rope_parameters", rest
    elif "rope_scaling" in part or "rope_theta" in part:
        yield "rope_scaling", "rope_scaling", part.get("rope_scaling")
