"""Model references: `path`, `path@revision`, `path+adapter`, or a map of the same parts."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

from jmerge.errors import CONTROL
from jmerge.names import did_you_mean

# For those who write a path of Windows.
ESCAPES = "a backslash in double quotes begins an escape: write a path in single quotes, or with forward slashes"
IN_MEMORY = "memory://"  # how the reference of a model begins that lies in no file
KEYS = ("model", "lora", "override_architecture")


@dataclass(frozen=True)
class ModelRef:
    """A model named by a recipe; two references are the same model when all their text is equal."""

    path: str
    revision: str | None = None
    lora: str | None = None
    override_architecture: str | None = None

    def __str__(self) -> str:
        text = self.path + (f"@{self.revision}" if self.revision else "")
        return text + (f"+{self.lora}" if self.lora else "")


UNKNOWN = ModelRef("")  # stands where a recipe names no model, which is told


def parse_ref(value: Any) -> ModelRef:
    """The reference that a string or map means; ValueError with a line for the user when it means none.

    A string that is the path of an existing folder is that folder, even with `+` or `@` in it.
    """
    if isinstance(value, ModelRef):
        return value
    if isinstance(value, dict):
        return _parse_map(value)
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise ValueError(f"expected a model path, found {_show(value)}")
    text = _path(str(value))
    if text and os.path.isdir(os.path.expanduser(text)):
        return ModelRef(text)
    model, plus, lora = text.partition("+")
    if "+" in lora:
        raise ValueError(f"'{text}' has more than one '+'; write one adapter at most")
    path, revision = _parse_half(model)
    if plus:
        _parse_half(lora)
    return ModelRef(path, revision, lora or None)


def _parse_half(text: str) -> tuple[str, str | None]:
    path, at, revision = text.partition("@")
    if "@" in revision:
        raise ValueError(f"'{text}' has more than one '@'; write path@revision")
    if not path or (at and not revision):
        raise ValueError(f"'{text}' lacks a path or a revision; write path or path@revision")
    return path, revision or None


def _parse_map(value: dict[str, Any]) -> ModelRef:
    for key in value:
        if key not in KEYS:
            raise ValueError(f"'{key}' is not a key of a model reference{did_you_mean(key, KEYS)}")
    if value.get("model") is None:
        raise ValueError("a model reference needs the key 'model'")
    path, revision = _parse_part(value["model"])
    lora = None
    if value.get("lora") is not None:
        lora = "@".join(filter(None, _parse_part(value["lora"])))
    override = value.get("override_architecture")
    if override is not None and not isinstance(override, str):
        raise ValueError(f"override_architecture: expected a class name, found {_show(override)}")
    return ModelRef(path, revision, lora, override)


def _parse_part(value: Any) -> tuple[str, str | None]:
    if isinstance(value, str) and value:
        return _path(
            value
        ), None  # in a map the text is the path as it stands, `+` and `@` included
    if (
        isinstance(value, dict)
        and set(value) <= {"path", "revision"}
        and isinstance(value.get("path"), str)
        and value["path"]
    ):
        return _path(value["path"]), None if value.get("revision") is None else str(
            value["revision"]
        )
    raise ValueError(f"expected a path or {{path, revision}}, found {_show(value)}")


def _path(text: str) -> str:
    """A text that may be a path; ValueError when it cannot be one."""
    if CONTROL.search(text):
        raise ValueError(f"{text!r} is no path: it holds a control character; {ESCAPES}")
    return text


def _show(value: Any) -> str:
    text = repr(value)
    return text if len(text) < 60 else f"a {type(value).__name__}"
