"""Which templates of two checkpoints mean the same tensor when their names differ.

Equal names pair first. Then names that reduce to the same key, where exactly one on either side does: what programs
wrap modules in is dropped (`_orig_mod`, `module`, `base_layer`), so are wrappers of models (`transformer.`, `bert.`,
`model.`), LayerNorm `gamma` and `beta` are read as `weight` and `bias`, weight norm has one of its two forms, and
the moves between the layouts of different releases of transformers are undone. What is left pairs by its beginning:
where the keys of one model are those of the other with words put before them.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple

from jmerge.arch.families import SYNONYMS

Shape = tuple[int, ...]
Words = tuple[str, ...]

# What torch.compile, data parallel, FSDP, activation checkpointing, Lightning and PEFT put into names, at any place.
NOISE = frozenset(
    "_orig_mod module base_layer base_model _fsdp_wrapped_module _checkpoint_wrapped_module "
    "_forward_module".split()
)
# Of these, what no class calls a module of its own (LeViT has some layers with a `module` and some without).
NEVER_A_MODULE = NOISE - {"module"}
SPOKEN_OF = re.compile("|".join((*sorted(NOISE), "parametrizations")))
# The parametrizations of torch.nn.utils, as its older functions call them.
PARAMETRIZED = (
    (re.compile(r"\.parametrizations\.(\w+)\.original0$"), r".\1_g"),
    (re.compile(r"\.parametrizations\.(\w+)\.original1$"), r".\1_v"),
    (re.compile(r"\.parametrizations\.(\w+)\.original$"), r".\1_orig"),
    (re.compile(r"\.parametrizations\.(\w+)\.0\._(u|v)$"), r".\1_\2"),
)
WRAPPERS = ("model", "transformer", "bert", "roberta", "distilbert")
REWRITES = (
    (re.compile(r"(^|\.)vision_tower\.vision_model\."), r"\1vision_tower."),
    (re.compile(r"(^|\.)language_model\.(lm_head\.)"), r"\1\2"),
    (re.compile(r"\.block_sparse_moe\."), ".mlp."),
    (re.compile(r"\.mlp\.router\.(layer\.)?"), ".mlp.gate."),
    (re.compile(r"(?i)(norm\w*)\.gamma$"), r"\1.weight"),
    (re.compile(r"(?i)(norm\w*)\.beta$"), r"\1.bias"),
)
# Words that tell parts of a model apart, so that one before a name makes it another's unless both are of one family.
PART = re.compile(
    r"vision|visual|vit|audio|image|video|speech|text|language|llm|encoder|decoder|talker|mtp|nextn|draft"
)
FIRST_WORD = {word: row[0] for row in SYNONYMS for word in row}
TEXT = SYNONYMS[0][0]  # around which other parts may stand or not
MAX_PAIRS = 50_000  # of leftover names that are compared; models have some hundreds


def plain_name(name: str, noise: frozenset[str] = NOISE) -> str:
    """A name without what programs wrap modules in, and with the older form of parametrizations."""
    if not SPOKEN_OF.search(name):
        return name
    words = [word for word in name.split(".") if word not in noise]
    name = ".".join(words) or name
    for pattern, replacement in PARAMETRIZED:
        name = pattern.sub(replacement, name)
    return name


def reduce_name(template: str) -> str:
    """The key of a template: its name without what differs between spellings of one model."""
    words = [word for word in plain_name(template).split(".") if word not in WRAPPERS]
    name = ".".join(words) or template
    for pattern, replacement in REWRITES:
        name = pattern.sub(replacement, name)
    return name


def match_templates(
    donor: Iterable[str],
    other: Iterable[str],
    shapes: tuple[Mapping[str, Shape], Mapping[str, Shape]] = ({}, {}),
    *,
    family: bool = False,
) -> dict[str, str]:
    """other's template -> the donor's template for the same tensor, or itself when the donor has none.

    shapes: of the donor's templates and of the other's, as far as they are known.
    family: both are of one class, so that what names a part of it (`language_model.`) is no more than a spelling.
    """
    donor, other = tuple(donor), tuple(other)
    known = set(donor)
    pairs = {template: template for template in other}
    free = _by_key(template for template in donor if template not in pairs)
    for key, templates in _by_key(template for template in other if template not in known).items():
        if len(templates) == 1 and len(free.get(key, ())) == 1:
            pairs[templates[0]] = free[key][0]
    return pairs | _by_beginning(donor, pairs, shapes, family)


def stack_of(template: str) -> str | None:
    """What stands before the layer number of a template; None when it has none."""
    return template.partition("{}")[0] if "{}" in template.split(".") else None


class StackPairs:
    """Which stacks of two models are paired: a stack is paired with one only."""

    def __init__(self, pairs: Mapping[str, str], known: Iterable[str]) -> None:
        self._theirs: dict[str, set[str]] = {}
        self._ours: dict[str, set[str]] = {}
        known = set(known)
        for own, wanted in pairs.items():
            if wanted in known and (stack := stack_of(own)) is not None:
                there = stack_of(wanted) or ""
                self._theirs.setdefault(stack, set()).add(there)
                self._ours.setdefault(there, set()).add(stack)

    def allow(self, own: str, wanted: str) -> bool:
        """Whether two templates may be one: both are of stacks, which nothing pairs with others, or both are loose."""
        stack, there = stack_of(own), stack_of(wanted)
        if stack is None or there is None:
            return stack is there
        if stack not in self._theirs and there not in self._ours:
            return True
        return there in self._theirs.get(stack, ())


class _Rule(NamedTuple):
    """Words at the beginning of a key, and those that stand there in the donor's."""

    own: Words
    donor: Words


def _by_beginning(
    donor: Iterable[str],
    pairs: Mapping[str, str],
    shapes: tuple[Mapping[str, Shape], Mapping[str, Shape]],
    family: bool,
) -> dict[str, str]:
    """Pairs of what is left, by rules for beginnings of keys: those with the most tensors of one shape first.

    Of two rules for the same tensors with equally many, neither is followed.
    """
    known, taken = set(donor), set(pairs.values())
    wanted = _unique({name: _words(name, family) for name in donor if name not in taken})
    own = _unique({name: _words(name, family) for name, to in pairs.items() if to not in known})
    stacks = StackPairs(pairs, known)
    rules: dict[_Rule, list[tuple[str, str]]] = {}
    for name, there in _candidates(own, wanted):
        rule = _rule(own[name], wanted[there], family)
        if rule is not None and stacks.allow(name, there):
            rules.setdefault(rule, []).append((name, there))
    votes = {
        rule: sum(_alike(shapes[1].get(name), shapes[0].get(there)) for name, there in found)
        for rule, found in rules.items()
    }
    claims = Counter(
        (side, name, votes[rule])
        for rule, found in rules.items()
        for pair in found
        for side, name in enumerate(pair)
    )
    made: dict[str, str] = {}
    for rule in sorted(rules, key=lambda rule: -votes[rule]):
        clear = all(
            claims[side, name, votes[rule]] == 1
            for pair in rules[rule]
            for side, name in enumerate(pair)
        )
        if not clear or not votes[rule]:
            continue
        for name, there in rules[rule]:
            if name not in made and there not in taken and stacks.allow(name, there):
                made[name] = there
                taken.add(there)
        stacks = StackPairs({**pairs, **made}, known)
    return made


def _words(template: str, family: bool) -> Words:
    words = reduce_name(template).split(".")
    if not family:
        return tuple(words)
    meant = [FIRST_WORD.get(word, word) for word in words]
    return tuple(word for word in meant[:-1] if word != TEXT) + tuple(meant[-1:])


def _unique(keys: Mapping[str, Words]) -> dict[str, Words]:
    """Without names that share their key."""
    counts = Counter(keys.values())
    return {name: words for name, words in keys.items() if counts[words] == 1}


def _candidates(own: Mapping[str, Words], wanted: Mapping[str, Words]) -> Iterator[tuple[str, str]]:
    """Names on either side with one ending: all after the layer number, else two words, or one that is all of a name."""
    by_end: dict[Words, list[str]] = {}
    for there, words in wanted.items():
        by_end.setdefault(_end(words), []).append(there)
        if "{}" not in words:
            by_end.setdefault(("", words[-1]), []).append(there)
    budget = MAX_PAIRS
    for name, words in own.items():
        ends = [_end(words)]
        if "{}" not in words:
            ends.append(("", words[0]) if len(words) == 1 else words[-1:])
        found = dict.fromkeys(there for end in ends for there in by_end.get(end, ()))
        budget -= len(found)
        if budget < 0:
            return
        for there in found:
            yield name, there


def _end(words: Words) -> Words:
    return words[words.index("{}") :] if "{}" in words else words[-2:]


def _rule(own: Words, wanted: Words, family: bool) -> _Rule | None:
    """The rule that makes one key of the other; None unless words are only put before it, or stand there in another
    order."""
    count = 0
    while count < min(len(own), len(wanted)) and own[-1 - count] == wanted[-1 - count]:
        count += 1
    rule = _Rule(own[: len(own) - count], wanted[: len(wanted) - count])
    if count < 2 and own[len(own) - count :] not in (own, wanted):
        return None
    mine, others = Counter(rule.own), Counter(rule.donor)
    if mine - others and others - mine:
        return None
    added = (mine - others) + (others - mine)
    if any(word == "{}" or word.isdigit() for word in (*rule.own, *rule.donor)):
        return None
    return None if not family and any(PART.search(word) for word in added) else rule


def _alike(one: Shape | None, other: Shape | None) -> bool:
    return one is None or other is None or one == other


def _by_key(templates: Iterable[str]) -> dict[str, list[str]]:
    keys: dict[str, list[str]] = {}
    for template in templates:
        keys.setdefault(reduce_name(template), []).append(template)
    return keys
