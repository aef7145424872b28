"""The table of what models of one architecture store in several ways: experts one by one or packed into one tensor,
projections apart or fused.

A *storage layout* is one way to store the *parts* of a module, such as the gate of each expert. Each axis of a tensor is a word
of letters, the slowest first, that say what is counted along it:

    E experts    I, H sizes of a layer    R rows of a part    N groups of heads, S heads of a group, D size of a head
    P parts, one after the other; at the end of a word, one element of each in turn

`E PI H` are packed experts whose gates stand above their up-projections; R and S may differ between parts. Facts from the
conversions and classes of transformers 5 (Apache-2.0); for `W_pack` and `query_key_value` of `chatglm` from the classes
that come with those models; for experts of `gpt_oss` one by one from llm-compressor, whose gates are the even columns.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from jmerge.arch.infer import Config, config_dicts

OF_A_PART = "RS"  # the letters whose size may differ between parts


class Tensor(NamedTuple):
    """One tensor of a layout, or one for each expert."""

    name: str  # after that of the module; `{}` is the number of the expert
    axes: tuple[str, ...]
    parts: tuple[str, ...]
    needed: bool = True  # otherwise modules may be without it

    @property
    def numbered(self) -> bool:
        """Whether there is one for each expert."""
        return "{}" in self.name


class StorageLayout(NamedTuple):
    """One way to store the parts of a module."""

    words: str  # what it is called
    tensors: tuple[Tensor, ...]
    kinds: frozenset[str] = frozenset()  # of `kind_of`, the models that have it; empty: any
    heads: bool = False  # its sizes follow from numbers of heads in config.json
    proven: frozenset[str] = frozenset()  # of any, those of which it is known; empty: all

    @property
    def parts(self) -> frozenset[str]:
        """What its tensors hold."""
        return frozenset(part for tensor in self.tensors for part in tensor.parts)


class Group(NamedTuple):
    """Storage layouts that name the same parts with the same letters, so that tensors of one can be made of those of another."""

    name: str
    layouts: tuple[StorageLayout, ...]


def kind_of(config: Config) -> frozenset[str]:
    """What config.json calls the model and its parts; falcon has three layouts under one name."""
    kinds = {str(part["model_type"]) for _, part in config_dicts(config) if "model_type" in part}
    if kinds & {"falcon", "RefinedWeb", "RefinedWebModel"}:
        kinds = {"falcon"}
        if config.get("new_decoder_architecture"):
            kinds = {"falcon in groups"}
        elif config.get("multi_query"):
            kinds = {"falcon of one key"}
    return frozenset(kinds)


WIDTHS = ("hidden_size", "n_embed", "n_embd", "d_model")  # keys of the size between layers


class Heads(NamedTuple):
    """How attention is cut into heads."""

    queries: int
    keys: int
    size: int


def heads_of(config: Config, rows: int) -> Heads | None:
    """The heads whose queries, keys and values have so many rows together, as some part of config.json says; None when
    none does."""
    for _, part in config_dicts(config):
        found = heads_in(part)
        if found is not None and (found.queries + 2 * found.keys) * found.size == rows:
            return found
    return None


def heads_in(part: Mapping[str, Any]) -> Heads | None:
    """The heads that one part of config.json tells of; None when it tells of none that fit each other."""
    heads = first_size(part, "num_attention_heads", "n_head", "n_heads", "num_heads")
    width = first_size(part, *WIDTHS)
    size = first_size(part, "head_dim", "kv_channels") or (width or 0) // (heads or 1)
    if not heads or not size:
        return None
    inner = part.get("attn_config")
    keys = first_size(part, "num_key_value_heads") or heads
    if part.get("multi_query_attention"):
        keys = first_size(part, "multi_query_group_num") or 0
    elif part.get("new_decoder_architecture"):
        keys = first_size(part, "num_kv_heads", "n_head_kv") or heads
    elif part.get("multi_query"):
        keys = 1
    elif isinstance(inner, Mapping):
        keys = first_size(inner, "kv_n_heads") or heads
    return Heads(heads, keys, size) if keys and heads % keys == 0 else None


def first_size(part: Mapping[str, Any], *keys: str) -> int | None:
    """The first of these keys of a part of config.json that is a positive whole number; None when none is."""
    return next((part[key] for key in keys if type(part.get(key)) is int and part[key] > 0), None)


def _one_by_one(gate: str, up: str, down: str) -> StorageLayout:
    return StorageLayout(
        "experts one by one",
        (
            Tensor(f"experts.{{}}.{gate}.weight", ("I", "H"), ("gate",)),
            Tensor(f"experts.{{}}.{up}.weight", ("I", "H"), ("up",)),
            Tensor(f"experts.{{}}.{down}.weight", ("H", "I"), ("down",)),
            Tensor(f"experts.{{}}.{gate}.bias", ("I",), ("gate bias",), needed=False),
            Tensor(f"experts.{{}}.{up}.bias", ("I",), ("up bias",), needed=False),
            Tensor(f"experts.{{}}.{down}.bias", ("H",), ("down bias",), needed=False),
        ),
    )


def _packed(
    words: str,
    up: str,
    down: str,
    kinds: frozenset[str] = frozenset(),
    proven: frozenset[str] = frozenset(),
) -> StorageLayout:
    """Packed experts; up, down: the axes of gates with up-projections, and of down-projections."""
    bias = next(word for word in up.split() if "P" in word)
    both, both_biases = ("gate", "up"), ("gate bias", "up bias")
    return StorageLayout(
        words,
        (
            Tensor("experts.gate_up_proj", tuple(up.split()), both),
            Tensor("experts.down_proj", tuple(down.split()), ("down",)),
            Tensor("experts.gate_up_proj_bias", ("E", bias), both_biases, needed=False),
            Tensor("experts.down_proj_bias", ("E", "H"), ("down bias",), needed=False),
        ),
        kinds,
        proven=proven,
    )


_TRANSPOSED = (
    *("llama4", "llama4_text", "aria", "aria_text", "qwen3_vl_moe", "qwen3_vl_moe_text"),
    "openai_privacy_filter",
)

EXPERTS = Group(
    "experts",
    (
        _one_by_one("gate_proj", "up_proj", "down_proj"),
        _one_by_one("w1", "w3", "w2"),
        _packed("packed experts", "E PI H", "E H I"),
        # which of the two it is shapes tell, but not which columns are gates
        _packed("packed and transposed experts", "E H PI", "E I H", proven=frozenset(_TRANSPOSED)),
        _packed(
            "packed experts with gates and up-projections in turn",
            "E H IP",
            "E I H",
            frozenset(("gpt_oss",)),
        ),
        StorageLayout(  # granitemoe
            "packed experts",
            (
                Tensor("input_linear.weight", ("E", "PI", "H"), ("gate", "up")),
                Tensor("output_linear.weight", ("E", "H", "I"), ("down",)),
            ),
        ),
    ),
)

UNGATED_EXPERTS = Group(  # nemotron_h
    "experts",
    (
        StorageLayout(
            "experts one by one",
            (
                Tensor("experts.{}.up_proj.weight", ("I", "H"), ("up",)),
                Tensor("experts.{}.down_proj.weight", ("H", "I"), ("down",)),
            ),
            frozenset(("nemotron_h",)),
        ),
        StorageLayout(
            "packed experts",
            (
                Tensor("experts.up_proj", ("E", "I", "H"), ("up",)),
                Tensor("experts.down_proj", ("E", "H", "I"), ("down",)),
            ),
            frozenset(("nemotron_h",)),
        ),
    ),
)


def _fused(
    name: str, axis: str, parts: tuple[str, ...], *kinds: str, heads: bool = False
) -> StorageLayout:
    """One matrix instead of several, and one bias."""
    biases = tuple(f"{part} bias" for part in parts)
    return StorageLayout(
        f"a fused {name}",
        (
            Tensor(f"{name}.weight", (axis, "H"), parts),
            Tensor(f"{name}.bias", (axis,), biases, needed=False),
        ),
        frozenset(kinds),
        heads,
    )


def _apart(axis: str, parts: Mapping[str, str]) -> StorageLayout:
    """A matrix and perhaps a bias for each part; parts: the name of each."""
    *names, last = parts.values()
    return StorageLayout(
        f"{', '.join(names)} and {last} apart",
        tuple(
            tensor
            for part, name in parts.items()
            for tensor in (
                Tensor(f"{name}.weight", (axis, "H"), (part,)),
                Tensor(f"{name}.bias", (axis,), (f"{part} bias",), needed=False),
            )
        ),
    )


GATE_UP = Group(
    "projections",
    (
        _apart("I", {"gate": "gate_proj", "up": "up_proj"}),
        _fused("gate_up_proj", "PI", ("gate", "up")),  # phi3, glm, glm4, minimax_m3_vl
        _fused("up_gate_proj", "PI", ("up", "gate")),  # gte
    ),
)

_QKV = {"q": "q_proj", "k": "k_proj", "v": "v_proj"}
_PHI3 = ("phi3", "phi3_v", "phi4_multimodal", "phi4mm")
_PER_HEAD = ("gpt_neox", "gpt_neox_japanese", "bloom", "persimmon", "falcon", "falcon in groups")

QKV_ROWS = Group(
    "projections",
    (
        _apart("R", _QKV),
        _fused("qkv_proj", "PR", tuple(_QKV), *_PHI3, heads=True),
        _fused("W_pack", "PR", tuple(_QKV), "baichuan", heads=True),
        _fused("query_key_value", "PR", tuple(_QKV), "chatglm", "falcon of one key", heads=True),
        _fused("Wqkv", "PR", tuple(_QKV), "mpt", "dbrx", heads=True),
    ),
)
# Each key and value behind the queries that use it.
QKV_HEADS = Group(
    "projections",
    (
        _apart("NSD", _QKV),
        _fused("query_key_value", "NPSD", tuple(_QKV), *_PER_HEAD, heads=True),
        _fused("qkv_proj", "NPSD", tuple(_QKV), "minimax", heads=True),
    ),
)

# Those of one line have the same modules, so that a name that only some of them know is looked up in all.
GROUPS = ((EXPERTS, UNGATED_EXPERTS), (GATE_UP,), (QKV_ROWS, QKV_HEADS))
