"""The commands of the command line, exit codes and one line a problem; its flags are in `options`."""

from __future__ import annotations

import contextlib
import os
import shlex
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from absl import flags

from jmerge.errors import JmergeError, PlanError, PluginWarning, Problem, RunError
from jmerge.interrupt import came, check, part
from jmerge.names import did_you_mean
from jmerge.options import (
    HELP,
    USAGE,
    define_flags,
    flag_help,
    in_flags,
    neighbour,
    parse_words,
    problem_in_flags,
)
from jmerge.report.terminal import columns, is_coloured, say, wrap
from jmerge.version import VERSION


def run(arguments: Sequence[str]) -> int:
    """Run the command that these arguments ask for, and return its exit code."""
    values = define_flags()
    try:
        with warnings.catch_warnings():
            warnings.showwarning = _show_warning
            words, notes = parse_words(values, list(arguments))
            if not values.quiet:
                for note in notes:
                    say(f"note: {note}")
            return _dispatch(words, values)
    except (JmergeError, RunError) as error:
        if came():  # and so it failed
            raise
        return _explain(error)
    except BrokenPipeError:
        _drop_output()
        return 0


def _show_warning(
    message: Warning | str, category: type[Warning], *place: Any, **rest: Any
) -> None:
    """Print what Python programs get as a warning: those of jmerge as a line like its others."""
    if issubclass(category, PluginWarning):
        say(f"warning: {message}")
    else:
        print(warnings.formatwarning(message, category, *place[:2]), end="", file=sys.stderr)


def _explain(error: JmergeError | RunError) -> int:
    """Print what is wrong, one line a problem, and return the exit code."""
    if isinstance(error, RunError):
        say(f"error: {in_flags(str(error))}")
        return error.exit_code
    for warning in error.warnings:  # errors are for everyone, and these may explain them
        say(f"warning: {warning}")
    for problem in error.problems:
        say(f"error: {problem_in_flags(problem)}")
    if len(error.problems) > 1:
        say(f"{len(error.problems)} errors; nothing was written")
    return error.exit_code


def _tell(text: str, *, data: bool = False) -> None:
    """Print all of what was found, wrapped on a terminal unless it is for programs (`data`); a reader who has read enough
    (`| head`) changes no exit code.

    Raises:
      RunError: it cannot be written, as on a full disk.
    """
    try:
        print(text if data else wrap(text, columns(sys.stdout)), flush=True)
    except BrokenPipeError:
        _drop_output()
    except OSError as error:
        _drop_output()
        raise RunError(f"standard output: {error.strerror or error}", code="JM501") from error


def _drop_output() -> None:
    """Leave to nobody what is still to be written."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _dispatch(words: list[str], values: flags.FlagValues) -> int:
    if values.version:
        _tell(f"jmerge {VERSION}")
        return 0
    if values.help and words and words[0] in HELP:
        _tell(HELP[words[0]])
        return 0
    if values.help or (not words and values.config is None and values.out is None):
        _tell(f"{USAGE}\n{flag_help(values)}")
        return 0 if values.help else 2
    commands: dict[str, Callable[[list[str], flags.FlagValues], int]] = {
        "plan": _plan,
        "inspect": _inspect,
        "verify": _verify,
        "diff": _diff,
        "methods": _methods,
        "schema": _schema,
        "explain": _explain_codes,
        "quickstart": _quickstart,
        "help": _help,
    }
    if words and words[0] in commands:
        return commands[words[0]](words[1:], values)
    if words and words[0] != "merge" and values.config is None and (hint := neighbour(words[0])):
        raise PlanError(Problem(f"is not a command{hint}", where=f"'{words[0]}'", code="JM401"))
    words = words[1:] if words[:1] == ["merge"] else words
    return (_plan if values.dry_run else _merge)(words, values)


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
                raise PlanError(Problem(f"is missing; write {usage}", f"--{name}", code="JM402"))
            value = words.pop(0)
        found.append(value)
    if words:
        raise PlanError(
            Problem(
                f"unexpected argument{did_you_mean(words[0], HELP)}",
                where=f"'{words[0]}'",
                code="JM401",
            )
        )
    return found


def _merge(words: list[str], values: flags.FlagValues) -> int:
    began = time.perf_counter()
    config, out = _paths(words, values, ("config", "out"))
    from jmerge.api.merge import merge
    from jmerge.engine.devices import make_cpu_devices
    from jmerge.report.plan import changes_text
    from jmerge.report.profile import Profile
    from jmerge.report.progress import Progress
    from jmerge.report.summary import closing_line, summary

    def announce(plan: Any) -> None:
        if not quiet:
            warn(plan)

    hosts = _meet(values)
    quiet = values.quiet or not hosts.first
    profile = None if values.profile is None else Profile(values.profile, out)
    with hosts, Progress(quiet=quiet) as progress, profile or contextlib.nullcontext():
        called = time.perf_counter()
        make_cpu_devices(values.devices)
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
    check()
    if quiet:
        return 0
    if merged.up_to_date:
        untold = "" if profile is None else f"; nothing was done that {profile.path} could tell"
        _tell(f"{out} is up to date: same recipe, same inputs{untold}")
        return 0
    for each in merged.strange:
        say(f"warning: {each}")
    if values.verbose:
        _tell("\n".join(changes_text(merged.plan)))
    _tell(closing_line(merged.plan, out, time.perf_counter() - began))
    if profile is not None:
        _tell(f"open {profile.path} in ui.perfetto.dev to see what every thread did when")
    if merged.timings is not None and (values.verbose or profile is not None):
        _tell(summary(merged.timings.begun_earlier(called - began)))
    return 0


def _meet(values: flags.FlagValues) -> Any:
    """The hosts that share the merge."""
    given = [
        n for n in ("coordinator", "num_processes", "process_id") if values[n].value is not None
    ]
    if given and not values.distributed:
        raise PlanError(
            Problem("does nothing without --distributed", where=f"--{given[0]}", code="JM408")
        )
    if not values.distributed:
        from jmerge.engine.hosts import Hosts

        return Hosts()
    from jmerge.engine.meeting import meet

    hosts = meet(values.coordinator, values.num_processes, values.process_id, _give_up)
    part(hosts.part)
    return hosts


def _give_up(reason: str) -> None:
    """End the process, of which some call does not return."""
    print(f"error: {RunError(reason, code='JM510')}", file=sys.stderr, flush=True)
    os._exit(RunError.exit_code)


def _plan(words: list[str], values: flags.FlagValues) -> int:
    if (
        values.out is None
    ):  # the word after the recipe is the folder, as for the merge; a plan makes none
        folder = 1 if values.config is None else 0
        words = words[:folder] + words[folder + 1 :]
    (config,) = _paths(words, values, ("config",), "jmerge plan")
    from jmerge.api.plan import plan as make_plan
    from jmerge.engine.memory import fit, need_of
    from jmerge.report.plan import plan_json, plan_text
    from jmerge.sizes import parse_size

    budget = None if values.memory is None else parse_size(values.memory, "memory")
    plan = make_plan(config, seed=values.seed)
    schedule = fit(plan, budget)
    need = need_of(schedule).total
    if values.json:
        _tell(plan_json(plan, schedule, need), data=True)
    else:
        _tell(plan_text(plan, schedule, need, every=values.all))
    if not values.quiet:
        warn(plan)
    return 0


def _inspect(words: list[str], values: flags.FlagValues) -> int:
    if len(words) != 1:
        raise PlanError(
            Problem("needs one model: jmerge inspect MODEL", where="inspect", code="JM402")
        )
    import json

    from jmerge.ckpt.open import open_checkpoint
    from jmerge.report.inspect import inspect_checkpoint, inspect_text

    found = inspect_checkpoint(open_checkpoint(words[0]))
    _tell(json.dumps(found, indent=1) if values.json else inspect_text(found), data=values.json)
    return 0


def _verify(words: list[str], values: flags.FlagValues) -> int:
    if len(words) != 1:
        raise PlanError(
            Problem("needs one folder: jmerge verify DIR", where="verify", code="JM402")
        )
    from jmerge.ckpt.find import find_source
    from jmerge.report.verify import verify_json, verify_text
    from jmerge.verify.checks import verify

    found = verify(find_source(words[0]), deep=values.deep)
    _tell(verify_json(found) if values.json else verify_text(found, sys.stdout), data=values.json)
    return 0 if all(each.fine for each in found) else 1


def _diff(words: list[str], values: flags.FlagValues) -> int:
    if len(words) != 2:
        raise PlanError(Problem("needs two models: jmerge diff A B", where="diff", code="JM402"))
    if values.html is not None:
        from jmerge.report.page import check_page

        check_page(values.html)
    from jmerge.ckpt.open import open_checkpoint
    from jmerge.diff.compare import compare
    from jmerge.report.diff import WIDE, diff_text
    from jmerge.report.diff_json import diff_json
    from jmerge.report.progress import Reading

    a, b = (open_checkpoint(word) for word in words)
    with Reading("comparing", quiet=values.quiet) as reading:
        found = compare(a, b, tell=reading)
    if values.html is not None:
        from jmerge.report.page import write_page

        write_page(found, values.html)
    text = diff_json(found) if values.json else diff_text(found, columns(sys.stdout) or WIDE)
    if values.html is not None and not values.json:
        text += f"\n\n{values.html} has charts of it"
    _tell(text, data=values.json)
    return 1 if found.problems else 0


def _methods(words: list[str], values: flags.FlagValues) -> int:
    from jmerge.report.methods import method_text, methods_text

    if not words:
        _tell(methods_text())
        return 0
    try:
        _tell("\n\n".join(method_text(word) for word in words))
    except ValueError as error:
        raise PlanError(Problem(str(error), where="methods", code="JM201")) from error
    return 0


def _schema(words: list[str], values: flags.FlagValues) -> int:
    import json

    from jmerge.report.schema import recipe_schema

    _tell(json.dumps(recipe_schema(), indent=1), data=True)
    return 0


def _quickstart(words: list[str], values: flags.FlagValues) -> int:
    if values.out is None and not words:
        words = ["jmerge-quickstart"]
    (out,) = _paths(words, values, ("out",), "jmerge quickstart")
    from jmerge.quickstart import MODELS, RECIPE, write_quickstart
    from jmerge.report.show import size

    written = write_quickstart(Path(out))
    if not values.quiet:
        recipe = RECIPE.as_posix()
        names = ", ".join(model.name for model in MODELS)
        _tell(f"wrote {recipe} and its models ({names}; {size(written)}) into {out}")
        _tell(f"next: cd {shlex.quote(out)} && jmerge {recipe} merged")
    return 0


def _help(words: list[str], values: flags.FlagValues) -> int:
    from jmerge.report.guides import WIDEST, guide, topics, topics_text

    if not words:
        _tell(topics_text())
        return 0
    color, width = is_coloured(sys.stdout), columns(sys.stdout) or WIDEST
    known = topics()
    try:
        texts = [
            HELP[word] if word in HELP and word not in known else guide(word, width, color=color)
            for word in words
        ]
    except ValueError as error:
        raise PlanError(Problem(str(error), where="help", code="JM416")) from error
    _tell("\n\n".join(texts))
    return 0


def _explain_codes(words: list[str], values: flags.FlagValues) -> int:
    import shutil

    from jmerge.problems import CATALOGUE, explain, list_codes, nearest_code, parse_code

    if not words:
        _tell(list_codes())
        return 0
    codes = [parse_code(word) for word in words]
    for word, code in zip(words, codes, strict=True):
        if code not in CATALOGUE:
            message = f"is not an error code; did you mean {nearest_code(word)}?"
            raise PlanError(Problem(message, where=f"'{word}'", code="JM415"))
    width = min(shutil.get_terminal_size().columns, 100)
    _tell("\n\n".join(explain(str(code), width) for code in codes))
    return 0


def warn(plan: Any) -> None:
    """Print the plan's warnings."""
    for warning in plan.warnings:
        say(f"warning: {warning}")
