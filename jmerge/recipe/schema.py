"""The grammar of a merge recipe as typed, frozen values.

Keys and meaning are MergeKit's, so its recipes run unmodified; a key that neither it nor jmerge knows is an error.
"""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, PlainValidator, WithJsonSchema

from jmerge.dtypes import parse_dtype
from jmerge.errors import InvalidValueError
from jmerge.names import did_you_mean
from jmerge.recipe.refs import KEYS, ModelRef, parse_ref
from jmerge.recipe.settings import CONDITIONS, Setting, convert, parse_setting
from jmerge.recipe.tokens import (
    BASE,
    KINDS,
    MOST_PADDED,
    TEMPLATES,
    UNION,
    UNION_MODES,
    FillSource,
    VocabularySource,
    parse_fill_source,
    parse_force,
    parse_multiple,
    parse_template,
    parse_union_mode,
    parse_vocabulary_source,
)

UNKNOWN_RANGE = object()  # stands where a recipe has no range, which is told


def _parse_range(value: Any) -> tuple[int, int] | None:
    if value is UNKNOWN_RANGE:
        return None
    if not isinstance(value, list) or len(value) != 2:
        raise InvalidValueError(
            f"expected two layer numbers [first, end], found {value!r}", "JM013"
        )
    ends = []
    for item in value:
        try:
            number = float("nan") if isinstance(item, bool) else float(item)
        except (TypeError, ValueError, OverflowError):
            number = float("nan")
        if not number.is_integer():
            raise InvalidValueError(
                f"expected two layer numbers [first, end], found {value!r}", "JM013"
            )
        ends.append(int(number))
    return ends[0], ends[1]


def _parse_dtype(value: Any) -> str | None:
    if value is None:
        return None
    if not isinstance(value, str):
        raise InvalidValueError(f"expected the name of a dtype, found {value!r}", "JM011")
    return parse_dtype(value)


REF_SCHEMA = {
    "description": "a model's folder or URL, org/name@revision of the Hub, or a map of its parts",
    "anyOf": [
        {"type": "string"},
        {
            "type": "object",
            "required": ["model"],
            "properties": {key: {} for key in KEYS},
            "additionalProperties": False,
        },
    ],
}
RANGE_SCHEMA = {
    "description": "[first, end): the layers first, first + 1, ..., end - 1",
    "type": "array",
    "items": {"type": ["integer", "string"]},
    "minItems": 2,
    "maxItems": 2,
}

Ref = Annotated[ModelRef, PlainValidator(parse_ref), WithJsonSchema(REF_SCHEMA)]
Value = Annotated[Setting, PlainValidator(parse_setting)]
PARAMETERS_SCHEMA = {"type": "object", "title": "Parameters"}  # `report.schema` knows the names
Parameters = Annotated[dict[str, Value], WithJsonSchema(PARAMETERS_SCHEMA)]
LayerRange = Annotated[
    tuple[int, int] | None, PlainValidator(_parse_range), WithJsonSchema(RANGE_SCHEMA)
]
Dtype = Annotated[str | None, PlainValidator(_parse_dtype), WithJsonSchema({"type": "string"})]


def _parse_prefixes(value: Any) -> dict[str, str]:
    if not isinstance(value, dict) or not value:
        raise InvalidValueError(
            f"expected {{prefix: prefix of the output's names, ...}}, found {value!r}", "JM011"
        )
    for prefix, instead in value.items():
        if not isinstance(instead, str):
            raise InvalidValueError(
                f"'{prefix}': expected the start of tensor names, found {instead!r}", "JM011"
            )
    return dict(value)


def _parse_words(value: Any) -> tuple[str, ...]:
    words = [value] if isinstance(value, str) else value
    if not isinstance(words, list) or not words:
        raise InvalidValueError(f"expected a list of strings, found {value!r}", "JM011")
    for word in words:
        if not isinstance(word, str) or not word:
            raise InvalidValueError(f"expected a list of strings, found {word!r} in it", "JM011")
    return tuple(words)


def _parse_otherwise(value: Any) -> str:
    if value not in OTHERWISE:
        expected = ", ".join(OTHERWISE)
        hint = did_you_mean(str(value), OTHERWISE)
        raise InvalidValueError(f"expected one of {expected}; found {value!r}{hint}", "JM011")
    return str(value)


OTHERWISE = ("base", "first", "error")
PREFIXES_SCHEMA = {
    "description": "new prefixes for the model's tensor names in the output; the longest match wins",
    "type": "object",
    "minProperties": 1,
    "additionalProperties": {"type": "string"},
}
OTHERWISE_SCHEMA = {
    "description": "where tensors that are not merged come from: the base, the first model, or an error",
    "enum": list(OTHERWISE),
}


def _words_schema(description: str) -> dict[str, Any]:
    words = {"type": "array", "items": {"type": "string", "minLength": 1}, "minItems": 1}
    return {"description": description, "anyOf": [{"type": "string", "minLength": 1}, words]}


Prefixes = Annotated[
    dict[str, str], PlainValidator(_parse_prefixes), WithJsonSchema(PREFIXES_SCHEMA)
]
Otherwise = Annotated[str, PlainValidator(_parse_otherwise), WithJsonSchema(OTHERWISE_SCHEMA)]
Only = Annotated[
    tuple[str, ...],
    PlainValidator(_parse_words),
    WithJsonSchema(_words_schema("patterns (*, ?, [ab]) of names: only these tensors are merged")),
]
Except = Annotated[
    tuple[str, ...],
    PlainValidator(_parse_words),
    WithJsonSchema(_words_schema("patterns (*, ?, [ab]) of names: these tensors are not merged")),
]
Cast = Annotated[
    tuple[str, ...],
    PlainValidator(_parse_words),
    WithJsonSchema(
        _words_schema(
            "patterns (*, ?, [ab]) of names: these tensors get the dtype even where the donor keeps them wider"
        )
    ),
]
Fields = Annotated[
    tuple[str, ...],
    PlainValidator(_parse_words),
    WithJsonSchema(
        _words_schema(
            "fields of config.json that may differ between models; the donor's value is kept"
        )
    ),
]


class Node(BaseModel):
    """A map in a recipe; unknown keys are errors."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", arbitrary_types_allowed=True, protected_namespaces=()
    )

    @classmethod
    def keys(cls) -> list[str]:
        """Its keys as recipes write them."""
        return [field.alias or name for name, field in cls.model_fields.items()]


class ModelEntry(Node):
    """One item of `models`."""

    model: Ref
    parameters: Parameters | None = None
    map: Prefixes | None = None


class SourceEntry(Node):
    """One item of a slice's `sources`: layers [first, end) of a model."""

    model: Ref
    layer_range: LayerRange
    parameters: Parameters | None = None
    map: Prefixes | None = None


class SliceEntry(Node):
    """One item of `slices`: as many output layers as each source has in its range."""

    sources: Annotated[list[SourceEntry], Field(min_length=1)]
    base_model: Ref | None = None
    parameters: Parameters | None = None
    residual_weight: float | None = None


def _parse_condition(value: Any) -> str | None:
    if value in (None, "none"):
        return None
    if value not in CONDITIONS:
        expected = ", ".join(["none", *CONDITIONS])
        raise InvalidValueError(
            f"expected one of {expected}; found {value!r}{did_you_mean(str(value), CONDITIONS)}",
            "JM011",
        )
    return str(value)


def _parse_factor(value: Any) -> float | None:
    if value in (None, "auto"):
        return None
    if not isinstance(value, int | float) or isinstance(value, bool):
        raise InvalidValueError(f"expected a number or auto, found {value!r}", "JM011")
    return float(convert(value, "float"))


CONDITION_SCHEMA = {
    "description": "how each model's change is scaled before the method sees it, by norms of whole models",
    "enum": [None, "none", *CONDITIONS],
}
FACTOR_SCHEMA = {"anyOf": [{"type": "number"}, {"enum": [None, "auto"]}]}
Condition = Annotated[
    str | None, PlainValidator(_parse_condition), WithJsonSchema(CONDITION_SCHEMA)
]
Factor = Annotated[float | None, PlainValidator(_parse_factor), WithJsonSchema(FACTOR_SCHEMA)]


class LinesEntry(Node):
    """LiNeS: the merged change times alpha + beta depth, depth from 0 in the first block to 1 in the last."""

    alpha: Factor = None
    beta: Factor = None


class WrapEntry(Node):
    """What is done around a method that merges changes from a base."""

    condition: Condition = None
    lines: LinesEntry | None = None


VOCABULARY_SCHEMA = {
    "description": "the union of the vocabularies, or the vocabulary of the base or another model of the merge",
    "anyOf": [{"enum": [None, UNION, BASE]}, *REF_SCHEMA["anyOf"]],
}
FILL_SCHEMA = {
    "description": "what fills the row: a model of the merge, zeros, or a token of any model",
    "anyOf": [
        *REF_SCHEMA["anyOf"],
        {
            "type": "object",
            "required": ["kind"],
            "properties": {"kind": {"const": KINDS[0]}},
            "additionalProperties": False,
        },
        {
            "type": "object",
            "required": ["kind", "model"],
            "properties": {
                "kind": {"const": KINDS[1]},
                "model": {"anyOf": REF_SCHEMA["anyOf"]},
                "token": {"type": ["string", "number"]},
                "token_id": {"type": ["integer", "string"]},
            },
            "oneOf": [{"required": ["token"]}, {"required": ["token_id"]}],
            "additionalProperties": False,
        },
    ],
}
FORCE_SCHEMA = {
    "description": "models that have the token get the row too",
    "type": ["boolean", "string", "number"],
    "default": False,
}
MULTIPLE_SCHEMA = {
    "description": "rows of the embedding are rounded up to a multiple of it",
    "type": ["integer", "string", "null"],
    "minimum": 1,
    "maximum": MOST_PADDED,
}
UNION_MODE_SCHEMA = {
    "description": "what the base's missing ordinary tokens become: added tokens, or tokens with merges (bpe)",
    "enum": list(UNION_MODES),
    "default": UNION_MODES[0],
}
TEMPLATE_SCHEMA = {
    "description": "auto: the one most models have; the name of a built-in one; or the text of one in Jinja",
    "anyOf": [
        {"enum": [None, "", "auto", *TEMPLATES]},
        {"type": "string", "pattern": "\\{"},
    ],
}


def _optional_source(value: Any) -> VocabularySource | None:
    return None if value in (None, "") else parse_vocabulary_source(value)


Vocabulary = Annotated[
    VocabularySource, PlainValidator(parse_vocabulary_source), WithJsonSchema(VOCABULARY_SCHEMA)
]
OptionalVocabulary = Annotated[
    VocabularySource | None, PlainValidator(_optional_source), WithJsonSchema(VOCABULARY_SCHEMA)
]
Fill = Annotated[FillSource, PlainValidator(parse_fill_source), WithJsonSchema(FILL_SCHEMA)]
Force = Annotated[bool, PlainValidator(parse_force), WithJsonSchema(FORCE_SCHEMA)]
Multiple = Annotated[int | None, PlainValidator(parse_multiple), WithJsonSchema(MULTIPLE_SCHEMA)]
UnionMode = Annotated[str, PlainValidator(parse_union_mode), WithJsonSchema(UNION_MODE_SCHEMA)]
Template = Annotated[str | None, PlainValidator(parse_template), WithJsonSchema(TEMPLATE_SCHEMA)]


class TokenNode(Node):
    """What fills one token, for the models that lack it or for all."""

    source: Fill | None = None
    force: Force = False


class TokenizerNode(Node):
    """The tokenizer of the output."""

    source: Vocabulary = "union"
    tokens: dict[str, TokenNode] | None = None
    pad_to_multiple_of: Multiple = None
    union_mode: UnionMode = UNION_MODES[0]


class ModuleEntry(Node):
    """One item of `modules`: a part of a model with several stacks of layers."""

    slices: list[SliceEntry] | None = None
    models: list[ModelEntry] | None = None
    parameters: Parameters | None = None


class RecipeFile(Node):
    """A merge recipe as it is written."""

    merge_method: str
    models: list[ModelEntry] | None = None
    slices: list[SliceEntry] | None = None
    modules: dict[str, ModuleEntry] | None = None
    base_model: Ref | None = None
    parameters: Parameters | None = None
    wrap: WrapEntry | None = None
    only: Only | None = None
    except_: Except | None = Field(None, alias="except")
    otherwise: Otherwise | None = None
    allow_conflicts: Fields | None = None
    dtype: Dtype = None
    out_dtype: Dtype = None
    cast: Cast | None = None
    tokenizer_source: OptionalVocabulary = None
    tokenizer: TokenizerNode | None = None
    chat_template: Template = None
    name: Any = None  # a stage's name in a file of several recipes; no effect on one
