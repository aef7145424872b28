"""Which fields of config.json may speak of a stack's layers: by the map they stand in, and by the words of their names.

Fields beside the stack's count of layers, in maps inside of that which are no other part of the model, and in the maps
around it. A field that names another part (`vision_feature_layer` for the layers of a decoder) is that part's, one that
names this stack is its own. Of others it is open where a map describes several stacks. Numbers decide nothing.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from jmerge.arch.infer import (
    EXTRA_LAYER_KEYS,
    VISION,
    Config,
    KeyPath,
    Stack,
    config_dicts,
    side_of,
)
from jmerge.arch.layer_types import LAYER_NUMBERS
from jmerge.arch.layer_words import COUNT, DIGITS

WORD = re.compile(r"[._\-]|(?<=[a-z])(?=[A-Z])")
# Words that many fields and tensors have, whatever they speak of
PLAIN = frozenset(
    "a config attention attn block blocks by config count depth deep dim first full h hidden idx ids in index indexes indices"
    " is kind kinds last layer layers list mlp model models module modules n name names num number of out per proj size"
    " sizes stage stages the to total transformer type types use weight bias norm linear self moe expert experts gate"
    " dense local global sliding window rope output input inner main base net network".split()
)
# Of names of counts that are of all layers
COUNTED = frozenset(
    "block blocks count decoder depth encoder hidden language layer layers model n num number of text total transformer".split()
)
OUTER = re.compile(r"layer|block")
SIDES = (
    "encoder",
    "decoder",
    "text",
    "language",
    "audio",
    "speech",
    "mtp",
    "nextn",
    "t2u",
    "talker",
    "thinker",
)
SHORT = {"enc": "encoder", "dec": "decoder", "encode": "encoder", "decode": "decoder"}
STEM = 5  # letters that two forms of one word have in common: `upsample`, `upsampler`


class Beside(NamedTuple):
    """What a model has besides a stack."""

    stacks: Sequence[Stack] = ()
    names: Sequence[str] = ()  # of tensors in no stack


NOTHING = Beside()


class Mention(NamedTuple):
    """A field that may speak of a stack's layers."""

    path: KeyPath
    value: Any
    certain: bool  # its name and place leave no other stack that it could speak of
    named: bool  # its name has a word of this stack's
    unique: bool  # nothing else that config.json or the model has is as long
    counts: bool  # its name, if that is of a count, is of one of these layers
    name: str  # its key, with that of the map around it where that speaks of layers


def mentions(config: Config, stack: Stack, beside: Beside = NOTHING) -> Iterator[Mention]:
    """The fields of config.json that may speak of the layers of `stack`, but for those that count it."""
    home = stack.home
    others = [each for each in beside.stacks if each.prefix != stack.prefix]
    homes = {each.home for each in others if each.keys}
    own = _words(stack.prefix) | _words(".".join(home))
    theirs: set[str] = set().union(*(_words(s.prefix) | _words(".".join(s.home)) for s in others))
    loose: set[str] = set().union(*(_words(name) for name in beside.names))
    counted = {path for each in others for path in each.keys} | set(stack.keys)
    parts = {
        path: part
        for path, part in config_dicts(config)
        if path != home[: len(path)] and _is_a_part("config", part)
    }
    lengths = {each.depth for each in others} | {
        n
        for part in parts.values()
        for key, n in part.items()
        if type(n) is int and COUNT.fullmatch(str(key))
    }
    unique = stack.counted and stack.depth not in lengths
    around = [home[:end] for end in range(len(home), -1, -1)]
    for path, part in _maps(config, home, around, homes, own):
        inside = path[: len(home)] == home
        # its own map may have parts inside, those around it none but this
        rest = homes if inside else [*homes, *parts]
        alone = stack.counted and not any(
            each == home if inside else each[: len(path)] == path for each in rest
        )
        around_it = _words(".".join(path[len(home) :])) if inside else set()
        for key, value in part.items():
            if (*path, key) in counted or key in EXTRA_LAYER_KEYS or not isinstance(key, str):
                continue
            words = _words(key)
            named = bool(((words | around_it) - PLAIN) & own)
            named = named or (inside and key in LAYER_NUMBERS)
            if {side_of(key.lower()), side_of(stack.prefix.lower())} == {"encoder", "decoder"}:
                continue
            if COUNT.fullmatch(key) and _has_any(
                words - PLAIN - own, (theirs | loose) - own - PLAIN
            ):
                continue  # of a part of the part that it names: `speech_decoder_postnet_layers`
            if not named and _of_another(words - PLAIN, own, theirs, loose, inside):
                continue
            counts = not words - COUNTED - own
            outer = path[-1] if len(path) > len(home) and OUTER.search(path[-1]) else ""
            name = f"{outer}_{key}" if outer and not outer.endswith("config") else key
            yield Mention((*path, key), value, named or alone, named, unique, counts, name)


def _maps(
    config: Config,
    home: KeyPath,
    around: Sequence[KeyPath],
    homes: set[KeyPath],
    own: set[str],
) -> Iterator[tuple[KeyPath, Mapping[str, Any]]]:
    """The maps in which a stack with this home and these words is spoken of, with their paths."""
    found: list[tuple[KeyPath, Mapping[str, Any]]] = []
    for path in around:
        part: Any = config
        for key in path:
            part = part[key]
        found.append((path, part))
    for path, part in found:  # grows while it is walked
        yield path, part
        for key, value in part.items():
            inner = (*path, key)
            if not isinstance(value, Mapping) or inner in around or inner in homes:
                continue
            if any(each[: len(inner)] == inner for each in homes):
                continue
            if _is_a_part(str(key), value) and not (_words(str(key)) - PLAIN) & own:
                continue
            if not all(DIGITS.fullmatch(str(each)) for each in value):
                found.append((inner, value))


def _is_a_part(key: str, value: Mapping[Any, Any]) -> bool:
    """Whether a map describes a model of its own inside of one."""
    counts = any(COUNT.fullmatch(str(each)) and type(n) is int for each, n in value.items())
    return "model_type" in value or (key.endswith("config") and counts)


def _of_another(
    words: set[str], own: set[str], theirs: set[str], loose: set[str], inside: bool
) -> bool:
    """Whether words of a field's name, none of which the stack has, are those of other parts of the model."""
    text = " ".join(sorted(words))
    if VISION.search(text) and not VISION.search(" ".join(own)):
        return True
    sides = words & set(SIDES)
    if sides & theirs or sides & {"mtp", "nextn"}:
        return True
    if sides and not inside:
        return True
    return _has_any(words, theirs | loose)


def _has_any(words: set[str], others: set[str]) -> bool:
    """Whether one of the words is among others, in another form of it too."""
    return bool(words & others) or any(
        other.startswith(word) or word.startswith(other)
        for word in words
        if len(word) >= STEM
        for other in others
        if len(other) >= STEM
    )


def words_of(name: str) -> set[str]:
    """The words of a name that tell it from others."""
    return _words(name) - PLAIN


def _words(name: str) -> set[str]:
    words = {SHORT.get(word.lower(), word.lower()) for word in WORD.split(name)}
    return {word for word in words if word and not word.isdigit()}
