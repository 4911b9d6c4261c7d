"""The server over real sockets in this process, on a fake model; and clients that behave badly."""

from __future__ import annotations

import contextlib
import json
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import httpx
from text_samples import PHI3_TEMPLATE, from_json, spm_json

from gguf_engine import LLM
from gguf_engine.backend.fake import FakeBackend
from gguf_engine.server.app import create_app
from gguf_engine.server.serving import Server, bind, make_server
from gguf_engine.server.settings import ServerParams
from gguf_engine.text.chat import ChatTemplate

HANG_S = 30.0
"""How long a test waits for what must come before it gives up."""
CHAT = "/v1/chat/completions"


def fake_llm(*, template: str | None = PHI3_TEMPLATE, **backend: Any) -> LLM:
    """Return a model without weights, whose tokenizer is of Phi-3's kind."""
    tokenizer = from_json(spm_json())
    options = {"n_ctx": 512, "n_slots": 4, "n_cells": 4096, **backend}
    return LLM(
        lambda: FakeBackend(n_vocab=tokenizer.n_vocab, **options),
        tokenizer,
        template=None if template is None else ChatTemplate.for_tokenizer(template, tokenizer),
        model="fake",
    )


def chat_body(**options: Any) -> dict[str, Any]:
    """Return a small request that always answers the same."""
    message = {"role": "user", "content": "the cat sat on the mat"}
    return {"messages": [message], "seed": 1, "max_tokens": 5, **options}


class Served:
    """A server that runs, and how to ask it."""

    def __init__(self, server: Server, url: str, llm: LLM, app: Any) -> None:
        self.server, self.url, self.llm, self.app = server, url, llm, app
        self.port = int(url.rpartition(":")[2])
        self.client = httpx.Client(base_url=url, timeout=HANG_S, trust_env=False)

    def close(self) -> None:
        """Close our client's connections."""
        self.client.close()

    def post(self, path: str, body: Any, **options: Any) -> httpx.Response:
        """Post a JSON body."""
        return self.client.post(path, json=body, **options)

    def chat(self, **options: Any) -> httpx.Response:
        """Post a chat request; see `chat_body`."""
        return self.post(CHAT, chat_body(**options))

    def connect(self) -> socket.socket:
        """Open a connection of our own."""
        return socket.create_connection(("127.0.0.1", self.port), timeout=HANG_S)

    def send(self, body: Any, path: str = CHAT) -> socket.socket:
        """Send a request over a connection of our own, and read nothing."""
        connection = self.connect()
        connection.sendall(raw_post(path, json.dumps(body).encode()))
        return connection

    @property
    def n_running(self) -> int:
        """Requests that have a slot of the engine, asked of the engine."""
        return self.llm.stats(HANG_S).n_running


@contextlib.contextmanager
def serve(llm: LLM | None = None, settings: ServerParams | None = None, **backend: Any) -> Iterator[Served]:
    """Serve a model, a fake one if none is given, on a free port until the block ends."""
    llm = llm or fake_llm(**backend)
    settings = settings or ServerParams(port=0, log_requests=False)
    sockets = bind(settings)
    app = create_app(llm, settings)
    started = threading.Event()
    server = make_server(app, settings, started.set)
    thread = threading.Thread(target=server.run, args=(sockets,))
    thread.start()
    try:
        assert started.wait(HANG_S)
        with contextlib.closing(
            Served(server, f"http://127.0.0.1:{sockets[0].getsockname()[1]}", llm, app)
        ) as served:
            yield served
    finally:
        for _ in range(2):
            server.handle_exit(signal.SIGTERM, None)
        thread.join(HANG_S)
        llm.close()
        assert not thread.is_alive()


def limits(**options: Any) -> ServerParams:
    """Return settings for a test: a free port, no log."""
    return ServerParams(**{"port": 0, "log_requests": False, **options})


def raw_post(path: str, body: bytes, *headers: str) -> bytes:
    """Return a request's bytes."""
    lines = [
        f"POST {path} HTTP/1.1",
        "Host: localhost",
        "Content-Type: application/json",
        f"Content-Length: {len(body)}",
        *headers,
    ]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


def read_all(connection: socket.socket) -> bytes:
    """Return what comes until the other side ends the connection, whichever way it does."""
    data = b""
    with contextlib.suppress(ConnectionError):
        while chunk := connection.recv(65536):
            data += chunk
    return data


def read_until(connection: socket.socket, wanted: bytes) -> bytes:
    """Return what comes until `wanted` is in it."""
    data = b""
    while wanted not in data:
        chunk = connection.recv(65536)
        assert chunk, f"the connection ended after {data!r}"
        data += chunk
    return data


def events(text: str) -> list[Any]:
    """Return the events of a stream; "[DONE]" is text."""
    found = [line.removeprefix("data: ") for line in text.splitlines() if line.startswith("data: ")]
    return [each if each == "[DONE]" else json.loads(each) for each in found]


def wait_for(condition: Callable[[], bool]) -> None:
    """Wait until something holds; fail when it never does."""
    end = time.monotonic() + HANG_S
    while not condition():
        assert time.monotonic() < end, "it never came to hold"
        time.sleep(0.005)
