"""What a recipe says of the tokenizer: where its vocabulary comes from, and which rows fill which tokens."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

from jmerge.errors import InvalidValueError
from jmerge.names import did_you_mean
from jmerge.recipe.refs import ModelRef, parse_ref
from jmerge.recipe.settings import convert
from jmerge.recipe.yamltree import Path

UNION, BASE = "union", "base"
MODEL = "model:"
UNION_MODES = ("added", "bpe")
KINDS = ("zero", "model_token")
MOST_PADDED = (
    1 << 20
)  # rows, more than any vocabulary has: a table of more would be a slip of the pen
TEMPLATES = ("alpaca", "chatml", "exaone", "llama3", "mistral")  # those that `tokens.templates` has

VocabularySource = ModelRef | Literal["union", "base"]


@dataclass(frozen=True)
class Zero:
    """A row of zeros."""


@dataclass(frozen=True)
class ModelToken:
    """The row of one token of a model, which need not be among the models merged: by text or by id."""

    model: ModelRef
    token: str | None
    token_id: int | None


FillSource = ModelRef | Zero | ModelToken


@dataclass(frozen=True)
class TokenEntry:
    """One item of `tokenizer.tokens`."""

    token: str
    source: FillSource | None  # None: the row that the token would be filled with anyway
    force: bool  # models that have the token get that row too
    path: Path  # where it stands in the recipe

    @property
    def source_path(self) -> Path:
        """Where the recipe says what fills it."""
        return (*self.path, "source")


@dataclass(frozen=True)
class TokenizerPart:
    """The keys `tokenizer` or `tokenizer_source` of a recipe."""

    source: VocabularySource
    tokens: tuple[TokenEntry, ...]  # as written
    pad_to_multiple_of: int | None  # at least 1
    union_mode: str  # of UNION_MODES: ordinary tokens join as added tokens, or with their merges
    path: Path  # ("tokenizer",) or ("tokenizer_source",)

    @property
    def source_path(self) -> Path:
        """Where the recipe says where the vocabulary comes from."""
        return self.path if self.path == ("tokenizer_source",) else (*self.path, "source")

    def refs(self) -> Iterator[tuple[ModelRef, Path]]:
        """The models that have to be among those merged, and where they are named."""
        if isinstance(self.source, ModelRef):
            yield self.source, self.source_path
        for entry in self.tokens:
            if isinstance(entry.source, ModelRef):
                yield entry.source, entry.source_path

    def token_models(self) -> tuple[ModelRef, ...]:
        """The models of `model_token` entries, as written; they need not be among those merged."""
        found = [e.source.model for e in self.tokens if isinstance(e.source, ModelToken)]
        return tuple(dict.fromkeys(found))


def parse_vocabulary_source(value: Any) -> VocabularySource:
    """`union`, `base` or a model, in this order; InvalidValueError when it is neither."""
    if value == UNION:
        return "union"
    if value == BASE:
        return "base"
    return _parse_model(value)


def _parse_model(value: Any) -> ModelRef:
    """A model, as itself or as published recipes write it here, `model:path`."""
    if isinstance(value, str) and value.startswith(MODEL):
        if not os.path.isdir(os.path.expanduser(value)):
            return parse_ref(value.removeprefix(MODEL).strip())
    return parse_ref(value)


def parse_fill_source(value: Any) -> FillSource:
    """The source of a row that a string or map means; InvalidValueError when it means none."""
    if isinstance(value, FillSource):
        return value
    if not isinstance(value, dict) or "kind" not in value:
        if isinstance(value, dict) and "model" not in value:
            raise InvalidValueError(
                "expected a model, {kind: zero} or {kind: model_token, model, token or token_id}; "
                "found a map without 'kind'",
                "JM017",
            )
        return _parse_model(value)
    kind = value["kind"]
    if kind not in KINDS:
        raise InvalidValueError(
            f"kind: expected {' or '.join(KINDS)}, found {kind!r}{did_you_mean(str(kind), KINDS)}",
            "JM017",
        )
    keys = ("kind",) if kind == "zero" else ("kind", "model", "token", "token_id")
    for key in value:
        if key not in keys:
            raise InvalidValueError(
                f"'{key}' is not a key of {kind}{did_you_mean(key, keys)}", "JM017"
            )
    return Zero() if kind == "zero" else _parse_model_token(value)


def _parse_model_token(value: dict[str, Any]) -> ModelToken:
    if value.get("model") is None:
        raise InvalidValueError("model_token needs the key 'model'", "JM017")
    token, number = value.get("token"), value.get("token_id")
    if (token is None) == (number is None):
        found = "neither" if token is None else "both"
        raise InvalidValueError(
            f"model_token needs exactly one of token and token_id, found {found}", "JM017"
        )
    if number is not None:
        number = convert(number, "int")
        if number < 0:
            raise InvalidValueError(
                f"token_id: expected a number of at least 0, found {number}", "JM011"
            )
        return ModelToken(_parse_model(value["model"]), None, int(number))
    if isinstance(token, bool) or not isinstance(token, str | int | float):
        raise InvalidValueError(
            f"token: expected a string, found {token!r}; put it in quotes", "JM017"
        )
    return ModelToken(_parse_model(value["model"]), str(token), None)


def parse_force(value: Any) -> bool:
    """A switch; InvalidValueError when it is none."""
    if not isinstance(value, bool | int | float | str):
        raise InvalidValueError(f"expected true or false, found {value!r}", "JM011")
    return bool(convert(value, "bool"))


def parse_multiple(value: Any) -> int | None:
    """What rows are rounded up to a multiple of; InvalidValueError when it is no such number."""
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise InvalidValueError(f"expected a number of rows, found {value!r}", "JM011")
    number = int(convert(value, "int"))
    if not 1 <= number <= MOST_PADDED:
        raise InvalidValueError(
            f"expected a number from 1 to {MOST_PADDED:,}, found {number}", "JM011"
        )
    return number


def parse_union_mode(value: Any) -> str:
    """One of UNION_MODES; InvalidValueError when it is none."""
    if value not in UNION_MODES:
        raise InvalidValueError(
            f"expected {' or '.join(UNION_MODES)}, found {value!r}{did_you_mean(str(value), UNION_MODES)}",
            "JM011",
        )
    return str(value)


def parse_template(value: Any) -> str | None:
    """`auto`, the name of a built-in template, or the text of one; InvalidValueError when it can be none of them."""
    if value in (None, ""):
        return None
    if not isinstance(value, str):
        raise InvalidValueError(
            f"expected auto, the name of a template or its text, found {value!r}", "JM021"
        )
    if value not in ("auto", *TEMPLATES) and "{" not in value:
        shown = value if len(value) <= 40 else value[:37] + "..."
        raise InvalidValueError(
            f"'{shown}' is not a chat template: a template contains '{{'"
            f"{did_you_mean(value, ('auto', *TEMPLATES))}",
            "JM021",
        )
    return value
