"""The tokenizer's files of the output: those of its donor, with only what other tokens make untrue edited."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from fnmatch import fnmatch
from typing import Any, NamedTuple

from jmerge.tokens import library
from jmerge.tokens.edit import Merge, edited, model_ids
from jmerge.tokens.model import (
    ADDED,
    CONFIG,
    JINJA,
    LISTED,
    NAMED,
    SPECIAL_MAP,
    TEMPLATE_JSON,
    TOKENIZER,
    UNREADABLE,
    ModelTokens,
    content_of,
)
from jmerge.tokens.vocabulary import Vocabulary

# What says the same as the model's own vocabulary in tokenizer.json, so that it goes when that changes.
SPELLED_OUT = (
    *("vocab.json", "merges.txt", "vocab.txt", "*.tiktoken", "tekken.json"),
    *("*.model", "*.spm", "*.bpe", "*.codes", "dict.txt"),
)


class FileEdits(NamedTuple):
    """How the output's tokenizer files differ from the donor's; those not named are copied byte for byte."""

    written: Mapping[str, bytes]  # by name; replaces the donor's file of that name, if it has one
    left_out: frozenset[str]  # files of the donor that are no longer true


NO_EDITS = FileEdits({}, frozenset())


def vocabulary_edits(
    donor: ModelTokens,
    wanted: Vocabulary,
    ordinary: Mapping[str, int] | None = None,
    merges: Iterable[Merge] = (),
) -> FileEdits:
    """The donor's files with the tokens `wanted`; no edits when it has just these.

    Args:
      ordinary, merges: as for `edit.edited`.

    Raises:
      ValueError: the tokenizers library does not read the edited file as it is meant, in one line.
    """
    if wanted == donor.vocabulary and not ordinary:
        return NO_EDITS
    document = edited(donor.document, wanted, ordinary, merges)
    text = _dump(document)
    _check(text, wanted)
    written = {TOKENIZER: text.encode("utf-8")}
    same_model = model_ids(document) == model_ids(donor.document)
    stale = [p for p in SPELLED_OUT if not same_model or UNREADABLE.fullmatch(p)]
    left_out = {n for n in donor.files if any(fnmatch(n, pattern) for pattern in stale)}
    if not same_model:
        left_out |= set(donor.pieces_files)
    pieces_stay = same_model and bool(donor.pieces_files)
    gone = donor.vocabulary.ids.keys() - wanted.ids.keys()
    if donor.config:
        config = _without(donor.config, gone)
        if "added_tokens_decoder" in config or pieces_stay:
            config["added_tokens_decoder"] = _decoder(config, wanted)
        if config != donor.config:
            written[CONFIG] = _dump(config).encode("utf-8")
    if (
        donor.special_map is not None
        and (kept := _without(donor.special_map, gone)) != donor.special_map
    ):
        written[SPECIAL_MAP] = _dump(kept).encode("utf-8")
    if donor.added_map is not None:
        inside = model_ids(document)
        numbers = {
            t: wanted.ids[t] for t in wanted.added if t not in inside or t in donor.added_map
        }
        if numbers != donor.added_map:
            written[ADDED] = _dump(numbers).encode("utf-8")
    return FileEdits(written, frozenset(left_out))


def template_edits(donor: ModelTokens | None, edits: FileEdits, template: str) -> FileEdits:
    """`edits` with the chat template set: in the file of its own, and where older readers look for it.

    Args:
      donor: the tokenizer whose files are edited; None when the model has none.
    """
    if donor is not None and donor.template == template:
        return edits
    written = {**edits.written, JINJA: template.encode("utf-8")}
    if donor is not None and donor.config:
        config = json.loads(written[CONFIG]) if CONFIG in written else dict(donor.config)
        before = config.get("chat_template")
        if isinstance(before, list):
            named = [each for each in before if isinstance(each, dict)]
            others = [each for each in named if each.get("name") != "default"]
            config["chat_template"] = [{"name": "default", "template": template}, *others]
        else:
            config["chat_template"] = template
        written[CONFIG] = _dump(config).encode("utf-8")
    if donor is not None and TEMPLATE_JSON in donor.files:
        written[TEMPLATE_JSON] = _dump({"chat_template": template}).encode("utf-8")
    return FileEdits(written, edits.left_out)


def _check(text: str, wanted: Vocabulary) -> None:
    """Raise ValueError unless the library gives every token the id and the flags that it is to have."""
    found = library.read_vocabulary(library.load(text))
    if found.ids != wanted.ids:
        token = min(
            t for t in found.ids.keys() | wanted.ids.keys() if found.ids.get(t) != wanted.ids.get(t)
        )
        raise ValueError(
            f"the edited tokenizer.json gives '{token}' the id {found.ids.get(token)} "
            f"instead of {wanted.ids.get(token)}"
        )
    if found.added != wanted.added:
        token = min(
            t
            for t in found.added.keys() | wanted.added.keys()
            if found.added.get(t) != wanted.added.get(t)
        )
        raise ValueError(f"the edited tokenizer.json gives '{token}' the wrong flags")


def _decoder(config: Mapping[str, Any], wanted: Vocabulary) -> dict[str, Any]:
    """`added_tokens_decoder` for the wanted added tokens: entries that are still true stay as they are."""
    before = config.get("added_tokens_decoder") or {}
    decoder = {}
    for token, flags in wanted.added.items():
        key = str(wanted.ids[token])
        old = before.get(key)
        decoder[key] = old if content_of(old) == token else flags.entry(token)
    return decoder


def _without(values: Mapping[str, Any], gone: Iterable[str]) -> dict[str, Any]:
    """A companion file that names no token in `gone`, which readers would add again."""
    lost = set(gone)
    kept = {k: v for k, v in values.items() if k not in NAMED or content_of(v) not in lost}
    for name in LISTED:
        items = kept.get(name)
        if isinstance(items, dict):
            kept[name] = {k: v for k, v in items.items() if content_of(v) not in lost}
        elif isinstance(items, list):
            kept[name] = [item for item in items if content_of(item) not in lost]
    return kept


def _dump(value: Any) -> str:
    return pretty(value) + "\n"


def pretty(value: Any, indent: str = "") -> str:
    """JSON as `json.dumps(value, ensure_ascii=False, indent=2)` writes it, several times as fast for large vocabularies."""
    if not isinstance(value, dict | list) or not value:
        return json.dumps(value, ensure_ascii=False)
    inner = indent + "  "
    between = ",\n" + inner
    opening, closing = "{}" if isinstance(value, dict) else "[]"
    items = value.values() if isinstance(value, dict) else value
    if not any(isinstance(item, dict | list) for item in items):  # one call of what is written in C
        text = json.dumps(value, ensure_ascii=False, separators=(between, ": "))[1:-1]
    elif isinstance(value, dict):
        keys = (json.dumps(str(key), ensure_ascii=False) for key in value)
        text = between.join(
            f"{key}: {pretty(item, inner)}" for key, item in zip(keys, items, strict=True)
        )
    else:
        text = between.join(pretty(item, inner) for item in items)
    return f"{opening}\n{inner}{text}\n{indent}{closing}"
