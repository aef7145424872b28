"""The model card: README.md of the output, with the recipe in it."""

from __future__ import annotations

import re
from pathlib import Path

import yaml

from jmerge.methods.wrap import find_method
from jmerge.plan.steps import Plan

HUB_ID = re.compile(r"\w[\w.-]*/\w[\w.-]*")


def model_card(plan: Plan, name: str) -> str:
    """The card of the model called `name`; never asks the network what a path might be."""
    method = find_method(plan.method)
    refs = [model.ref for model in plan.models]
    names = [ref.removeprefix("hf://").split("@")[0] for ref in refs]
    ids = [name for name in names if HUB_ID.fullmatch(name) and not Path(name).exists()]
    library = "sentence-transformers" if plan.modules else "transformers"
    front: dict[str, object] = {"base_model": ids} if ids else {}
    front |= {"library_name": library, "tags": ["jmerge", "mergekit", "merge"]}
    title = f"[{method.title}]({method.paper})" if method.paper else method.title
    used = {item.model for step in plan.steps for item in step.inputs if hasattr(item, "model")}
    lines = [
        "---",
        yaml.safe_dump(front, sort_keys=False, allow_unicode=True).rstrip(),
        "---",
        f"# {name}",
        "",
        f"This model was merged from others with jmerge {plan.version}.",
        "",
        "## Method",
        "",
        title
        + (
            f", with {_code(refs[0])} as the base."
            if any(step.base is not None for step in plan.steps)
            else "."
        ),
        "",
        "## Models",
        "",
        *(f"* {_code(ref)}" for i, ref in enumerate(refs) if i in used),
        "",
        "## Recipe",
        "",
        _fence(plan.recipe),
        "",
    ]
    return "\n".join(lines)


def _code(text: str) -> str:
    return f"`{text}`"


def _fence(text: str) -> str:
    marks = "`" * max(3, 1 + max((len(run) for run in re.findall(r"`+", text)), default=0))
    return f"{marks}yaml\n{text.rstrip()}\n{marks}"
