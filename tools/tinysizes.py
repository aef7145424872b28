"""Small sizes for a config of transformers: equal ones stay equal, different ones differ, and every kind of layer stays.

What a number is, its key says. Nothing of jmerge is used here.
"""

from __future__ import annotations

import contextlib
import dataclasses
import re
from collections.abc import Iterator, Mapping
from typing import Any

from transformers import PretrainedConfig

Path_ = tuple[str, ...]  # into a config

DEPTHS = (5, 3, 4, 6, 2)  # of the stacks of one model
# What the words of a key say of an int. The first that fits decides.
TOKEN = re.compile(
    r".*(token|index|pad|bos|eos|sep|cls|mask)_?(id|index|token)?s?_(id|index)|.*_id"
)
KEPT = re.compile(
    r".*(stride|kernel|theta|groups?_size|dilat|expan|ratio|conv_?size|d_conv|rank_ratio|_type|version|bits|"
    r"seed|num_labels|pretraining_tp|hop_length|sampling_rate|frame_rate|upsampl\w*_rat|downsampl\w*_rat|chunk|padding|factor|"
    r"window|scale|num_frames|tubelet|levels|reduction_rates|n_shared|num_shared).*"
)
LAYERS = re.compile(r"(num|n)?_?(\w+_)?(layers?|blocks?|depth|hidden_layers)|num_hidden_groups")
LAYERS_NOT = re.compile(
    r".*(nextn|mtp|_every|interval|skip|shared|cross_|_freq|period|offset|norm|first_k|lookahead).*"
)
PERIOD = re.compile(r".*(interval|period|every|_freq|_step|pattern)|cross_attn_every_n_layers")
KV_HEADS = re.compile(r".*(key_value|kv).*heads?|num_kv.*|n_head_kv")
HEADS_KEY = re.compile(r".*(heads|nhead)|n_head|num_head|head_num|.*n_heads")
VOCABULARY = re.compile(r".*(vocab|codebook_size|num_embeddings|text_tokens|audio_tokens).*")
POSITIONS = re.compile(
    r".*(position_embeddings|positions|max_seq|seq_len|max_len|context_len|n_ctx|max_\w*length).*|.*length"
)
EXPERTS = re.compile(r".*(experts|expert_num)")
CHOSEN = re.compile(r".*(per_tok|top_?k|topk).*|n_groups?|topk_group|num_groups|.*_groups")
IMAGE = re.compile(r".*(image_size|img_size|resolution|spectrogram_length|max_length)")
PATCH = re.compile(r".*patch_size|.*patch_stride")


# of keys that are None by default in some classes which need a number there
NEEDED: dict[str, Any] = {
    "prediction_length": 6,
    "context_length": 12,
    "vocab_size": 97,
    "head_dim": 8,
    "num_key_value_heads": 2,
    "hidden_sizes": [16, 24, 32, 40],
    "depths": [2, 1, 3, 2],
}


# Keys of single types that no rule finds: what they must be when the others are small.
ROWS: dict[str, dict[str, Any]] = {
    "chameleon": {"vocabulary_map": {"<image>": 5, "IMGIMGA": 6}},
    "cohere_compass_text": {
        "layer_types": ["sliding_attention", "full_attention"] * 2 + ["full_attention"],
        "rope_parameters": {
            kind: {"rope_type": "default", "rope_theta": 10000.0}
            for kind in ("sliding_attention", "full_attention")
        },
    },
    "DbrxAttentionConfig": {"rope_theta": 10000.0},
    "deepseek_ocr2_text": {
        "mlp_layer_types": ["dense", "sparse", "sparse", "sparse", "sparse"],
        "num_experts_per_tok": 2,
    },
    "dots1": {
        "n_routed_experts": 6,
        "n_shared_experts": 1,
        "num_experts_per_tok": 2,
        "n_group": 1,
        "topk_group": 1,
    },
    "diffusion_gemma_text": {"num_experts": 4, "top_k_experts": 2, "moe_intermediate_size": 8},
    "ernie4_5_vl_moe_text": {
        "hidden_size": 64,
        "num_attention_heads": 4,
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": 10000.0,
            "mrope_section": [3, 3, 2],
        },
    },
    "glm5_next_text": {"index_topk": 32},
    "gemma3n_text": {
        "num_kv_shared_layers": 2,
        "intermediate_size": [64] * 5,
        "activation_sparsity_pattern": [0.95, 0.95, 0.0, 0.0, 0.0],
        "layer_types": [
            f"{kind}_attention" for kind in ("sliding", "full", "sliding", "sliding", "full")
        ],
    },
    "gemma4_text": {"global_head_dim": 24, "num_global_key_value_heads": 1},
    "lfm2_moe": {"layer_types": ["conv", "full_attention", "conv", "full_attention", "conv"]},
    "moonshine_streaming": {"num_key_value_heads": 4},
}


class Tree(dict[str, Any]):
    """A config as keyword arguments, with trees for the configs in it."""

    def __init__(
        self, kind: type[PretrainedConfig], items: Mapping[str, Any] | None = None
    ) -> None:
        super().__init__(items or {})
        self.kind = kind

    def copy(self) -> Tree:
        """A copy that can be changed."""
        return Tree(self.kind, {k: x.copy() if isinstance(x, Tree) else x for k, x in self.items()})

    def parts(self) -> Iterator[Tree]:
        """It and the trees in it."""
        yield self
        for value in self.values():
            if isinstance(value, Tree):
                yield from value.parts()

    def leaves(self, path: Path_ = ()) -> Iterator[tuple[Path_, Any]]:
        """Paths and values, lists as wholes."""
        for key, value in self.items():
            if isinstance(value, Tree):
                yield from value.leaves((*path, key))
            else:
                yield (*path, key), value

    def put(self, path: Path_, value: Any) -> None:
        """Set the value at a path."""
        tree = self
        for key in path[:-1]:
            tree = tree[key]
        tree[path[-1]] = value

    def config(self) -> PretrainedConfig:
        """What it makes."""
        made: dict[str, Any] = {
            key: value.config() if isinstance(value, Tree) else value for key, value in self.items()
        }
        return self.kind(**made)


def tree_of(config: PretrainedConfig, lists: bool = False) -> Tree:
    """The keyword arguments that make `config`, without those that follow from others; but with lists of sizes that do
    where `lists`."""
    kind = type(config)
    plain = None
    tree = Tree(kind)
    for field in dataclasses.fields(kind):
        default = field.default
        if field.default_factory is not dataclasses.MISSING:
            default = field.default_factory()
        try:
            value = getattr(config, field.name, None)
        except Exception:  # of layers that differ, which follows from the others
            value = default
        if isinstance(value, PretrainedConfig):
            tree[field.name] = tree_of(value, lists)
            continue
        sized = lists and isinstance(value, list) and all(type(each) is int for each in value)
        sized = sized or bool(TOKEN.fullmatch(field.name))
        if default is None and value is not None and not sized:
            with contextlib.suppress(Exception):
                plain = plain or kind()
            if plain is not None and _same(vars(plain).get(field.name), value):
                continue  # follows from the others
        if _is_plain(value) and field.name not in ("dtype", "transformers_version"):
            tree[field.name] = value
    return tree


def _same(a: Any, b: Any) -> bool:
    return type(a) is type(b) and bool(a == b)


def _is_plain(value: Any) -> bool:
    if isinstance(value, list | tuple):
        return all(_is_plain(each) for each in value)
    if isinstance(value, dict):
        return all(_is_plain(each) for each in value.values())
    return value is None or isinstance(value, str | int | float | bool)


@dataclasses.dataclass
class Sizes:
    """Small numbers for those of one config tree: equal ones stay equal, and different ones differ."""

    widths: dict[int, int]
    scaled: bool = False  # divided by fixed numbers, so that products stay equal too
    depths: int = 0
    ids: int = 2

    def small(self, part: Mapping[str, Any], name: str, value: Any) -> Any:
        """What stands for the value of a key in a part of the tree."""
        key = name.lower()
        if isinstance(value, bool) or value is None or isinstance(value, float | str | dict):
            return value
        if isinstance(value, list | tuple):
            return type(value)(self._listed(key, list(value)))
        if KV_HEADS.fullmatch(key) and value == heads_of(part, but=name):
            key = "num_heads"  # as many as there are for queries
        return self._number(key, value) if isinstance(value, int) else value

    def _listed(self, key: str, values: list[Any]) -> list[Any]:
        if not values or not all(type(each) is int for each in values):
            return values
        if TOKEN.fullmatch(key):
            return [self._number(key, each) for each in values]
        if HEADS_KEY.fullmatch(key):
            return [(1, 2, 4, 4, 4)[min(i, 4)] for i in range(len(values))]
        if re.search("depth|layers|blocks", key) and max(values) > 1 and len(values) < 7:
            return [(2, 1, 3, 2, 1)[min(i, 4)] for i in range(len(values))]
        if KEPT.fullmatch(key):
            return values
        if IMAGE.fullmatch(key):
            return [self._number(key, each) for each in values]
        return [self._width(each) for each in values]

    def _number(self, key: str, value: int) -> int:
        if TOKEN.fullmatch(key):
            if value <= 2:
                return value
            self.ids += 1
            return self.ids % 90
        if LAYERS.fullmatch(key) and not LAYERS_NOT.fullmatch(key):
            self.depths += value > 1
            return min(value, DEPTHS[(self.depths - 1) % len(DEPTHS)]) if value > 1 else value
        if PERIOD.fullmatch(key):
            return min(value, 2)
        if KV_HEADS.fullmatch(key):
            return min(value, 2)
        if HEADS_KEY.fullmatch(key):
            return max(value // 16, 2) if self.scaled and value >= 32 else min(value, 4)
        if EXPERTS.fullmatch(key):
            return min(value, 6)
        if CHOSEN.fullmatch(key):
            return min(value, 2)
        if key == "codebook_size":
            return min(value, 64)
        if VOCABULARY.fullmatch(key) and value >= 64:
            return 100 + self.widths.setdefault(-value, len(self.widths))
        if PATCH.fullmatch(key):
            return min(value, 4)
        if IMAGE.fullmatch(key):
            return min(value, 16)
        if POSITIONS.fullmatch(key):
            return min(value, 50 + len(key))
        return value if KEPT.fullmatch(key) else self._width(value)

    def _width(self, value: int) -> int:
        if value < 16:
            return value
        if self.scaled:
            return max(value // (64 if value >= 512 else 4), 4)
        return self.widths[value]


def heads_of(part: Mapping[str, Any], but: str) -> int | None:
    """The number of heads for queries."""
    keys = [k for k, x in part.items() if HEADS_KEY.fullmatch(k) and type(x) is int and k != but]
    return next((part[key] for key in keys if not KV_HEADS.fullmatch(key)), None)


def with_needed(tree: Tree) -> Tree:
    """The same with numbers for keys that have none by default, although no model can be built without."""
    tree = tree.copy()
    for part in tree.parts():
        names = {field.name for field in dataclasses.fields(part.kind)}
        for key, value in NEEDED.items():
            if key in names and part.get(key) is None:
                part[key] = value
    return tree


def widths_of(tree: Tree, unit: int) -> dict[int, int]:
    """A small number for every width in a tree, in their order: multiples of `unit`, which halves of it are between."""
    numbers: set[int] = set()
    for _, value in tree.leaves():
        each = value if isinstance(value, list | tuple) else [value]
        numbers |= {x for x in each if type(x) is int and x >= 16}
    first = 2 if unit == 8 else 1
    return {value: unit * (min(i, 10) + first) for i, value in enumerate(sorted(numbers))}


def by_layer(part: Tree, full: Tree) -> None:
    """Cut lists with an entry for each layer of the full config to the small number of layers, keeping every kind, and
    bring numbers of layers into range."""
    counts = [key for key in part if LAYERS.fullmatch(key) and type(part[key]) is int]
    for key, value in part.items():
        if not isinstance(value, list | tuple) or not value:
            continue
        depths = {full[k]: part[k] for k in counts if type(full.get(k)) is int and full[k] > 1}
        depth = depths.get(len(value))
        if depth is not None and len(value) > depth:
            part[key] = type(value)(shortened(list(value), depth))
        elif (
            depths
            and all(type(each) is int for each in full[key])
            and re.search("layer|block|index|indices|idx|stages", key)
            and max(full[key]) >= (least := min(depths.values()))
        ):
            part[key] = type(value)(1 + i for i in range(min(len(value), least - 2)))


def shortened(values: list[Any], count: int) -> list[Any]:
    """The first of a list, and in place of the last of them those kinds that would be lost."""
    kept = values[:count]
    lost: list[Any] = []
    for each in values:
        if each not in kept + lost:
            lost.append(each)
    return kept[: count - len(lost)] + lost[:count]


def small(given: Tree, unit: int, scaled: bool) -> Tree:
    """The tree with small sizes.

    Args:
      given: the config as it is.
      unit: what the widths are multiples of.
      scaled: widths are divided by fixed numbers instead, so that products which are equal stay equal.
    """
    changed = given.copy()
    sizes = Sizes(widths_of(given, unit), scaled)
    for part in changed.parts():
        old = dict(part)
        part |= {key: sizes.small(old, key, value) for key, value in old.items()}
    for part, full in zip(changed.parts(), given.parts(), strict=True):
        by_layer(part, full)
    for part in changed.parts():
        part |= ROWS.get(part.kind.model_type or part.kind.__name__, {})
    return changed
