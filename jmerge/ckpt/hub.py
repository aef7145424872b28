"""Models of the Hugging Face Hub: from the local cache, or from the Hub at one commit.

A revision is looked up once. All later requests name the commit, so a branch that moves meanwhile mixes nothing.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from http.client import HTTPResponse
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote

import numpy as np

from jmerge.ckpt.http import HttpSource
from jmerge.ckpt.remote import PATIENCE, PassingError, Stat, patiently, redacted
from jmerge.ckpt.sentence import main_module, read_modules
from jmerge.ckpt.source import LocalSource, Source
from jmerge.ckpt.weights import find_weights
from jmerge.errors import CheckpointError, Problem

if TYPE_CHECKING:
    from huggingface_hub.hf_api import ModelInfo

PART = r"[A-Za-z0-9_](?:[A-Za-z0-9_.-]*[A-Za-z0-9_])?"
HUB_ID = re.compile(rf"(?P<name>{PART}/{PART})(?:@(?P<revision>[^@]+))?")
URL = re.compile(rf"hf://(?P<name>{PART}(?:/{PART})?)(?:@(?P<revision>[^@]+))?/?")
TOKENIZER = re.compile(r"tokenizer.*|vocab\..*|merges\.txt|spiece\.model|tekken\.json|.*\.tiktoken")


def open_hub(text: str, revision: str | None) -> Source:
    """The files of the model that `text` names: `org/name` or `hf://org/name`, either with `@revision`.

    Raises:
      CheckpointError: there is no such model or revision, or it may not be read; says what to do.
      RunError: the Hub cannot be reached.
    """
    found = HUB_ID.fullmatch(text) or URL.fullmatch(text)
    if found is None or (found["revision"] and revision not in (None, found["revision"])):
        raise CheckpointError(
            Problem(
                "is not a model on the Hub; write hf://org/name@revision", file=text, code="JM103"
            )
        )
    name, revision = found["name"], revision or found["revision"]
    from huggingface_hub import constants

    folder = _cached_folder(name, revision)
    offline = constants.HF_HUB_OFFLINE
    if folder is not None and (offline or _is_whole(folder)):
        return LocalSource(folder, revision=folder.name)
    label = f"hf://{name}" + (f"@{revision}" if revision else "")
    if offline:
        message = f"is neither a folder nor in the cache {constants.HF_HUB_CACHE}; HF_HUB_OFFLINE is set, so the Hub was not asked"
        raise CheckpointError(Problem(message, file=label, code="JM106"))
    info = patiently(lambda: _ask_hub(name, revision, label), label)
    return HubSource(name, info, constants.ENDPOINT)


class HubSource(HttpSource):
    """A model on the Hub at one commit; files of it that are in the cache are read there."""

    def __init__(self, name: str, info: ModelInfo, endpoint: str) -> None:
        from huggingface_hub.utils import build_hf_headers  # type: ignore[attr-defined]

        headers: Mapping[str, str] = build_hf_headers()
        super().__init__(endpoint, {k: v for k, v in headers.items() if k == "authorization"})
        assert info.sha is not None
        self.revision = info.sha
        self.label = f"hf://{name}@{info.sha}"
        self._name = name
        self._endpoint = endpoint
        for file in info.siblings or ():
            self._stats[file.rfilename] = None if file.size is None else Stat(file.size, "")
        self._cached: dict[str, Path | None] = {}

    def names(self, folder: str = "") -> list[str]:
        placed = [name.rpartition("/") for name in self._stats if self.size(name) is not None]
        return sorted(name for place, _, name in placed if place == folder)

    def folders(self, folder: str = "") -> list[str]:
        start = f"{folder}/" if folder else ""
        below = [name[len(start) :] for name in self._stats if name.startswith(start)]
        return sorted({name.partition("/")[0] for name in below if "/" in name})

    def ask(self, name: str) -> Stat | None:
        return None  # the Hub has listed what there is

    def tag(self, response: HTTPResponse) -> str:
        return ""  # a commit does not change

    def file_url(self, name: str) -> str:
        return f"{self._endpoint}/{self._name}/resolve/{self.revision}/{quote(name)}"

    def refused(self, name: str, status: int) -> CheckpointError:
        message = f"the Hub refused access ({status}); accept the model's licence at "
        message += f"{self._endpoint}/{self._name} and log in with: hf auth login"
        return self.broken(name, message, code="JM107")

    def path(self, name: str) -> Path | None:
        if name not in self._cached:
            from huggingface_hub import try_to_load_from_cache

            found = try_to_load_from_cache(self._name, name, revision=self.revision)
            path = Path(found) if isinstance(found, str) else None
            whole = path is not None and path.stat().st_size == self.size(name)
            self._cached[name] = path if whole else None
        return self._cached[name]

    def read_into(self, name: str, start: int, buffer: np.ndarray) -> None:
        path = self.path(name)
        if path is not None:
            LocalSource(path.parent).read_into(path.name, start, buffer)
        else:
            super().read_into(name, start, buffer)


def _cached_folder(name: str, revision: str | None) -> Path | None:
    """The snapshot in the cache, whole or not."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(name, revision=revision, local_files_only=True))
    except (
        LocalEntryNotFoundError
    ) as error:  # which may know of a snapshot that lacks some file, a picture even
        path = getattr(error, "snapshot_path", None)
        return Path(path) if path else None
    except HFValidationError as error:
        message = "is not a folder, and not a valid model name on the Hub"
        raise CheckpointError(Problem(message, file=name, code="JM103")) from error
    except OSError:
        return None


def _is_whole(folder: Path) -> bool:
    """Whether a snapshot has all that a merge takes: loading a model fetches its weights, but not its tokenizer."""
    source = LocalSource(folder)
    try:
        modules = read_modules(source)
        if not modules:
            find_weights(source)
        main = main_module(modules)
        home = main.prefix if main else ""
        names = [home + name for name in source.names(main.folder if main else "")]
        names += source.names() if home else []
        tokenizers = [name for name in names if TOKENIZER.fullmatch(name.removeprefix(home))]
        needed = [f"{home}config.json", *tokenizers]
        return bool(tokenizers) and all(source.size(name) is not None for name in needed)
    except CheckpointError:  # a link to what was deleted from the cache is one of the reasons
        return False


def _ask_hub(name: str, revision: str | None, label: str) -> ModelInfo:
    """What the Hub says of a model: its commit, its files and their sizes."""
    from huggingface_hub import HfApi, constants
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    page = f"{constants.ENDPOINT}/{name}"
    try:
        return HfApi(endpoint=constants.ENDPOINT).model_info(
            name, revision=revision, files_metadata=True, timeout=PATIENCE.silence
        )
    except GatedRepoError as error:
        message = f"is gated; accept its licence at {page}, and then: hf auth login"
        raise CheckpointError(Problem(message, file=label, code="JM107")) from error
    except RepositoryNotFoundError as error:
        message = "is not on the Hub, or is private; check the name, and for a private model: hf auth login"
        raise CheckpointError(Problem(message, file=label, code="JM108")) from error
    except RevisionNotFoundError as error:
        message = f"has no revision '{revision}'; its branches and tags are at {page}/tree/main"
        raise CheckpointError(Problem(message, file=label, code="JM108")) from error
    except HfHubHTTPError as error:
        status = error.response.status_code
        if status not in (408, 425, 429) and status < 500:
            message = f"cannot be downloaded; the Hub answered {status}"
            raise CheckpointError(Problem(message, file=label, code="JM109")) from error
        raise PassingError(f"the Hub answered {status}") from error
    except Exception as error:
        # the client differs between versions of huggingface_hub, and so does what it raises for a lost connection
        kinds = {kind.__name__ for kind in type(error).__mro__}
        if kinds & {"TransportError", "OSError"}:
            raise PassingError(f"the Hub cannot be reached ({redacted(str(error))})") from error
        raise
