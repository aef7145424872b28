"""Which templates of two checkpoints mean the same tensor when their names differ.

Equal names pair first. The rest pair when exactly one name on either side reduces to the same key: wrapper
prefixes dropped (`transformer.`, `bert.`, `model.`), LayerNorm `gamma` and `beta` read as `weight` and `bias`, and
the moves between the layouts of different releases of transformers undone.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

WRAPPERS = ("model", "transformer", "bert", "roberta", "distilbert")
REWRITES = (
    (re.compile(r"(^|\.)vision_tower\.vision_model\."), r"\1vision_tower."),
    (re.compile(r"(^|\.)language_model\.(lm_head\.)"), r"\1\2"),
    (re.compile(r"\.block_sparse_moe\."), ".mlp."),
    (re.compile(r"\.mlp\.router\.(layer\.)?"), ".mlp.gate."),
    (re.compile(r"(?i)(norm\w*)\.gamma$"), r"\1.weight"),
    (re.compile(r"(?i)(norm\w*)\.beta$"), r"\1.bias"),
)


def reduce_name(template: str) -> str:
    """The key of a template: its name without what differs between spellings of one model."""
    words = [word for word in template.split(".") if word not in WRAPPERS]
    name = ".".join(words) or template
    for pattern, replacement in REWRITES:
        name = pattern.sub(replacement, name)
    return name


def match_templates(donor: Iterable[str], other: Iterable[str]) -> dict[str, str]:
    """other's template -> the donor's template for the same tensor, or itself when the donor has none."""
    donor, other = tuple(donor), tuple(other)
    known = set(donor)
    pairs = {template: template for template in other}
    free = _by_key(template for template in donor if template not in pairs)
    for key, templates in _by_key(template for template in other if template not in known).items():
        if len(templates) == 1 and len(free.get(key, ())) == 1:
            pairs[templates[0]] = free[key][0]
    return pairs


def _by_key(templates: Iterable[str]) -> dict[str, list[str]]:
    keys: dict[str, list[str]] = {}
    for template in templates:
        keys.setdefault(reduce_name(template), []).append(template)
    return keys
