"""Has the donor a place for a tensor that another model has? What classes and config.json say of it."""

from __future__ import annotations

import re

from jmerge.arch.infer import EXTRA_LAYER_KEYS, Config, class_names, config_dicts
from jmerge.arch.switches import spoken_of, turned_on

# Of an adapter that was not merged into its model: no class has them without the adapter's own config.
ADAPTER = re.compile(
    r"(^|\.)(lora_(A|B|embedding_A|embedding_B|magnitude_vector)|hada_w\d_\w+|lokr_w\d\w*)(\.|$)"
)
# Heads that give no tokens, which trainers leave in models whose class has none
OTHER_HEAD = re.compile(r"(\w+_)?(v_head|value_head|reward_head|score|classifier|qa_outputs)(\.|$)")
OF_TOKENS = re.compile(r"\w+(ForCausalLM|LMHeadModel|ForMaskedLM)")


def no_place(template: str, own: Config, donor: Config, *, behind: bool = False) -> str | None:
    """Why a donor with this config.json has no place for a tensor that only a model with `own` has; None when nothing
    speaks against it.

    behind: it is of a layer numbered like those of a stack and after them.
    """
    if ADAPTER.search(template):
        return "it belongs to an adapter; merge that into its model first"
    mine, other = (next(iter(class_names(config)), "") for config in (own, donor))
    if mine and other and mine.casefold() != other.casefold():
        return f"it belongs to {mine}, not to {other}"
    if OF_TOKENS.fullmatch(other) and OTHER_HEAD.match(template):
        return f"{other} has only a head for tokens"
    if not (mine and other):
        kinds = own.get("model_type"), donor.get("model_type")
        if all(kinds) and kinds[0] != kinds[1]:
            return f"it belongs to {kinds[0]}, not to {kinds[1]}"
    said = _switches(donor)
    words = {word for part in template.lower().split(".") for word in part.split("_")}
    for key, on in _switches(own).items():
        speaks = key in EXTRA_LAYER_KEYS if behind else words & spoken_of(key)
        if on and speaks and not said.get(key):
            there = "lacks that key" if key not in said else "turns it off"
            return f"'{key}' in its config.json turns it on, and the output's config.json {there}"
    return None


def _switches(config: Config) -> dict[str, bool]:
    """What config.json says is there or not: flags, counts, parts; `no_bias: false` is one that is there."""
    found: dict[str, bool] = {}
    for path, part in config_dicts(config):
        if path:
            found.setdefault(path[-1], bool(part))
        for key, value in part.items():
            if (on := turned_on(key, value)) is not None:
                found[key] = found.get(key, False) or on
    return found
