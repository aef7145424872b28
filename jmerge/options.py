"""What the command line accepts: its flags, their help, and what MergeKit's spellings are called here.

Flags live in a private `FlagValues` made when the program runs, so that importing jmerge defines none.
"""

from __future__ import annotations

import os
import re
from typing import Any

from absl import flags

from jmerge.errors import PlanError, Problem, raise_all
from jmerge.names import did_you_mean
from jmerge.sizes import parse_size

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
  jmerge explain [CODE]                      explain the code at the end of an error or warning, such as JM017
  jmerge quickstart [FOLDER]                 write a first recipe and its three small models into a folder
  jmerge help [TOPIC]                        list the guides, or print one

jmerge COMMAND --help says more about a command.
Exit codes: 0 done, 1 verify or diff found a problem, 2 a mistake in recipe, flags or models, 3 the machine failed, 130 interrupted.
After 3, 130 or a kill the same command continues where it stopped.

Flags:"""

HELP = {
    "plan": """\
jmerge plan RECIPE.yml [--all] [--json] [--seed N]

Prints what the merge would do, without reading a weight: the bytes to read and write, the most memory the run will
allocate, the short names of the models, what changes in config.json, and what is not taken of the inputs and why; then
how the tensors are made: method, sources (the base in brackets), parameters, and below these the names, dtypes and
shapes. Tensors that differ only in the number of their layer or expert share a line; --all gives each its own.
--json prints the whole plan as one JSON object.""",
    "inspect": """\
jmerge inspect MODEL [--json]

MODEL is a folder, org/name or org/name@revision on the Hugging Face Hub, or a URL (hf://, https://, s3://, gs://).

Prints what a checkpoint is made of, as jmerge understands it from tensor names, shapes and config.json: stacks of
layers and the config keys that count them, embeddings, heads and whether they are tied, experts, modules, and
parameters and bytes by part and by dtype.""",
    "verify": """\
jmerge verify DIR [--deep] [--json]

DIR is a model folder, of jmerge or not; where models are named, a model of the Hub or a URL will do too.

Checks that files can be read and fit their headers, that the index names the right file for every tensor, that no tensor
or weight file is duplicated or left over, that layers, shapes, dtypes and ties match config.json, and that every token
has a row; with jmerge.lock.json, that files and tensors are those of the run. --deep reads every byte: NaN and infinity,
checksums, whether a tied head equals the embedding. A check that has nothing to look at is `skipped`. Exit code 0: no
problem; 1: a problem. Every merge ends with the quick checks.""",
    "diff": """\
jmerge diff A B [--json] [--html FILE]

A and B are model folders, org/name or org/name@revision on the Hugging Face Hub, or URLs.

Reads both once, in a few buffers, and says how B differs from A: for every tensor, for the parts of the model and for
its layers the norm of B - A over that of A, the cosine, the share of signs that agree and the largest change; then
tensors that only one has or that have two shapes, fields of config.json, files and tokens that differ. Tensors pair by
what they are, whatever prefix their names have. --json prints every tensor's numbers; --html makes a page of charts
that needs no network.

Exit code 1: a tensor holds NaN or infinity, or the models have nothing that can be compared; differing values are not a
problem.""",
    "methods": """\
jmerge methods [NAME ...]

Lists the merge methods, or says all about some: what they do, the formula, what they merge, when to use them, the
paper, their parameters with defaults and ranges, and a short recipe. `jmerge methods wrap` is about what can be done
around a method: scaling the models' changes before it and the merged change after it.""",
    "schema": """\
jmerge schema

Prints the JSON schema of recipes. Editors complete and check a recipe whose first line names it:

  # yaml-language-server: $schema=recipe.schema.json""",
    "explain": """\
jmerge explain [CODE ...]

Errors and warnings end with a code, such as [JM017]. Explains what the code means, why it happens and what to do.
Lists all codes when none is given. CODE may be written JM017, jm17 or 17.""",
    "quickstart": """\
jmerge quickstart [FOLDER]

Writes the recipe of a first merge and the three small trained models that it merges into FOLDER (default:
jmerge-quickstart), and prints the command that merges them. FOLDER must be empty or new.""",
    "help": """\
jmerge help [TOPIC ...]

Lists the guides that come with jmerge, or prints some of them. For a command without a guide, prints its help.""",
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
}

# Those of them, all without a value, that change no result: a note says what is written here, and the merge goes on.
# `--no-...` of the same asks for another result, and stays an error.
HARMLESS = frozenset(
    {"cuda", "multi-gpu", "gpu-rich", "read-to-gpu", "low-cpu-memory", "lazy-unpickle", "lazy"}
    | {"copy-tokenizer", "clone-tensors", "async-write", "write-model-card", "safe-serialization"}
)

# Flags that only some commands read; `merge` stands for merging.
READERS = {
    "json": ("plan", "inspect", "verify", "diff"),
    "html": ("diff",),
    "all": ("plan",),
    "deep": ("verify",),
}
SMALLEST_SHARD = 1000  # bytes; less is a number whose unit was forgotten


# Flags that the library has as arguments, which its errors are about.
ARGUMENTS = ("out", "seed", "overwrite", "shard_size", "memory", "devices", "allow_nonfinite")
GIVEN = re.compile(rf"\b({'|'.join(ARGUMENTS)})=(?:True\b|'([^']*)'|([\w.]+))?")


def in_flags(text: str) -> str:
    """What the library says of its arguments, such as `overwrite=True`, in the words of the command: `--overwrite`."""

    def flag(found: re.Match[str]) -> str:
        name, *values = found.groups()
        return f"--{name}" + "".join(f" {value}" for value in values if value)

    return GIVEN.sub(flag, text)


def problem_in_flags(problem: Problem) -> Problem:
    """A problem in the words of the command, its place too where that is an argument."""
    named = not problem.file and problem.where in ARGUMENTS
    where = f"--{problem.where}" if named else problem.where
    return problem._replace(message=in_flags(problem.message), where=where)


def define_flags() -> flags.FlagValues:
    """The flags of the program, with their defaults."""
    values = flags.FlagValues()  # type: ignore[no-untyped-call]
    add: dict[str, Any] = {"flag_values": values}
    flags.DEFINE_string("config", None, "The recipe: a MergeKit-style YAML file.", **add)
    flags.DEFINE_string("out", None, "The folder to make.", short_name="o", **add)
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
        "allow_nonfinite", False, "Continue when an input or a result holds NaN or infinity.", **add
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
    flags.DEFINE_bool("dry_run", False, "Print the plan, as `jmerge plan` does.", **add)
    flags.DEFINE_bool("all", False, "plan: a line for every tensor.", **add)
    flags.DEFINE_bool(
        "verbose", False, "Say also what changed and where the time went.", short_name="v", **add
    )
    flags.DEFINE_bool("json", False, "plan, inspect, verify, diff: print JSON.", **add)
    flags.DEFINE_string("html", None, "diff: a page to make.", **add)
    flags.DEFINE_bool("deep", False, "verify: read every byte.", **add)
    flags.DEFINE_bool("help", False, "Show this text.", short_name="h", **add)
    flags.DEFINE_bool("version", False, "Show the version.", **add)
    return values


def parse_words(values: flags.FlagValues, arguments: list[str]) -> tuple[list[str], list[str]]:
    """The words that are not flags, whose `values` are set, and notes about flags that do nothing here.

    Raises:
      PlanError: flags that are none, or not of ours, or whose values are none; all of them at once.
    """
    problems = []
    notes = []
    rest = []
    for argument in arguments:
        spelt = argument[2:].replace("_", "-")
        if argument.startswith("--") and spelt in HARMLESS:
            notes.append(f"--{spelt} is MergeKit's; here write {MERGEKIT_FLAGS[spelt]}")
            continue
        name = argument.lstrip("-").partition("=")[0].removeprefix("no-")
        if argument.startswith("--") and name in MERGEKIT_FLAGS:
            message = f"is MergeKit's; here write {MERGEKIT_FLAGS[name]}"
            problems.append(Problem(message, where=f"--{name}", code="JM404"))
        else:
            rest.append(_underscored(argument, values))
    while True:  # each round takes one flag that is wrong out, as absl tells the first only
        try:
            words = list(values(["jmerge", *rest], known_only=False)[1:])
            break
        except flags.UnrecognizedFlagError as error:
            hint = did_you_mean(error.flagname, [name for name in values if len(name) > 1], show=20)
            problems.append(
                Problem(f"unknown flag{hint}", where=f"--{error.flagname}", code="JM403")
            )
            left = _without(error.flagname, None, rest)
        except flags.IllegalFlagValueError as error:
            name, given = _told(str(error))
            whole = values[name].flag_type() == "int"
            wanted = "a whole number" if whole else "true or false"
            problems.append(
                Problem(f"expected {wanted}, found '{given}'", where=f"--{name}", code="JM405")
            )
            left = _without(name, given, rest)
        except flags.Error as error:
            raise PlanError(*problems, str(error).replace("\n", " "), code="JM405") from error
        if len(left) == len(rest):
            raise PlanError(*problems)
        rest = left
    for name in ("memory", "shard_size"):
        if (size := values[name].value) is not None:
            try:
                nbytes = parse_size(size, f"--{name}")
                if name == "shard_size" and 0 < nbytes < SMALLEST_SHARD:
                    message = f"{nbytes} bytes is too small; did you mean {nbytes}GB?"
                    problems.append(Problem(message, where=f"--{name}", code="JM405"))
            except PlanError as error:
                problems += error.problems
    command = "plan" if values.dry_run else words[0] if words and words[0] in HELP else "merge"
    misspelt = words and command == "merge" and neighbour(words[0])
    works = (words or values.config is not None) and not misspelt
    for name, commands in READERS.items():
        asked = values[name].value not in (None, False)
        if asked and works and command not in commands:
            message = f"does nothing here; it belongs to {', '.join(commands)}"
            problems.append(Problem(message, where=f"--{name}", code="JM417"))
    raise_all(PlanError, problems)
    return words, notes


def neighbour(word: str) -> str:
    """The command that a misspelt one is near to, as the end of a message; empty for a file and what is near to none."""
    hint = did_you_mean(word, [*HELP, "merge"])
    return hint if "did you mean" in hint and not os.path.exists(word) else ""


def _underscored(argument: str, values: flags.FlagValues) -> str:
    """The argument, with the underscores of our flag where hyphens were written."""
    name, equals, value = argument.removeprefix("--").partition("=")
    known = argument.startswith("--") and name.replace("-", "_") in values
    return f"--{name.replace('-', '_')}{equals}{value}" if known else argument


def _told(message: str) -> tuple[str, str]:
    """The flag and the value that a message of absl is about."""
    found = re.match(r"flag --(\w+)=(.*?): ", message, re.DOTALL)
    return (found[1], found[2]) if found else ("", "")


def _without(name: str, value: str | None, arguments: list[str]) -> list[str]:
    """The arguments without the first that is this flag, and without its value where that stands behind it."""
    for i, argument in enumerate(arguments):
        if argument.startswith("-") and argument.lstrip("-").partition("=")[0] == name:
            apart = value is not None and arguments[i + 1 : i + 2] == [value]
            return [*arguments[:i], *arguments[i + 1 + apart :]]
    return arguments


def flag_help(values: flags.FlagValues) -> str:
    """A line for every flag."""
    lines = []
    for name in sorted(name for name in values if len(name) > 1):
        default = values[name].default
        shown = "" if default is None or default is False else f" (default: {default})"
        lines.append(f"  --{name:<16} {values[name].help}{shown}")
    return "\n".join(lines)
