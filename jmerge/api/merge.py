"""`merge`: a recipe to a published folder, to arrays, or to any sink."""

from __future__ import annotations

import os
import shutil
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import CancelledError as PoolCancelledError
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar, overload

import jax

from jmerge import interrupt
from jmerge.api import arguments
from jmerge.api.cancel import Stop, check_cancel
from jmerge.api.plan import AnyRecipe
from jmerge.api.plan import plan as make_plan
from jmerge.api.publish import Publication
from jmerge.ckpt.journal import Block
from jmerge.ckpt.writer import OutputFolder
from jmerge.ckpt.written import GuestFolder
from jmerge.engine.attempts import run_within_memory
from jmerge.engine.devices import DeviceMemoryError, choose_devices
from jmerge.engine.events import Event, Listener, Nonfinite, Without
from jmerge.engine.hosts import Hosts, agree
from jmerge.engine.memory import fit
from jmerge.engine.run import Arrays, Sink
from jmerge.engine.threads import StoppedError
from jmerge.engine.together import Note, Share, put_together
from jmerge.errors import Problem
from jmerge.plan.steps import Plan
from jmerge.sizes import parse_size
from jmerge.tracer import Span, Timings, Tracer

AnySink = TypeVar("AnySink", bound=Sink)


@dataclass(frozen=True, kw_only=True)
class Merged:
    """The result of a merge into a folder."""

    folder: Path
    plan: Plan
    up_to_date: bool  # it was there already, of the same recipe and inputs
    resumed_bytes: int | None  # kept of what an interrupted run wrote; None: there was no such run
    timings: Timings | None  # where the time went; None: it was there already
    strange: tuple[
        Problem, ...
    ] = ()  # what `verify` says of the folder, which may be so in the inputs, and NaN that was allowed


@dataclass(frozen=True, kw_only=True)
class _Settings:
    """How a merge is to run."""

    budget: int | None
    platforms: list[list[jax.Device]]
    allow_nonfinite: bool
    listeners: tuple[Listener, ...]
    tracer: Tracer
    cancel: threading.Event | None
    goes_on: bool  # what is written stays when the merge ends early

    def check_cancel(self) -> None:
        """CancelledError where the caller has cancelled the merge."""
        check_cancel(self.cancel, goes_on=self.goes_on)


@overload
def merge(
    recipe: AnyRecipe,
    out: str | os.PathLike[str],
    *,
    seed: int = 0,
    overwrite: bool = False,
    shard_size: int | str = "5GB",
    memory: int | str | None = None,
    devices: int | str | None = None,
    allow_nonfinite: bool = False,
    cancel: threading.Event | None = None,
    listeners: Sequence[Listener] = (),
    on_plan: Callable[[Plan], None] | None = None,
    on_span: Callable[[Span], None] | None = None,
    hosts: Hosts | None = None,
) -> Merged: ...


@overload
def merge(
    recipe: AnyRecipe,
    out: None = None,
    *,
    seed: int = 0,
    memory: int | str | None = None,
    devices: int | str | None = None,
    allow_nonfinite: bool = False,
    cancel: threading.Event | None = None,
    listeners: Sequence[Listener] = (),
    on_plan: Callable[[Plan], None] | None = None,
    on_span: Callable[[Span], None] | None = None,
) -> Arrays: ...


@overload
def merge(
    recipe: AnyRecipe,
    out: AnySink,
    *,
    seed: int = 0,
    memory: int | str | None = None,
    devices: int | str | None = None,
    allow_nonfinite: bool = False,
    cancel: threading.Event | None = None,
    listeners: Sequence[Listener] = (),
    on_plan: Callable[[Plan], None] | None = None,
    on_span: Callable[[Span], None] | None = None,
) -> AnySink: ...


def merge(
    recipe: AnyRecipe,
    out: str | os.PathLike[str] | Sink | None = None,
    *,
    seed: int = 0,
    overwrite: bool = False,
    shard_size: int | str = "5GB",
    memory: int | str | None = None,
    devices: int | str | None = None,
    allow_nonfinite: bool = False,
    cancel: threading.Event | None = None,
    listeners: Sequence[Listener] = (),
    on_plan: Callable[[Plan], None] | None = None,
    on_span: Callable[[Span], None] | None = None,
    hosts: Hosts | None = None,
) -> Merged | Sink:
    """Merge models by a recipe, into a model folder or into memory.

    If an earlier merge into the same folder was interrupted or cancelled, its work is checked and continued.

    Args:
      recipe: the path of a YAML file, a dict as for `Recipe.from_dict` (whose models may be arrays), or a `Recipe`.
      out: a folder that does not exist, is empty, or holds this very result; None to return arrays; or an object with a
        method `write(tensor, start, data)`, which receives the bytes of each tensor from byte `start` on, in any order,
        from one thread.
      seed: the seed of random methods.
      overwrite: replace another result of jmerge in `out`.
      shard_size: maximum bytes of data in one weight file: a number, or text such as `5GB`; 0 or less: no limit.
      memory: maximum bytes to allocate, beyond what the process and the returned arrays use: a number of at least 64
        million, or text such as `500MB`. None: no limit, and the fastest piece length.
      devices: how many of this process's JAX devices share the work, or platforms in order of preference, such as
        `gpu,cpu`. None: all devices of JAX's default platform.
      allow_nonfinite: continue when an input or a result contains NaN or infinity.
      cancel: when any thread sets this event, the merge stops soon with a `CancelledError`.
      listeners: called with every event of the run, see `jmerge.advanced`.
      on_plan: called with the plan before any weight is read.
      on_span: called by each thread with what it did or waited for; must not raise.
      hosts: the processes that share the work, see `jmerge.engine.meeting.meet`. Each makes the same call, and all return
        once host 0 has published the folder. None: this process alone.

    Returns:
      `Merged` for a folder. For None, a mapping from name to NumPy array in the dtype of the result; bfloat16 and similar
      dtypes are those of ml_dtypes, and dtypes below one byte are returned as bytes. Otherwise `out`.

    Raises:
      RecipeError, CheckpointError, PlanError, NonFiniteError: the caller's mistake; nothing is left behind.
      RunError: this machine or another host failed; the same call can be repeated.
      CancelledError: `cancel` was set; the same call continues.
      TypeError: an argument has the wrong type.
    """
    _check_arguments(recipe, out, overwrite, shard_size, memory, devices, allow_nonfinite)
    arguments.check_cancel(cancel)
    arguments.check_callables(listeners=tuple(listeners), on_plan=on_plan, on_span=on_span)
    budget = None if memory is None else parse_size(memory, "memory")
    most = parse_size(shard_size, "shard_size")

    def tell(event: Without) -> None:
        for listener in listeners:
            listener(event)

    settings = _Settings(
        budget=budget,
        platforms=choose_devices(devices, tell),
        allow_nonfinite=allow_nonfinite,
        listeners=tuple(listeners),
        tracer=Tracer(on_span),
        cancel=cancel,
        goes_on=isinstance(out, str | os.PathLike),
    )
    settings.check_cancel()
    plan = make_plan(recipe, seed=seed)
    if out is None or not isinstance(out, str | os.PathLike):
        if on_plan is not None:
            on_plan(plan)
        return _into_sink(plan, Arrays(plan.outputs) if out is None else out, settings)
    publication = Publication(plan, Path(out), most)
    if on_plan is not None:
        on_plan(plan)
    publication.check_place()
    return _into_folder(publication, settings, overwrite, hosts or Hosts())


def _check_arguments(
    recipe: object,
    out: object,
    overwrite: object,
    shard_size: object,
    memory: object,
    devices: object,
    allow_nonfinite: object,
) -> None:
    """TypeError for an argument of the wrong type."""
    arguments.check_recipe(recipe)
    arguments.check_out(out)
    arguments.check_flag("overwrite", overwrite)
    arguments.check_size("shard_size", shard_size)
    arguments.check_size("memory", memory, optional=True)
    arguments.check_devices(devices)
    arguments.check_flag("allow_nonfinite", allow_nonfinite)


def _into_sink(plan: Plan, sink: Sink, settings: _Settings) -> Sink:
    """Hand every tensor to a sink; where one platform's memory runs out, the next starts over."""
    for chosen in settings.platforms:
        try:
            _run(plan, sink, chosen, settings, Hosts())
            break
        except DeviceMemoryError:
            if chosen is settings.platforms[-1]:
                raise
    settings.check_cancel()
    return sink


def _into_folder(
    publication: Publication, settings: _Settings, overwrite: bool, hosts: Hosts
) -> Merged:
    """Publish a folder; where one platform's memory runs out, the next starts over."""
    plan, place = publication.plan, publication.place
    flags = {
        "memory": settings.budget,
        "overwrite": overwrite,
        "allow_nonfinite": settings.allow_nonfinite,
    }
    agree(hosts, publication.shared_facts(settings.platforms[0][0], flags))
    for chosen in settings.platforms:
        folder = publication.folder(chosen[0], overwrite, settings.tracer)
        if hosts.hear(hosts.first and folder.finished()):
            return Merged(
                folder=place, plan=plan, up_to_date=True, resumed_bytes=None, timings=None
            )
        with jax.default_device(chosen[0]):
            fit(plan, settings.budget, len(chosen))  # refuses before anything is made
        try:
            strange, kept = _build(publication, folder, chosen, settings, hosts)
            break
        except DeviceMemoryError:
            if chosen is settings.platforms[-1] or hosts.count > 1:
                raise
            shutil.rmtree(folder.work)  # another platform rounds otherwise
    return Merged(
        folder=place,
        plan=plan,
        up_to_date=False,
        resumed_bytes=kept if folder.resumed else None,
        timings=settings.tracer.timings(),
        strange=strange,
    )


def _build(
    publication: Publication,
    folder: OutputFolder,
    chosen: list[jax.Device],
    settings: _Settings,
    hosts: Hosts,
) -> tuple[tuple[Problem, ...], int]:
    """Make the folder on these devices and publish it.

    Returns:
      What is strange about it, and how many bytes were kept of an interrupted run.
    """
    plan, tracer = publication.plan, settings.tracer
    tainted: set[int] = set()  # models with NaN or infinity

    def hear(event: Event) -> None:
        if isinstance(event, Nonfinite):
            tainted.update(event.models)

    guest = None if hosts.first else GuestFolder(folder.work, hosts.number, tracer)
    strange: tuple[Problem, ...] = ()
    with interrupt.Gently(hosts.moment), guest or folder, hosts.telling():
        found = folder.create(publication.files) if hosts.first else []
        blocks = [Block(*each) for each in hosts.hear(found)]
        share = Share(publication.files, hosts, folder, guest)
        note = Note(guest or folder, hosts, settings.listeners)
        written, kept = _run(
            plan,
            guest or folder,
            chosen,
            settings,
            hosts,
            blocks=blocks,
            resumed=folder.resumed,
            share=share,
            before=(note, hear),
            scratch=folder.work,
        )
        publication.check_inputs()
        with tracer.span("publish"):
            if guest is not None:
                guest.finish()
            made = hosts.gather(share.part_of(written), note.tell_of_others)
            if hosts.first:
                outcome = put_together(plan.outputs, made, written)
                strange = publication.finish(folder, outcome, tainted)
                hosts.check()
                interrupt.check()
                settings.check_cancel()
                folder.publish()
            hosts.hear()
    return strange, kept


def _run(
    plan: Plan,
    sink: Sink,
    chosen: list[jax.Device],
    settings: _Settings,
    hosts: Hosts,
    *,
    blocks: Sequence[Block] = (),
    resumed: bool = False,
    share: Share | None = None,
    before: tuple[Listener, ...] = (),
    scratch: Path | None = None,
) -> tuple[list[Block], int]:
    """The run itself, see `run_within_memory`; `before`: listeners that hear of everything first."""
    try:
        return run_within_memory(
            plan,
            sink,
            chosen,
            budget=settings.budget,
            blocks=blocks,
            resumed=resumed,
            share=share or (lambda schedule: schedule),
            listeners=(*before, *settings.listeners),
            allow_nonfinite=settings.allow_nonfinite,
            scratch=scratch,
            tracer=settings.tracer,
            alarm=lambda: Stop(hosts.alarm(), settings.cancel),
        )
    except (StoppedError, PoolCancelledError):
        settings.check_cancel()
        hosts.check()
        raise
