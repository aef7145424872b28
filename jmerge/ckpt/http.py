"""Folders on web servers: byte ranges by HTTP over kept connections.

The standard library's client reads straight into our buffers from any thread, and says what a server answered: a
client that hides it could not tell a missing file from a busy server, or would take in a whole file of gigabytes
where a range was asked for.
"""

from __future__ import annotations

import http.client
import ssl
import threading
import weakref
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from email.utils import parsedate_to_datetime
from time import time
from typing import NamedTuple
from urllib.parse import quote, urljoin, urlsplit
from urllib.request import getproxies, proxy_bypass

from jmerge.ckpt.filekinds import KNOWN
from jmerge.ckpt.remote import PATIENCE, PassingError, RemoteSource, Stat, redacted
from jmerge.ckpt.weights import INDEX_SUFFIX, STEMS
from jmerge.errors import CheckpointError, Problem, RunError
from jmerge.version import VERSION

REDIRECTS = 5
PASSING = frozenset((408, 425, 429, 500, 502, 503, 504))
REFUSED = frozenset((401, 403))
GONE = frozenset((404, 410))


class Host(NamedTuple):
    """What a connection leads to."""

    scheme: str
    name: str
    port: int | None


class Connections:
    """Open connections that wait for the next request to the same host, for any thread."""

    def __init__(self) -> None:
        self._idle: dict[Host, list[http.client.HTTPConnection]] = {}
        self._lock = threading.Lock()
        self._context: ssl.SSLContext | None = None  # to load trusted certificates takes its time
        weakref.finalize(self, _close_all, self._idle)

    @contextmanager
    def get(self, url: str, headers: Mapping[str, str]) -> Iterator[http.client.HTTPResponse]:
        """The answer to a request; its connection is kept when the answer was read to its end."""
        host = _host(url)
        connection, response = self._ask(host, url, headers)
        kept = False
        try:
            yield response
            if response.isclosed() and not response.will_close:
                with self._lock:
                    self._idle.setdefault(host, []).append(connection)
                kept = True
        except http.client.HTTPException as error:
            raise PassingError(f"{type(error).__name__} {error}".strip()) from error
        except TimeoutError as error:
            raise PassingError(f"no data for {PATIENCE.silence:g} seconds") from error
        except OSError as error:
            raise PassingError(error.strerror or str(error)) from error
        finally:
            if not kept:
                connection.close()

    def _ask(
        self, host: Host, url: str, headers: Mapping[str, str]
    ) -> tuple[http.client.HTTPConnection, http.client.HTTPResponse]:
        while True:
            with self._lock:
                kept = self._idle.get(host)
                connection = kept.pop() if kept else None
            used = connection is not None
            connection = connection or self._connect(host)
            try:
                connection.request("GET", _target(connection, url), headers=dict(headers))
                return connection, connection.getresponse()
            except ssl.SSLCertVerificationError as error:
                connection.close()
                raise RunError(
                    f"{redacted(url)}: its certificate is not trusted ({error.verify_message}); "
                    "set SSL_CERT_FILE to a file of trusted certificates",
                    code="JM506",
                ) from error
            except TimeoutError as error:
                connection.close()
                raise PassingError(f"no answer in {PATIENCE.silence:g} seconds") from error
            except (OSError, http.client.HTTPException) as error:
                connection.close()
                if not used:  # else the server had closed it meanwhile, and a new one may do
                    raise PassingError(getattr(error, "strerror", "") or str(error)) from error

    def _connect(self, host: Host) -> http.client.HTTPConnection:
        """A new connection, through the proxy that the environment names for the host."""
        proxy = None if proxy_bypass(host.name) else getproxies().get(host.scheme)
        name, port = host.name, host.port
        if proxy:
            parts = urlsplit(proxy if "://" in proxy else f"http://{proxy}")
            name, port = parts.hostname or "", parts.port
        timeout = PATIENCE.silence
        if host.scheme == "http":
            return http.client.HTTPConnection(name, port, timeout=timeout)
        self._context = self._context or ssl.create_default_context()
        connection = http.client.HTTPSConnection(name, port, timeout=timeout, context=self._context)
        if proxy:
            connection.set_tunnel(host.name, host.port or 443)
        return connection


class HttpSource(RemoteSource):
    """A folder below a URL; nothing lists its files, so known names are tried."""

    def __init__(self, url: str, headers: Mapping[str, str] | None = None) -> None:
        try:
            parts = urlsplit(url)
            plain = bool(_host(url).name) and not (
                parts.query or parts.fragment or "@" in parts.netloc
            )
        except ValueError:
            plain = False
        if not plain:
            message = (
                "is not the URL of a folder; write https://host/path without password, '?' and '#'"
            )
            raise CheckpointError(Problem(message, file=redacted(url), code="JM103"))
        path = quote(parts.path.rstrip("/"), safe="/%~:@!$&'()*+,;=")
        super().__init__(parts._replace(path=path).geturl())
        self._connections = Connections()
        self._headers = {
            "User-Agent": f"jmerge/{VERSION}",
            "Accept-Encoding": "identity",  # ranges are of the bytes as stored
            **(headers or {}),
        }
        self._targets: dict[str, str] = {}  # file -> URL that it was redirected to
        self._refused = 0  # the status with which access to a file was refused

    def names(self, folder: str = "") -> list[str]:
        names = [*KNOWN, "config.json", "README.md", "pytorch_model.bin"]
        names.append("pytorch_model.bin.index.json")
        names += [stem + end for stem in STEMS for end in (INDEX_SUFFIX, ".safetensors")]
        sizes = self.map(self.size, [f"{folder}/{name}" if folder else name for name in names])
        return sorted(n for n, size in zip(names, sizes, strict=True) if size is not None)

    def why_empty(self) -> str:
        return f"; the server refused access ({self._refused})" if self._refused else ""

    def file_url(self, name: str) -> str:
        """The URL of a file."""
        return f"{self.label}/{quote(name)}"

    def tag(self, response: http.client.HTTPResponse) -> str:
        """What changes when the file does."""
        return response.headers.get("ETag") or response.headers.get("Last-Modified") or ""

    def refused(self, name: str, status: int) -> CheckpointError:
        """The error for a file that may not be read."""
        return self.broken(name, f"the server refused access ({status})", code="JM109")

    def ask(self, name: str) -> Stat | None:
        with self._request(name, 0, 1) as response:
            if response.status in REFUSED:  # some stores answer so for what is not there
                self._refused = response.status
            if response.status in GONE or response.status in REFUSED:
                return None
            size = response.headers.get("Content-Length")
            if response.status in (206, 416):
                size = response.headers.get("Content-Range", "").rpartition("/")[2]
                response.read()
            elif response.status != 200:
                raise self.broken(
                    name, f"the server answered {response.status} {response.reason}", code="JM110"
                )
            if size is None or not size.isdecimal():
                raise self.broken(name, "the server does not send its length", code="JM110")
            return Stat(int(size), self.tag(response))

    def fetch(self, name: str, start: int, view: memoryview, stat: Stat) -> int:
        stop = start + len(view)
        with self._request(name, start, stop) as response:
            self._check(name, response, start, stop, stat)
            done = 0
            while done < len(view) and (count := response.readinto(view[done:])):
                done += count
            if done == len(view):
                response.read(
                    1
                )  # notices the end of an answer in chunks, so that the connection is kept
            return done

    def _check(
        self, name: str, response: http.client.HTTPResponse, start: int, stop: int, stat: Stat
    ) -> None:
        """Is the answer the range that was asked for, of the file that was planned with?"""
        status, headers = response.status, response.headers
        if status in REFUSED:
            raise self.refused(name, status)
        if status in GONE or status == 416:
            raise self.broken(
                name, f"changed while it was being read: the server answered {status}", code="JM111"
            )
        if status not in (200, 206):
            raise self.broken(name, f"the server answered {status} {response.reason}", code="JM110")
        if headers.get("Content-Encoding", "identity") != "identity":
            raise self.broken(
                name, "the server compresses it, so byte ranges cannot be read", code="JM110"
            )
        if self.tag(response) != stat.tag:
            raise self.broken(
                name, "changed while it was being read; run the same command again", code="JM111"
            )
        if status == 206:
            place = f"bytes {start}-{stop - 1}/{stat.size}"
            if headers.get("Content-Range", "").strip() != place:
                found = headers.get("Content-Range", "no range")
                raise self.broken(
                    name,
                    f"the server sent {found!r}, not {place!r}; the file changed while it was being read",
                    code="JM111",
                )
        elif (start, stop) != (0, stat.size):
            message = "the server ignores byte ranges; "
            raise self.broken(
                name, message + "download the model and name its folder", code="JM110"
            )

    @contextmanager
    def _request(self, name: str, start: int, stop: int) -> Iterator[http.client.HTTPResponse]:
        """The answer to the request for a range, after redirections."""
        first = self.file_url(name)
        url = self._targets.get(name, first)
        for _ in range(REDIRECTS + 1):
            headers = {**self._headers, "Range": f"bytes={start}-{stop - 1}"}
            if _host(url) != _host(first):
                headers.pop("authorization", None)  # is for the first host alone
            with self._connections.get(url, headers) as response:
                if response.status in (301, 302, 303, 307, 308):
                    url = urljoin(url, response.headers.get("Location", ""))
                    if urlsplit(url).scheme not in ("http", "https"):
                        raise self.broken(name, f"is redirected to {redacted(url)}", code="JM110")
                    response.read()
                elif url != first and response.status in REFUSED | GONE and name in self._targets:
                    self._targets.pop(name, None)  # a signed URL that ran out
                    url = first
                elif response.status in PASSING:
                    raise PassingError(
                        f"the server answered {response.status} {response.reason}",
                        _pause(response.headers.get("Retry-After")),
                    )
                else:
                    if url != first:
                        self._targets[name] = url
                    yield response
                    return
        raise self.broken(name, f"is redirected more than {REDIRECTS} times", code="JM110")


def _host(url: str) -> Host:
    parts = urlsplit(url)
    return Host(parts.scheme, parts.hostname or "", parts.port)


def _target(connection: http.client.HTTPConnection, url: str) -> str:
    """What the request line names: the path, or to a proxy the whole URL."""
    parts = urlsplit(url)
    if parts.scheme == "http" and (connection.host, connection.port) != (
        parts.hostname,
        parts.port or 80,
    ):
        return url
    return (parts.path or "/") + (f"?{parts.query}" if parts.query else "")


def _pause(text: str | None) -> float:
    """The seconds of a Retry-After header: a number or a date."""
    if not text:
        return 0.0
    with suppress(ValueError):
        return float(text)
    with suppress(ValueError, TypeError):
        return parsedate_to_datetime(text).timestamp() - time()
    return 0.0


def _close_all(idle: Mapping[Host, list[http.client.HTTPConnection]]) -> None:
    for connections in idle.values():
        for connection in connections:
            connection.close()
