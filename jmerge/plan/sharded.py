"""Checkpoints that are one process's part of a model in training: what other processes hold is empty here."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable

from jmerge.arch.infer import FIRST, LAST, Role
from jmerge.plan.views import View

TOOLS = (
    "it is one process's part of a sharded training state; put the parts together with DeepSpeed's "
    "'python zero_to_fp32.py CHECKPOINT OUT --safe_serialization' (ZeRO-3) or 'accelerate "
    "merge-weights' (FSDP), and merge what that writes"
)
# What FSDP calls the part of a module's weights that a process holds.
FLAT = re.compile(r"(^|\.)_?flat_param(_\d+)?$")


def why_sharded(view: View, others: Iterable[View]) -> str | None:
    """Why a model is taken for such a part, and what to do; None where it is whole.

    A tensor of shape [0] stands for one that another process holds. A module without elements by design has mostly one
    of shape [0, n], and is merged like others. So [0] is a shard's where the same tensor has elements in another layer
    or model, where several kinds of weights are so, or where its name is that of an embedding, a norm or a head. Another
    one alone may be made so, and so are those of a layer that has matrices without elements: its width is none.
    """
    for name in view.names.values():
        if FLAT.search(name):
            return f"{name} is many weights in one: {TOOLS}"
    roles = view.layout.roles  # none of what was brought into another form
    without = [name for name in view.names.values() if not view.spec(name).size and name in roles]
    narrow = {_layer(roles[name]) for name in without if len(view.spec(name).shape) > 1}
    empty: dict[str, str] = {}  # template -> the first that is empty
    count = 0
    for (template, _), name in view.names.items():
        role = roles.get(name)
        if role is not None and (role.buffer or _layer(role) in narrow):
            continue
        if view.spec(name).shape == (0,):
            empty.setdefault(template, name)
            count += 1
    if not empty:
        return None
    whole = _with_elements((view, *others), empty)
    found = next((name for template, name in empty.items() if template in whole), None)
    weights = [name for name in empty.values() if name.endswith("weight")]
    known = [name for name in weights if any(map(_is_known, name.split(".")))]
    if found is None and not known and len(weights) < 2:
        return None
    total = len(view.checkpoint.index)
    name = found or weights[0]
    return f"{count} of its {total} tensors are empty ({name} is [0]): {TOOLS}"


def _layer(role: Role) -> tuple[str | None, int | None]:
    """The layer that a tensor is of; all around the layers count as one."""
    return role.stack, role.layer


def _is_known(word: str) -> bool:
    """Whether a part of a name is that of a module around the layers, or of a norm."""
    return bool(FIRST.fullmatch(word) or LAST.fullmatch(word) or "norm" in word)


def _with_elements(views: Iterable[View], templates: Collection[str]) -> set[str]:
    """Those of `templates` of which a model has a tensor that is not empty."""
    return {
        template
        for view in views
        for (template, _), name in view.names.items()
        if template in templates and view.spec(name).size
    }
