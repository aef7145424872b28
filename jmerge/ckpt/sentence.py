"""Sentence Transformers folders: a transformer and what comes after it, each in a folder that `modules.json` lists.

The transformer lies in the model's folder itself or in one such as `0_Transformer`; its tensors have their own names.
Those of other modules with weights, such as Dense, have the folder before theirs: `2_Dense/linear.weight`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from jmerge.ckpt.instead import PICKLES
from jmerge.ckpt.source import Source, inside
from jmerge.ckpt.weights import WEIGHTS, Weights, find_weights, read_json, read_json_file
from jmerge.errors import CONTROL, CheckpointError

T = TypeVar("T")
U = TypeVar("U")

MODULES = "modules.json"
MAX_MODULES = 100  # each has a folder that is looked into; real models have up to five
BRANCHED = ("Router", "Asym")  # of several rows of modules
WEIGHTED = ("Transformer", "MLMTransformer", "Dense", "LayerNorm", "StaticEmbedding", "CLIPModel")
# Where the numbers of a kind of module stand, if not in its config.json, which is then another program's.
CONFIGS = {"Transformer": "sentence_bert_config.json", "CLIPModel": ""}


class Module(NamedTuple):
    """One module of a Sentence Transformers model."""

    folder: str  # inside the model's; empty: that itself
    kind: str  # its class
    weights: Weights  # by their paths in its own folder
    config: dict[str, Any]  # what it is told

    @property
    def prefix(self) -> str:
        """What stands before the names of its files."""
        return f"{self.folder}/" if self.folder else ""

    @property
    def files(self) -> tuple[str, ...]:
        """Its weight files, by their paths in the model's folder."""
        return tuple(self.prefix + name for name in self.weights.files)


def read_modules(source: Source) -> tuple[Module, ...]:
    """The modules of a Sentence Transformers model in their order; empty for every other model.

    Raises:
      CheckpointError: modules.json is not a list of modules, a module has weights that cannot be read, or branches.
      RunError: a remote folder cannot be reached.
    """
    if source.size(MODULES) is None:
        return ()
    entries = read_json(source, MODULES)
    if not isinstance(entries, list) or not entries:
        raise source.broken(MODULES, "is not a list of modules", code="JM124")
    if len(entries) > MAX_MODULES:
        raise source.broken(
            MODULES, f"lists {len(entries):,} modules, more than {MAX_MODULES}", code="JM124"
        )
    modules = tuple(_read_module(source, entry) for entry in entries)
    weighted = [module.folder for module in modules if module.files]
    for folder in weighted:
        if weighted.count(folder) > 1:
            message = f"lists two modules with the weights of one folder: {folder!r}"
            raise source.broken(MODULES, message, code="JM124")
    return modules


def main_module(modules: tuple[Module, ...]) -> Module | None:
    """The one whose tensors have no folder before their names: the first with weights."""
    return next((module for module in modules if module.files), None)


def _read_module(source: Source, entry: Any) -> Module:
    match entry:
        case {"path": str(folder), "type": str(kind)}:
            kind = kind.rpartition(".")[2]
        case _:
            raise source.broken(
                MODULES, f"lists a module without path or type: {entry!r}", code="JM124"
            )
    parts = Path(folder).parts
    outside = len(parts) > 1 or parts[:1] in (("..",), ("/",)) or "\\" in folder
    if outside or CONTROL.search(folder):
        raise source.broken(
            MODULES, f"names a folder that is not in the model's: {folder!r}", code="JM124"
        )
    folder = parts[0] if parts else ""
    if kind in BRANCHED:
        raise source.broken(
            MODULES, f"lists a {kind}, whose branches cannot be merged", code="JM124"
        )
    place = inside(source, folder)
    weights = Weights(())
    if kind in WEIGHTED or _has_weights(place):
        try:
            weights = find_weights(place)
        except CheckpointError:
            if folder or kind in WEIGHTED:
                raise
    config = CONFIGS.get(kind, "config.json" if folder else "")
    told = read_json_file(place, config, missing={}) if config else {}
    return Module(folder, kind, weights, told)


def _has_weights(place: Source) -> bool:
    return any(name.endswith((WEIGHTS, *PICKLES)) for name in place.names())
