"""`jmerge.lock.json`: where every byte of the output came from, and what became of every input tensor.

It says nothing about the run (no time, host, device), so equal merges give equal folders.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from jmerge.arch.config import Change
from jmerge.ckpt.shards import OutFile
from jmerge.engine.run import Outcome
from jmerge.plan.inputs import Assembled, Gathered, Item, Result
from jmerge.plan.steps import Plan, Step
from jmerge.report.nonfinite import nonfinite_text

TOKENS = "jmerge.tokens.jsonl"  # which rows made which token, beside the ledger


def ledger(
    plan: Plan,
    files: Sequence[OutFile],
    outcome: Outcome,
    changes: Mapping[str, Sequence[Change]],
    identity: Mapping[str, Any],
    sizes: Mapping[str, int],
) -> str:
    """The ledger as JSON text.

    `changes` are by configuration file, `sizes` the bytes of every file beside the weights.
    """
    places = {tensor: file.name for file in files for tensor in file.starts}
    content = {
        **identity,
        "method": plan.method,
        "seed": plan.seed,
        "recipe": plan.recipe,
        "inputs": [
            {
                "model": model.ref,
                "path": model.path,
                "files": {
                    file.name: {"size": file.size, "header_sha256": file.header_sha256}
                    for file in model.files
                },
            }
            for model in plan.models
        ],
        "tensors": {
            step.name: _entry(plan, step, places[step.name], outcome)
            for step in plan.steps
            if step.written
        },
        "unused": [
            {"model": plan.models[item.model].ref, "tensor": item.name, "reason": item.reason}
            for item in plan.unused
        ],
        "config": [
            {"file": file, **change._asdict()} for file, made in changes.items() for change in made
        ],
        "tokens": plan.tokens.summary if plan.tokens else [],
        "warnings": [*plan.warnings, *nonfinite_text(plan, outcome.nonfinite)],
        "files": dict(sizes),
        "left_behind": [{"file": each.name, "reason": each.reason} for each in plan.left],
    }
    return json.dumps(content, indent=1, ensure_ascii=False) + "\n"


def _source(plan: Plan, item: Item) -> dict[str, Any]:
    assert not isinstance(item, Result)
    source: dict[str, Any] = {"model": plan.models[item.model].ref, "tensor": item.name}
    if isinstance(item, Gathered):
        source["rows"] = TOKENS
        source["filled_from"] = [
            {"model": plan.models[other.model].ref, "tensor": other.name} for other in item.others
        ]
    if isinstance(item, Assembled):
        source["view"] = list(item.view)
        source["parts"] = [
            {
                "tensor": box.read.name,
                "start": box.start,
                "strides": list(box.strides),
                "box": [list(axis) for axis in box.box],
            }
            for box in item.boxes
        ]
    return source


def _entry(plan: Plan, step: Step, file: str, outcome: Outcome) -> dict[str, Any]:
    entry: dict[str, Any] = {
        "file": file,
        "dtype": step.spec.dtype,
        "shape": list(step.spec.shape),
        "crc32": f"{outcome.crc32[step.name]:08x}",
        "method": step.method,
        "sources": [
            item.step if isinstance(item, Result) else _source(plan, item) for item in step.inputs
        ],
    }
    if step.base is not None:
        entry["base"] = step.base
    if step.hyperparameters:
        entry["hyperparameters"] = dict(step.hyperparameters)
    if step.note:
        entry["note"] = step.note
    if step.name in outcome.nonfinite:
        entry["nonfinite"] = outcome.nonfinite[step.name]
    return entry
