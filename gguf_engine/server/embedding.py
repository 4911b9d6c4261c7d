"""POST /v1/embeddings: from checked texts to the bytes of their vectors."""

from __future__ import annotations

import asyncio
import base64
import time
from array import array
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from pydantic_core import to_json
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from gguf_engine.errors import EmbeddingError
from gguf_engine.server.answer import CLIENT_LEFT
from gguf_engine.server.errors import RefusedError
from gguf_engine.server.generation import Engine

if TYPE_CHECKING:
    from gguf_engine.embeddings import Text

Why = tuple[int, str, str]
_SHUTTING_DOWN = (503, "shutting_down", "the embeddings were cut off: the server is shutting down")


class _Running:
    """Embeddings under way, for whoever may end them."""

    def __init__(self, task: asyncio.Future[bytes]) -> None:
        self._task, self._why = task, _SHUTTING_DOWN

    def cancel(self, why: Why = _SHUTTING_DOWN) -> None:
        """End them; `why` goes to RefusedError."""
        self._why = why
        self._task.cancel()

    async def body(self) -> bytes:
        """
        Wait for the answer.

        Raises:
            RefusedError: They were cancelled.
        """
        try:
            return await self._task
        except asyncio.CancelledError:
            if not self._task.cancelled():
                raise  # it is whoever waits who was
            raise RefusedError(*self._why) from None


class Embedded(Response):
    """
    The response that embeds texts while it is sent.

    Args:
        engine: What answers.
        texts: One at least.
        model: Its name for clients.
        as_base64: Write vectors as the base64 of their little-endian float32, instead of as numbers.
    """

    def __init__(self, engine: Engine, texts: Sequence[Text], model: str, *, as_base64: bool) -> None:
        super().__init__(media_type="application/json")
        self._engine, self._texts, self._model = engine, texts, model
        self._as_base64 = as_base64

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Embed and send."""
        desk, started_at = self._engine.desk, time.perf_counter()
        desk.take(1)
        running = _Running(asyncio.ensure_future(self._answer()))
        desk.watch(running)
        watcher = asyncio.ensure_future(_cancel_when_gone(receive, running))
        try:
            body = await running.body()
        finally:
            watcher.cancel()
            running.cancel()
            desk.forget(running)
            desk.give_back(1, time.perf_counter() - started_at)
        await Response(body, media_type=self.media_type)(scope, receive, send)

    async def _answer(self) -> bytes:
        llm = self._engine.llm
        # In threads: texts may be megabytes, and vectors tens of them.
        ids = await asyncio.to_thread(llm.encode_texts, self._texts, name="input")
        try:
            rows = await llm.aembed(ids)
        except EmbeddingError as error:
            message = f"the model {self._model!r} makes no embeddings: {error.what}; ask a server that does"
            headers = {"x-should-retry": "false"}
            raise RefusedError(501, "not_supported", message, headers=headers) from error
        return await asyncio.to_thread(self._body, rows, ids)

    def _body(self, rows: NDArray[np.float32], ids: Sequence[array[int]]) -> bytes:
        data = [
            {"object": "embedding", "index": i, "embedding": self._write(row)} for i, row in enumerate(rows)
        ]
        n_tokens = sum(map(len, ids))
        usage = {"prompt_tokens": n_tokens, "total_tokens": n_tokens}
        return to_json({"object": "list", "data": data, "model": self._model, "usage": usage})

    def _write(self, row: NDArray[np.float32]) -> Any:
        return base64.b64encode(row.astype("<f4").tobytes()).decode() if self._as_base64 else row.tolist()


async def _cancel_when_gone(receive: Receive, running: _Running) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
    running.cancel(CLIENT_LEFT)
