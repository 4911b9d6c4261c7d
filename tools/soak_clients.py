"""The clients of a soak: what they ask, how they misbehave, and what they may be answered."""

from __future__ import annotations

import asyncio
import json
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from random import Random
from typing import Any

from fuzz_bodies import damaged, request
from fuzz_server import exchange

FAULT_SHARE = 0.05
RECOVERY_S = 15.0
"""After a kill, for so long, 503 is an answer that may be given."""
MAX_FINDINGS = 20
TOPICS = ("snow", "moss", "the sea", "old maps", "bread", "a clock", "snow geese", "rust")
CRASHED = ("engine_crashed", "engine_silent")
CHAT = "/v1/chat/completions"


async def read_health(port: int) -> int | None:
    """Return the status of /health; None when nobody answers."""
    try:
        return (await exchange(port, request("GET", "/health", b"")))[0]
    except OSError:
        return None


class Clients:
    """
    Clients that ask one request after another.

    Args:
        port: Of the server.
        random: Chooses what they ask.
    """

    def __init__(self, port: int, random: Random) -> None:
        self._port, self._random = port, random
        self._killed_at = float("-inf")
        self.n_kills = 0
        self.by_kind: Counter[str] = Counter()
        self.by_status: Counter[str] = Counter()
        self.findings: list[str] = []

    def note_kill(self) -> None:
        """Hear that the engine is being killed."""
        self._killed_at = time.monotonic()
        self.n_kills += 1

    async def run(self, n: int, seconds: float) -> None:
        """Let `n` clients ask for so long."""
        end = time.monotonic() + seconds

        async def client() -> None:
            while time.monotonic() < end:
                is_fault = self._random.random() < FAULT_SHARE
                kinds: tuple[Callable[[], Awaitable[None]], ...] = (
                    self.faults if is_fault else self.requests
                )
                kind = self._random.choice(kinds)
                self.by_kind[kind.__name__] += 1
                try:
                    await kind()
                except (OSError, asyncio.IncompleteReadError, asyncio.TimeoutError) as error:
                    self._find(f"{kind.__name__}: {error!r}")
                    await asyncio.sleep(0.2)

        await asyncio.gather(*(client() for _ in range(n)))

    def _find(self, finding: str) -> None:
        if len(self.findings) < MAX_FINDINGS:
            self.findings.append(finding)

    def _judge(self, kind: str, status: int | None, body: bytes, *allowed: int) -> None:
        """Count an answer; note it where it is not what this kind of request gets."""
        self.by_status[str(status)] += 1
        is_down = time.monotonic() - self._killed_at < RECOVERY_S
        if status in allowed or (status == 503 and is_down and _code(body) in CRASHED):
            return
        if status == 503 and is_down and kind == "look":
            return
        self._find(f"{kind}: status {status}: {body[:200]!r}")

    async def _post(self, path: str, value: Any) -> tuple[int | None, bytes, bytes]:
        return await exchange(self._port, request("POST", path, json.dumps(value).encode()))

    def _messages(self) -> list[dict[str, str]]:
        return [{"role": "user", "content": f"Write a haiku about {self._random.choice(TOPICS)}"}]

    async def chat(self) -> None:
        """Ask for one answer, or for several with log-probabilities."""
        options = self._random.choice(({}, {"n": 3}, {"logprobs": True, "top_logprobs": 5}))
        asked = {"messages": self._messages(), "max_tokens": 40, **options}
        status, _, body = await self._post(CHAT, asked)
        self._judge("chat", status, body, 200)
        if status == 200 and len(json.loads(body)["choices"]) != options.get("n", 1):
            self._find(f"chat: not as many choices as asked for: {body[:200]!r}")

    async def complete(self) -> None:
        """Have several texts continued, with all sampling options."""
        sampling = {"temperature": 0.8, "top_k": 40, "top_p": 0.9, "stop": ["\n\n"], "logprobs": 2}
        prompts = self._random.sample(TOPICS, 2)
        status, _, body = await self._post(
            "/v1/completions", {"prompt": prompts, "max_tokens": 20, **sampling}
        )
        self._judge("complete", status, body, 200)

    async def stream(self) -> None:
        """Read a stream to its end: [DONE], or an event that says what a kill did."""
        asked = {"messages": self._messages(), "stream": True, "n": self._random.choice((1, 2))}
        asked |= {"max_tokens": 60, "stream_options": {"include_usage": True}}
        status, _, body = await self._post(CHAT, asked)
        if status != 200:
            self._judge("stream", status, body, 200)
            return
        last = body.partition(b"\r\n0\r\n\r\n")[0].rstrip().rpartition(b"data: ")[2]
        if last.startswith(b"[DONE]"):
            self.by_status["200"] += 1
        else:
            self.by_status["200, ended by a kill"] += 1
            is_down = time.monotonic() - self._killed_at < RECOVERY_S
            if not is_down or _code(last) not in CRASHED:
                self._find(f"stream: its last event is {last[:200]!r}")

    async def prompt(self) -> None:
        """Ask in the smallest way."""
        asked = {"prompt": self._random.choice(TOPICS), "max_tokens": 20}
        status, _, body = await self._post("/prompt", asked)
        self._judge("prompt", status, body, 200)

    async def tokenize(self) -> None:
        """Turn a text into ids and back."""
        status, _, body = await self._post("/tokenize", {"content": " ".join(TOPICS)})
        self._judge("tokenize", status, body, 200)
        status, _, body = await self._post("/detokenize", json.loads(body))
        self._judge("detokenize", status, body, 200)
        status, _, body = await self._post("/apply-template", {"messages": self._messages()})
        self._judge("apply_template", status, body, 200)

    async def embed(self) -> None:
        """Have texts turned into vectors."""
        asked = {"input": self._random.sample(TOPICS, 3), "encoding_format": "base64"}
        status, _, body = await self._post("/v1/embeddings", asked)
        self._judge("embed", status, body, 200)

    async def look(self) -> None:
        """Look at the models, the health, the metrics, the page."""
        path = self._random.choice(("/v1/models", "/health", "/metrics", "/", "/chat.js"))
        status, _, body = await exchange(self._port, request("GET", path, b""))
        self._judge("look", status, body, 200)

    async def bad_body(self) -> None:
        """Send a body that is none, or has an option out of range."""
        asked = {"messages": self._messages(), "max_tokens": 5, "temperature": -1}
        body = json.dumps(asked).encode()
        if self._random.random() < 0.5:
            body = damaged(body, self._random)
        status, _, answer = await exchange(self._port, request("POST", CHAT, body))
        self._judge("bad_body", status, answer, 400, 413, 415)

    async def unfinished(self) -> None:
        """Send half a request and leave, or wait for 408."""
        data = request("POST", CHAT, json.dumps({"messages": self._messages()}).encode())
        if self._random.random() < 0.5:
            _, writer = await self._connect(data[: len(data) // 2])
            writer.close()
            return
        status, _, body = await exchange(self._port, data[:-5])
        self._judge("unfinished", status, body, 408)

    async def leave(self) -> None:
        """Leave a stream in the middle."""
        reader, writer = await self._connect(self._long_stream())
        await asyncio.wait_for(reader.read(1), 60)
        writer.transport.abort()

    async def stop_reading(self) -> None:
        """Read nothing of a stream for a while, then leave."""
        _, writer = await self._connect(self._long_stream())
        await asyncio.sleep(self._random.choice((0.1, 3.0)))
        writer.close()

    def _long_stream(self) -> bytes:
        asked = {"messages": self._messages(), "stream": True, "n": 2, "ignore_eos": True}
        return request("POST", CHAT, json.dumps({**asked, "max_tokens": 400}).encode())

    async def _connect(self, data: bytes) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        reader, writer = await asyncio.open_connection("127.0.0.1", self._port)
        writer.write(data)
        await writer.drain()
        return reader, writer

    @property
    def requests(self) -> tuple[Callable[[], Awaitable[None]], ...]:
        """What well-behaved clients do."""
        written = (self.chat, self.complete, self.stream, self.stream, self.prompt)
        return *written, self.embed, self.tokenize, self.look

    @property
    def faults(self) -> tuple[Callable[[], Awaitable[None]], ...]:
        """What others do."""
        return self.bad_body, self.unfinished, self.leave, self.stop_reading


def _code(body: bytes) -> str | None:
    """Return the code of an error object; None for anything else."""
    try:
        code: str = json.loads(body)["error"]["code"]
    except (ValueError, LookupError, TypeError):
        return None
    return code
