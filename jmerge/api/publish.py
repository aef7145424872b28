"""From a plan to a published folder: what identifies it, what it is made from, and what lies beside the weights."""

from __future__ import annotations

import hashlib
import json
import os
import platform
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jaxlib.version

from jmerge.arch.config import Change
from jmerge.ckpt.disk import environment_errors
from jmerge.ckpt.donor import donor_files
from jmerge.ckpt.find import is_local
from jmerge.ckpt.leftover import INPUTS, PLATFORM, RECIPE, SEED, SHARD_SIZE, other_result
from jmerge.ckpt.memory import MemorySource
from jmerge.ckpt.shards import OutFile, index_json, plan_files
from jmerge.ckpt.source import LocalSource
from jmerge.ckpt.writer import LEDGER, OutputFolder
from jmerge.dtypes import TensorSpec
from jmerge.engine.run import Outcome
from jmerge.errors import CONTROL, CheckpointError, PlanError, Problem, RunError
from jmerge.plan.files import untied
from jmerge.plan.steps import Plan
from jmerge.report.card import model_card
from jmerge.report.ledger import TOKENS, ledger
from jmerge.report.nonfinite import nonfinite_text, owners_text
from jmerge.tracer import Tracer
from jmerge.verify.checks import MISSING, READABLE, WRITTEN, verify
from jmerge.version import VERSION

SHOWN = 3  # problems of one kind that the end of a merge tells


class Fingerprint(NamedTuple):
    """What is known of an input file without reading it again."""

    size: int
    sha256: str  # of its header; of arrays in memory of all their bytes
    changed: (
        int | None
    )  # when it was last written, in nanoseconds; None: the engine asks what it is fetched from


class Publication:
    """A merge that is to become a folder.

    Attributes:
      plan: of the merge.
      place: where the folder goes.
      files: its weight files.
      identity: what makes it what it is: versions, and a hash of plan, files and arrays in memory.
    """

    def __init__(self, plan: Plan, place: Path, shard_bytes: int) -> None:
        """shard_bytes: most bytes of data in one weight file; 0 or less: no limit."""
        self.plan = plan
        self.place = place
        self.files = tuple(
            file
            for folder, specs in plan.folders.items()
            for file in plan_files(specs, shard_bytes, folder)
        )
        self.fingerprints = _fingerprints(plan)
        self._shard_bytes = shard_bytes
        self._versions = versions()
        self.identity = {**self._versions, "plan": self._hash()}

    def check_place(self) -> None:
        """PlanError when the folder would be made of what it replaces."""
        if CONTROL.search(str(self.place)):
            message = f"'{self.place}' contains characters that cannot be written into files; choose another folder"
            raise PlanError(Problem(message, where="out", code="JM606"))
        with environment_errors(self.place):
            inputs = [model.path for model in self.plan.models if is_local(model.path)]
            if found := overlap(self.place, inputs):
                message = f"{self.place} {found} an input of the recipe; choose another folder"
                raise PlanError(Problem(message, where="out", code="JM606"))

    def facts(self, device: jax.Device) -> dict[str, Any]:
        """What else has to be the same for an interrupted run to be resumed on this device."""
        return {
            RECIPE: sha256(self.plan.recipe),
            SEED: self.plan.seed,
            SHARD_SIZE: self._shard_bytes,
            INPUTS: {name: list(fingerprint) for name, fingerprint in self.fingerprints.items()},
            PLATFORM: platform_of(device),
        }

    def shared_facts(self, device: jax.Device, flags: Mapping[str, Any]) -> dict[str, Any]:
        """What has to be the same on all hosts, the `flags` of the command among them."""
        return {
            **self._versions,
            PLATFORM: platform_of(device),
            f"--{SEED}": self.plan.seed,
            f"--{SHARD_SIZE}": self._shard_bytes,
            **{f"--{name}": value for name, value in flags.items()},
            RECIPE: sha256(self.plan.recipe),
            # not their times, which copies on the hosts' own disks do not share
            INPUTS: {
                name: list(fingerprint[:2]) for name, fingerprint in self.fingerprints.items()
            },
            "plan": self.identity["plan"],  # last, as it differs whenever something else does
        }

    def folder(self, device: jax.Device, overwrite: bool, tracer: Tracer) -> OutputFolder:
        """The folder under construction."""
        where = {tensor: file.name for file in self.files for tensor in file.starts}
        other = partial(
            other_result,
            recipe=self.plan.recipe,
            seed=self.plan.seed,
            files=where,
            versions=self._versions,
        )
        facts = self.facts(device)
        return OutputFolder(self.place, self.identity, overwrite, facts, tracer, other)

    def check_inputs(self) -> None:
        """CheckpointError when an input file is not what it was when the merge began: half of the result would be of the
        old one. Size and time cost nothing to look at."""
        for name, fingerprint in self.fingerprints.items():
            if fingerprint.changed is None:
                continue
            if (
                _changed_at(Path(name)) != fingerprint.changed
                or os.path.getsize(name) != fingerprint.size
            ):
                message = "changed while it was being merged; merge again when it is complete"
                raise CheckpointError(Problem(message, file=name, code="JM111"))

    def finish(
        self, folder: OutputFolder, outcome: Outcome, tainted: set[int]
    ) -> tuple[Problem, ...]:
        """Write what lies beside the weights, and look at the whole before it gets its name.

        Args:
          folder: with all weights.
          outcome: of the run that made them.
          tainted: models, by position in the plan, with NaN or infinity.

        Returns:
          What is strange, and may be so in the inputs; NaN and infinity that were allowed.
        """
        _write_companions(folder, self.plan, self.files, outcome, self.identity)
        strange = list(verify_written(folder))
        for line in nonfinite_text(self.plan, outcome.nonfinite):
            line += owners_text(self.plan, tainted)
            strange.append(Problem(line, file=str(self.place), code="JM126"))
        return tuple(strange)

    def _hash(self) -> str:
        """What makes two outputs the same: the plan, how it is cut into files, and arrays that no file identifies."""
        text = self.plan.sha256() + "".join(file.name + str(file.size) for file in self.files)
        return sha256(
            text + "".join(self.fingerprints[label].sha256 for label in _in_memory(self.plan))
        )


def versions() -> dict[str, str]:
    """Of what makes a result."""
    return {"jmerge": VERSION, "jax": jax.__version__, "jaxlib": jaxlib.version.__version__}


def overlap(out: Path, inputs: Sequence[str]) -> str:
    """`is` where a folder is one of the `inputs`, `holds` where one lies in it, else nothing."""
    if not out.exists():
        return ""
    for path in inputs:
        inside = Path(os.path.realpath(path))
        if any(out.samefile(folder) for folder in (inside, *inside.parents)):
            return "is" if out.samefile(inside) else "holds"
    return ""


def sha256(text: str) -> str:
    """The hash of a text."""
    return hashlib.sha256(text.encode()).hexdigest()


def platform_of(device: jax.Device) -> str:
    """Where the arithmetic runs: another may round otherwise."""
    return f"{platform.system()} {platform.machine()} {device.platform} {device.device_kind}"


def _in_memory(plan: Plan) -> dict[str, MemorySource]:
    """The models that are arrays in memory, by their paths in the plan."""
    found = plan.sources.items()
    return {path: source for path, source in found if isinstance(source, MemorySource)}


def _fingerprints(plan: Plan) -> dict[str, Fingerprint]:
    """The fingerprints of all input files by path, of arrays in memory by the model's name."""
    fingerprints: dict[str, Fingerprint] = {}
    held = _in_memory(plan)
    for model in plan.models:
        if (source := held.get(model.path)) is not None:
            size = sum(file.size for file in model.files)
            fingerprints[model.path] = Fingerprint(size, source.digest(), None)
            continue
        local = is_local(model.path)
        for file in model.files:
            path = str(Path(model.path, file.name)) if local else f"{model.path}/{file.name}"
            changed = _changed_at(Path(path)) if local else None
            fingerprints[path] = Fingerprint(file.size, file.header_sha256, changed)
    return fingerprints


def _changed_at(path: Path) -> int:
    """When a file was last written, in nanoseconds; CheckpointError when it is gone."""
    try:
        return path.stat().st_mtime_ns
    except OSError as error:
        reason = f"cannot be read: {error.strerror or error}"
        raise CheckpointError(Problem(reason, file=str(path), code="JM112")) from error


def _write_companions(
    folder: OutputFolder,
    plan: Plan,
    files: tuple[OutFile, ...],
    outcome: Outcome,
    identity: dict[str, Any],
) -> None:
    """Everything beside the weights: of each checkpoint the donor's files, config, index and card; recipe and ledger."""
    changes: dict[str, Sequence[Change]] = {}
    home = f"{plan.home}/" if plan.home else ""
    for output in plan.checkpoints:
        prefix = f"{output}/" if output else ""
        for file in plan.taken:
            if file.data is None:
                folder.copy_file(prefix + file.name, file.source, file.own)
            else:
                folder.write_file(prefix + file.name, file.data)
        for name, edits in plan.tokens.changes.items() if plan.tokens else ():
            changes[prefix + home + name] = edits
        config, made = dict(plan.config), plan.changes
        if plan.tied and not _equal(plan, outcome, *(prefix + name for name in plan.tied)):
            config, made = untied(plan)
        changes[f"{prefix}{home}config.json"] = made
        if config:
            write_config(folder, f"{prefix}{home}config.json", config)
        folder.write_text(f"{prefix}README.md", model_card(plan, output or folder.out.name))
    write_indexes(folder, plan.folders, files)
    table = plan.tokens.table() if plan.tokens else None
    if table is not None:
        folder.write_text(TOKENS, table)
    folder.write_text("mergekit_config.yml", plan.recipe)
    folder.write_text(LEDGER, ledger(plan, files, outcome, changes, identity, folder.sizes()))


def write_config(folder: OutputFolder, name: str, config: Mapping[str, Any]) -> None:
    """Write a config.json."""
    folder.write_text(name, json.dumps(config, indent=2, ensure_ascii=False) + "\n")


def write_indexes(
    folder: OutputFolder, places: Mapping[str, dict[str, TensorSpec]], files: Sequence[OutFile]
) -> None:
    """Write the index of the weight files in each of the places that has several.

    places: folder in the output -> its tensors.
    """
    for place, specs in places.items():
        parts = tuple(file for file in files if file.starts.keys() <= specs.keys())
        index = index_json(parts, specs, VERSION)
        if index is not None:
            prefix = f"{place}/" if place else ""
            text = json.dumps(index, indent=2) + "\n"
            folder.write_text(f"{prefix}model.safetensors.index.json", text)


def verify_written(folder: OutputFolder) -> tuple[Problem, ...]:
    """Look at what was written as anybody would who loads it, before it gets its name: headers and small files only.

    Returns:
      What does not fit together and may be so in the inputs.

    Raises:
      RunError: what was written is not what the run wrote.
    """
    strange = []
    for model in verify(LocalSource(folder.work)):
        place = folder.out / Path(model.label).relative_to(folder.work)
        source, modules = model.folder.source, model.folder.modules
        # as it was, whatever is in it
        taken_over = donor_files(source, modules, model.folder.files)
        for check in model.checks:
            found = []
            for each in check.problems:
                problem = Problem(each.message, each.tensor, str(place / each.file), code="JM607")
                if check.name in WRITTEN and (
                    check.name != READABLE or each.file not in taken_over
                ):
                    raise RunError(
                        f"{problem.text}; read-back does not match what was written; "
                        "the disk may be failing; run the same command again",
                        code="JM507",
                    )
                if check.name != MISSING:
                    found.append(problem)
            strange += found[:SHOWN]
            if len(found) > SHOWN:
                more = f"{len(found) - SHOWN} more like these; run: jmerge verify {folder.out}"
                strange.append(Problem(more, file=str(place), code="JM607"))
    return tuple(strange)


def _equal(plan: Plan, outcome: Outcome, first: str, second: str) -> bool:
    return (
        plan.outputs[first] == plan.outputs[second]
        and outcome.crc32[first] == outcome.crc32[second]
    )
