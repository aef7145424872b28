"""config.json of the output: the donor's, with only those fields changed that the merge made untrue."""

from __future__ import annotations

import copy
from collections.abc import Hashable, Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

from jmerge.arch.infer import EXTRA_LAYER_KEYS, VISION, Config, KeyPath, Stack, config_dicts
from jmerge.arch.layer_types import LAYER_NUMBERS, RULES, Rule, Values, home_of
from jmerge.arch.lent import KEY, lenders
from jmerge.arch.mentions import NOTHING, Beside, mentions
from jmerge.arch.moved import Moved, Stuck, follow
from jmerge.arch.told import first_number, is_of_its_map, is_overruled, kinds_of
from jmerge.dtypes import CONFIG_NAMES

# Counts of layers that cannot exceed the depth.
CLIPPED = ("max_window_layers",)
# What tells kinds of the layers that its own map counts, and of no others.
RULED = {key for rule in RULES for key in rule.keys} - {*LAYER_NUMBERS}


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
    why: str = ""  # what else it says of layers that is wrong now
    fixed: bool = False  # that would be wrong without the key too


def get_path(config: Config, path: KeyPath) -> Any:
    """The value at `path`, or None."""
    part: Any = config
    for key in path:
        part = part.get(key) if isinstance(part, dict) else None
    return part


def set_depth(
    config: dict[str, Any], stack: Stack, layers: Sequence[Layers], beside: Beside = NOTHING
) -> tuple[dict[str, Any], list[Change]]:
    """`config` with the length of `stack` and all that speaks of its layers made to describe the output `layers`.

    What it says of a layer is what the config of the model says that the layer comes from, when that says it.
    """
    if not stack.counted:
        return config, []
    home = stack.home
    before = home_of(config, stack)
    written: dict[KeyPath, Any] = dict.fromkeys(stack.keys, len(layers))
    written |= _followed(config, stack, layers, beside)[0]
    for rule, values, order in _orders(before, stack, layers):
        fitting, listed = rule.fit(order, values, before), rule.listed(order, before)
        if fitting is None and listed is not None:
            written[*home, rule.unless] = listed
        for (key, default), value in zip(rule.keys.items(), fitting or values, strict=True):
            if key in before or value != default:
                written[*home, key] = value
    for key in CLIPPED:
        count = written.get((*home, key), before.get(key))
        if type(count) is int and before[key] <= stack.depth:
            written[*home, key] = min(count, len(layers))
    edited: dict[str, Any] = copy.deepcopy(config)
    changes = []
    for path, value in written.items():
        part = get_path(edited, path[:-1])
        if path[-1] not in part or part[path[-1]] != value:
            old = part.get(path[-1])
            changes.append(Change(".".join(path), old, value, "the layers of the output"))
            part[path[-1]] = value
    return edited, changes


def unsaid(
    config: Config, stack: Stack, layers: Sequence[Layers], beside: Beside = NOTHING
) -> list[Unsaid]:
    """Keys of config.json with which nothing known says the kinds of the output `layers`."""
    stuck = _followed(config, stack, layers, beside)[1]
    if not stack.counted:
        return stuck
    part = home_of(config, stack)
    found = [
        Unsaid(
            rule.name,
            [i for i, on in enumerate(order) if on],
            rule.unless,
            rule.listed(order, part) is not None,
        )
        for rule, values, order in _orders(part, stack, layers)
        if rule.fit(order, values, part) is None
    ]
    if [source.layer for source in layers] != list(range(stack.depth)):
        stuck += [
            Unsaid(".".join(path), [], why=f"counts as many layers of '{other}'", fixed=True)
            for path, other in stack.doubtful
        ]
    if not found:
        stuck += _lent(config, stack, layers, beside)
    return found + stuck


def _lent(
    config: Config, stack: Stack, layers: Sequence[Layers], beside: Beside
) -> Iterator[Unsaid]:
    """That a layer without keys of its own would use those of another layer than in its model."""
    edited = set_depth(dict(config), stack, layers, beside)[0]
    for place, lender in lenders(home_of(edited, stack), len(layers)).items():
        source, lent = layers[place], layers[lender]
        own = lenders(home_of(source.config, source.stack), source.stack.depth).get(source.layer)
        if own is not None and own != lent.layer:
            why = f"gives layer {source.layer} the keys of layer {own}, and here it would use those of layer {lent.layer}"
            yield Unsaid(".".join((*stack.home, KEY)), [], why=why)
            return


def told_of_layers(
    config: Config, stack: Stack, beside: Beside = NOTHING
) -> dict[str, list[Hashable]]:
    """What config.json says of each layer of a stack: a list of its depth for each field that tells layers apart."""
    told: dict[str, list[Hashable]] = {}
    part = home_of(config, stack)
    for each in mentions(config, stack, beside):
        if each.certain or each.path[:-1] == stack.home:
            first = first_number(get_path(config, each.path[:-1]), stack.depth)
            kinds = kinds_of(each.name, each.value, stack.depth, first)
            if kinds is not None:
                told[".".join(each.path)] = kinds
    for rule in RULES:
        values = rule.values(part)
        if values is not None:
            told[rule.name] = list(rule.says(stack.depth, *values))
    return told


def _followed(
    config: Config, stack: Stack, layers: Sequence[Layers], beside: Beside
) -> tuple[dict[KeyPath, Any], list[Unsaid]]:
    """What the fields that speak of the layers have to say now, and those of which that is not known."""
    made: dict[KeyPath, Any] = {}
    stuck = []
    home = stack.home
    part = get_path(config, home)
    ruled = RULED & {key for rule in RULES if rule.is_meant(part) for key in rule.keys}
    behind = sum(n for n in map(part.get, EXTRA_LAYER_KEYS) if type(n) is int and n > 0)
    order = Moved(
        stack.depth, tuple(source.layer for source in layers), behind, prefix=stack.prefix
    )
    theirs = {other.home for other in beside.stacks if other.keys} - {home}
    for path, value, certain, named, unique, counts, name in mentions(config, stack, beside):
        if path[:-1] == home and (path[-1] in ruled or path[-1] in CLIPPED):
            continue
        if path[:-1] in theirs and (path[-1] in RULED or is_of_its_map(path[-1].lower(), value)):
            continue  # of the layers that this map counts
        first = first_number(get_path(config, path[:-1]), stack.depth)
        own = partial(_own, layers, path, home)
        try:
            now = order._replace(first=first, counts=counts, unique=unique)
            new = follow(name, value, now, own, certain=certain, named=named)
        except Stuck as why:
            if is_overruled(name, value, get_path(config, path[:-1]), stack.depth):
                continue
            stuck.append(Unsaid(".".join(path), [], why=str(why)))
        else:
            if new != value:
                made[path] = new
    return made, stuck


def _own(layers: Sequence[Layers], path: KeyPath, home: KeyPath, place: int) -> Any:
    """What the model of an output layer says in a field that the donor has at `path`, beside its count of layers."""
    config, stack, _ = layers[place]
    inside = path[: len(home)] == home
    return get_path(config, (*stack.home, *path[len(home) :]) if inside else path)


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
