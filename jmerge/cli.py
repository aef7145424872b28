"""The program: what runs before anything is imported that takes time. Its commands are in `commands`."""

from __future__ import annotations

import sys

from jmerge import interrupt

# Those besides merging; `options.HELP` says more about each.
COMMANDS = (
    "plan",
    "inspect",
    "verify",
    "diff",
    "methods",
    "schema",
    "explain",
    "quickstart",
    "help",
)


def program() -> None:
    """The console script."""
    interrupt.watch(interrupted(sys.argv[1:]))
    from jmerge.process import leave, prepare

    prepare()
    leave(main())


def main(argv: list[str] | None = None) -> int:
    """Run the program with these arguments (default: the process's) and return its exit code."""
    arguments = sys.argv[1:] if argv is None else list(argv)
    try:
        from jmerge.commands import run

        return run(arguments)
    except BaseException as error:
        if not isinstance(error, KeyboardInterrupt) and not interrupt.came():
            raise
        interrupt.say(interrupted(arguments))
        return interrupt.CODE


def interrupted(arguments: list[str]) -> str:
    """What to say when the program with these arguments is interrupted."""
    goes_on = not set(COMMANDS).intersection(arguments)
    return "interrupted" + ("; the same command continues from here" if goes_on else "")
