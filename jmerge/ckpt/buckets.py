"""Folders in object stores, through fsspec: `s3://bucket/prefix` with s3fs, `gs://bucket/prefix` with gcsfs.

Who may read, and where the store is, these packages find out as they always do, from the environment and their
configuration files.
"""

from __future__ import annotations

import asyncio
import importlib
from collections.abc import Callable, Coroutine
from typing import Any

from jmerge.ckpt.remote import PATIENCE, PassingError, RemoteSource, Stat, patiently, redacted
from jmerge.errors import CheckpointError, Problem

# scheme -> package, module and class. Of gcsfs the class that speaks HTTP: the one that fsspec would take asks for the
# kind of a bucket by gRPC first, and where it gets no answer waits for it at every read.
STORES = {
    "s3": ("s3fs", "s3fs.core", "S3FileSystem"),
    "gs": ("gcsfs", "gcsfs.core", "GCSFileSystem"),
}
TAGS = ("generation", "ETag", "etag", "LastModified", "mtime")  # the first that a store gives
HINTS = {
    "s3": "set AWS_PROFILE or AWS_ACCESS_KEY_ID, or FSSPEC_S3_ANON=true for a public bucket",
    "gs": "run gcloud auth application-default login, or set FSSPEC_GS_TOKEN=anon for a public bucket",
}


class BucketSource(RemoteSource):
    """A prefix in a bucket, listed once."""

    def __init__(self, url: str) -> None:
        super().__init__(url.rstrip("/"))
        self._scheme, _, place = self.label.partition("://")
        if not place.partition("/")[0] or "?" in place or "#" in place:
            message = f"is not the URL of a folder; write {self._scheme}://bucket/prefix"
            raise CheckpointError(Problem(message, file=redacted(url), code="JM103"))
        package, module, kind = STORES[self._scheme]
        try:
            store = getattr(importlib.import_module(module), kind)
        except ImportError as error:
            message = f"needs {package}: pip install 'jmerge[{self._scheme}]'"
            raise CheckpointError(Problem(message, file=self.label, code="JM410")) from error
        self._store = store(use_listings_cache=False)
        self._place = place
        self._listed: list[str] = []
        self._inner: dict[str, set[str]] = {}  # folder -> those in it
        self._list_once("")
        if not self._stats:
            raise CheckpointError(
                Problem("is empty or does not exist", file=self.label, code="JM101")
            )

    def names(self, folder: str = "") -> list[str]:
        self._list_once(folder)
        placed = [name.rpartition("/") for name, stat in self._stats.items() if stat is not None]
        return sorted(name for place, _, name in placed if place == folder)

    def folders(self, folder: str = "") -> list[str]:
        self._list_once(folder)
        return sorted(self._inner[folder])

    def ask(self, name: str) -> Stat | None:
        folder = name.rpartition("/")[0]
        self._list_once(folder)
        return self._stats.get(name)  # all there is was listed

    def _list_once(self, folder: str) -> None:
        if folder not in self._listed:
            self._listed.append(folder)
            self._stats.update(self._list(folder))

    def fetch(self, name: str, start: int, view: memoryview, stat: Stat) -> int:
        path = f"{self._place}/{name}"
        end = start + len(view)
        try:
            data = self._wait(lambda: self._store._cat_file(path, start=start, end=end))
        except FileNotFoundError as error:
            raise self.broken(name, "disappeared while it was being read", code="JM111") from error
        if len(data) > len(view):
            message = f"the store sent {len(data)} bytes instead of {len(view)}"
            raise self.broken(name, message, code="JM110")
        view[: len(data)] = data
        return len(data)

    def changed(self) -> str | None:
        # a request for each folder; the packages do not show what a read was of
        now = {name: stat for folder in self._listed for name, stat in self._list(folder).items()}
        return next((name for name, stat in self._stats.items() if now.get(name) != stat), None)

    def _list(self, folder: str) -> dict[str, Stat | None]:
        prefix = f"{folder}/" if folder else ""
        place = f"{self._place}/{folder}" if folder else self._place

        def attempt() -> dict[str, Stat | None]:
            found = self._wait(lambda: self._store._ls(place, detail=True, refresh=True))
            inner = {each["name"].rstrip("/") for each in found if each["type"] == "directory"}
            self._inner[folder] = {name.rpartition("/")[2] for name in inner}
            return {
                prefix + each["name"].rpartition("/")[2]: Stat(
                    int(each["size"]), next((str(each[tag]) for tag in TAGS if each.get(tag)), "")
                )
                for each in found
                if each["type"] == "file" and not each["name"].endswith("/")
            }

        try:
            return patiently(attempt, self.label)
        except FileNotFoundError:
            self._inner[folder] = set()
            return {}

    def _wait(self, start: Callable[[], Coroutine[Any, Any, Any]]) -> Any:
        """What a coroutine of the store gives, in its own loop; a time limit stands for silence, which it hides."""

        async def run() -> Any:
            return await asyncio.wait_for(start(), PATIENCE.silence)

        try:
            return asyncio.run_coroutine_threadsafe(run(), self._store.loop).result()
        except TimeoutError as error:
            raise PassingError(f"no answer in {PATIENCE.silence:g} seconds") from error
        except FileNotFoundError:
            raise
        except PermissionError as error:
            raise CheckpointError(
                Problem(f"refused access; {HINTS[self._scheme]}", file=self.label, code="JM109")
            ) from error
        except Exception as error:
            # the clients below these packages have no common class for lost connections and busy servers
            if "Credentials" in type(error).__name__:
                message = f"needs credentials; {HINTS[self._scheme]}"
                raise CheckpointError(Problem(message, file=self.label, code="JM109")) from error
            raise PassingError(redacted(f"{type(error).__name__}: {error}")) from error
