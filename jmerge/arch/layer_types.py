"""What config.json says of each layer: by a list with an entry for each, by a list of layer numbers, or by a rule that
places kinds of layers by their number.

A list can say any order of layers, a rule only some; `Rule.fit` finds the numbers with which it says a given one.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from jmerge.arch.infer import Config, Stack

# Lists of layer numbers (not one entry per layer)
LAYER_NUMBERS = (
    "mlp_only_layers",
    "moe_layers",
    "full_attn_idxs",
    "fullatt_block_indexes",
    "deepstack_visual_indexes",
    "attn_layer_indices",
    "cross_attention_layers",
    "global_attn_layers",
    "hybrid_layer_ids",
)
# Of these the ones whose first number goes with the first module of a list in the model, the second with the second.
ORDERED = ("deepstack_visual_indexes",)
# Lists that can be as long as the stack by accident; sizes of MLPs (Gemma 3n, HunYuan) are the layers'.
NOT_PER_LAYER = re.compile(
    r".*(_ids?|tokens|architectures|section|kernel\w*|(?<!intermediate_)sizes?|shape|mean|std)"
)
FULL_OR_SLIDING = ("full_attention", "sliding_attention")
FULL_OR_LINEAR = ("full_attention", "linear_attention")
WITHOUT_ROPE_OR_WITH = (0, 1)
PER_LAYER_TEXT = ("hybrid_override_pattern",)  # one letter per layer

Values = tuple[Any, ...]
Order = Sequence[bool]  # for each layer whether it is of the rule's kind


class Rule(NamedTuple):
    """Some keys of config.json that say together which layers are of one kind."""

    keys: Mapping[str, Any]  # with what is believed where one is missing, which the first never is
    says: Callable[..., Order]  # of the depth and the keys' values
    others: Callable[[Order], Iterable[Values]]  # values that may say an order
    unless: str = ""  # a list that is believed instead of the rule where config.json has it
    kinds: tuple[Hashable, Hashable] | None = (
        None  # what that list calls layers of the kind, and others
    )
    when: str = ""  # a switch without which the rule says nothing
    assumed_by: tuple[str, ...] = ()  # model types that have it where config.json does not say so
    # beginnings of the model types whose classes read all of the keys and the list, also where config.json lacks some
    readers: tuple[str, ...] = ()
    needs: str = ""  # a key without which only these types mean this rule by its name

    @property
    def name(self) -> str:
        """The key that config.json has when it has the rule."""
        return next(iter(self.keys))

    def values(self, part: Config) -> Values | None:
        """Those of the keys in a part of config.json; None where it has not the rule, or says otherwise what it says."""
        instead = part.get(self.unless)
        if isinstance(instead, list) and (instead or self.unless in LAYER_NUMBERS):
            return None  # Llama 4's empty list of layers without rope says nothing
        if not self.is_meant(part):
            return None
        if self.assumed_by:
            known = part.get("model_type") in self.assumed_by and self.name not in part
            return tuple(self.keys.values()) if known else None
        if type(part.get(self.name)) is not int:
            return None
        if self.when and not part.get(self.when):
            return None
        found = (part.get(key) for key in self.keys)
        defaults = self.keys.values()
        return tuple(
            default if value is None or type(value) is not type(default) else value
            for value, default in zip(found, defaults, strict=True)
        )

    def is_read(self, part: Config) -> bool:
        """Whether the class that a part of config.json names reads keys that it lacks."""
        return str(part.get("model_type")).startswith(self.readers or self.assumed_by)

    def is_meant(self, part: Config) -> bool:
        """Whether a part of config.json that has the key means this rule by it."""
        return not self.needs or self.needs in part or self.is_read(part)

    def listed(self, order: Order, part: Config) -> list[Hashable] | None:
        """The list that says an order instead of the rule; None when nothing is known to read one."""
        return [self.kinds[not on] for on in order] if self.kinds and self.is_read(part) else None

    def fit(self, order: Order, values: Values, part: Config) -> Values | None:
        """Values of the keys that say this order, `values` if they do; None when none do without a key that the part of
        config.json lacks and its class is not known to read."""
        lacked = [] if self.is_read(part) else [key not in part for key in self.keys]
        defaults = tuple(self.keys.values())
        tried = [
            each
            for each in (values, *self.others(order))
            if not any(
                lacks and value != default
                for lacks, value, default in zip(lacked, each, defaults, strict=bool(lacked))
            )
        ]
        return next((each for each in tried if list(self.says(len(order), *each)) == order), None)


def _first(count: int, first: int, every: int = 1) -> Order:
    return [i < first or (every > 0 and i % every != 0) for i in range(count)]


def _last(count: int, last: int) -> Order:
    return [i >= count - last for i in range(count)]


def _from(count: int, first: int) -> Order:
    return [i >= first for i in range(count)]


def _at(count: int, period: int, offset: int) -> Order:
    return [period > 0 and i % period == offset for i in range(count)]


def _every(count: int, period: int) -> Order:
    return _at(count, period, period - 1)


def _sparse(count: int, step: int, dense: list[int]) -> Order:
    return [i not in dense and on for i, on in enumerate(_every(count, step))]


def _shared_out(count: int, added: int) -> Order:
    return _every(count, max(count // added, 1) if added > 0 else 0)


def _between(count: int, first: int, last: int, step: int) -> Order:
    last = count - 1 if last < 0 else last
    return [first <= i <= last and on for i, on in enumerate(_every(count, step))]


def _counts(order: Order) -> Iterator[Values]:
    yield from ((count,) for count in range(len(order) + 1))


def _periods(order: Order) -> Iterator[Values]:
    yield from ((period,) for period in range(1, len(order) + 2))


def _offsets(order: Order) -> Iterator[Values]:
    first = list(order).index(True) if True in order else len(order)
    yield from ((period, first) for period in range(first + 1, len(order) + 2))


def _spans(order: Order) -> Iterator[Values]:
    ons = [i for i, on in enumerate(order) if on] or [len(order)]
    yield from ((ons[0], ons[-1], period) for (period,) in _periods(order))


RULES = (
    # dense layers before those of experts, and among them
    Rule(
        {"first_k_dense_replace": 0, "moe_layer_freq": 1},
        _first,
        lambda order: ((count, 1) for (count,) in _counts(order)),
        unless="mlp_layer_types",
    ),
    Rule({"num_dense_layers": 0}, _first, _counts),
    Rule(
        {"decoder_sparse_step": 1, "mlp_only_layers": []},
        _sparse,
        lambda order: [(1, [i for i, sparse in enumerate(order) if not sparse])],
        # the sparse step of NLLB and of Switch Transformers counts otherwise
        readers=("qwen2_moe", "qwen3_moe", "qwen3_next", "qwen3_vl_moe", "qwen3_omni_moe", "flint"),
        needs="mlp_only_layers",
    ),
    Rule({"interleave_moe_layer_step": 1}, _every, _periods, unless="moe_layers"),
    Rule(
        {"moe_layer_start_index": 0, "moe_layer_end_index": -1, "moe_layer_interval": 1},
        _between,
        _spans,
    ),
    Rule({"expert_layer_period": 1, "expert_layer_offset": 0}, _at, _offsets),
    # kinds of attention
    Rule({"attn_layer_period": 1, "attn_layer_offset": 0}, _at, _offsets),
    Rule(
        {"full_attention_interval": 1},
        _every,
        _periods,
        unless="layer_types",
        kinds=FULL_OR_LINEAR,
        readers=("qwen3_5", "qwen3_next", "qwen4_exp"),
    ),
    Rule(
        {"sliding_window_pattern": 1},
        _every,
        _periods,
        unless="layer_types",
        kinds=FULL_OR_SLIDING,
        readers=(
            *("gemma2", "gemma3", "gemma4", "diffusion_gemma", "embedding_gemma2", "t5gemma2"),
            *("cohere2", "cohere_compass", "exaone4", "exaone_moe", "muse_glimmer", "muse_spark"),
        ),
    ),
    Rule(
        {"global_attn_every_n_layers": 1},
        lambda count, period: _at(count, period, 0),
        _periods,
        unless="layer_types",
        kinds=FULL_OR_SLIDING,
        readers=("afmoe", "modernbert"),
    ),
    Rule(
        {"max_window_layers": 0},
        _from,
        _counts,
        unless="layer_types",
        kinds=FULL_OR_SLIDING[::-1],
        when="use_sliding_window",
        readers=("qwen2", "qwen3", "dots1", "deepseek_ocr2"),
    ),
    *(
        Rule(
            {"sliding_window_pattern": period},
            _every,
            lambda order: (),
            unless="layer_types",
            kinds=FULL_OR_SLIDING,
            assumed_by=models,
        )
        for period, models in ((2, ("gemma2",)), (4, ("cohere2",)), (6, ("gemma3_text",)))
    ),
    *(
        Rule(
            {"no_rope_layer_interval": period},
            _every,
            _periods,
            unless="no_rope_layers",
            kinds=WITHOUT_ROPE_OR_WITH,
            assumed_by=models,
            readers=("llama4", "smollm3", "mistral_large4"),
        )
        for period, models in ((1, ()), (4, ("llama4_text", "smollm3")))
    ),
    Rule({"num_kv_shared_layers": 0}, _last, _counts),
    # what is added to some layers, as evenly as a whole number of layers lets it
    Rule({"aligner_num_add_layers": 0}, _shared_out, _counts),
)


def home_of(config: Config, stack: Stack) -> Config:
    """The part of config.json that says how many layers a stack has, and so more of these; all of it where none does."""
    part = config
    for key in stack.home:
        part = part[key]
    return part


def is_numbers(key: str, value: Any) -> bool:
    """Whether it is a list of layer numbers."""
    return key in LAYER_NUMBERS and isinstance(value, list)


def is_per_layer(key: str, value: Any, depth: int) -> bool:
    """Whether it is a list, or a text, with an entry for each of `depth` layers."""
    if isinstance(value, str):
        return key in PER_LAYER_TEXT and len(value) == depth
    return isinstance(value, list) and len(value) == depth and not NOT_PER_LAYER.fullmatch(key)
