"""Whether the weights of a model are all there, as far as that shows without reading them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from jmerge.ckpt.dtypes import FLOATS
from jmerge.ckpt.safetensors import Header
from jmerge.ckpt.source import LocalSource, Source
from jmerge.errors import CheckpointError, Fault

HELD_BACK = ".aria2"  # beside a file that this downloader made at full size and did not fill yet


def check_arrived(source: Source, files: Sequence[str]) -> None:
    """CheckpointError when weight files are pointers of git-LFS, or their download has not come to its end."""
    sizes = source.map(source.size, files)
    there = [name for name, size in zip(files, sizes, strict=True) if size is not None]
    pointers = [name for name in there if source.is_pointer(name)]
    if pointers:
        if len(files) == 1:
            what = f"{pointers[0]} is a git-LFS pointer, not the weights"
        else:
            what = (
                f"{len(pointers)} of {len(files)} weight files are git-LFS pointers ({pointers[0]})"
            )
        raise CheckpointError(Fault(f"{what}; run: git lfs pull", file=source.label))
    if not isinstance(source, LocalSource):
        return
    for name in there:
        if source.size(name + HELD_BACK) is not None:
            message = (
                f"its download was interrupted ({name}{HELD_BACK} lies beside it); run it again"
            )
            raise source.broken(name, message)


def check_whole_tensors(source: Source, headers: Mapping[str, Header]) -> None:
    """CheckpointError when weights are empty, as in what one process of a sharded training run saves by itself."""
    specs = {name: each.spec for head in headers.values() for name, each in head.extents.items()}
    floats = {name: spec for name, spec in specs.items() if spec.dtype in FLOATS}
    empty = [name for name, spec in floats.items() if spec.shape == (0,)]
    if not any(name.endswith(".weight") for name in empty):
        return
    message = (
        f"{len(empty)} of {len(specs)} tensors are empty (shape [0]; the first is {empty[0]}): one "
        "process of a sharded training run (DeepSpeed ZeRO-3) saved its own state; consolidate the "
        "checkpoint with its zero_to_fp32.py (python zero_to_fp32.py CHECKPOINT OUT "
        "--safe_serialization), or save with stage3_gather_16bit_weights_on_model_save"
    )
    raise CheckpointError(Fault(message, file=source.label))
