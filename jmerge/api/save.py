"""`save`: a pytree of arrays, sharded or not, to a folder that Hugging Face libraries load."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from zlib_ng import zlib_ng

from jmerge.api.arguments import check_flag, check_path, check_size
from jmerge.api.publish import (
    overlap,
    sha256,
    verify_written,
    versions,
    write_config,
    write_indexes,
)
from jmerge.arch.config import set_dtype
from jmerge.ckpt.disk import environment_errors
from jmerge.ckpt.donor import companions
from jmerge.ckpt.memory import named_arrays, spec_of, to_host
from jmerge.ckpt.open import Checkpoint, open_checkpoint
from jmerge.ckpt.shards import OutFile, plan_files
from jmerge.ckpt.source import LocalSource
from jmerge.ckpt.writer import BEGUN_ANEW, LEDGER, STRIDE, OutputFolder
from jmerge.dtypes import TensorSpec, most_stored
from jmerge.errors import CheckpointError, PlanError, Problem, raise_all, wrong_type
from jmerge.names import nearest
from jmerge.plan.problems import patterns_of
from jmerge.plan.steps import folder_of, placed_name
from jmerge.sizes import parse_size

LISTED = 12  # names of tensors that a message has one by one
WRAPPED = ("value", "raw_value")  # under which a variable of Flax has its array


def save(
    tree: Any,
    folder: str | os.PathLike[str],
    *,
    like: str | os.PathLike[str] | Checkpoint,
    shard_size: int | str = "5GB",
    overwrite: bool = False,
) -> Path:
    """Save arrays as a model folder: safetensors files with their index, and the other files of `like`.

    Tensors are copied to this machine's memory and written one at a time. The folder is built beside its place and renamed
    when it is complete and on the disk, as for a merge.

    Args:
      tree: a pytree of JAX or NumPy arrays, or a mapping such as `merge` returns. The name of a tensor is the path to its
        leaf, joined with dots: `{"model": {"norm": {"weight": x}}}` and `{"model.norm.weight": x}` are the same. Arrays may
        be sharded over the devices of this process. They keep their dtypes.
      folder: the folder to make; it must not exist or must be empty.
      like: a checkpoint, or its place, with tensors of the same names and shapes. Its config.json, tokenizer and other
        files are copied; config.json gets the dtype of most bytes of the tree.
      shard_size: maximum bytes of data in one weight file: a number, or text such as `5GB`; 0 or less: no limit.
      overwrite: replace what jmerge wrote to `folder` before.

    Returns:
      The folder.

    Raises:
      PlanError: names or shapes differ from those of `like`, or the folder is taken.
      CheckpointError: a leaf is not an array, safetensors does not have its dtype, or `like` cannot be read.
      RunError: the disk is full, or another process is writing the folder.
      TypeError: an argument has the wrong type.
    """
    check_path("folder", folder)
    if not isinstance(like, str | os.PathLike | Checkpoint):
        raise wrong_type("like", "a checkpoint or its place", like)
    check_size("shard_size", shard_size)
    check_flag("overwrite", overwrite)
    most = parse_size(shard_size, "shard_size")
    model = open_checkpoint(like)
    arrays = _arrays(tree)
    specs = _specs(arrays)
    _check_against(specs, model)
    place = Path(folder)
    _check_place(place, model)
    saving = _Saving(model, {name: arrays[name] for name in model}, specs, most)
    saving.write(place, overwrite)
    return place


class _Saving:
    """A folder to be.

    like: gives the names, in their order, and the other files; arrays, specs: by name; most: bytes in a weight file.
    """

    def __init__(
        self,
        like: Checkpoint,
        arrays: Mapping[str, Any],
        specs: Mapping[str, TensorSpec],
        most: int,
    ) -> None:
        self.like = like
        self.arrays: dict[str, Any] = {}  # by the name that says in which folder they are
        self.specs: dict[str, TensorSpec] = {}
        self.folders: dict[str, dict[str, TensorSpec]] = {}
        for name, array in arrays.items():
            placed = placed_name(name, like.home, like.folders)
            self.arrays[placed], self.specs[placed] = array, specs[name]
            folder = folder_of(placed, like.home, like.folders)
            self.folders.setdefault(folder, {})[placed] = specs[name]
        self.files = tuple(
            file
            for folder, group in self.folders.items()
            for file in plan_files(group, most, folder)
        )

    def write(self, place: Path, overwrite: bool) -> None:
        """Write the folder and give it its name."""
        identity = {**versions(), "plan": "save"}  # that of no folder there is
        folder = OutputFolder(
            place, identity, overwrite, {BEGUN_ANEW: True}, other=lambda _: "a result of jmerge"
        )
        folder.finished()  # refuses before anything is made
        with folder:
            folder.create(self.files)
            entries = {
                name: entry for file in self.files for name, entry in self._tensors(folder, file)
            }
            self._beside(folder)
            folder.write_text(LEDGER, self._ledger(folder, entries))
            verify_written(folder)
            folder.publish()

    def _tensors(self, folder: OutputFolder, file: OutFile) -> Iterable[tuple[str, dict[str, Any]]]:
        """Write the tensors of a file.

        Yields:
          The name of each, and what the ledger says of it.
        """
        for name in file.starts:
            data = np.ascontiguousarray(to_host(self.arrays[name])).reshape(-1).view(np.uint8)
            crc32 = 0
            for start in range(0, data.size, STRIDE):
                piece = data[start : start + STRIDE]
                folder.write(name, start, piece.data)
                crc32 = zlib_ng.crc32(piece, crc32)
            spec = self.specs[name]
            entry = {"dtype": spec.dtype, "shape": list(spec.shape), "crc32": f"{crc32:08x}"}
            yield name, {"file": file.name, **entry}

    def _beside(self, folder: OutputFolder) -> None:
        """Write what lies beside the weights: the files of `like`, config.json, the index."""
        like = self.like
        weights = [file.name for file in like.files]
        for name in companions(like.source, like.modules, weights).taken:
            folder.copy_file(name, like.source, name)
        home = f"{like.home}/" if like.home else ""
        if like.config:
            config, _ = set_dtype(like.config, most_stored(self.specs.values()))
            write_config(folder, f"{home}config.json", config)
        write_indexes(folder, self.folders, self.files)

    def _ledger(self, folder: OutputFolder, entries: Mapping[str, Any]) -> str:
        """What `verify` holds the folder to; equal trees saved alike give equal text."""
        content = {
            **versions(),
            "plan": sha256(json.dumps([entries, folder.sizes()], sort_keys=True)),
            "method": "save",
            "tensors": entries,
            "files": folder.sizes(),
        }
        return json.dumps(content, indent=1, ensure_ascii=False) + "\n"


def _arrays(tree: Any) -> dict[str, Any]:
    """The leaves of a tree by name."""
    if isinstance(tree, Mapping) and jax.tree_util.all_leaves([tree]):
        return named_arrays(tree)  # a mapping of a class that JAX does not know
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    problems: list[Problem] = []
    found: dict[str, Any] = {}
    for path, leaf in leaves:
        name = name_of(path)
        if name in found:
            problems.append(Problem("is the name of two leaves", name, code="JM125"))
        found[name] = leaf
    raise_all(PlanError, problems)
    if list(found) == [""]:
        raise wrong_type("tree", "a tree of arrays, such as a dict from name to array", tree)
    return found


def name_of(path: tuple[Any, ...]) -> str:
    """The name of the tensor at a path of a tree; that of a variable of Flax, not of the array in it."""
    last = path[-1] if path else None
    if len(path) > 1 and isinstance(last, jax.tree_util.GetAttrKey) and last.name in WRAPPED:
        path = path[:-1]
    return jax.tree_util.keystr(path, simple=True, separator=".")


def _specs(arrays: Mapping[str, Any]) -> dict[str, TensorSpec]:
    """What each array is; CheckpointError for those that cannot be saved."""
    problems: list[Problem] = []
    specs: dict[str, TensorSpec] = {}
    for name, array in arrays.items():
        if isinstance(array, jax.core.Tracer) or not isinstance(array, jax.Array | np.ndarray):
            found = type(array).__name__
            hint = "; save outside of jit and grad" if isinstance(array, jax.core.Tracer) else ""
            message = f"expected a NumPy or JAX array, found a value of type {found}{hint}"
            problems.append(Problem(message, name, code="JM125"))
        elif (spec := spec_of(array)) is None:
            problems.append(Problem(f"safetensors has no dtype {array.dtype}", name, code="JM125"))
        elif isinstance(array, jax.Array) and not array.is_fully_addressable:
            message = "is also on devices of other processes; gather it first, for example with "
            message += "jax.experimental.multihost_utils.process_allgather"
            problems.append(Problem(message, name, code="JM125"))
        else:
            specs[name] = spec
    raise_all(CheckpointError, problems)
    return specs


def _check_against(specs: Mapping[str, TensorSpec], like: Checkpoint) -> None:
    """PlanError when names or shapes are not those of the model."""
    missing = [name for name in like if name not in specs]
    extra = [name for name in specs if name not in like.index]
    problems = []
    if missing:
        kept = [name for name in like if name in specs]
        problems.append(f"lacks {len(missing)} tensors of {like.path}: {_all(missing, kept)}")
    if extra:
        best = nearest(extra[0], missing)
        hint = f"; did you mean '{best}' instead of '{extra[0]}'?" if best else ""
        others = [name for name in specs if name in like.index]
        found = _all(extra, others)
        problems.append(f"has {len(extra)} tensors that {like.path} does not have: {found}{hint}")
    odd = []
    for name, spec in specs.items():
        if name in like.index and like.index[name].spec.shape != spec.shape:
            odd.append(f"{name} is {list(spec.shape)}, not {list(like.index[name].spec.shape)}")
    if odd:
        problems.append(f"has shapes that {like.path} does not have: {'; '.join(odd)}")
    raise_all(PlanError, [Problem(message, "tree", code="JM412") for message in problems])


def _all(names: Sequence[str], others: Sequence[str]) -> str:
    """All of these names, by patterns that match none of the `others` where there are many."""
    shown = names if len(names) <= LISTED else patterns_of(names, others)
    return ", ".join(shown)


def _check_place(place: Path, like: Checkpoint) -> None:
    """PlanError when the folder would replace what is copied into it."""
    if isinstance(like.source, LocalSource):
        with environment_errors(place):
            if found := overlap(place, [str(like.path)]):
                message = f"{place} {found} the checkpoint `like`; choose another folder"
                raise PlanError(Problem(message, where="folder", code="JM606"))
