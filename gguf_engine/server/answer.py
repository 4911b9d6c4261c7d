"""Answer: the streams of one HTTP request, read together."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from functools import partial

from gguf_engine.outputs import Piece
from gguf_engine.server.errors import RefusedError
from gguf_engine.streams import AsyncStream

KEEP_ALIVE_S = 15.0
"""A stream with nothing to say sends a comment so often: some proxies cut a silent connection at 30 s."""

CLIENT_LEFT = (499, "client_left", "the client left before its answer was whole")
_SHUTTING_DOWN = (503, "shutting_down", "the answer was cut off: the server is shutting down")


class Answer:
    """
    Collects the pieces of several streams, so that a slow reader gets many at once and a fast one each.

    What waits is bounded by the context: a stream ends when that is full, whether or not somebody reads.

    Args:
        streams: One for each choice.
        note_gaps: Told the seconds between two tokens of a stream, and how many times.
        at_once: Whether somebody reads as the pieces come; otherwise they come together, at the end.
    """

    def __init__(
        self, streams: Sequence[AsyncStream], note_gaps: Callable[[float, int], object], *, at_once: bool
    ) -> None:
        self.streams = streams
        self.last: list[Piece | None] = [None] * len(streams)
        self._tell_gaps, self._at_once = note_gaps, at_once
        self._pieces: list[tuple[int, Piece]] = []
        self._news = asyncio.Event()
        self._n_open = len(streams)
        self._all_ended = asyncio.Event()
        self._came_at = [0.0] * len(streams)
        self._error: BaseException | None = None
        self._why = _SHUTTING_DOWN
        for index, stream in enumerate(streams):
            stream.listen(partial(self._hear, index), whole=not at_once)
        self._timer = asyncio.get_running_loop().call_later(KEEP_ALIVE_S, self._tick)

    @property
    def engine_s(self) -> float:
        """Seconds that the engine took for the longest of the finished choices."""
        return max((last.timings.total_s for last in self.last if last and last.timings), default=0.0)

    def _hear(self, index: int, at: float, delivered: list[Piece] | BaseException) -> None:
        """Take what has come of a stream; called in the event loop."""
        if isinstance(delivered, BaseException):
            self._error = delivered
            self._end_one()
            return
        self._pieces += [(index, piece) for piece in delivered]
        self._note_gaps(index, at, delivered)
        if delivered[-1].finish_reason is not None:
            self.last[index] = delivered[-1]
            self._end_one()
        elif self._at_once:
            self._news.set()

    def _note_gaps(self, index: int, at: float, delivered: list[Piece]) -> None:
        """Share the time since the last delivery among its tokens; of whole answers the engine tells it."""
        last = delivered[-1]
        gap_s, n = 0.0, len(delivered)
        if self._at_once:
            came_at, self._came_at[index] = self._came_at[index], at
            gap_s = (at - came_at) / n if came_at else 0.0
        elif last.timings is not None and last.usage is not None:
            rate, n = last.timings.decode_tokens_per_s, last.usage.n_completion - 1
            gap_s = 1 / rate if rate else 0.0
        if gap_s:
            self._tell_gaps(gap_s, n)

    def _end_one(self) -> None:
        self._n_open -= 1
        if not self._n_open:
            self._all_ended.set()
        if self._at_once or not self._n_open or self._error is not None:
            self._news.set()

    async def batches(self) -> AsyncIterator[list[tuple[int, Piece]]]:
        """
        Yield what has come since the last time, as pairs of choice and piece; empty now and then.

        Raises:
            Exception: What one of the streams raised.
            RefusedError: The answer was cancelled.
        """
        while True:
            if not self._pieces and self._n_open and self._error is None:
                await self._news.wait()
            self._news.clear()
            pieces, self._pieces = self._pieces, []
            if any(piece.finish_reason == "cancelled" for _, piece in pieces):
                raise RefusedError(*self._why)
            if not pieces and self._error is not None:
                raise self._error
            if not pieces and not self._n_open:
                return
            yield pieces

    def _tick(self) -> None:
        self._news.set()
        self._timer = asyncio.get_running_loop().call_later(KEEP_ALIVE_S, self._tick)

    def cancel(self, why: tuple[int, str, str] = _SHUTTING_DOWN) -> None:
        """End the streams; their slots are free as soon as the engine knows. `why` goes to RefusedError."""
        self._why = why
        for stream in self.streams:
            stream.cancel()

    async def close(self) -> None:
        """End the streams, and wait until the engine has let go of them."""
        self._timer.cancel()
        if self._n_open:
            self.cancel()
            await self._all_ended.wait()
