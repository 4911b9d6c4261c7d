"""Stream and AsyncStream: the pieces of one request, as an iterator that can be dropped at any time."""

from __future__ import annotations

import contextlib
import queue
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator
from types import TracebackType

from gguf_engine.engine.request import Request
from gguf_engine.engine.sequence import Deliver
from gguf_engine.engine.worker import Worker, receive
from gguf_engine.errors import EngineClosedError
from gguf_engine.outputs import Completion, Piece, TokenLogprob

Delivered = list[Piece] | BaseException
Hear = Callable[[float, Delivered], object]


class _Submitted:
    """What both kinds of stream share: a submitted request, and how to end it."""

    def __init__(self, worker: Worker, request: Request, deliver: Deliver, owner: object) -> None:
        self._is_done, self._is_read = True, False
        self._worker = worker
        self._owner = owner  # a model lives as long as its streams
        self._pieces: deque[Piece] = deque()  # handed over, not read yet
        self._seed = request.seed
        self._ticket = worker.open(request, deliver)
        # Before the submit: cancelling what was never submitted does nothing, the reverse would run on.
        self._is_done = False
        try:
            worker.submit(self._ticket)
        except BaseException:
            self.close()
            raise

    @property
    def seed(self) -> int:
        """What the draws of this request are made with."""
        return self._seed

    def _put(self, delivered: Delivered) -> None:
        if isinstance(delivered, BaseException):
            self._is_done = True
            raise delivered
        self._pieces.extend(delivered)

    def _next(self) -> Piece:
        self._is_read = True
        piece = self._pieces.popleft()
        if piece.finish_reason is not None:
            self._is_done = True
        return piece

    def cancel(self) -> None:
        """End the request; the pieces up to its last one, "cancelled", can still be read."""
        if not self._is_done:
            self._worker.cancel(self._ticket)

    def close(self) -> None:
        """End the request and the iteration; twice is fine. Dropping the stream does the same."""
        self.cancel()
        self._is_done = True
        self._pieces.clear()

    def __del__(self) -> None:
        if not getattr(self, "_is_done", True):
            self.close()


class Stream(_Submitted, Iterator[Piece]):
    """
    The pieces of one request as they are made.

    Leave the loop whenever you like: closing or dropping the stream frees its slot.
    """

    def __init__(self, worker: Worker, request: Request, owner: object = None) -> None:
        self._queue: queue.SimpleQueue[Delivered] = queue.SimpleQueue()
        super().__init__(worker, request, self._queue.put, owner)

    def __iter__(self) -> Stream:
        return self

    def __next__(self) -> Piece:
        while not self._pieces:
            if self._is_done:
                raise StopIteration
            self._worker.check_process()
            self._put(receive(self._queue))
        return self._next()

    def __enter__(self) -> Stream:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def completion(self) -> Completion:
        """
        Wait for the end and return the whole answer.

        An exception in the waiting thread, Ctrl-C for one, ends the request.

        Raises:
            EngineClosedError: The stream was closed, or some of it was read already.
        """
        if self._is_read or self._is_done:
            raise EngineClosedError(
                "this stream was closed or read already; join the pieces that were read"
            )
        try:
            return join(list(self), self.seed)
        finally:
            self.close()


class AsyncStream(_Submitted, AsyncIterator[Piece]):
    """
    The same for asyncio: made inside a running event loop, and read there.

    Cancelling a task that waits for a piece ends the request, also when `asyncio.wait_for` does it.
    """

    def __init__(self, worker: Worker, request: Request, owner: object = None) -> None:
        self._handover = _Handover()
        super().__init__(worker, request, self._handover.put, owner)

    def listen(self, hear: Hear, *, whole: bool) -> None:
        """
        Have what comes told, instead of reading it. To be called once, where the stream was made.

        Args:
            hear: Called in the event loop with the time at which pieces came, by `time.perf_counter`, and
                with them, or with the error that ended the request.
            whole: Call it only when the last piece has come.
        """

        def note_end(at: float, delivered: Delivered) -> None:
            self._is_done = self._is_done or _is_last(delivered)
            hear(at, delivered)

        self._is_read = True
        self._handover.listen(note_end, whole=whole)

    def __aiter__(self) -> AsyncStream:
        return self

    async def __anext__(self) -> Piece:
        import asyncio

        while not self._pieces:
            if self._is_done:
                raise StopAsyncIteration
            self._worker.check_process()
            try:
                self._put(await self._handover.get())
            except asyncio.CancelledError:
                self.close()
                raise
        return self._next()

    async def aclose(self) -> None:
        """End the request and the iteration."""
        self.close()


class _Handover:
    """Between the thread that an engine delivers in and the event loop that reads: one wake-up for many."""

    def __init__(self) -> None:
        import asyncio  # here, because it takes as long to import as half of this package

        self._loop = asyncio.get_running_loop()
        self._came: deque[tuple[float, Delivered]] = deque()
        self._news = asyncio.Event()
        self._hear: Hear | None = None
        self._whole = self._is_waking = False

    def put(self, delivered: Delivered) -> None:
        """Hand over; called in the engine's thread."""
        self._came.append((time.perf_counter(), delivered))
        # Whoever set the flag looks at what came only after taking it down: nothing is left lying.
        if not self._is_waking and (not self._whole or _is_last(delivered)):
            self._is_waking = True
            # A loop that is closed, now or meanwhile, has nobody left who reads.
            with contextlib.suppress(RuntimeError):
                self._loop.call_soon_threadsafe(self._wake)

    def _wake(self) -> None:
        self._is_waking = False
        if self._hear is None:
            self._news.set()
            return
        while self._came:
            self._hear(*self._came.popleft())

    def listen(self, hear: Hear, *, whole: bool) -> None:
        """Tell `hear` from now on; what has come already comes first."""
        self._hear, self._whole = hear, whole
        self._loop.call_soon(self._wake)

    async def get(self) -> Delivered:
        """Wait for the next delivery."""
        while not self._came:
            self._news.clear()
            await self._news.wait()
        return self._came.popleft()[1]


def _is_last(delivered: Delivered) -> bool:
    return isinstance(delivered, BaseException) or delivered[-1].finish_reason is not None


def join(pieces: list[Piece], seed: int) -> Completion:
    """Return the answer that a finished stream's pieces make."""
    last = pieces[-1]
    assert last.finish_reason is not None
    assert last.usage is not None
    assert last.timings is not None
    sampled = [piece for piece in pieces if piece.token_id is not None]
    tops: tuple[tuple[TokenLogprob, ...], ...] = tuple(piece.top_logprobs for piece in sampled)
    return Completion(
        text="".join(piece.text for piece in pieces),
        token_ids=tuple(piece.token_id for piece in sampled if piece.token_id is not None),
        finish_reason=last.finish_reason,
        usage=last.usage,
        timings=last.timings,
        seed=seed,
        logprobs=tuple(piece.logprob for piece in sampled if piece.logprob is not None),
        top_logprobs=tops if any(tops) else (),
    )
