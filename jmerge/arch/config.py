"""config.json of the output: the donor's, with only those fields changed that the merge made untrue."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from jmerge.arch.infer import VISION, Config, KeyPath, Stack, config_dicts
from jmerge.arch.kinds import ORDERED, RULES, Rule, Values, home_of, is_numbers, is_per_layer
from jmerge.ckpt.dtypes import CONFIG_NAMES

# Counts of layers that cannot exceed the depth.
CLIPPED = ("max_window_layers",)


class Change(NamedTuple):
    """One field of config.json that is not as the donor has it."""

    key: str  # dotted
    old: Any
    new: Any
    reason: str


class Layers(NamedTuple):
    """Where one output layer's config entries come from."""

    config: Config  # of the model
    stack: Stack  # in that model
    layer: int  # 0-based


class Unsaid(NamedTuple):
    """A key of config.json that cannot say an order of layers."""

    key: str
    layers: list[int]  # of the output that it would have to tell
    instead: str = ""  # a list with an entry for each layer that could; empty when there is none
    written: bool = False  # that list is written


def get_path(config: Config, path: KeyPath) -> Any:
    """The value at `path`, or None."""
    part: Any = config
    for key in path:
        part = part.get(key) if isinstance(part, dict) else None
    return part


def set_depth(
    config: dict[str, Any], stack: Stack, layers: Sequence[Layers]
) -> tuple[dict[str, Any], list[Change]]:
    """`config` with the length of `stack` and every per-layer list made to describe the output `layers`.

    An entry of a per-layer list is taken from the config of the model the layer comes from, when that has the list.
    """
    if not stack.keys:
        return config, []
    home = stack.keys[0][:-1]
    edited: dict[str, Any] = copy.deepcopy(config)
    part = get_path(edited, home)
    old, new = stack.depth, len(layers)
    changes = []
    before = home_of(config, stack)
    for path in stack.keys:
        part[path[-1]] = new
    for key, value in before.items():
        if is_numbers(key, value):
            part[key] = [
                i for i, source in enumerate(layers) if source.layer in _numbers(source, key, value)
            ]
        elif is_per_layer(key, value, old):
            entries = [_entry(source, key, value) for source in layers]
            part[key] = "".join(entries) if isinstance(value, str) else entries
    for rule, values, order in _orders(before, stack, layers):
        fitting, listed = rule.fit(order, values), rule.listed(order)
        if fitting is None and listed is not None:
            part[rule.unless] = listed
        for (key, default), value in zip(rule.keys.items(), fitting or values, strict=True):
            if key in before or value != default:
                part[key] = value
    for key in CLIPPED:
        if type(before.get(key)) is int and before[key] <= old:
            part[key] = min(part[key], new)
    for key, value in part.items():
        if key not in before or value != before[key]:
            changes.append(
                Change(".".join((*home, key)), before.get(key), value, "the layers of the output")
            )
    return edited, changes


def unsaid(config: Config, stack: Stack, layers: Sequence[Layers]) -> list[Unsaid]:
    """Keys of config.json with which no numbers say the kinds of the output `layers`."""
    if not stack.keys:
        return []
    part = home_of(config, stack)
    found = [
        Unsaid(
            rule.name,
            [i for i, on in enumerate(order) if on],
            rule.unless,
            rule.listed(order) is not None,
        )
        for rule, values, order in _orders(part, stack, layers)
        if rule.fit(order, values) is None
    ]
    for key in ORDERED:
        if isinstance(part.get(key), list):
            lists = [(_numbers(source, key, part[key]), source.layer) for source in layers]
            places = [numbers.index(layer) for numbers, layer in lists if layer in numbers]
            if places != list(range(len(part[key]))):
                ons = [i for i, (numbers, layer) in enumerate(lists) if layer in numbers]
                found.append(Unsaid(key, ons))
    return found


def _orders(
    part: Config, stack: Stack, layers: Sequence[Layers]
) -> Iterator[tuple[Rule, Values, list[bool]]]:
    """The rules in a part of config.json with their numbers, and which of the output `layers` are of a rule's kind in their own models."""
    for rule in RULES:
        values = rule.values(part)
        if values is not None:
            order = []
            for source in layers:
                own = rule.values(home_of(source.config, source.stack)) or values
                order.append(rule.says(source.stack.depth, *own)[source.layer])
            yield rule, values, order


def forget(config: dict[str, Any], key: str, why: str) -> tuple[dict[str, Any], list[Change]]:
    """`config` without a key at its top."""
    if key not in config:
        return config, []
    kept = {name: value for name, value in config.items() if name != key}
    return kept, [Change(key, config[key], None, why)]


def set_dtype(config: dict[str, Any], dtype: str) -> tuple[dict[str, Any], list[Change]]:
    """`config` saying that its weights have `dtype`, under the key it uses already (`dtype` or `torch_dtype`)."""
    word = CONFIG_NAMES.get(dtype)
    if word is None:
        return config, []
    edited = copy.deepcopy(config)
    changes = []
    keyed = False
    for path, part in _parts(edited):
        for key in ("dtype", "torch_dtype"):
            if key in part:
                keyed = keyed or not path
                if part[key] != word and isinstance(part[key], str | None):
                    changes.append(
                        Change(".".join((*path, key)), part[key], word, "the dtype of most bytes")
                    )
                    part[key] = word
    if not keyed and config:
        edited["torch_dtype"] = word
        changes.append(Change("torch_dtype", None, word, "the dtype of most bytes"))
    return edited, changes


def untie(config: dict[str, Any]) -> tuple[dict[str, Any], list[Change]]:
    """`config` saying that head and embedding are different tensors."""
    edited = copy.deepcopy(config)
    changes = []
    for path, part in _parts(edited):
        if part.get("tie_word_embeddings") or (not path and "tie_word_embeddings" not in part):
            key = ".".join((*path, "tie_word_embeddings"))
            changes.append(
                Change(
                    key, part.get("tie_word_embeddings"), False, "the output has a head of its own"
                )
            )
            part["tie_word_embeddings"] = False
    return edited, changes


def vocabulary_keys(config: Config, rows: int | None = None) -> list[KeyPath]:
    """Where config.json counts the tokens of the language model: as many as its table has `rows`, where it says that
    anywhere, else as many as it says first."""
    found = [
        (*path, "vocab_size")
        for path, part in config_dicts(config)
        if type(part.get("vocab_size")) is int and not VISION.search(".".join(path))
    ]
    sizes = [get_path(config, path) for path in found]
    size = rows if rows in sizes else next(iter(sizes), None)
    return [path for path in found if get_path(config, path) == size]


def vocabulary_size(config: Config, rows: int | None = None) -> int | None:
    """How many tokens config.json says the model has whose table has `rows`; None when it does not say."""
    keys = vocabulary_keys(config, rows)
    return get_path(config, keys[0]) if keys else None


def set_vocabulary_size(
    config: dict[str, Any], rows: int, before: int | None = None
) -> tuple[dict[str, Any], list[Change]]:
    """`config` saying that the embedding has `rows` rows, in every place where it counts them; it had `before`."""
    edited = copy.deepcopy(config)
    changes = []
    for path in vocabulary_keys(config, before):
        old = get_path(config, path)
        if old != rows:
            get_path(edited, path[:-1])[path[-1]] = rows
            changes.append(Change(".".join(path), old, rows, "the rows of the embedding"))
    return edited, changes


def _parts(config: dict[str, Any]) -> Iterator[tuple[KeyPath, dict[str, Any]]]:
    yield from config_dicts(config)  # type: ignore[misc]  # they are the dicts of our own copy


def _numbers(source: Layers, key: str, donor: list[int]) -> list[int]:
    """The model's own list of layer numbers, an empty one too; the donor's when it has none."""
    own = home_of(source.config, source.stack).get(key)
    return own if isinstance(own, list) else donor


def _entry(source: Layers, key: str, donor: Sequence[Any]) -> Any:
    own = home_of(source.config, source.stack).get(key)
    if isinstance(own, type(donor)) and len(own) == source.stack.depth:
        return own[source.layer]
    return donor[min(source.layer, len(donor) - 1)]
