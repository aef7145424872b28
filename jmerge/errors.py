"""What can go wrong, by whose hand, and how it is said.

Every error that a user can cause is a `JmergeError` holding one or more `Problem`s: one line each, naming where,
what was expected and found, and what to do. Its `code` names the kind of mistake, which `problems` explains. The
command line prints them and exits with `exit_code`; anything that is not one of these classes is a bug and keeps
its traceback.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import NamedTuple

MAX_REPR = 60  # letters of a value of Python
MAX_SHOWN = 2000  # letters of a part of a message
# what no name holds, as it could not be shown or written
CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")


class Problem(NamedTuple):
    """One line for a person: `file:line: where: message [code]`, leaving out the parts that are empty."""

    message: str
    where: str = ""  # key path, tensor or flag
    file: str = ""
    line: int = 0  # 1-based; 0 when there is none
    code: str = ""  # of the kind of mistake, such as JM017; see `problems.CATALOGUE`

    def __str__(self) -> str:
        return f"{self.text} [{self.code}]" if self.code else self.text

    @property
    def text(self) -> str:
        """The line without its code."""
        place = f"{self.file}:{self.line}" if self.line else self.file
        return ": ".join(_shown(part) for part in (place, self.where, self.message) if part)


def _shown(text: str) -> str:
    """`text` as one line that a terminal does not obey, and of a length that can be read: it may quote a file."""
    if len(text) > MAX_SHOWN:
        text = f"{text[: MAX_SHOWN // 2]} ... {text[-MAX_SHOWN // 2 :]}"
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


class JmergeError(ValueError):
    """A mistake in a recipe, a model, a flag or a plan. No output was written.

    Attributes:
      problems: the mistakes, one line each; each has a `code` that `jmerge explain` explains.
      warnings: warnings that may explain the mistakes.
    """

    exit_code = 2

    def __init__(
        self, *problems: Problem | str, warnings: Iterable[Problem] = (), code: str = ""
    ) -> None:
        """code: of the problems that are given as text."""
        self.warnings = tuple(dict.fromkeys(warnings))  # which may explain the problems
        self.problems = tuple(
            sorted(
                (
                    problem if isinstance(problem, Problem) else Problem(problem, code=code)
                    for problem in problems
                ),
                key=lambda problem: (problem.file, problem.line),
            )
        )
        super().__init__("\n".join(map(str, self.problems)))


class RecipeError(JmergeError):
    """The text, keys or values of a recipe are wrong."""


class CheckpointError(JmergeError):
    """A model cannot be read, or its files contradict each other."""


class PlanError(JmergeError):
    """The recipe and the models do not fit together, or a flag does not fit the plan."""


class NonFiniteError(JmergeError):
    """An input holds NaN or infinity, or a result does not fit the output dtype."""


class RunError(RuntimeError):
    """The machine failed, not the recipe: the disk is full, the network is down, another process holds the lock. The same
    call can be repeated.
    """

    exit_code = 3

    def __init__(self, message: str, *, code: str = "") -> None:
        self.problems = (Problem(message, code=code),)
        super().__init__(str(self.problems[0]))


class CancelledError(RunError):
    """The event `cancel` was set. What was written is kept, and the same call continues."""


class InvalidValueError(ValueError):
    """What is wrong with one value, worded to follow its place, and the code of the kind of mistake."""

    def __init__(self, message: str, code: str) -> None:
        self.code = code
        super().__init__(message)


class PluginWarning(UserWarning):
    """A package that adds merge methods cannot be loaded."""


def wrong_type(name: str, expected: str, value: object) -> TypeError:
    """The error of an argument that is something else than expected."""
    text, kind = repr(value), type(value).__name__
    short = len(text) <= MAX_REPR and text.isprintable()
    return TypeError(
        f"{name}: expected {expected}, found {text if short else f'a value of type {kind}'}"
    )


def raise_all(
    kind: type[JmergeError], problems: Iterable[Problem], warnings: Iterable[Problem] = ()
) -> None:
    """Raise `kind` with every problem, without repeats, or return when there is none."""
    unique = tuple(dict.fromkeys(problems))
    if unique:
        raise kind(*unique, warnings=warnings)
