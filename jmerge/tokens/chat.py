"""The chat template of the output: which one, and whether it compiles and ends."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Sequence
from typing import Any, NamedTuple

from jmerge.errors import Problem, RecipeError, RunError
from jmerge.recipe.recipe import Recipe
from jmerge.tokens import trial
from jmerge.tokens.templates import BUILT_IN

PATH = ("chat_template",)
SHORT = 20  # characters; MergeKit refuses shorter templates
PATIENCE = 10.0  # seconds that rendering a few words may take
MOST = 1_000_000  # characters that it may make of them
ANSWER = "Hello"  # of the assistant, to a greeting
# EOS is what no template writes by itself, so that what a template writes as eos_token can be told from it.
BOS, EOS = "<s>", "<jmerge eos>"
MARK = re.compile(r"<\|[^|<>\s]+\|>")


class Chosen(NamedTuple):
    """What a recipe makes of the chat template."""

    template: str | None  # None: the tokenizer keeps its own
    reason: str  # in a few words, such as `auto: of 2 models`
    notes: tuple[Problem, ...]
    marks: tuple[str, ...] = ()  # that it writes and that look like tokens, such as <|im_start|>
    after: str = ""  # what it writes after an answer; empty when it wrote none


def choose_template(recipe: Recipe, templates: Sequence[str | None]) -> Chosen:
    """The chat template that the recipe asks for, checked.

    Args:
      templates: those of the recipe's models, in the order of `recipe.models()`, the base first; None: it has none.

    Raises:
      RecipeError: it does not compile, renders no dialogue, or does not end.
      RunError: the system starts no process to try it in.
    """
    asked = recipe.chat_template
    if asked is None:
        return Chosen(None, "as it is", ())
    if asked == "auto":
        found, reason = most_frequent(templates)
        if found is None:
            note = recipe.problem(
                "no model has a chat template, so the output has none", PATH, code="JM313"
            )
            return Chosen(None, "auto: no model has one", (note,))
    else:
        found = BUILT_IN.get(asked, asked)
        reason = f"the built-in {asked}" if asked in BUILT_IN else "the text in the recipe"
    try:
        text = try_template(found)
    except ValueError as error:
        raise RecipeError(
            recipe.problem(f"the chat template ({reason}) {error}", PATH, code="JM314")
        ) from error
    notes = []
    if len(found) < SHORT:
        message = f"'{found}' is very short for a chat template; MergeKit refuses it"
        notes.append(recipe.problem(" ".join(message.split()), PATH, code="JM314"))
    _, answered, after = text.rpartition(ANSWER)
    return Chosen(
        found,
        reason,
        tuple(notes),
        tuple(dict.fromkeys(MARK.findall(text))),
        after if answered else "",
    )


def most_frequent(templates: Sequence[str | None]) -> tuple[str | None, str]:
    """The template that most models have, white space around it aside, and why it is that one.

    It is given as the first of them has it, so that a model that keeps its own keeps its files. Of several equally frequent ones that of the first model, else the first in order.
    """
    counts: dict[str, int] = {}
    texts: dict[str, str] = {}  # as the first model with it has it
    for template in templates:
        if template is not None and (bare := template.strip()):
            counts[bare] = counts.get(bare, 0) + 1
            texts.setdefault(bare, template)
    if not counts:
        return None, "auto"
    most = max(counts.values())
    best = [bare for bare, count in counts.items() if count == most]
    first = (templates[0] or "").strip()
    chosen = texts[first if first in best else best[0]]
    shown = "1 model" if most == 1 else f"{most} models"
    return chosen, f"auto: of {shown}"


def dialogues() -> list[dict[str, Any]]:
    """What a template is tried with, until one is rendered: some take no system text, some only lists of parts."""
    user, answer = {"role": "user", "content": "Hi"}, {"role": "assistant", "content": ANSWER}
    system = {"role": "system", "content": "Be kind"}
    parts = {"role": "user", "content": [{"type": "text", "text": "Hi"}]}
    talks = [[user, answer, user], [system, user, answer, user], [user], [parts]]
    return [
        {
            "messages": talk,
            "add_generation_prompt": True,
            "bos_token": BOS,
            "eos_token": EOS,
            "unk_token": "<unk>",
            "pad_token": "<pad>",
            "tools": None,
            "documents": None,
        }
        for talk in talks
    ]


def try_template(template: str, patience: float = PATIENCE) -> str:
    """What a template makes of a dialogue.

    Raises:
      ValueError: it renders none, or not in good time; the message is the tail of one.
      RunError: the system starts no process to try it in.
    """
    task = json.dumps(
        {"template": template, "dialogues": dialogues(), "most": MOST, "parent": os.getpid()}
    )
    # jinja2 is found where this process finds it; -P: the program's own folder is no place to import from
    places = {"PYTHONPATH": os.pathsep.join(place for place in sys.path if place)}
    try:
        done = subprocess.run(
            [sys.executable, "-P", trial.__file__],
            input=task.encode("utf-8"),
            capture_output=True,
            timeout=patience,
            env={**os.environ, **places},
        )
    except subprocess.TimeoutExpired:
        message = f"does not end: rendering a short dialogue took more than {patience:g} seconds"
        raise ValueError(message) from None
    except OSError as error:
        message = f"cannot start a process to try the chat template: {error.strerror or error}"
        raise RunError(message, code="JM501") from error
    try:
        answer = json.loads(done.stdout)
    except ValueError:
        last = done.stderr.decode("utf-8", "replace").strip().splitlines()[-1:]
        why = last[0] if last else f"exit code {done.returncode}"
        raise ValueError(f"cannot be rendered: {why}") from None
    if "error" not in answer:
        return str(answer["text"])
    problem = " ".join(str(answer["error"]).split())
    what = "cannot be rendered" if answer["compiled"] else "does not compile"
    raise ValueError(f"{what}: {problem}")
