"""What lies in a folder that holds no weights to merge, and what to do about it: one line.

Each kind is a function of what is in the folder that gives the line, or None where the folder is of another kind; the
first that gives one is told. Where the folder itself is of none, its folders are looked into in the same way.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Sequence

from jmerge.ckpt.filekinds import is_state_folder
from jmerge.ckpt.source import Source, inside
from jmerge.ckpt.unjoined import (
    Place,
    below,
    distributed,
    holds_model,
    megatron,
    number,
    of_processes,
    orbax,
    ranks,
    said,
    trainer,
    verl,
    zero,
)
from jmerge.errors import CheckpointError, Problem

PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
UNFINISHED = (".incomplete", ".crdownload", ".part", ".aria2", ".download")
MAX_DEPTH = 2  # folders below that are looked into for what lies there
ARCHIVES = (".zip", ".tar", ".tar.gz", ".tgz", ".tar.zst", ".tar.bz2", ".7z", ".rar")
# Pickles that hold what was trained beside a base, and not a model.
PARTS = re.compile(r"mm_projector.*|non_lora_trainables.*")
SAVE = "save_pretrained(OUT)"


# Codes of what is found.
NOTHING, INSIDE, ADAPTER, OTHER, SHARDS, WHICH = (
    "JM115", "JM116", "JM117", "JM118", "JM119", "JM120",
)  # fmt: skip


def found_instead(source: Source, variants: Sequence[str] = ()) -> Problem:
    """What a folder without weights holds, and the next step.

    variants: names of variants of the weights that it has.
    """
    place = Place(source, source.label.rstrip("/"), source.names(), source.folders())
    message, code = _found(place, variants)
    return Problem(message, file=source.label, code=code)


def _found(place: Place, variants: Sequence[str]) -> tuple[str, str]:
    """The message on what is found, and its code."""
    listed = ", ".join(variants)
    pickled = _pickled(place)
    if any(re.fullmatch(r"(tp|mp|pp|ep|rank)[_-]?\d+", each) for each in variants):
        return of_processes(f"model.{variants[0]}.safetensors"), SHARDS
    if variants and pickled is not None:
        message = f"{pickled}; or copy the variant {listed} to its own folder as model.safetensors"
        return message, OTHER
    if variants:
        message = f"has several variants of its weights ({listed}) and no plain ones; "
        message += "copy one of them to its own folder, with config.json, and name that folder"
        return message, WHICH
    for kind, code in KINDS.items():
        if line := kind(place):
            return line, code
    if not unfinished(place.source) and (line := _nested(place, 1)):
        return line, INSIDE
    return _nothing(place), NOTHING


def unfinished(source: Source) -> str:
    """The tail of a message on missing files: that a download has not come to its end."""
    if "://" in source.label:
        return ""
    for folder in ("", ".cache/huggingface/download", "../../blobs"):
        left = [name for name in source.names(folder) if name.endswith(UNFINISHED)]
        if left:
            return f"; a download was interrupted ({left[0]}): download it again"
    return ""


def _nested(place: Place, depth: int) -> str | None:
    """What lies in a folder of this one, where nothing lies beside."""
    for name in sorted(place.folders, key=number, reverse=True):
        if name.startswith((".", "__")) or is_state_folder(name):
            continue
        source = inside(place.source, name)
        inner = Place(source, below(place, name), source.names(), source.folders())
        for kind in KINDS:
            if line := kind(inner):
                return f"holds no weights itself; {name} in it {line}"
        if depth < MAX_DEPTH and (line := _nested(inner, depth + 1)):
            tail = line.removeprefix("holds no weights itself; ")
            return f"holds no weights itself; {name}/{tail}"
    return None


def _mlx_adapter(place: Place) -> str | None:
    files = [name for name in place.names if re.fullmatch(r"adapters\.(safetensors|npz)", name)]
    if not files:
        return None
    base = said(place, "adapter_config.json", "model") or "BASE"
    return (
        f"holds an MLX adapter ({files[0]}), not a whole model; make one with "
        f"mlx_lm.fuse --model {base} --adapter-path {place.label} --save-path OUT, and name OUT"
    )


def _adapter(place: Place) -> str | None:
    if not {"adapter_config.json", "adapter_model.safetensors", "adapter_model.bin"} & set(
        place.names
    ):
        return None
    base = said(place, "adapter_config.json", "base_model_name_or_path")
    of = f" of '{base}'" if base else ""
    name = f"'{base}'" if base else "its base"
    models = [each for each in place.folders if holds_model(place.source, each)]
    whole = f"; or name {below(place, models[-1])}, which holds a model" if models else ""
    return (
        f"holds a PEFT adapter{of}, not a whole model; apply it to {name} with peft's "
        f"merge_and_unload(), then {SAVE}, and name that folder" + whole
    )


def _pipeline(place: Place) -> str | None:
    if "model_index.json" not in place.names:
        return None
    parts = [name for name in place.folders if holds_model(place.source, name)]
    listed = f" ({', '.join(parts)})" if parts else ""
    part = parts[0] if parts else "transformer"
    for name in ("transformer", "unet"):
        part = name if name in parts else part
    return (
        f"is a diffusers pipeline of several models{listed}; name one: {below(place, part)}"
        if parts
        else "is a diffusers pipeline without safetensors weights in its folders; "
        f"name the folder of one part, such as {below(place, part)}"
    )


def _cache(place: Place) -> str | None:
    models = [name for name in place.folders if name.startswith("models--")]
    if models:
        name = models[0].removeprefix("models--").replace("--", "/")
        return f"is the cache of the Hub; name a model in it by its name on the Hub, such as {name}"
    if "snapshots" not in place.folders and not {"blobs", "refs"} <= set(place.folders):
        return None
    found = place.source.folders("snapshots") if "snapshots" in place.folders else []
    if not found:
        return "is a folder of the Hub's cache without a snapshot; download the model first"
    try:
        named = place.source.read("refs/main").decode().strip()
    except (CheckpointError, ValueError):
        named = ""
    commit = named if named in found else found[-1]
    snapshot = below(place, f"snapshots/{commit}")
    return f"is a folder of the Hub's cache; name the snapshot in it: {snapshot}"


def _archive(place: Place) -> str | None:
    files = place.ending(*ARCHIVES)
    return (
        f"holds an archive ({files[0]}); unpack it, and name the model's folder" if files else None
    )


def _gguf(place: Place) -> str | None:
    files = place.ending(".gguf")
    if not files and {"manifests", "blobs"} <= set(place.folders):
        return "is Ollama's store, whose models are GGUF; name the original model"
    if not files:
        return None
    return gguf_advice(f"holds GGUF ({files[0]}) and no safetensors", place.label, files[0])


def gguf_advice(what: str, folder: str, file: str) -> str:
    """The line on a GGUF file that begins with `what`."""
    return (
        f"{what}; name the original model, or convert it to safetensors: "
        f"transformers' from_pretrained('{folder}', gguf_file='{file}').{SAVE}"
    )


def _mlx(place: Place) -> str | None:
    files = [n for n in place.names if re.fullmatch(r"weights(\.\d+)?\.(npz|safetensors)", n)]
    if not files:
        return None
    return (
        f"holds weights in an old MLX format ({files[0]}); name the original model, "
        "or convert them again with mlx_lm.convert (--dequantize if they are quantised)"
    )


def _pickled(place: Place) -> str | None:
    programs = {name.removesuffix(".xml") for name in place.ending(".xml")}  # of OpenVINO
    files = [n for n in place.ending(*PICKLES) if n.removesuffix(".bin") not in programs]
    if not files:
        return None
    if all(PARTS.fullmatch(name) for name in files):
        return (
            f"holds only a part of a model ({files[0]}) that was trained with a base; apply it to "
            f"the base with the program that trained it, then {SAVE}, and name that folder"
        )
    whole = re.compile(r"pytorch_model(-\d+-of-\d+)?\.bin")
    first = next((name for name in files if whole.fullmatch(name)), files[0])
    how = "load it with torch and write it with safetensors.torch.save_file"
    if whole.fullmatch(first) and said(place, "config.json", "model_type"):
        how = f"transformers' from_pretrained('{place.label}').{SAVE}"
    if any(re.fullmatch(r"consolidated.*\.pth", name) for name in files):
        how = "transformers' convert_llama_weights_to_hf, because they are in Meta's format"
    if first == "lit_model.pth":
        how = f"litgpt convert_from_litgpt {place.label} OUT, because they are in LitGPT's format, then torch and safetensors"
    return f"has only pickled weights ({first}); convert them to safetensors first: {how}"


def _other_framework(place: Place) -> str | None:
    kinds = {".h5": "TensorFlow", ".msgpack": "Flax", ".ckpt.index": "TensorFlow"}
    for end, kind in kinds.items():
        files = place.ending(end)
        if files:
            flag = "from_flax" if kind == "Flax" else "from_tf"
            return (
                f"has only {kind} weights ({files[0]}); convert them first, with transformers 4: "
                f"from_pretrained('{place.label}', {flag}=True).{SAVE}"
            )
    if files := place.ending(".pdparams"):
        return (
            f"has only PaddlePaddle weights ({files[0]}); load them with paddle, and write them with "
            "safetensors under their names in transformers"
        )
    for end in (".onnx", ".tflite", ".mlmodel", ".engine", ".xml", ".pb", ".keras"):
        files = place.ending(end)
        if files:
            return (
                f"holds an exported program ({files[0]}) and no weights of its own; "
                "name the original model"
            )
    return None


def _other_names(place: Place) -> str | None:
    files = place.ending(".safetensors")
    if not files:
        return None
    if len(files) == 1:
        return (
            f"holds {files[0]} and no model.safetensors, which transformers looks for; "
            f"rename it if it is the whole model"
        )
    return (
        f"holds {len(files)} safetensors files ({files[0]}, ...) and no "
        "model.safetensors.index.json, so it is unclear which of them are the model; write the "
        "index, or put the model in its own folder"
    )


def _inner(place: Place) -> str | None:
    inner = [name for name in place.folders if holds_model(place.source, name)]
    if not inner:
        return None
    if len(inner) == 1:
        return f"holds no weights itself; name the folder in it that does: {below(place, inner[0])}"
    listed = ", ".join(inner[:5]) + (", ..." if len(inner) > 5 else "")
    message = f"holds no weights itself, but {len(inner)} folders that do ({listed}); "
    return message + f"name one, such as {below(place, inner[-1])}"


# In this order: the first that finds something.
KINDS: dict[Callable[[Place], str | None], str] = {
    _mlx_adapter: ADAPTER,
    _adapter: ADAPTER,
    _pipeline: INSIDE,
    _cache: INSIDE,
    trainer: INSIDE,
    zero: SHARDS,
    verl: SHARDS,
    megatron: OTHER,
    distributed: SHARDS,
    ranks: SHARDS,
    orbax: OTHER,
    _gguf: OTHER,
    _mlx: OTHER,
    _pickled: OTHER,
    _other_framework: OTHER,
    _other_names: WHICH,
    _inner: INSIDE,
    _archive: OTHER,
}


def _nothing(place: Place) -> str:
    if not place.names and not place.folders and os.path.isdir(place.label):
        return (
            "is empty; it should hold model.safetensors, or shards and model.safetensors.index.json"
        )
    message = "holds no model.safetensors and no model.safetensors.index.json"
    tail = unfinished(place.source) + place.source.why_empty()
    if not tail and place.names:
        shown = ", ".join(place.names[:3]) + (", ..." if len(place.names) > 3 else "")
        tail = f" (only {shown}); check that the download is complete"
    return message + tail
