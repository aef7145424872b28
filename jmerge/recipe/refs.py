"""Model references: `path`, `path@revision`, `path+adapter`, or a map of the same parts."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

from jmerge.errors import CONTROL, InvalidValueError
from jmerge.names import did_you_mean

# For those who write a path of Windows.
ESCAPES = "a backslash in double quotes starts an escape: write paths in single quotes or with forward slashes"
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
    """The reference that a string or map means; InvalidValueError when it means none.

    A string that is the path of an existing folder is that folder, even with `+` or `@` in it.
    """
    if isinstance(value, ModelRef):
        return value
    if isinstance(value, dict):
        return _parse_map(value)
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise InvalidValueError(f"expected a model path, found {_show(value)}", "JM012")
    text = _path(str(value))
    if text and os.path.isdir(os.path.expanduser(text)):
        return ModelRef(text)
    model, plus, lora = text.partition("+")
    if "+" in lora:
        raise InvalidValueError(
            f"'{text}' has more than one '+'; write one adapter at most", "JM012"
        )
    path, revision = _parse_half(model)
    if plus:
        _parse_half(lora)
    return ModelRef(path, revision, lora or None)


def _parse_half(text: str) -> tuple[str, str | None]:
    path, at, revision = text.partition("@")
    if "@" in revision:
        raise InvalidValueError(f"'{text}' has more than one '@'; write path@revision", "JM012")
    if not path or (at and not revision):
        raise InvalidValueError(f"'{text}' is incomplete; write path or path@revision", "JM012")
    return path, revision or None


def _parse_map(value: dict[str, Any]) -> ModelRef:
    for key in value:
        if key not in KEYS:
            raise InvalidValueError(
                f"'{key}' is not a key of a model reference{did_you_mean(key, KEYS)}", "JM012"
            )
    if value.get("model") is None:
        raise InvalidValueError("a model reference needs the key 'model'", "JM012")
    path, revision = _parse_part(value["model"])
    lora = None
    if value.get("lora") is not None:
        lora = "@".join(filter(None, _parse_part(value["lora"])))
    override = value.get("override_architecture")
    if override is not None and not isinstance(override, str):
        raise InvalidValueError(
            f"override_architecture: expected a class name, found {_show(override)}", "JM012"
        )
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
    raise InvalidValueError(f"expected a path or {{path, revision}}, found {_show(value)}", "JM012")


def _path(text: str) -> str:
    """A text that may be a path; InvalidValueError when it cannot be one."""
    if CONTROL.search(text):
        raise InvalidValueError(
            f"{text!r} is not a path: it contains a control character; {ESCAPES}", "JM012"
        )
    return text


def _show(value: Any) -> str:
    text = repr(value)
    return text if len(text) < 60 else f"a {type(value).__name__}"
