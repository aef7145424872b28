"""Which output tensor goes where: file names, whole headers and offsets, known before the first byte is written."""

from __future__ import annotations

from typing import NamedTuple

from jmerge.ckpt.safetensors import ALIGNMENT, encode_header
from jmerge.dtypes import BITS, TensorSpec


class OutFile(NamedTuple):
    """One file of the output, decided down to the byte."""

    name: str
    header: bytes  # everything before the data
    starts: dict[str, int]  # tensor -> bytes from the beginning of the file
    size: int  # bytes of the whole file


def plan_files(
    specs: dict[str, TensorSpec], shard_bytes: int, folder: str = ""
) -> tuple[OutFile, ...]:
    """Cut `specs` (in the order wanted) into files of at most `shard_bytes` of data, named as Hugging Face does.

    folder: where they go in the output; names in `specs` begin with it and a slash, those in the files do not.

    A tensor larger than `shard_bytes` gets a file of its own; `shard_bytes` <= 0 puts everything in one file.
    Inside a file, tensors whose size is a multiple of 64 bytes come first, so that they all start aligned, then
    the rest by falling element width, so that each is aligned to its own elements.
    """
    groups: list[dict[str, TensorSpec]] = [{}]
    filled = 0
    for name, spec in specs.items():
        if groups[-1] and 0 < shard_bytes < filled + spec.nbytes:
            groups.append({})
            filled = 0
        groups[-1][name] = spec
        filled += spec.nbytes
    if len(groups) == 1:
        return (_out_file("model.safetensors", groups[0], folder),)
    return tuple(
        _out_file(f"model-{number:05d}-of-{len(groups):05d}.safetensors", group, folder)
        for number, group in enumerate(groups, 1)
    )


def index_json(
    files: tuple[OutFile, ...], specs: dict[str, TensorSpec], version: str
) -> dict[str, object] | None:
    """The contents of `model.safetensors.index.json`; None for a single file, which needs none."""
    if len(files) == 1:
        return None
    folder, slash, _ = files[0].name.rpartition("/")
    return {
        "metadata": {
            "total_size": sum(spec.nbytes for spec in specs.values()),
            "jmerge_version": version,
        },
        "weight_map": {
            name.removeprefix(folder + slash): file.name.removeprefix(folder + slash)
            for file in files
            for name in file.starts
        },
    }


def _out_file(name: str, specs: dict[str, TensorSpec], folder: str) -> OutFile:
    ordered = dict(
        sorted(
            specs.items(),
            key=lambda item: (item[1].nbytes % ALIGNMENT != 0, -_width(item[1]) * _odd(item[1])),
        )
    )
    prefix = f"{folder}/" if folder else ""
    header = encode_header({tensor.removeprefix(prefix): spec for tensor, spec in ordered.items()})
    starts, position = {}, len(header)
    for tensor, spec in ordered.items():
        starts[tensor] = position
        position += spec.nbytes
    return OutFile(prefix + name, header, starts, position)


def _odd(spec: TensorSpec) -> bool:
    return spec.nbytes % ALIGNMENT != 0


def _width(spec: TensorSpec) -> int:
    return BITS[spec.dtype]
