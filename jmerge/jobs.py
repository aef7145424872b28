"""Whole jobs, from a recipe file to a published folder; what the command line and `jmerge.merge` call."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import shutil
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import CancelledError
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jaxlib.version

from jmerge import interrupt
from jmerge.arch.config import Change
from jmerge.arch.ties import find_ties
from jmerge.ckpt.disk import environment_errors
from jmerge.ckpt.donor import check_donor_files, donor_files
from jmerge.ckpt.find import find_source, is_remote
from jmerge.ckpt.guest import GuestFolder
from jmerge.ckpt.journal import Block
from jmerge.ckpt.leftover import INPUTS, PLATFORM, RECIPE, SEED, SHARD_SIZE, other_result
from jmerge.ckpt.open import Checkpoint, open_checkpoint
from jmerge.ckpt.remote import redacted
from jmerge.ckpt.shards import OutFile, index_json, plan_files
from jmerge.ckpt.source import LocalSource
from jmerge.ckpt.writer import LEDGER, OutputFolder
from jmerge.engine.attempts import run_within_memory
from jmerge.engine.channel import StoppedError
from jmerge.engine.devices import DeviceMemoryError, choose_devices
from jmerge.engine.events import Event, Listener, Nonfinite, Without
from jmerge.engine.hosts import Hosts, agree
from jmerge.engine.memory import fit
from jmerge.engine.run import Outcome
from jmerge.engine.together import Note, Share, put_together
from jmerge.errors import (
    CONTROL,
    CheckpointError,
    Fault,
    PlanError,
    RecipeError,
    RunError,
    raise_all,
)
from jmerge.names import nearest
from jmerge.plan.build import build_plan, infer_layouts, untied
from jmerge.plan.check import check_recipe
from jmerge.plan.files import carried_files
from jmerge.plan.models import check_models
from jmerge.plan.notes import Notes
from jmerge.plan.parameters import note_missing
from jmerge.plan.steps import Plan
from jmerge.plan.views import View
from jmerge.recipe.parse import examine_recipe, read_text
from jmerge.recipe.recipe import Recipe
from jmerge.recipe.refs import UNKNOWN, ModelRef
from jmerge.report.card import model_card
from jmerge.report.ledger import TOKENS, ledger
from jmerge.report.nonfinite import nonfinite_text, owners_text
from jmerge.sizes import parse_size
from jmerge.tracer import Span, Timings, Tracer
from jmerge.verify.checks import MISSING, READABLE, WRITTEN, verify
from jmerge.version import VERSION

SHOWN = 3  # faults of one kind that the end of a merge tells


@dataclass(frozen=True, kw_only=True)
class Merged:
    """What a merge made."""

    folder: Path
    plan: Plan
    up_to_date: bool  # it was there already, of the same recipe and inputs
    resumed_bytes: int | None  # kept of what an interrupted run wrote; None: there was no such run
    timings: Timings | None  # where the time went; None: it was there already
    strange: tuple[
        Fault, ...
    ] = ()  # what `verify` says of the folder, which may be so in the inputs, and NaN that was allowed


def plan_recipe(path: str | Path, *, seed: int = 0) -> Plan:
    """The plan of the recipe file `path`, with every fault of recipe and models found at once.

    Raises:
      RecipeError, CheckpointError, PlanError: what is wrong, one line a fault; no weight has been read.
    """
    recipe, faults = examine_recipe(read_text(path), str(path))
    if recipe is None:
        raise RecipeError(*dict.fromkeys(faults))
    notes = Notes(recipe)
    notes.faults += faults
    sound = check_recipe(recipe, notes) and not faults
    checkpoints = {}
    fill = recipe.tokenizer.token_models() if recipe.tokenizer else ()
    for ref in dict.fromkeys((*recipe.models(), *fill)):
        try:
            if ref != UNKNOWN:
                checkpoints[ref] = _open(recipe, ref)
        except CheckpointError as error:
            notes.faults += error.faults
            sound = False
    if not sound:
        note_missing(recipe, notes)
        _check_opened(recipe, checkpoints, notes)
        raise_all(RecipeError, notes.faults, notes.warnings)
    try:
        layouts = infer_layouts(checkpoints)
    except CheckpointError as error:
        raise CheckpointError(*error.faults, *notes.faults) from error
    tied = find_ties(checkpoints, {ref: layouts[ref] for ref in recipe.models()})
    plan = build_plan(recipe, checkpoints, layouts=layouts, tied=tied, seed=seed)
    carried = carried_files(plan)
    return replace(plan, taken=carried.taken, left=carried.left)


def _check_opened(recipe: Recipe, checkpoints: Mapping[ModelRef, Checkpoint], notes: Notes) -> None:
    """Note which models cannot be merged by any recipe, to be told with what else is wrong."""
    views = []
    for number, (ref, checkpoint) in enumerate(checkpoints.items()):
        try:
            layout = infer_layouts({ref: checkpoint})[ref]
        except CheckpointError as error:
            notes.faults += error.faults
            continue
        names = {(role.template, role.layer): name for name, role in layout.roles.items()}
        views.append(View(ref, number, checkpoint, layout, False, {}, names))
    if views:
        check_models(views, (), recipe, notes)


def merge(
    recipe: str | Path,
    out: str | Path,
    *,
    seed: int = 0,
    overwrite: bool = False,
    shard_size: int | str = "5GB",
    memory: int | str | None = None,
    devices: int | str | None = None,
    allow_nonfinite: bool = False,
    listeners: Sequence[Listener] = (),
    on_plan: Callable[[Plan], None] = lambda plan: None,
    on_span: Callable[[Span], None] | None = None,
    hosts: Hosts | None = None,
) -> Merged:
    """Carry out the recipe file `recipe` and publish the merged checkpoint as the folder `out`.

    Where an interrupted run of the same merge left its work, that is verified and gone on with.

    Args:
      recipe: a MergeKit-style YAML file.
      out: a folder that does not exist, is empty, or holds this very result.
      seed: of the random methods.
      overwrite: replace another result of jmerge in `out`.
      shard_size: most bytes of data in one weight file, a number or text such as `5GB`; 0 or less: no limit.
      memory: most bytes to allocate above what the process takes already, a number of at least 64 million or text such
        as `500MB`; None: no limit is set, and pieces have the length that is fastest.
      devices: which devices of this process share the work, see `engine.devices.choose_devices`.
      allow_nonfinite: go on when an input or a result holds NaN or infinity.
      listeners: called with every event of the run.
      on_plan: called with the plan before any weight is read.
      on_span: called with what every thread of the run did and waited for, by that thread; it must not raise.
      hosts: the processes that share the work, see `jmerge.engine.meeting.meet`, each of which makes the same call; all
        return once host 0 has published the folder. None: this one alone.

    Raises:
      RecipeError, CheckpointError, PlanError, NonFiniteError: the user's mistake; nothing is left behind.
      RunError: the machine's, or another host failed; the same command can be run again.
    """
    tracer = Tracer(on_span)
    hosts = hosts or Hosts()
    budget = None if memory is None else parse_size(memory, "--memory")

    def tell(event: Without) -> None:
        for listener in listeners:
            listener(event)

    platforms = choose_devices(devices, tell)
    plan = plan_recipe(recipe, seed=seed)
    most = parse_size(shard_size, "--shard_size")
    files = tuple(
        file for place, specs in plan.folders.items() for file in plan_files(specs, most, place)
    )
    versions = {
        "jmerge": VERSION,
        "jax": jax.__version__,
        "jaxlib": jaxlib.version.__version__,
    }
    identity = {**versions, "plan": _identity(plan, files)}
    stamps = _stamps(plan)
    on_plan(plan)
    place = Path(out)
    with environment_errors(place):
        _check_place(plan, place)
    facts = {
        **versions,
        PLATFORM: _platform(platforms[0][0]),
        SEED: seed,
        SHARD_SIZE: most,
        "--memory": budget,
        "--overwrite": overwrite,
        "--allow_nonfinite": allow_nonfinite,
        RECIPE: _sha256(plan.recipe),
        # not their times, which copies on the hosts' own disks do not share
        INPUTS: {name: stamp[:2] for name, stamp in stamps.items()},
        "plan": identity["plan"],  # last, as it differs whenever something else does
    }
    agree(hosts, facts)
    tainted: set[int] = set()  # models with NaN or infinity

    def hear(event: Event) -> None:
        if isinstance(event, Nonfinite):
            tainted.update(event.models)

    where = {tensor: file.name for file in files for tensor in file.starts}
    other = partial(other_result, recipe=plan.recipe, seed=seed, files=where, versions=versions)
    for chosen in platforms:
        run_facts = {
            RECIPE: facts[RECIPE],
            SEED: seed,
            SHARD_SIZE: most,
            INPUTS: stamps,
            PLATFORM: _platform(chosen[0]),
        }
        folder = OutputFolder(place, identity, overwrite, run_facts, tracer, other)
        if hosts.hear(hosts.first and folder.finished()):
            return Merged(
                folder=place, plan=plan, up_to_date=True, resumed_bytes=None, timings=None
            )
        with jax.default_device(chosen[0]):
            fit(plan, budget, len(chosen))  # refuses before anything is made
        strange: tuple[Fault, ...] = ()
        guest = None if hosts.first else GuestFolder(folder.work, hosts.number, tracer)
        try:
            with interrupt.Gently(hosts.moment), guest or folder, hosts.telling():
                found = folder.create(files) if hosts.first else []
                blocks = [Block(*each) for each in hosts.hear(found)]
                share = Share(files, hosts, folder, guest)
                note = Note(guest or folder, hosts, listeners)
                try:
                    written, kept = run_within_memory(
                        plan,
                        guest or folder,
                        chosen,
                        budget=budget,
                        blocks=blocks,
                        resumed=folder.resumed,
                        share=share,
                        listeners=(note, hear, *listeners),
                        allow_nonfinite=allow_nonfinite,
                        scratch=folder.work,
                        tracer=tracer,
                        alarm=hosts.alarm,
                    )
                except (StoppedError, CancelledError):
                    hosts.check()
                    raise
                _check_stamps(stamps)
                with tracer.span("publish"):
                    if guest is not None:
                        guest.finish()
                    made = hosts.gather(share.part_of(written), note.tell_of_others)
                    if hosts.first:
                        outcome = put_together(plan.outputs, made, written)
                        _write_companions(folder, plan, files, outcome, identity)
                        strange = _verify(folder)
                        for line in nonfinite_text(plan, outcome.nonfinite):
                            line += owners_text(plan, tainted)
                            strange = (*strange, Fault(line, file=str(place)))
                        hosts.check()
                        interrupt.check()
                        folder.publish()
                    hosts.hear()
            break
        except DeviceMemoryError:
            if chosen is platforms[-1] or hosts.count > 1:
                raise
            shutil.rmtree(folder.work)  # another platform rounds otherwise
    return Merged(
        folder=place,
        plan=plan,
        up_to_date=False,
        resumed_bytes=kept if folder.resumed else None,
        timings=tracer.timings(),
        strange=strange,
    )


def _open(recipe: Recipe, ref: ModelRef) -> Checkpoint:
    where = recipe.first_path(ref)
    try:
        source = find_source(ref.path, ref.revision)
    except CheckpointError as error:
        (fault,) = error.faults
        hint = (
            "" if ";" in fault.message else _where_else(recipe, Path(os.path.expanduser(ref.path)))
        )
        raise CheckpointError(
            recipe.fault(f"'{redacted(ref.path)}' {fault.message}{hint}", where)
        ) from error
    try:
        checkpoint = open_checkpoint(source)
        if ref == recipe.models()[0]:
            weights = [file.name for file in checkpoint.files]
            check_donor_files(source, checkpoint.modules, weights)
        return checkpoint
    except CheckpointError as error:
        raise CheckpointError(
            *(recipe.fault(str(fault), where) for fault in error.faults)
        ) from error


def _where_else(recipe: Recipe, path: Path) -> str:
    """A hint for a model that is not where the recipe says."""
    if "\\" in str(path) and os.path.isdir(slashed := str(path).replace("\\", "/")):
        return f"; paths on this system have forward slashes: '{slashed}'"
    if not path.is_absolute() and os.path.isdir(Path(recipe.file).parent / path):
        return f"; paths start at the working directory, and it is at {Path(recipe.file).parent / path}"
    if os.path.isdir(path.parent) and str(path.parent) != ".":
        best = nearest(path.name, [p.name for p in path.parent.iterdir() if p.is_dir()])
        if best:
            return f"; did you mean '{path.parent / best}'?"
    return ""


def _identity(plan: Plan, files: tuple[OutFile, ...]) -> str:
    """What makes two outputs the same: the plan, and how it is cut into files."""
    return _sha256(plan.sha256() + "".join(file.name + str(file.size) for file in files))


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _platform(device: jax.Device) -> str:
    """Where the arithmetic runs: another may round otherwise."""
    return f"{platform.system()} {platform.machine()} {device.platform} {device.device_kind}"


def _stamps(plan: Plan) -> dict[str, list[Any]]:
    """What is known of every input file without reading it again: size, hash of its header, time of its last change
    (of a remote file none: the engine asks what it is fetched from)."""
    stamps: dict[str, list[Any]] = {}
    for model in plan.models:
        remote = is_remote(model.path)
        for file in model.files:
            path = f"{model.path}/{file.name}" if remote else str(Path(model.path, file.name))
            changed = None if remote else _changed_at(Path(path))
            stamps[path] = [file.size, file.header_sha256, changed]
    return stamps


def _changed_at(path: Path) -> int:
    """When a file was last written, in nanoseconds; CheckpointError when it is gone."""
    try:
        return path.stat().st_mtime_ns
    except OSError as error:
        reason = f"cannot be read: {error.strerror or error}"
        raise CheckpointError(Fault(reason, file=str(path))) from error


def _check_stamps(stamps: Mapping[str, list[Any]]) -> None:
    """CheckpointError when an input file is not what it was when the merge began: half of the result would be of the
    old one. Size and time cost nothing to look at."""
    for name, (size, _, changed) in stamps.items():
        if changed is None:
            continue
        if _changed_at(Path(name)) != changed or os.path.getsize(name) != size:
            message = "was changed while it was being merged; merge again when it is complete"
            raise CheckpointError(Fault(message, file=name))


def _check_place(plan: Plan, out: Path) -> None:
    if CONTROL.search(str(out)):
        message = f"'{out}' is no name that can be written into files; choose another folder"
        raise PlanError(Fault(message, where="--out"))
    if not out.exists():
        return
    for model in plan.models:
        if is_remote(model.path):
            continue
        inside = Path(os.path.realpath(model.path))
        if any(out.samefile(folder) for folder in (inside, *inside.parents)):
            what = "is" if out.samefile(inside) else "holds"
            raise PlanError(
                Fault(f"{out} {what} an input of the recipe; choose another folder", where="--out")
            )


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
            text = json.dumps(config, indent=2, ensure_ascii=False) + "\n"
            folder.write_text(f"{prefix}{home}config.json", text)
        folder.write_text(f"{prefix}README.md", model_card(plan, output or folder.out.name))
    for place, specs in plan.folders.items():
        parts = tuple(file for file in files if file.starts.keys() <= specs.keys())
        index = index_json(parts, specs, VERSION)
        if index is not None:
            text = json.dumps(index, indent=2) + "\n"
            prefix = f"{place}/" if place else ""
            folder.write_text(f"{prefix}model.safetensors.index.json", text)
    table = plan.tokens.table() if plan.tokens else None
    if table is not None:
        folder.write_text(TOKENS, table)
    folder.write_text("mergekit_config.yml", plan.recipe)
    folder.write_text(LEDGER, ledger(plan, files, outcome, changes, identity, folder.sizes()))


def _verify(folder: OutputFolder) -> tuple[Fault, ...]:
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
            for each in check.faults:
                fault = Fault(each.message, each.tensor, str(place / each.file))
                if check.name in WRITTEN and (
                    check.name != READABLE or each.file not in taken_over
                ):
                    message = f"{fault}; it was written otherwise: is the disk sound?"
                    raise RunError(f"{message} Run the same command again")
                if check.name != MISSING:
                    found.append(fault)
            strange += found[:SHOWN]
            if len(found) > SHOWN:
                more = f"{len(found) - SHOWN} more like these; run: jmerge verify {folder.out}"
                strange.append(Fault(more, file=str(place)))
    return tuple(strange)


def _equal(plan: Plan, outcome: Outcome, first: str, second: str) -> bool:
    return (
        plan.outputs[first] == plan.outputs[second]
        and outcome.crc32[first] == outcome.crc32[second]
    )
