"""
A model hub on 127.0.0.1: real HTTP, real files, faults on request.

    with FakeHub() as hub:
        hub.add("org/repo", {"model.gguf": weights, "tokenizer.json": text})
        hub.faults.append(answer(503, path="resolve", times=2))
        resolve_model("org/repo:model.gguf", endpoint=hub.endpoint)

A fault is a function that gets the request before it is served; it returns True when it has answered.
There are more of them in hubfaults.py.
As a program it serves a folder laid out organisation/repository/files until it is killed:

    python tests/fakehub.py FOLDER [--port 8080]
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import socket
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from typing import Any
from urllib.parse import unquote, urlsplit

Fault = Callable[["Request"], bool]
LARGE = (".gguf", ".safetensors", ".bin")  # kept as LFS objects: named by sha256


@dataclass
class Repository:
    """One repository with one history: every revision name leads to a commit."""

    files: dict[str, bytes]
    revisions: dict[str, str]
    private: bool = False
    gated: bool = False

    def commit(self, revision: str) -> str | None:
        return revision if revision in self.revisions.values() else self.revisions.get(revision)


def git_etag(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data, usedforsecurity=False).hexdigest()


def etag_of(name: str, data: bytes) -> str:
    return hashlib.sha256(data).hexdigest() if name.endswith(LARGE) else git_etag(data)


class Request(BaseHTTPRequestHandler):
    """One request, on its way through the faults to `serve`."""

    protocol_version = "HTTP/1.1"
    server: _Server

    @property
    def hub(self) -> FakeHub:
        return self.server.hub

    def do_GET(self) -> None:
        self.answer()

    def do_HEAD(self) -> None:
        self.answer()

    def answer(self) -> None:
        self.hub.requests.append(f"{self.command} {self.path}")
        self.hub.tokens_seen.append(self.headers.get("authorization"))
        self.hub.ranges.append(self.headers.get("range"))
        for fault in list(self.hub.faults):
            if fault(self):
                return
        self.serve()

    def serve(self) -> None:
        parts = unquote(urlsplit(self.path).path).strip("/").split("/")
        if parts[:2] == ["api", "models"] and len(parts) >= 6 and parts[4] == "revision":
            self.serve_revision(f"{parts[2]}/{parts[3]}", "/".join(parts[5:]))
        elif parts[0] == "cdn" and len(parts) == 2:
            self.serve_bytes(self.hub.objects.get(parts[1], b""), {"ETag": f'"{parts[1][:32]}"'})
        elif len(parts) >= 5 and parts[2] == "resolve":
            self.serve_file(f"{parts[0]}/{parts[1]}", parts[3], "/".join(parts[4:]))
        else:
            self.refuse(404, "no such route")

    def serve_revision(self, repo: str, revision: str) -> None:
        repository = self.repository(repo)
        if repository is None:
            return
        commit = repository.commit(revision)
        if commit is None:
            self.refuse(404, f"Invalid rev id: {revision}", "RevisionNotFound")
            return
        siblings = [{"rfilename": name} for name in repository.files]
        body = json.dumps({"id": repo, "sha": commit, "private": False, "siblings": siblings}).encode()
        self.send(200, body, {"Content-Type": "application/json"})

    def serve_file(self, repo: str, revision: str, name: str) -> None:
        repository = self.repository(repo, gate=True)
        if repository is None:
            return
        commit = repository.commit(revision)
        if commit is None:
            self.refuse(404, f"Invalid rev id: {revision}", "RevisionNotFound")
            return
        if name not in repository.files:
            self.refuse(404, "Entry not found", "EntryNotFound", {"X-Repo-Commit": commit})
            return
        data = repository.files[name]
        etag = etag_of(name, data)
        headers = {"X-Repo-Commit": commit, "ETag": f'"{etag}"', "Accept-Ranges": "bytes"}
        if name.endswith(LARGE):
            headers |= {"X-Linked-Etag": f'"{etag}"', "X-Linked-Size": str(len(data))}
        if name.endswith(LARGE) and self.hub.cdn:
            self.hub.objects[etag] = data
            self.send(302, b"", headers | {"Location": f"{self.hub.cdn}/cdn/{etag}"})
            return
        self.serve_bytes(data, headers)

    def repository(self, repo: str, *, gate: bool = False) -> Repository | None:
        """Return the repository, or answer why this caller cannot have it."""
        repository = self.hub.repositories.get(repo)
        known = self.headers.get("authorization") == f"Bearer {self.hub.token}"
        if repository is None or (repository.private and not known):
            self.refuse(404 if known else 401, "Repository not found", "RepoNotFound")
            return None
        if gate and repository.gated and not known:
            self.refuse(401, "Access to this model is restricted", "GatedRepo")
            return None
        return repository

    def serve_bytes(self, data: bytes, headers: dict[str, str]) -> None:
        span = self.headers.get("range", "")
        if_range = self.headers.get("if-range", headers.get("ETag"))
        if span.startswith("bytes=") and if_range == headers.get("ETag"):
            start = int(span.removeprefix("bytes=").split("-")[0])
            if start >= len(data):
                self.send(416, b"", {"Content-Range": f"bytes */{len(data)}"})
                return
            place = {"Content-Range": f"bytes {start}-{len(data) - 1}/{len(data)}"}
            self.send(206, data[start:], headers | place)
            return
        self.send(200, data, headers)

    def refuse(
        self, status: int, reason: str, code: str = "", headers: dict[str, str] | None = None
    ) -> None:
        named = {"X-Error-Code": code} if code else {}
        body = json.dumps({"error": reason}).encode()
        self.send(status, body, {**named, "X-Error-Message": reason, **(headers or {})})

    def send(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            if value or name != "Content-Length":
                self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        """Say nothing."""


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    hub: FakeHub

    def __init__(self, address: tuple[str, int], handler: type[Request]) -> None:
        super().__init__(address, handler)
        self.connections: set[socket.socket] = set()

    def process_request(self, request: Any, client_address: Any) -> None:
        self.connections.add(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        self.connections.discard(request)
        super().shutdown_request(request)

    def hang_up(self) -> None:
        """Close the connections that clients keep open."""
        for connection in list(self.connections):
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that hangs up is what some tests are about."""


@dataclass
class FakeHub:
    """
    The server and what it serves.

    Attributes:
        repositories: Name -> contents.
        faults: Asked in order, before every request.
        requests: "GET /path" of every request so far.
        tokens_seen: The authorization header of each.
        ranges: The range header of each.
        over: Set when the hub stops: what stalls goes home.
        token: What opens private and gated repositories.
        cdn: Base URL of a second host for large files; "" serves them from here.
    """

    port: int = 0
    repositories: dict[str, Repository] = field(default_factory=dict)
    faults: list[Fault] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)
    tokens_seen: list[str | None] = field(default_factory=list)
    ranges: list[str | None] = field(default_factory=list)
    over: threading.Event = field(default_factory=threading.Event)
    token: str = "hf_good"  # noqa: S105 (a test token)
    cdn: str = ""
    objects: dict[str, bytes] = field(default_factory=dict)

    def __enter__(self) -> FakeHub:
        self._server = _Server(("127.0.0.1", self.port), Request)
        self._server.hub = self
        self.port = self._server.server_address[1]
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def stop(self) -> None:
        """Hang up and stop listening: from now on connections are refused."""
        self.over.set()
        self._server.shutdown()
        self._server.server_close()
        self._server.hang_up()
        self._thread.join()

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def add(
        self,
        repo: str,
        files: dict[str, bytes],
        *,
        revision: str = "main",
        private: bool = False,
        gated: bool = False,
    ) -> str:
        """Put files into a repository and return the commit that `revision` now is."""
        seed = json.dumps([repo, revision, sorted((name, git_etag(data)) for name, data in files.items())])
        commit = hashlib.sha1(seed.encode(), usedforsecurity=False).hexdigest()
        self.repositories[repo] = Repository(files, {revision: commit}, private, gated)
        return commit


def answer(status: int, *, path: str = "", method: str = "", times: int = 10**9, code: str = "") -> Fault:
    """Return a fault that answers matching requests with this status."""

    def act(request: Request) -> None:
        request.refuse(status, "made to fail", code)

    return fault_on(act, path, method, times)


def replace_body(body: bytes, *, path: str = "", times: int = 10**9, kind: str = "text/html") -> Fault:
    """Return a fault that answers matching GET requests with another body, as a login portal does."""

    def act(request: Request) -> None:
        request.send(200, body, {"Content-Type": kind})

    return fault_on(act, path, "GET", times)


def cut_after(n_bytes: int, *, path: str = "", times: int = 10**9) -> Fault:
    """Return a fault that sends only the next n_bytes of matching GET requests, then hangs up."""

    def act(request: Request) -> None:
        whole = request.wfile
        request.wfile = _Cut(whole, n_bytes, request.connection)  # type: ignore[assignment]
        request.close_connection = True
        with contextlib.suppress(OSError):
            request.serve()
        request.wfile = whole

    return fault_on(act, path, "GET", times)


class _Cut:
    """A file for writing that ends after a number of bytes of body."""

    def __init__(self, file: object, n_bytes: int, connection: socket.socket) -> None:
        self.file, self.left, self.connection = file, n_bytes, connection
        self.in_body = False

    def write(self, data: bytes) -> int:
        if not self.in_body:
            self.in_body = data.endswith(b"\r\n\r\n")
            return int(self.file.write(data))  # type: ignore[attr-defined]
        self.file.write(data[: self.left])  # type: ignore[attr-defined]
        self.left -= min(self.left, len(data))
        if not self.left:
            self.connection.shutdown(socket.SHUT_RDWR)
        return len(data)

    def flush(self) -> None:
        self.file.flush()  # type: ignore[attr-defined]


def stall(event: threading.Event, *, path: str = "", times: int = 10**9) -> Fault:
    """Return a fault that keeps matching requests waiting until the event is set."""

    def act(request: Request) -> None:
        event.wait(60)
        request.close_connection = True

    return fault_on(act, path, "", times)


def fault_on(act: Callable[[Request], None], path: str, method: str, times: int = 10**9) -> Fault:
    """Return a fault that acts on the first requests with this method, and this in their path."""
    left = times

    def fault(request: Request) -> bool:
        nonlocal left
        if left <= 0 or path not in request.path or method not in {"", request.command}:
            return False
        left -= 1
        act(request)
        return True

    return fault


def _folder_repositories(folder: Path) -> Iterator[tuple[str, dict[str, bytes]]]:
    for repo in sorted(folder.glob("*/*")):
        if repo.is_dir():
            files = (path for path in sorted(repo.rglob("*")) if path.is_file())
            yield (
                repo.relative_to(folder).as_posix(),
                {path.relative_to(repo).as_posix(): path.read_bytes() for path in files},
            )


def main() -> None:
    parser = argparse.ArgumentParser(description="Serve a folder as a model hub on 127.0.0.1.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--port", type=int, default=0)
    options = parser.parse_args()
    with FakeHub(port=options.port) as hub:
        for repo, files in _folder_repositories(options.folder):
            hub.add(repo, files)
        print(hub.endpoint, flush=True)  # noqa: T201
        with contextlib.suppress(KeyboardInterrupt):
            threading.Event().wait()


if __name__ == "__main__":
    main()
