"""From a checked request to the bytes of its answer, streamed or whole: the one path of all routes."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from gguf_engine.outputs import Piece
from gguf_engine.params import SamplingParams
from gguf_engine.server.answer import CLIENT_LEFT, Answer
from gguf_engine.server.errors import RefusedError, reply_to
from gguf_engine.server.replies import KEEP_ALIVE, Reply, event
from gguf_engine.streams import AsyncStream

if TYPE_CHECKING:
    from gguf_engine.llm import LLM
    from gguf_engine.prompts import Prompt
    from gguf_engine.server.desk import Desk
    from gguf_engine.server.metrics import Metrics

log = logging.getLogger(__name__)

LONG_ANSWER = 2000
"""Pieces from which an answer is written in a thread: with log-probabilities others would wait for it."""

STARTED_AT = "gguf_engine.started_at"
"""Where a request's scope says when it came, by `time.perf_counter`."""

_JSON = [(b"content-type", b"application/json")]
_TEXT = [(b"content-type", b"text/plain; charset=utf-8")]
_EVENTS = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-store"),
    (b"x-accel-buffering", b"no"),
]


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """
    What is to be generated, and how it is told.

    Attributes:
        prompts: One or more; each is answered `n` times.
        chat: Whether a string is a message of the user.
        reply: Makes the answer's objects; None for the text alone.
    """

    prompts: Sequence[Prompt]
    params: SamplingParams
    n: int = 1
    chat: bool = False
    stream: bool = False
    reply: Reply | None = None


class Engine:
    """What answers: a model, its desk and its metrics."""

    def __init__(self, llm: LLM, desk: Desk, metrics: Metrics) -> None:
        self.llm, self.desk, self.metrics = llm, desk, metrics

    @contextlib.asynccontextmanager
    async def answering(self, job: Job, receive: Receive) -> AsyncIterator[Answer]:
        """
        Take places, start the streams, and end them when the block or the client does.

        Raises:
            GGUFEngineError: The job is refused; nothing has been started.
        """
        n = job.n * len(job.prompts)
        self.desk.take(n)
        started_at = time.perf_counter()
        try:
            answer = Answer(self._start(job), self.metrics.note_gaps, at_once=job.stream)
            self.desk.watch(answer)
            watcher = asyncio.ensure_future(_cancel_when_gone(receive, answer))
            try:
                yield answer
            finally:
                watcher.cancel()
                await answer.close()
                self.desk.forget(answer)
                for last in answer.last:
                    if last is not None:
                        self.metrics.note_end(last)
        finally:
            self.desk.give_back(n, time.perf_counter() - started_at)

    def _start(self, job: Job) -> list[AsyncStream]:
        streams: list[AsyncStream] = []
        try:
            for prompt in job.prompts:
                streams += self.llm.astreams(prompt, job.n, job.params, chat=job.chat, whole=not job.stream)
        except BaseException:
            for stream in streams:
                stream.close()
            raise
        return streams


async def _cancel_when_gone(receive: Receive, answer: Answer) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
    answer.cancel(CLIENT_LEFT)


class Generated(Response):
    """The response that runs a job while it is sent."""

    def __init__(self, engine: Engine, job: Job) -> None:
        super().__init__()
        self._engine, self._job = engine, job

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Generate and send."""
        async with self._engine.answering(self._job, receive) as answer:
            if self._job.stream:
                await self._send_stream(answer, send)
            else:
                await self._send_whole(answer, send)
        overhead_s = time.perf_counter() - scope[STARTED_AT] - answer.engine_s
        self._engine.metrics.note_overhead(max(0.0, overhead_s))

    async def _send_stream(self, answer: Answer, send: Send) -> None:
        reply = self._job.reply
        assert reply is not None
        await send({"type": "http.response.start", "status": 200, "headers": _EVENTS})
        try:
            if first := reply.first(len(answer.streams)):
                await send({"type": "http.response.body", "body": first, "more_body": True})
            async for batch in answer.batches():
                if data := reply.events(batch) if batch else KEEP_ALIVE:
                    await send({"type": "http.response.body", "body": data, "more_body": True})
            lasts = [last for last in answer.last if last is not None]
            end = reply.end(lasts, answer.streams[0].seed, len(self._job.prompts))
        except Exception as error:  # noqa: BLE001 - the status is out: an event says what happened
            note_failure(error)
            end = event(reply_to(error).body)
        await send({"type": "http.response.body", "body": end, "more_body": False})

    async def _send_whole(self, answer: Answer, send: Send) -> None:
        choices: list[list[Piece]] = [[] for _ in answer.streams]
        async for batch in answer.batches():
            for index, piece in batch:
                choices[index].append(piece)
        reply = self._job.reply
        if reply is None:
            body, headers = "".join(piece.text for piece in choices[0]).encode(), _TEXT
        else:
            args = (choices, answer.streams[0].seed, len(self._job.prompts))
            is_long = sum(map(len, choices)) > LONG_ANSWER
            body = await asyncio.to_thread(reply.whole, *args) if is_long else reply.whole(*args)
            headers = _JSON
        length = (b"content-length", str(len(body)).encode())
        await send({"type": "http.response.start", "status": 200, "headers": [*headers, length]})
        await send({"type": "http.response.body", "body": body})


def note_failure(error: BaseException) -> None:
    """Write an error that is not the client's to the log."""
    reply = reply_to(error)
    if reply.status >= 500 and not isinstance(error, RefusedError):
        is_ours = reply.body["error"]["code"] == "internal_error"
        log.error("a request failed: %r", str(error), exc_info=error if is_ours else None)
