"""The JSON schema of recipes, with which editors complete and check them while they are written."""

from __future__ import annotations

from typing import Any

from jmerge.dtypes import RECIPE_NAMES
from jmerge.methods.spec import REGISTRY, Parameter, Required
from jmerge.recipe.schema import PARAMETERS_SCHEMA, RecipeFile

SCALAR: dict[str, Any] = {"type": ["number", "boolean", "string"]}
VALUE: dict[str, Any] = {"anyOf": [SCALAR, {"type": "array", "items": SCALAR}]}
CASE: dict[str, Any] = {
    "type": "object",
    "required": ["value"],
    "additionalProperties": False,
    "properties": {
        "value": {**VALUE, "description": "a number, or a list of numbers spread over the layers"},
        "filter": {
            "type": ["string", "null"],
            "description": "a part of the names of the tensors it is for; absent or *: all",
        },
    },
}
SETTING: dict[str, Any] = {"anyOf": [*VALUE["anyOf"], CASE, {"type": "array", "items": CASE}]}


def recipe_schema() -> dict[str, Any]:
    """The JSON schema (draft 2020-12) of a merge recipe."""
    schema: dict[str, Any] = _with_parameters(RecipeFile.model_json_schema())
    schema["$schema"] = "https://json-schema.org/draft/2020-12/schema"
    schema["title"] = "jmerge recipe"
    definitions = schema["$defs"]
    definitions["Setting"] = SETTING
    definitions["Parameters"] = {
        "type": "object",
        "properties": {key: _describe(key) for key in _parameter_names()},
        "additionalProperties": {"$ref": "#/$defs/Setting"},
    }
    schema["properties"]["merge_method"] = {
        "description": "how the tensors are merged",
        "enum": sorted(REGISTRY),
    }
    words = [*RECIPE_NAMES, *(f"torch.{name}" for name in RECIPE_NAMES)]
    for key, text in (("dtype", "of the result"), ("out_dtype", "of the result; wins over dtype")):
        schema["properties"][key] = {"description": text, "enum": [None, *words]}
    return schema


def _with_parameters(part: Any) -> Any:
    """A part of the schema in which every map of parameters refers to their definition."""
    if part == PARAMETERS_SCHEMA:
        return {"$ref": "#/$defs/Parameters"}
    if isinstance(part, dict):
        return {key: _with_parameters(value) for key, value in part.items()}
    return [_with_parameters(value) for value in part] if isinstance(part, list) else part


def _parameter_names() -> list[str]:
    return sorted({key for method in REGISTRY.values() for key in method.settable})


def _describe(key: str) -> dict[str, Any]:
    """What a parameter is in each method that takes it."""
    users = [(m.name, m.parameters[key]) for m in REGISTRY.values() if key in m.settable]
    texts: dict[str, list[str]] = {}
    for name, declared in users:
        texts.setdefault(_text(declared), []).append(name)
    description = "\n".join(f"{', '.join(names)}: {text}" for text, names in texts.items())
    return {"$ref": "#/$defs/Setting", "description": description}


def _text(declared: Parameter) -> str:
    default = (
        "required" if isinstance(declared.default, Required) else f"default {declared.default}"
    )
    bounds = f", {declared.range_text()}" if declared.range_text() else ""
    return f"{declared.doc} ({default}{bounds})"
