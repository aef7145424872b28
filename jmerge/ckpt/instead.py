"""What lies in a folder that holds no weights to merge, and what to do about it: one line.

Each kind is a function of what is in the folder that gives the line, or None where the folder is of another kind; the
first that gives one is told. Where the folder itself is of none, its folders are looked into in the same way.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Sequence
from typing import NamedTuple

from jmerge.ckpt.filekinds import is_state
from jmerge.ckpt.inside import inside
from jmerge.ckpt.source import Source
from jmerge.errors import CheckpointError

PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
UNFINISHED = (".incomplete", ".crdownload", ".part", ".aria2", ".download")
MAX_SMALL = 1_000_000  # bytes of a file that is looked into for a name
MAX_DEPTH = 2  # folders below that are looked into for what lies there
ARCHIVES = (".zip", ".tar", ".tar.gz", ".tgz", ".tar.zst", ".tar.bz2", ".7z", ".rar")
# Pickles that hold what was trained beside a base, and not a model.
PARTS = re.compile(r"mm_projector.*|non_lora_trainables.*")
STEP = re.compile(r"checkpoint-(\d+)")
SAVE = "save_pretrained(OUT)"


class Place(NamedTuple):
    """A folder: its label, its files, and the folders in it."""

    source: Source
    label: str
    names: Sequence[str]
    folders: Sequence[str]

    def ending(self, *ends: str) -> list[str]:
        """The files that end so, but for states of a training run."""
        return [name for name in self.names if name.endswith(ends) and not is_state(name)]


def found_instead(source: Source, variants: Sequence[str] = ()) -> str:
    """What a folder without weights holds, and the next step.

    variants: names of variants of the weights that it has.
    """
    place = Place(source, source.label.rstrip("/"), source.names(), source.folders())
    listed = ", ".join(variants)
    pickled = _pickled(place)
    if any(re.fullmatch(r"(tp|mp|pp|ep|rank)[_-]?\d+", each) for each in variants):
        return _of_processes(f"model.{variants[0]}.safetensors")
    if variants and pickled is not None:
        return (
            f"{pickled}; or copy the variant {listed} to a folder of its own as model.safetensors"
        )
    if variants:
        message = f"has its weights as several variants ({listed}) and none without; "
        return message + "copy one of them to a folder of its own with config.json, and name that"
    for kind in KINDS:
        line = kind(place)
        if line:
            return line
    below = None if unfinished(source) else _nested(place, 1)
    return below or _nothing(place)


def unfinished(source: Source) -> str:
    """The tail of a message on missing files: that a download has not come to its end."""
    if "://" in source.label:
        return ""
    for folder in ("", ".cache/huggingface/download", "../../blobs"):
        left = [name for name in source.names(folder) if name.endswith(UNFINISHED)]
        if left:
            return f"; a download was interrupted ({left[0]}): run it again"
    return ""


def holds_model(source: Source, folder: str) -> bool:
    """Whether a folder in that of `source` looks as if it held safetensors weights of a model."""
    return any(
        name.startswith(("model", "consolidated", "diffusion_pytorch_model"))
        and name.endswith((".safetensors", ".safetensors.index.json"))
        for name in source.names(folder)
    )


def _said(place: Place, file: str, *keys: str) -> str:
    """The text that a small JSON file has at a path of keys; empty when it has none."""
    try:
        size = place.source.size(file)
        value = json.loads(place.source.read(file)) if size and size < MAX_SMALL else None
    except (CheckpointError, ValueError, RecursionError):
        return ""
    for key in keys:
        value = value.get(key) if isinstance(value, dict) else None
    return value if isinstance(value, str) else ""


def _number(name: str) -> tuple[list[int], str]:
    """Sorts names by the numbers in them, so that the last is the latest."""
    return [int(each) for each in re.findall(r"\d+", name)], name


def _nested(place: Place, depth: int) -> str | None:
    """What lies in a folder of this one, where nothing lies beside."""
    for name in sorted(place.folders, key=_number, reverse=True):
        if name.startswith((".", "__")) or is_state(name):
            continue
        source = inside(place.source, name)
        inner = Place(source, _below(place, name), source.names(), source.folders())
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
    base = _said(place, "adapter_config.json", "model") or "BASE"
    return (
        f"holds an adapter of MLX ({files[0]}), not a whole model; make one with "
        f"mlx_lm.fuse --model {base} --adapter-path {place.label} --save-path OUT, and name OUT"
    )


def _adapter(place: Place) -> str | None:
    if not {"adapter_config.json", "adapter_model.safetensors", "adapter_model.bin"} & set(
        place.names
    ):
        return None
    base = _said(place, "adapter_config.json", "base_model_name_or_path")
    of = f" of '{base}'" if base else ""
    name = f"'{base}'" if base else "its base"
    models = [each for each in place.folders if holds_model(place.source, each)]
    whole = f"; or name {_below(place, models[-1])}, which holds a model" if models else ""
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
        f"is a diffusers pipeline of several models{listed}; name one: {_below(place, part)}"
        if parts
        else "is a diffusers pipeline without safetensors weights in its folders; "
        f"name the folder of one part, such as {_below(place, part)}"
    )


def _cache(place: Place) -> str | None:
    models = [name for name in place.folders if name.startswith("models--")]
    if models:
        name = models[0].removeprefix("models--").replace("--", "/")
        return f"is the Hub's cache; name a model in it as the Hub does, such as {name}"
    if "snapshots" not in place.folders and not {"blobs", "refs"} <= set(place.folders):
        return None
    found = place.source.folders("snapshots") if "snapshots" in place.folders else []
    if not found:
        return "is a folder of the Hub's cache in which no snapshot is; download the model first"
    try:
        named = place.source.read("refs/main").decode().strip()
    except (CheckpointError, ValueError):
        named = ""
    commit = named if named in found else found[-1]
    below = _below(place, f"snapshots/{commit}")
    return f"is a folder of the Hub's cache; name the snapshot in it: {below}"


def _trainer(place: Place) -> str | None:
    steps = sorted(
        (int(found[1]), name) for name in place.folders if (found := STEP.fullmatch(name))
    )
    if not steps:
        return None
    whole = [each for each in steps if holds_model(place.source, each[1])]
    last = (whole or steps)[-1][1]
    what = "a checkpoint" if len(steps) == 1 else f"{len(steps)} checkpoints"
    message = f"holds {what} of a training run and no weights beside; "
    return message + f"name one, the last is {_below(place, last)}"


def _zero(place: Place) -> str | None:
    steps = [name for name in place.folders if re.fullmatch(r"global_step\d+", name)]
    states = [n for n in place.names if re.search(r"optim_states\.pt$|model_states\.pt$", n)]
    if not steps and not states and "zero_to_fp32.py" not in place.names:
        return None
    folder = place.label
    if states and "zero_to_fp32.py" not in place.names:
        folder = f"{place.label}/.."
    return (
        "holds the shards of a DeepSpeed ZeRO training state; consolidate them with "
        f"python zero_to_fp32.py {folder} OUT --safe_serialization, and name OUT with config.json in it"
    )


def _distributed(place: Place) -> str | None:
    inner = (name for name in place.folders if not is_state(name))
    for found in ("", *sorted(inner, key=_number, reverse=True)):
        names = place.source.names(found) if found else place.names
        if any(name.endswith(".distcp") or name == ".metadata" for name in names):
            break
    else:
        return None
    where = f" in {found}" if found else ""
    below = _below(place, found) if found else place.label
    return (
        f"holds the shards of torch.distributed.checkpoint{where} (FSDP); consolidate them with "
        f"accelerate merge-weights {below} OUT, and name OUT with config.json in it"
    )


def _verl(place: Place) -> str | None:
    files = [n for n in place.names if re.fullmatch(r"model_world_size_\d+_rank_\d+\.pt", n)]
    steps = [name for name in place.folders if re.fullmatch(r"global_step_\d+", name)]
    if not files and not steps:
        return None
    folder = place.label if files else f"{_below(place, max(steps, key=_number))}/actor"
    return (
        "holds the shards of a training run of verl, one for each process; put them together with "
        f"python -m verl.model_merger merge --backend fsdp --local_dir {folder} --target_dir OUT, "
        "and name OUT"
    )


def _megatron(place: Place) -> str | None:
    named = (*place.folders, *place.names)
    nemo = any(name.endswith(".nemo") for name in place.names)
    parts = {"common.pt", "metadata.json"} <= set(place.names)
    old = "latest_checkpointed_iteration.txt" in place.names or any(
        re.match(r"mp_rank_\d+$", name) for name in named
    )
    if not nemo and not parts and not old:
        return None
    what = "NeMo" if nemo else "Megatron"
    return (
        f"holds a checkpoint of {what}; convert it to the format of transformers with "
        "Megatron's own converter or that of NeMo, and name what that makes"
    )


def _ranks(place: Place) -> str | None:
    pattern = r"(.*[-_])?(rank|mp_rank)_?\d+(-of-\d+)?\.(pt|pth|bin)|(model|rank)\d+(-mp\d+)?\.safetensors"
    ranks = [name for name in place.names if re.fullmatch(pattern, name)]
    return _of_processes(ranks[0]) if ranks else None


def _of_processes(file: str) -> str:
    return (
        f"holds the shards of a run, one for each process ({file}); put them together with the "
        "tool of the program that wrote them, and name what that makes"
    )


def _orbax(place: Place) -> str | None:
    signs = {"manifest.ocdbt", "_METADATA", "_CHECKPOINT_METADATA"} & set(place.names)
    if not signs:
        return None
    return (
        "holds a checkpoint of Orbax (JAX); load it with the program that wrote it, write its "
        "tensors with safetensors under their names in transformers, and name that folder"
    )


def _archive(place: Place) -> str | None:
    files = place.ending(*ARCHIVES)
    return (
        f"holds an archive ({files[0]}); unpack it, and name the model's folder" if files else None
    )


def _gguf(place: Place) -> str | None:
    files = place.ending(".gguf")
    if not files and {"manifests", "blobs"} <= set(place.folders):
        return "is Ollama's store, whose models are GGUF; name the model that they were made from"
    if not files:
        return None
    return gguf_advice(f"holds GGUF ({files[0]}) and no safetensors", place.label, files[0])


def gguf_advice(what: str, folder: str, file: str) -> str:
    """The line on a GGUF file that begins with `what`."""
    return (
        f"{what}; name the model that it was made from, or write it as safetensors: "
        f"transformers' from_pretrained('{folder}', gguf_file='{file}').{SAVE}"
    )


def _mlx(place: Place) -> str | None:
    files = [n for n in place.names if re.fullmatch(r"weights(\.\d+)?\.(npz|safetensors)", n)]
    if not files:
        return None
    return (
        f"holds weights in an old form of MLX ({files[0]}); name the model that they were made "
        "from, or write them anew with mlx_lm.convert (--dequantize if they are quantised)"
    )


def _pickled(place: Place) -> str | None:
    programs = {name.removesuffix(".xml") for name in place.ending(".xml")}  # of OpenVINO
    files = [n for n in place.ending(*PICKLES) if n.removesuffix(".bin") not in programs]
    if not files:
        return None
    if all(PARTS.fullmatch(name) for name in files):
        return (
            f"holds only a part of a model ({files[0]}) that was trained beside a base; put it into "
            f"that with the program that trained it, then {SAVE}, and name that folder"
        )
    whole = re.compile(r"pytorch_model(-\d+-of-\d+)?\.bin")
    first = next((name for name in files if whole.fullmatch(name)), files[0])
    how = "load it with torch and write it with safetensors.torch.save_file"
    if whole.fullmatch(first) and _said(place, "config.json", "model_type"):
        how = f"transformers' from_pretrained('{place.label}').{SAVE}"
    if any(re.fullmatch(r"consolidated.*\.pth", name) for name in files):
        how = "transformers' convert_llama_weights_to_hf, as they are in Meta's form"
    if first == "lit_model.pth":
        how = f"litgpt convert_from_litgpt {place.label} OUT, as they are in LitGPT's form, then torch and safetensors"
    return f"has only pickled weights ({first}); convert them to safetensors first: {how}"


def _other_framework(place: Place) -> str | None:
    kinds = {".h5": "TensorFlow", ".msgpack": "Flax", ".ckpt.index": "TensorFlow"}
    for end, kind in kinds.items():
        files = place.ending(end)
        if files:
            flag = "from_flax" if kind == "Flax" else "from_tf"
            return (
                f"has only weights of {kind} ({files[0]}); convert them first, with a transformers "
                f"below 5: from_pretrained('{place.label}', {flag}=True).{SAVE}"
            )
    if files := place.ending(".pdparams"):
        return (
            f"has only weights of PaddlePaddle ({files[0]}); load them with paddle, and write them with "
            "safetensors under their names in transformers"
        )
    for end in (".onnx", ".tflite", ".mlmodel", ".engine", ".xml", ".pb", ".keras"):
        files = place.ending(end)
        if files:
            return (
                f"holds an exported program ({files[0]}) and no weights of its own; "
                "name the model that it was made from"
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
        "model.safetensors.index.json, so nothing says which of them are the model; write the "
        "index, or put the model in a folder of its own"
    )


def _inner(place: Place) -> str | None:
    inner = [name for name in place.folders if holds_model(place.source, name)]
    if not inner:
        return None
    if len(inner) == 1:
        return (
            f"holds no weights itself; name the folder in it that does: {_below(place, inner[0])}"
        )
    listed = ", ".join(inner[:5]) + (", ..." if len(inner) > 5 else "")
    message = f"holds no weights itself, but {len(inner)} folders that do ({listed}); "
    return message + f"name one, such as {_below(place, inner[-1])}"


KINDS: tuple[Callable[[Place], str | None], ...] = (
    _mlx_adapter,
    _adapter,
    _pipeline,
    _cache,
    _trainer,
    _zero,
    _verl,
    _megatron,
    _distributed,
    _ranks,
    _orbax,
    _gguf,
    _mlx,
    _pickled,
    _other_framework,
    _other_names,
    _inner,
    _archive,
)


def _nothing(place: Place) -> str:
    if not place.names and not place.folders and os.path.isdir(place.label):
        return (
            "is empty; it should hold model.safetensors, or shards and model.safetensors.index.json"
        )
    message = "holds no model.safetensors and no model.safetensors.index.json"
    tail = unfinished(place.source) + place.source.why_empty()
    if not tail and place.names:
        shown = ", ".join(place.names[:3]) + (", ..." if len(place.names) > 3 else "")
        tail = f" (but {shown}); was the model downloaded whole?"
    return message + tail


def _below(place: Place, folder: str) -> str:
    """A folder inside, as a recipe would name it; of a remote model, whose folders no recipe can name, with the way."""
    if "://" in place.label:
        return f"{folder} (download the model, then name that folder)"
    return f"{place.label}/{folder}"
