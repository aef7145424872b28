"""The command line: absl flags, sub-commands, exit codes and one line a fault.

Flags live in a private `FlagValues` made when the program runs, so that importing jmerge defines none.
"""

from __future__ import annotations

import contextlib
import io
import os
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

from absl import flags

from jmerge.errors import Fault, JmergeError, PlanError, RunError
from jmerge.names import did_you_mean
from jmerge.process import leave, prepare
from jmerge.version import VERSION

USAGE = """\
jmerge merges language model checkpoints by a recipe.

  jmerge --config RECIPE.yml --out FOLDER    merge
  jmerge RECIPE.yml FOLDER                   the same
  jmerge --distributed RECIPE.yml FOLDER     the same on every host of a group, which share the work
  jmerge plan RECIPE.yml [--json]            say what the merge would do, reading headers only
  jmerge inspect MODEL [--json]              show what a checkpoint is made of
  jmerge verify DIR [--deep] [--json]        check a model folder: files, names, shapes, tokens; --deep: every byte
  jmerge diff A B [--json] [--html FILE]     say what differs between two models: by tensor, part and layer
  jmerge methods [NAME]                      say what the merge methods do and take
  jmerge schema                              print the JSON schema of recipes, for editors

jmerge COMMAND --help says more about a command.
Exit codes: 0 done, 1 verify or diff found a fault, 2 a mistake in recipe, flags or models, 3 the machine failed, 130 interrupted.
After 3, 130 or a kill the same command goes on where it was.

Flags:"""

HELP = {
    "plan": """\
jmerge plan RECIPE.yml [--json] [--seed N]

Prints what the merge would do, without reading a weight: for every tensor of the output its dtype and shape, the
method, the sources (letters are explained below the table, the base stands in brackets) and the resolved numbers;
then the bytes to read and write, the most memory the run will allocate, how many kernels it compiles, what of the
inputs is not used and why, and warnings. --json prints the whole plan as one JSON object.""",
    "inspect": """\
jmerge inspect MODEL [--json]

MODEL is a folder, org/name or org/name@revision on the Hugging Face Hub, or a URL (hf://, https://, s3://, gs://).

Prints what a checkpoint is made of, as jmerge understands it from tensor names, shapes and config.json: stacks of
layers and the config keys that count them, embeddings, heads and whether they are tied, experts, modules, and
parameters and bytes by part and by dtype.""",
    "verify": """\
jmerge verify DIR [--deep] [--json]

DIR is a model folder, of jmerge or not; where models are named, a model of the Hub or a URL will do too.

Checks that files can be read and fit their headers, the index names every tensor at its file, no tensor or weight file
is there twice or left over, layers, shapes, dtypes and ties are as config.json says, and every token has a row; with
jmerge's ledger, that files and tensors are those of the run. --deep reads every byte: NaN and infinity, the ledger's
checksums, whether a tied head is the embedding. Exit code 0: no fault; 1: a fault. Every merge ends with the quick
checks.""",
    "diff": """\
jmerge diff A B [--json] [--html FILE]

A and B are model folders, org/name or org/name@revision on the Hugging Face Hub, or URLs.

Reads both once, in a few buffers, and says how B differs from A: for every tensor, for the parts of the model and for
its layers the norm of B - A over that of A, the cosine, the share of signs that agree and the largest change; then
tensors that only one has or that have two shapes, fields of config.json, files and tokens that differ. Tensors pair by
what they are, whatever prefix their names have. --json prints every tensor's numbers; --html makes a page of charts
that needs no network (pip install 'jmerge[report]').

Exit code 1: a tensor holds NaN or infinity, or the models have nothing that can be compared; that values differ is no
fault.""",
    "methods": """\
jmerge methods [NAME ...]

Lists the merge methods, or says all about some: what they do, the formula, what they merge, when to use them, the
paper, their parameters with defaults and ranges, and a short recipe. `jmerge methods wrap` is about what can be done
around a method: scaling the models' changes before it and the merged change after it.""",
    "schema": """\
jmerge schema

Prints the JSON schema of recipes. Editors complete and check a recipe whose first line names it:

  # yaml-language-server: $schema=recipe.schema.json""",
}

# MergeKit's spelling -> what to write here.
MERGEKIT_FLAGS = {
    "out-shard-size": "--shard_size",
    "random-seed": "--seed",
    "cuda": "--devices gpu, or nothing: jmerge uses the devices JAX finds",
    "device": "--devices gpu, or nothing: jmerge uses the devices JAX finds",
    "multi-gpu": "--devices gpu, or nothing: jmerge uses the devices JAX finds",
    "gpu-rich": "--devices gpu, or nothing: jmerge uses the devices JAX finds",
    "read-to-gpu": "--devices gpu, or nothing: jmerge uses the devices JAX finds",
    "low-cpu-memory": "--memory 500MB, or nothing: memory does not grow with the model",
    "lazy-unpickle": "nothing: weights are always read lazily",
    "lazy": "nothing: weights are always read lazily",
    "copy-tokenizer": "nothing: the tokenizer's files are always copied",
    "clone-tensors": "nothing: every tensor is written on its own",
    "async-write": "nothing: writing always overlaps",
    "write-threads": "nothing: writing always overlaps",
    "num-threads": "nothing: JAX uses all cores",
    "allow-crimes": "nothing: names and shapes decide what can be merged",
    "write-model-card": "nothing: the card is always written",
    "safe-serialization": "nothing: weights are always safetensors",
    "trust-remote-code": "nothing: no code of a model is ever run",
    "transformers-cache": "nothing: HF_HUB_CACHE names the folder of the cache",
    "lora-merge-dtype": "nothing: adapters cannot be applied yet",
    "lora-merge-cache": "a local folder in the recipe: adapters cannot be applied yet",
    "unsafe-truncate-embeddings": "nothing: no tensor is ever cut",
    "verbose": "nothing: everything worth knowing is in jmerge.lock.json",
}


def define_flags() -> flags.FlagValues:
    """The flags of the program, with their defaults."""
    values = flags.FlagValues()  # type: ignore[no-untyped-call]
    add: dict[str, Any] = {"flag_values": values}
    flags.DEFINE_string("config", None, "The recipe: a MergeKit-style YAML file.", **add)
    flags.DEFINE_string("out", None, "The folder to make.", **add)
    flags.DEFINE_integer("seed", 0, "Seed of the random methods; recorded in the result.", **add)
    flags.DEFINE_bool(
        "overwrite",
        False,
        "Replace another result of jmerge in --out, once the new one is whole.",
        **add,
    )
    flags.DEFINE_string(
        "shard_size",
        "5GB",
        "Most bytes of data in one file: 5GB, 2GiB, a number; 0: one file.",
        **add,
    )
    flags.DEFINE_string(
        "memory",
        None,
        "Most bytes to allocate above the process itself: 500MB, 2GiB, at least 64MB.",
        **add,
    )
    flags.DEFINE_string(
        "devices",
        None,
        "How many devices share the work, or platforms in order of preference: 8, gpu, gpu,cpu.",
        **add,
    )
    flags.DEFINE_bool(
        "allow_nonfinite", False, "Go on when an input or a result holds NaN or infinity.", **add
    )
    flags.DEFINE_string(
        "profile", None, "A file to make: what every thread did when, for ui.perfetto.dev.", **add
    )
    flags.DEFINE_bool(
        "distributed",
        False,
        "Share the merge with the same command on other hosts; JAX finds them on TPU VMs, Slurm, Open MPI.",
        **add,
    )
    flags.DEFINE_string(
        "coordinator", None, "--distributed elsewhere: HOST:PORT of process 0.", **add
    )
    flags.DEFINE_integer(
        "num_processes", None, "--distributed elsewhere: how many processes.", **add
    )
    flags.DEFINE_integer(
        "process_id", None, "--distributed elsewhere: which this is, from 0.", **add
    )
    flags.DEFINE_bool("quiet", False, "Print nothing but errors.", **add)
    flags.DEFINE_bool("json", False, "plan, inspect, verify, diff: print JSON.", **add)
    flags.DEFINE_string("html", None, "diff: a page to make.", **add)
    flags.DEFINE_bool("deep", False, "verify: read every byte.", **add)
    flags.DEFINE_bool("help", False, "Show this text.", short_name="h", **add)
    flags.DEFINE_bool("version", False, "Show the version.", **add)
    return values


def main(argv: Sequence[str] | None = None) -> int:
    """Run the program with these arguments (default: the process's) and return its exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    values = define_flags()
    try:
        return _dispatch(_parse(values, arguments), values)
    except JmergeError as error:
        for warning in error.warnings:  # errors are for everyone, and these may explain them
            print(f"warning: {warning}", file=sys.stderr)
        for fault in error.faults:
            print(f"error: {fault}", file=sys.stderr)
        if len(error.faults) > 1:
            print(f"{len(error.faults)} errors; nothing was written", file=sys.stderr)
        return error.exit_code
    except RunError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        hint = "" if HELP.keys() & set(arguments) else "; the same command goes on from here"
        print(f"interrupted{hint}", file=sys.stderr)
        return 130
    except BrokenPipeError:
        _drop_output()
        return 0


def program() -> None:
    """The console script."""
    prepare()
    if isinstance(sys.stdout, io.TextIOWrapper):  # as standard error does what it cannot encode
        sys.stdout.reconfigure(errors="backslashreplace")
    leave(main())


def _tell(text: str) -> None:
    """Print all of what was found; a reader who has read enough (`| head`) changes no exit code.

    Raises:
      RunError: it cannot be written, as on a full disk.
    """
    try:
        print(text, flush=True)
    except BrokenPipeError:
        _drop_output()
    except OSError as error:
        _drop_output()
        raise RunError(f"standard output: {error.strerror or error}") from error


def _drop_output() -> None:
    """Leave to nobody what is still to be written."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _parse(values: flags.FlagValues, arguments: list[str]) -> list[str]:
    """The words that are not flags."""
    for argument in arguments:
        name = argument.lstrip("-").partition("=")[0].removeprefix("no-")
        if argument.startswith("--") and name in MERGEKIT_FLAGS:
            raise PlanError(
                Fault(f"is MergeKit's; here write {MERGEKIT_FLAGS[name]}", where=f"--{name}")
            )
    try:
        return list(values(["jmerge", *arguments], known_only=False)[1:])
    except flags.UnrecognizedFlagError as error:
        hint = did_you_mean(error.flagname, [name for name in values if len(name) > 1], show=20)
        raise PlanError(Fault(f"is not a flag{hint}", where=f"--{error.flagname}")) from error
    except flags.Error as error:
        raise PlanError(str(error).replace("\n", " ")) from error


def _dispatch(words: list[str], values: flags.FlagValues) -> int:
    if values.version:
        print(f"jmerge {VERSION}")
        return 0
    if values.help and words and words[0] in HELP:
        print(HELP[words[0]])
        return 0
    if values.help or (not words and values.config is None and values.out is None):
        print(USAGE)
        print(_flag_help(values))
        return 0 if values.help else 2
    commands: dict[str, Callable[[list[str], flags.FlagValues], int]] = {
        "plan": _plan,
        "inspect": _inspect,
        "verify": _verify,
        "diff": _diff,
        "methods": _methods,
        "schema": _schema,
    }
    if words and words[0] in commands:
        return commands[words[0]](words[1:], values)
    return _merge(words, values)


def _flag_help(values: flags.FlagValues) -> str:
    lines = []
    for name in sorted(name for name in values if len(name) > 1):
        default = values[name].default
        shown = "" if default is None or default is False else f" (default: {default})"
        lines.append(f"  --{name:<16} {values[name].help}{shown}")
    return "\n".join(lines)


def _paths(
    words: list[str], values: flags.FlagValues, names: tuple[str, ...], command: str = "jmerge"
) -> list[str]:
    """The values of the path flags `names`, which may also be given as words, in that order."""
    words = list(words)
    found = []
    for name in names:
        value = getattr(values, name)
        if value is None:
            if not words:
                usage = " ".join([command, *(each.upper() for each in names)])
                raise PlanError(Fault(f"is missing; write {usage}", f"--{name}"))
            value = words.pop(0)
        found.append(value)
    if words:
        raise PlanError(
            Fault(f"is one word too many{did_you_mean(words[0], HELP)}", where=f"'{words[0]}'")
        )
    return found


def _merge(words: list[str], values: flags.FlagValues) -> int:
    began = time.perf_counter()
    config, out = _paths(words, values, ("config", "out"))
    from jmerge.jobs import merge
    from jmerge.report.profile import Profile
    from jmerge.report.progress import Progress
    from jmerge.report.show import size
    from jmerge.report.summary import summary

    def announce(plan: Any) -> None:
        if not quiet:
            warn(plan)

    hosts = _meet(values)
    quiet = values.quiet or not hosts.first
    profile = None if values.profile is None else Profile(values.profile, out)
    with hosts, Progress(quiet=quiet) as progress, profile or contextlib.nullcontext():
        called = time.perf_counter()
        merged = merge(
            config,
            out,
            seed=values.seed,
            overwrite=values.overwrite,
            shard_size=values.shard_size,
            memory=values.memory,
            devices=values.devices,
            allow_nonfinite=values.allow_nonfinite,
            listeners=(progress,),
            on_plan=announce,
            on_span=profile,
            hosts=hosts,
        )
    if quiet:
        return 0
    if merged.up_to_date:
        untold = "" if profile is None else f"; nothing was done that {profile.path} could tell"
        print(f"{out} is up to date: same recipe, same inputs{untold}")
        return 0
    for each in merged.strange:
        print(f"warning: {each}", file=sys.stderr)
    plan = merged.plan
    print(
        f"merged {len(plan.outputs)} tensors ({size(plan.write_bytes)}) by {plan.method} into {out}"
    )
    for line in plan.tokens.summary if plan.tokens else ():
        print(line)
    print(f"every tensor's origin is in {os.path.join(out, 'jmerge.lock.json')}")
    if plan.changes:
        print(f"changed in config.json: {', '.join(change.key for change in plan.changes)}")
    for output in plan.checkpoints:
        folder = os.path.join(out, output) if output else str(out)
        loads = f"from_pretrained({folder!r}) in transformers"
        if plan.modules:
            loads = f"SentenceTransformer({folder!r})"
        print(f"next: jmerge inspect {folder}, or {loads}")
    if profile is not None:
        print(f"open {profile.path} in ui.perfetto.dev to see what every thread did when")
    if merged.timings is not None:
        print(summary(merged.timings.begun_earlier(called - began)))
    return 0


def _meet(values: flags.FlagValues) -> Any:
    """The hosts that share the merge."""
    given = [
        n for n in ("coordinator", "num_processes", "process_id") if values[n].value is not None
    ]
    if given and not values.distributed:
        raise PlanError(Fault("does nothing without --distributed", where=f"--{given[0]}"))
    if not values.distributed:
        from jmerge.engine.hosts import Hosts

        return Hosts()
    from jmerge.engine.meeting import meet

    return meet(values.coordinator, values.num_processes, values.process_id, _give_up)


def _give_up(reason: str) -> None:
    """End the process, of which some call does not return."""
    print(f"error: {reason}", file=sys.stderr, flush=True)
    os._exit(RunError.exit_code)


def _plan(words: list[str], values: flags.FlagValues) -> int:
    (config,) = _paths(words, values, ("config",), "jmerge plan")
    from jmerge.engine.memory import fit, need_of
    from jmerge.jobs import plan_recipe
    from jmerge.report.show import plan_json, plan_text
    from jmerge.sizes import parse_size

    budget = None if values.memory is None else parse_size(values.memory, "--memory")
    plan = plan_recipe(config, seed=values.seed)
    schedule = fit(plan, budget)
    need = need_of(schedule).total
    _tell((plan_json if values.json else plan_text)(plan, schedule, need))
    if not values.quiet:
        warn(plan)
    return 0


def _inspect(words: list[str], values: flags.FlagValues) -> int:
    if len(words) != 1:
        raise PlanError(Fault("needs one model: jmerge inspect MODEL", where="inspect"))
    import json

    from jmerge.ckpt.open import open_checkpoint
    from jmerge.report.inspect import inspect_checkpoint, inspect_text

    found = inspect_checkpoint(open_checkpoint(words[0]))
    _tell(json.dumps(found, indent=1) if values.json else inspect_text(found))
    return 0


def _verify(words: list[str], values: flags.FlagValues) -> int:
    if len(words) != 1:
        raise PlanError(Fault("needs one folder: jmerge verify DIR", where="verify"))
    from jmerge.ckpt.find import find_source
    from jmerge.report.verify import verify_json, verify_text
    from jmerge.verify.checks import verify

    found = verify(find_source(words[0]), deep=values.deep)
    _tell((verify_json if values.json else verify_text)(found))
    return 0 if all(each.fine for each in found) else 1


def _diff(words: list[str], values: flags.FlagValues) -> int:
    if len(words) != 2:
        raise PlanError(Fault("needs two models: jmerge diff A B", where="diff"))
    if values.html is not None:
        from jmerge.report.page import check_page

        check_page(values.html)
    from jmerge.ckpt.open import open_checkpoint
    from jmerge.diff.compare import compare
    from jmerge.report.diff import diff_text, terminal_width
    from jmerge.report.diff_json import diff_json
    from jmerge.report.progress import Reading

    a, b = (open_checkpoint(word) for word in words)
    with Reading("comparing", quiet=values.quiet) as reading:
        found = compare(a, b, tell=reading)
    if values.html is not None:
        from jmerge.report.page import write_page

        write_page(found, values.html)
    text = diff_json(found) if values.json else diff_text(found, terminal_width())
    if values.html is not None and not values.json:
        text += f"\n\n{values.html} has charts of it"
    _tell(text)
    return 1 if found.faults else 0


def _methods(words: list[str], values: flags.FlagValues) -> int:
    from jmerge.report.methods import method_text, methods_text

    if not words:
        _tell(methods_text())
        return 0
    try:
        _tell("\n\n".join(method_text(word) for word in words))
    except ValueError as error:
        raise PlanError(Fault(str(error), where="methods")) from error
    return 0


def _schema(words: list[str], values: flags.FlagValues) -> int:
    import json

    from jmerge.report.schema import recipe_schema

    _tell(json.dumps(recipe_schema(), indent=1))
    return 0


def warn(plan: Any) -> None:
    """Print the plan's warnings."""
    for warning in plan.warnings:
        print(f"warning: {warning}", file=sys.stderr)
