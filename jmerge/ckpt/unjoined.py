"""Checkpoints of training runs in a folder that holds no weights to merge: one line for each program's."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import NamedTuple

from jmerge.ckpt.filekinds import is_state, is_state_folder
from jmerge.ckpt.source import Source
from jmerge.errors import CheckpointError

MAX_SMALL = 1_000_000  # bytes of a file that is looked into for a name


class Place(NamedTuple):
    """A folder: its label, its files, and the folders in it."""

    source: Source
    label: str
    names: Sequence[str]
    folders: Sequence[str]

    def ending(self, *ends: str) -> list[str]:
        """The files that end so, but for states of a training run."""
        return [name for name in self.names if name.endswith(ends) and not is_state(name)]


def holds_model(source: Source, folder: str) -> bool:
    """Whether a folder in that of `source` looks as if it held safetensors weights of a model."""
    return any(
        name.startswith(("model", "consolidated", "diffusion_pytorch_model"))
        and name.endswith((".safetensors", ".safetensors.index.json"))
        for name in source.names(folder)
    )


def said(place: Place, file: str, *keys: str) -> str:
    """The text that a small JSON file has at a path of keys; empty when it has none."""
    try:
        size = place.source.size(file)
        value = json.loads(place.source.read(file)) if size and size < MAX_SMALL else None
    except (CheckpointError, ValueError, RecursionError):
        return ""
    for key in keys:
        value = value.get(key) if isinstance(value, dict) else None
    return value if isinstance(value, str) else ""


def number(name: str) -> tuple[list[int], str]:
    """Sorts names by the numbers in them, so that the last is the latest."""
    return [int(each) for each in re.findall(r"\d+", name)], name


def below(place: Place, folder: str) -> str:
    """A folder inside, as a recipe would name it; of a remote model, whose folders no recipe can name, with the way."""
    if "://" in place.label:
        return f"{folder} (download the model, then name that folder)"
    return f"{place.label}/{folder}"


STEP = re.compile(r"checkpoint-(\d+)")


def trainer(place: Place) -> str | None:
    """Of the Trainer of transformers: steps, each in a folder."""
    steps = sorted(
        (int(found[1]), name) for name in place.folders if (found := STEP.fullmatch(name))
    )
    if not steps:
        return None
    whole = [each for each in steps if holds_model(place.source, each[1])]
    last = (whole or steps)[-1][1]
    what = "a checkpoint" if len(steps) == 1 else f"{len(steps)} checkpoints"
    message = f"holds {what} of a training run and no weights of its own; "
    return message + f"name one; the last is {below(place, last)}"


def zero(place: Place) -> str | None:
    """Of DeepSpeed's ZeRO."""
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


def distributed(place: Place) -> str | None:
    """Of torch.distributed.checkpoint, which accelerate writes for FSDP."""
    inner = (name for name in place.folders if not is_state_folder(name))
    for found in ("", *sorted(inner, key=number, reverse=True)):
        names = place.source.names(found) if found else place.names
        if any(name.endswith(".distcp") or name == ".metadata" for name in names):
            break
    else:
        return None
    where = f" in {found}" if found else ""
    folder = below(place, found) if found else place.label
    return (
        f"holds the shards of torch.distributed.checkpoint{where} (FSDP); consolidate them with "
        f"accelerate merge-weights {folder} OUT, and name OUT with config.json in it"
    )


def verl(place: Place) -> str | None:
    """Of verl, for each process."""
    files = [n for n in place.names if re.fullmatch(r"model_world_size_\d+_rank_\d+\.pt", n)]
    steps = [name for name in place.folders if re.fullmatch(r"global_step_\d+", name)]
    if not files and not steps:
        return None
    folder = place.label if files else f"{below(place, max(steps, key=number))}/actor"
    return (
        "holds the shards of a training run of verl, one for each process; consolidate them with "
        f"python -m verl.model_merger merge --backend fsdp --local_dir {folder} --target_dir OUT, "
        "and name OUT"
    )


def megatron(place: Place) -> str | None:
    """Of Megatron or NeMo."""
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
        f"holds a checkpoint of {what}; convert it to the transformers format with "
        "the converter of Megatron or NeMo, and name the result"
    )


def ranks(place: Place) -> str | None:
    """Of any other program that writes a file for each process."""
    pattern = r"(.*[-_])?(rank|mp_rank)_?\d+(-of-\d+)?\.(pt|pth|bin)|(model|rank)\d+(-mp\d+)?\.safetensors"
    files = [name for name in place.names if re.fullmatch(pattern, name)]
    return of_processes(files[0]) if files else None


def of_processes(file: str) -> str:
    """The line on files of processes, the first of which is `file`."""
    return (
        f"holds the shards of a run, one for each process ({file}); consolidate them with the "
        "tool of the program that wrote them, and name the result"
    )


def orbax(place: Place) -> str | None:
    """Of Orbax."""
    signs = {"manifest.ocdbt", "_METADATA", "_CHECKPOINT_METADATA"} & set(place.names)
    if not signs:
        return None
    return (
        "holds a checkpoint of Orbax (JAX); load it with the program that wrote it, write its "
        "tensors with safetensors under their names in transformers, and name that folder"
    )
