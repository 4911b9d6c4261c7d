"""A server for the chat page: the page's own files, and answers that a test writes, over real sockets."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import gguf_engine

PAGE = Path(gguf_engine.__file__).parent / "server" / "page"
TYPES = {".html": "text/html", ".css": "text/css", ".js": "text/javascript"}
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' data:; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
TIMINGS = {"ttft_s": 0.25, "decode_tokens_per_s": 42.5}


class PageServer(ThreadingHTTPServer):
    """
    Serves the page, one model, and what `answer` writes.

    Attributes:
        answer: Called in the thread of each chat request with its handler; writes the response.
        asked: The bodies of the chat requests so far, the latest last.
        api_key: Asked for on every route of the API but /health where it is not empty.
        gone: Set when a client went away while its answer was being written.
    """

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.answer: Callable[[Handler], None] = lambda handler: handler.stream("Hello", " there")
        self.asked: list[dict[str, Any]] = []
        self.api_key = ""
        self.gone = threading.Event()
        self.release = threading.Event()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing: a browser that leaves mid-answer is what some tests are about."""


class Handler(BaseHTTPRequestHandler):
    server: PageServer

    def log_message(self, *args: Any) -> None:
        """Say nothing."""

    def do_GET(self) -> None:
        name = {"/": "index.html"}.get(self.path, self.path[1:])
        if self.path == "/health":
            self.reply(200, {"status": "ok"})
        elif self.path == "/v1/models":
            if self.may():
                self.reply(200, {"object": "list", "data": [{"id": "haiku", "object": "model"}]})
        elif name in {path.name for path in PAGE.iterdir()}:
            self.send((PAGE / name).read_bytes(), TYPES[Path(name).suffix])
        else:
            self.refuse(404, f"no {self.path} here")

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        if self.may():
            self.server.asked.append(body)
            self.server.answer(self)

    def may(self) -> bool:
        key = self.server.api_key
        if key and self.headers.get("authorization") != f"Bearer {key}":
            self.refuse(401, "no API key")
            return False
        return True

    def send(self, content: bytes, kind: str, status: int = 200, **headers: str) -> None:
        self.send_response(status)
        self.send_header("content-type", f"{kind}; charset=utf-8")
        self.send_header("content-length", str(len(content)))
        self.send_header("content-security-policy", POLICY)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(content)

    def reply(self, status: int, body: object, **headers: str) -> None:
        self.send(json.dumps(body).encode(), "application/json", status, **headers)

    def refuse(self, status: int, message: str, **headers: str) -> None:
        self.reply(status, {"error": {"message": message, "type": "error", "param": None}}, **headers)

    def begin(self) -> None:
        self.send_response(200)
        self.send_header("content-type", "text/event-stream; charset=utf-8")
        self.end_headers()

    def event(self, data: object) -> None:
        text = data if isinstance(data, str) else json.dumps(data)
        self.wfile.write(f"data: {text}\n\n".encode())

    def pieces(self, *pieces: str) -> None:
        for piece in pieces:
            self.event({"choices": [{"index": 0, "delta": {"content": piece}, "finish_reason": None}]})

    def end(self, n_completion: int, finish_reason: str = "stop") -> None:
        self.event({"choices": [{"index": 0, "delta": {}, "finish_reason": finish_reason}]})
        usage = {"prompt_tokens": 7, "completion_tokens": n_completion}
        cached = {"prompt_tokens_details": {"cached_tokens": 3}}
        self.event({"choices": [], "usage": {**usage, **cached}, "timings": TIMINGS})
        self.event("[DONE]")

    def stream(self, *pieces: str) -> None:
        """Write a whole answer, one token a piece."""
        self.begin()
        self.pieces(*pieces)
        self.end(len(pieces))

    def stream_until_released(self, piece: str) -> None:
        """Write one piece, then comments until the test sets `release` or the client is gone."""
        self.begin()
        self.pieces(piece)
        try:
            while not self.server.release.wait(0.05):
                self.wfile.write(b": waiting\n\n")
        except OSError:
            self.server.gone.set()
            return
        self.end(1)


@dataclass
class Answers:
    """Answers in the order given, the last one again and again."""

    scripts: list[Callable[[Handler], None]] = field(default_factory=list)

    def __call__(self, handler: Handler) -> None:
        (self.scripts.pop(0) if len(self.scripts) > 1 else self.scripts[0])(handler)


def begin_and_wait(handler: Handler) -> None:
    """Write "Begun", and the end when the test lets it."""
    handler.stream_until_released("Begun")


@contextmanager
def running(server: PageServer) -> Iterator[PageServer]:
    """Serve in a thread until the block ends."""
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.release.set()
        server.shutdown()
        server.server_close()
        thread.join()


class RealServer:
    """`gguf-engine serve` in a process of its own."""

    def __init__(self, process: subprocess.Popen[str], url: str) -> None:
        self.process, self.url = process, url

    def children(self) -> list[int]:
        """Return the ids of its child processes."""
        tasks = Path(f"/proc/{self.process.pid}/task").iterdir()
        return [int(pid) for task in tasks for pid in (task / "children").read_text().split()]


@contextmanager
def serving(model: str) -> Iterator[RealServer]:
    """Serve a model on a free port until the block ends."""
    command = [sys.executable, "-m", "gguf_engine", "serve", "--model", model, "--port", "0"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        lines: list[str] = []
        try:
            for line in process.stderr:
                lines.append(line)
                if line.startswith("listening on "):
                    break
            else:
                raise AssertionError("".join(lines))
            drain = threading.Thread(target=process.stderr.read, daemon=True)
            drain.start()
            yield RealServer(process, f"{lines[-1].split()[-1]}/")
        finally:
            process.terminate()
            process.wait(60)
        drain.join()
