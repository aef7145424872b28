"""Servers of the tests of remote sources: files with ranges, counters and problems, and fakes of the stores' APIs."""

from __future__ import annotations

import datetime
import hashlib
import ipaddress
import json
import select
import socket
import ssl
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

SHA = "0123456789abcdef0123456789abcdef01234567"
OTHER_SHA = "f" * 40


class Problem:
    """What goes wrong with the next `times` requests for ranges of files whose path ends like this."""

    def __init__(self, kind: str, end: str = ".safetensors", times: int = 1, skip: int = 0) -> None:
        self.kind, self.end, self.times, self.skip = kind, end, times, skip


class FileServer:
    """Serves the files of a folder; use as a context manager.

    Attributes:
      url: where it is.
      sent: bytes of bodies sent, by path.
      requests: (path, headers) of every request.
      problems: what goes wrong, each until its times are over.
      stall: set to end stalls.
      delay: seconds before every answer.
      most: the most requests that were under way at once.
    """

    def __init__(self, root: Path, certificate: Path | None = None) -> None:
        self.root = root
        self.sent: dict[str, int] = {}
        self.requests: list[tuple[str, dict[str, str]]] = []
        self.problems: list[Problem] = []
        self.stall = threading.Event()
        self.delay = 0.0
        self.now = self.most = 0
        self.lock = threading.Lock()
        self.revisions = {"main": SHA, SHA: SHA}  # of the fake of the Hub
        self.gated: set[str] = set()
        handler = type("Bound", (Handler,), {"owner": self})
        self.server = Quiet(("127.0.0.1", 0), handler)
        scheme = "http"
        if certificate is not None:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(certificate)
            self.server.socket = context.wrap_socket(self.server.socket, server_side=True)
            scheme = "https"
        self.url = f"{scheme}://127.0.0.1:{self.server.server_port}"

    def __enter__(self) -> FileServer:
        self.thread = threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True)
        self.thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.stall.set()
        self.server.shutdown()
        self.thread.join()
        self.server.server_close()

    def total(self, end: str = ".safetensors") -> int:
        """Bytes sent of files whose path ends like this; what the client has may be counted a moment later."""
        for _ in range(200):
            if self.now == 0:
                break
            time.sleep(0.005)
        return sum(count for path, count in self.sent.items() if path.endswith(end))

    def problem(self, path: str) -> str:
        """What goes wrong with this request."""
        with self.lock:
            for each in self.problems:
                if path.endswith(each.end) and each.times > 0:
                    if each.skip > 0:
                        each.skip -= 1
                        continue
                    each.times -= 1
                    return each.kind
        return ""


class Quiet(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    request_queue_size = 64

    def handle_error(self, request: object, client_address: object) -> None:
        pass  # clients go away on purpose


class Handler(BaseHTTPRequestHandler):
    owner: FileServer
    protocol_version = "HTTP/1.1"
    wbufsize = 1 << 16
    timeout = 20

    def log_message(self, *args: object) -> None:
        pass

    def do_GET(self) -> None:
        target = urlsplit(self.path)
        path = unquote(target.path)
        with self.owner.lock:
            self.owner.requests.append((self.path, dict(self.headers)))
            self.owner.now += 1
            self.owner.most = max(self.owner.most, self.owner.now)
        time.sleep(self.owner.delay)
        try:
            self.route(path, target.query)
        finally:
            with self.owner.lock:
                self.owner.now -= 1

    def route(self, path: str, query: str) -> None:
        if path.startswith("/api/models/"):
            self.hub_info(path.removeprefix("/api/models/"), parse_qs(query))
        elif path.startswith(("/storage/v1/", "/download/storage/v1/")):
            self.google(path, parse_qs(query))
        elif "/resolve/" in path:
            self.hub_file(path)
        elif path.startswith("/cdn/"):
            if "Authorization" in self.headers or "authorization" in self.headers:
                self.answer(400, b"signed twice")
            else:
                self.file(path.removeprefix("/cdn"))
        else:
            self.file(path)

    def do_CONNECT(self) -> None:
        """A tunnel, as a proxy makes it."""
        host, _, port = self.path.partition(":")
        with self.owner.lock:
            self.owner.requests.append((self.path, dict(self.headers)))
        with socket.create_connection((host, int(port)), timeout=10) as other:
            self.send_response(200)
            self.end_headers()
            self.wfile.flush()
            ends = {self.connection: other, other: self.connection}
            while True:
                for end in select.select(list(ends), [], [], 10)[0]:
                    data = end.recv(1 << 16)
                    if not data:
                        self.close_connection = True
                        return
                    ends[end].sendall(data)

    # Files

    def file(self, path: str) -> None:
        file = self.owner.root / path.lstrip("/")
        kind = self.owner.problem(path)
        if kind.isdecimal():
            self.answer(int(kind), b"problem", {"Retry-After": "0"})
            return
        if not file.is_file():
            self.answer(404, b"nothing here")
            return
        data = file.read_bytes()
        headers = {"ETag": f'"{hashlib.sha256(data).hexdigest()[:16]}"'}
        if kind == "etag":
            headers["ETag"] = '"another"'
        start, stop, status = 0, len(data), 200
        asked = self.headers.get("Range")
        if asked and kind != "whole":
            first, _, last = asked.removeprefix("bytes=").partition("-")
            start, stop, status = int(first), min(int(last) + 1, len(data)), 206
            if start >= len(data):
                self.answer(416, b"", {"Content-Range": f"bytes */{len(data)}"})
                return
            headers["Content-Range"] = f"bytes {start}-{stop - 1}/{len(data)}"
            if kind == "elsewhere":
                headers["Content-Range"] = f"bytes {start + 1}-{stop}/{len(data)}"
        self.answer(status, data[start:stop], headers, kind, path)

    def answer(
        self,
        status: int,
        body: bytes,
        headers: dict[str, str] | None = None,
        kind: str = "",
        path: str = "",
    ) -> None:
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if kind in ("short", "stall"):
            body = body[: len(body) // 2]
            self.close_connection = True
        try:
            self.wfile.write(body)
            self.wfile.flush()
        except OSError:
            self.close_connection = True
            return
        with self.owner.lock:
            self.owner.sent[path] = self.owner.sent.get(path, 0) + len(body)
        if kind == "stall":
            self.owner.stall.wait(10)

    def json(self, value: object, status: int = 200, **headers: str) -> None:
        self.answer(
            status,
            json.dumps(value).encode(),
            {"Content-Type": "application/json"}
            | {k.replace("_", "-"): v for k, v in headers.items()},
        )

    # The Hub

    def hub_info(self, rest: str, query: dict[str, list[str]]) -> None:
        name, _, revision = rest.partition("/revision/")
        folder = self.owner.root / name
        kind = self.owner.problem(f"api/{name}")
        if kind:
            self.json({"error": "busy"}, int(kind))
        elif name in self.owner.gated:
            self.json({"error": "gated"}, 403, X_Error_Code="GatedRepo")
        elif not folder.is_dir():
            self.json({"error": "Repository not found"}, 401, X_Error_Code="RepoNotFound")
        elif (revision or "main") not in self.owner.revisions:
            self.json({"error": "Invalid rev"}, 404, X_Error_Code="RevisionNotFound")
        else:
            files = [
                {"rfilename": file.relative_to(folder).as_posix()}
                | ({"size": file.stat().st_size} if "blobs" in query else {})
                for file in sorted(folder.rglob("*"))
                if file.is_file()
            ]
            sha = self.owner.revisions[revision or "main"]
            self.json({"id": name, "sha": sha, "siblings": files})

    def hub_file(self, path: str) -> None:
        """Large files are redirected to signed URLs, as those of the Hub are."""
        name, _, rest = path.partition("/resolve/")
        sha, _, file = rest.partition("/")
        if name.lstrip("/") + "!" in self.owner.gated:
            self.json({"error": "gated"}, 403, X_Error_Code="GatedRepo")
        elif sha != SHA:
            self.json({"error": "not the commit that was looked up"}, 404)
        elif file.endswith(".safetensors"):
            port = self.owner.server.server_port
            host = f"http://localhost:{port}"  # another name: no token goes there
            self.answer(302, b"", {"Location": f"{host}/cdn{name}/{file}?Signature=secret"})
        else:
            self.file(f"{name}/{file}")

    # Google Cloud Storage

    def google(self, path: str, query: dict[str, list[str]]) -> None:
        _, _, rest = path.partition("/storage/v1/b/")
        bucket, _, name = rest.partition("/o")
        name = name.lstrip("/")
        folder = self.owner.root / bucket
        if not folder.is_dir():
            self.json({"error": {"code": 404, "message": "no such bucket"}}, 404)
        elif name and path.startswith("/download"):
            self.file(f"/{bucket}/{name}")
        elif name:
            file = folder / name
            if file.is_file():
                self.json(self.google_entry(bucket, folder, file))
            else:
                self.json({"error": {"code": 404, "message": "no such object"}}, 404)
        elif rest.endswith("/o"):
            prefix = query.get("prefix", [""])[0]
            found = [file for file in sorted(folder.rglob("*")) if file.is_file()]
            entries = [self.google_entry(bucket, folder, file) for file in found]
            entries = [each for each in entries if each["name"].startswith(prefix)]
            if "delimiter" in query:  # what lies deeper is told by the folder it is in
                inside = [each["name"][len(prefix) :].partition("/") for each in entries]
                deeper = dict.fromkeys(prefix + head + "/" for head, slash, _ in inside if slash)
                entries = [e for e, (_, slash, _) in zip(entries, inside, strict=True) if not slash]
                listing = {"items": entries, "prefixes": list(deeper)}
                self.json({"kind": "storage#objects", **listing})
                return
            self.json({"kind": "storage#objects", "items": entries})
        else:
            self.json({"kind": "storage#bucket", "name": bucket})

    def google_entry(self, bucket: str, folder: Path, file: Path) -> dict[str, str]:
        data = file.read_bytes()
        digest = hashlib.sha256(data).hexdigest()
        return {
            "kind": "storage#object",
            "bucket": bucket,
            "name": file.relative_to(folder).as_posix(),
            "size": str(len(data)),
            "generation": str(int(digest[:8], 16)),
            "updated": "2026-01-01T00:00:00.000Z",
            "timeCreated": "2026-01-01T00:00:00.000Z",
            "storageClass": "STANDARD",
        }


class Bucket:
    """A bucket named `bucket` with a tiny llama under `models/m`."""

    url: str

    def put(self, name: str, data: bytes) -> None:
        raise NotImplementedError


class S3Bucket(Bucket):
    url = "s3://bucket/models/m"

    def __init__(self, endpoint: str) -> None:
        import boto3

        self.client: Any = boto3.client("s3", endpoint_url=endpoint, region_name="us-east-1")
        self.client.create_bucket(Bucket="bucket")

    def put(self, name: str, data: bytes) -> None:
        self.client.put_object(Bucket="bucket", Key=f"models/m/{name}", Body=data)


class GoogleBucket(Bucket):
    url = "gs://bucket/models/m"

    def __init__(self, root: Path) -> None:
        self.folder = root / "bucket" / "models" / "m"
        self.folder.mkdir(parents=True)

    def put(self, name: str, data: bytes) -> None:
        (self.folder / name).write_bytes(data)


def make_certificate(folder: Path) -> Path:
    """A certificate of 127.0.0.1 and its key in one file."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "127.0.0.1")])
    now = datetime.datetime.now(datetime.UTC)
    address = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))])
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(address, critical=False)
        .sign(key, hashes.SHA256())
    )
    path = folder / "certificate.pem"
    path.write_bytes(
        made.public_bytes(serialization.Encoding.PEM)
        + key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
    return path


@contextmanager
def seconds(most: float) -> Iterator[None]:
    """Fails when the block takes longer."""
    start = time.monotonic()
    yield
    took = time.monotonic() - start
    assert took < most, f"took {took:.1f} seconds"
