"""From what a recipe says to where a model's files are."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path

from jmerge.ckpt.buckets import BucketSource
from jmerge.ckpt.http import HttpSource
from jmerge.ckpt.hub import HUB_ID, open_hub
from jmerge.ckpt.instead import PICKLES, gguf_advice
from jmerge.ckpt.remote import redacted
from jmerge.ckpt.source import LocalSource, Source, local_folder
from jmerge.errors import CheckpointError, Problem, RunError
from jmerge.names import nearest
from jmerge.recipe.refs import IN_MEMORY

SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+)://")  # of two letters or more: C: is a disk
STORES: dict[str, Callable[[str], Source]] = {
    "https": HttpSource,
    "http": HttpSource,
    "s3": BucketSource,
    "gs": BucketSource,
}
OFFERED = ("hf", *STORES)
SAYS_NO_FOLDER = ("JM103", "JM106")  # codes of messages about the Hub that say so themselves
INDEX_ENDS = (".safetensors", ".safetensors.index.json", "config.json")


def find_source(place: str | Path, revision: str | None = None) -> Source:
    """The files of a model: those of a folder, of a URL of an offered scheme, or of `org/name` on the Hub.

    Raises:
      CheckpointError: there is none, or it may not be read; says what to do.
      RunError: it cannot be reached.
    """
    text = str(place)
    folder = local_folder(text)
    if folder is not None:
        _refuse_revision(text, revision)
        return LocalSource(folder)
    scheme = SCHEME.match(text)
    if scheme is None:
        if not HUB_ID.fullmatch(text):
            _refuse_file(text)
            raise CheckpointError(Problem(f"is not a folder{_here(text)}", file=text, code="JM101"))
        _refuse_neighbours(text)
        try:
            return open_hub(text, revision)
        except (CheckpointError, RunError) as error:
            if any(problem.code in SAYS_NO_FOLDER for problem in error.problems):
                raise
            note = f"; and there is no folder {text}{_here(text)}"
            problems = [
                problem._replace(message=problem.message + note) for problem in error.problems
            ]
            if isinstance(error, CheckpointError):
                raise CheckpointError(*problems) from error
            raise RunError(problems[0].text, code=problems[0].code) from error
    name = scheme[1].lower()
    if name == "hf":
        return open_hub(text, revision)
    if text.startswith(IN_MEMORY):
        message = "existed only in the program that wrote the recipe; write the path of a folder"
        raise CheckpointError(Problem(message, file=text, code="JM105"))
    if name not in STORES:
        places = ", ".join(f"{each}://" for each in OFFERED)
        message = (
            f"cannot be read: {name}:// is not supported; write the path of a folder, or {places}"
        )
        raise CheckpointError(Problem(message, file=redacted(text), code="JM103"))
    _refuse_revision(text, revision)
    return STORES[name](text)


def _here(text: str) -> str:
    """What a path is relative to, as the end of a message; empty for one that is not."""
    return "" if text.startswith("~") or os.path.isabs(text) else f" in {os.getcwd()}"


def is_local(label: str) -> bool:
    """Whether a plan's name of a model is that of a folder of this machine."""
    return SCHEME.match(label) is None


def is_remote(label: str) -> bool:
    """Whether a plan's name of a model is that of one whose files are fetched."""
    return not is_local(label) and not label.startswith(IN_MEMORY)


def _refuse_revision(text: str, revision: str | None) -> None:
    if revision is not None:
        message = f"has no revision '{revision}': only models on the Hub have revisions; write the path alone"
        raise CheckpointError(Problem(message, file=redacted(text), code="JM104"))


def _refuse_file(text: str) -> None:
    """Refuse the path of a file with the folder that was meant."""
    path = Path(os.path.expanduser(text))
    if not os.path.isfile(path):
        return
    folder, what, code = str(path.parent), "is a file, not a folder", "JM102"
    if path.suffix == ".gguf":
        message = gguf_advice(f"{what}, and holds GGUF, not safetensors", folder, path.name)
        code = "JM118"
    elif path.name.endswith((*INDEX_ENDS, *PICKLES)):
        message = f"{what}; name the folder that holds it: {folder}"
    else:
        message = f"{what}; name the folder of a model"
    raise CheckpointError(Problem(message, file=text, code=code))


def _refuse_neighbours(text: str) -> None:
    """Refuse what looks like a misspelt path of this machine, before anybody is asked for a model of that name."""
    path = Path(text.partition("@")[0])
    _refuse_file(text)
    if os.path.lexists(path):
        raise CheckpointError(Problem(f"is not a folder{_here(text)}", file=text, code="JM101"))
    if os.path.isdir(path.parent):
        try:
            best = nearest(
                path.name, [each.name for each in path.parent.iterdir() if each.is_dir()]
            )
        except OSError:  # a folder that may not be listed says nothing
            best = None
        if best:
            message = f"is not a folder; did you mean '{path.parent / best}'? (for the model on the Hub write hf://{text})"
            raise CheckpointError(Problem(message, file=text, code="JM101"))
