"""What a checkpoint is made of: stacks, embeddings, ties, experts, and where its bytes are."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from jmerge.arch.fields import CONTEXT
from jmerge.arch.infer import Layout, class_names, config_dicts, infer_layout
from jmerge.arch.storage_table import WIDTHS, first_size, heads_in
from jmerge.ckpt.copies import equal
from jmerge.ckpt.open import Checkpoint
from jmerge.errors import CheckpointError, Problem
from jmerge.report.show import count, several, size
from jmerge.tokens.model import read_template, read_tokens

EXPERT = re.compile(r"\.experts?\.(\d+)\.")
PARTS = {
    "first": "before the layers",
    "layer": "beside the layers",
    "last": "after the layers",
}
PACKED = re.compile(r"\.experts?\.\w+$")


def inspect_checkpoint(checkpoint: Checkpoint) -> dict[str, Any]:
    """The structure of a checkpoint as plain data.

    Reads weights only to see whether a stored head is the embedding over again.
    """
    specs = {name: entry.spec for name, entry in checkpoint.index.items()}
    layout = infer_layout(specs, checkpoint.config, checkpoint.folders)
    parts: dict[str, dict[str, int]] = {}
    dtypes: dict[str, dict[str, int]] = {}
    for name, spec in specs.items():
        for table, key in ((parts, _part(layout, name, checkpoint.folders)), (dtypes, spec.dtype)):
            row = table.setdefault(key, {"tensors": 0, "parameters": 0, "bytes": 0})
            row["tensors"] += 1
            row["parameters"] += spec.size
            row["bytes"] += spec.nbytes
    return {
        "path": str(checkpoint.path),
        "architectures": class_names(checkpoint.config),
        "files": len(checkpoint.files),
        "tensors": len(specs),
        "parameters": sum(spec.size for spec in specs.values()),
        "bytes": sum(spec.nbytes for spec in specs.values()),
        "sizes": _sizes(checkpoint.config),
        "tokenizer": _tokenizer(checkpoint),
        "modules": list(layout.modules),
        "stacks": [
            {"prefix": s.prefix, "layers": s.depth, "config_keys": [".".join(k) for k in s.keys]}
            for s in layout.stacks.values()
        ],
        "embeddings": {name: list(specs[name].shape) for name in layout.embeddings},
        "heads": list(layout.heads),
        "tied": _tied(checkpoint, layout),
        "experts": _experts(layout, checkpoint),
        "parts": parts,
        "dtypes": dtypes,
    }


def inspect_text(found: dict[str, Any]) -> str:
    """The same in words."""
    classes = ", ".join(found["architectures"]) or "no class named in config.json"
    lines = [
        f"{found['path']}: {classes}",
        f"{found['tensors']} tensors, {count(found['parameters'])} parameters, "
        f"{size(found['bytes'])} in {several(found['files'], 'file')}",
        "",
    ]
    lines += [f"{title:<10} {text}" for title, text in _size_lines(found)]
    for stack in found["stacks"]:
        keys = ", ".join(stack["config_keys"]) or "no key in config.json"
        lines.append(f"stack      {stack['prefix']}: {stack['layers']} layers ({keys})")
    if len(found["modules"]) > 1:
        lines.append(f"modules    {', '.join(found['modules'])}")
    tables = (f"{name} {shape}" for name, shape in found["embeddings"].items())
    lines.append(f"embedding  {', '.join(tables) or 'none found'}")
    head = ", ".join(found["heads"]) or "none stored"
    lines.append(f"head       {head}" + (", tied to the embedding" if found["tied"] else ""))
    if found["experts"]:
        lines.append(
            f"experts    {found['experts']['count']} a layer, {found['experts']['layout']}"
        )
    width = max(map(len, [*found["parts"], *found["dtypes"]]), default=0)
    for title in ("parts", "dtypes"):
        lines += ["", f"{title:<{width}}  tensors  parameters        bytes"]
        for key, row in found[title].items():
            numbers = (
                f"{row['tensors']:>7}",
                f"{count(row['parameters']):>10}",
                f"{size(row['bytes']):>11}",
            )
            lines.append("  ".join([f"{key:<{width}}", *numbers]))
    return "\n".join(str(Problem(line)) for line in lines)  # names and classes are a stranger's


def _sizes(config: Mapping[str, Any]) -> dict[str, dict[str, int]]:
    """What each part of config.json with attention says of its sizes, by its path."""
    found = {}
    for path, part in config_dicts(config):
        heads = heads_in(part)
        if heads is not None:
            rest = {"hidden_size": first_size(part, *WIDTHS), "context": first_size(part, *CONTEXT)}
            known = {name: number for name, number in rest.items() if number is not None}
            own = {"heads": heads.queries, "key_value_heads": heads.keys, "head_size": heads.size}
            found[".".join(path)] = known | own
    return found


def _tokenizer(checkpoint: Checkpoint) -> dict[str, Any]:
    """What the tokenizer's files hold; a problem in them is told, as the weights are to be inspected all the same."""
    try:
        tokens = read_tokens(checkpoint.main_source)
        template = tokens.template if tokens else read_template(checkpoint.main_source)
    except CheckpointError as error:
        return {"unreadable": str(error.problems[0])}
    found: dict[str, Any] = {"chat_template": template is not None}
    if tokens is not None:
        found |= {"kind": tokens.kind, "tokens": len(tokens.vocabulary.ids)}
    return found


def _size_lines(found: dict[str, Any]) -> Iterator[tuple[str, str]]:
    for path, sizes in found["sizes"].items():
        heads = f"{sizes['heads']} heads of {sizes['head_size']}"
        if sizes["key_value_heads"] != sizes["heads"]:
            heads += f" ({sizes['key_value_heads']} for keys and values)"
        parts = [f"hidden size {sizes['hidden_size']:,}"] if "hidden_size" in sizes else []
        parts += [heads]
        parts += [f"context {sizes['context']:,} tokens"] if "context" in sizes else []
        yield "sizes", ", ".join(parts) + (f" ({path})" if path else "")
    tokenizer = found["tokenizer"]
    if "unreadable" in tokenizer:
        yield "tokenizer", tokenizer["unreadable"]
        return
    words = "none found"
    if "tokens" in tokenizer:
        words = f"{tokenizer['kind']} of {tokenizer['tokens']:,} tokens"
    template = "with" if tokenizer["chat_template"] else "no"
    yield "tokenizer", f"{words}, {template} chat template"


def _part(layout: Layout, name: str, folders: Sequence[str]) -> str:
    """A coarse place of a tensor: the embedding, a head, a block of a stack's layers, or what is around."""
    role = layout.roles[name]
    if name in layout.embeddings:
        return "embedding"
    if name in layout.heads:
        return "head"
    if name.startswith(tuple(f"{folder}/" for folder in folders)):
        return name.partition("/")[0]
    if role.stack is not None:
        block = role.template.partition("{}.")[2].partition(".")[0]
        return f"{role.stack}.*.{block}"
    return "buffer" if role.buffer else PARTS[role.part]


def _tied(checkpoint: Checkpoint, layout: Layout) -> bool:
    if not layout.embeddings:
        return False
    if not layout.heads:
        return True
    head, table = (checkpoint.index[each[0]] for each in (layout.heads, layout.embeddings))
    return equal(checkpoint.source, head, table)


def _experts(layout: Layout, checkpoint: Checkpoint) -> dict[str, Any] | None:
    numbers = {int(found[1]) for name in layout.roles if (found := EXPERT.search(name))}
    if numbers:
        return {"count": len(numbers), "layout": "a tensor for each"}
    for name, entry in checkpoint.index.items():
        if PACKED.search(name) and len(entry.spec.shape) == 3:
            return {"count": entry.spec.shape[0], "layout": "packed in one tensor"}
    return None
