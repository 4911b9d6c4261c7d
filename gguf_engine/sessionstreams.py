"""SessionStream and AsyncSessionStream: the pieces of an answer that joins its session at its end."""

from __future__ import annotations

import threading
from collections.abc import AsyncIterator, Callable, Iterator
from types import TracebackType

from gguf_engine.errors import EngineClosedError
from gguf_engine.outputs import Completion, Piece
from gguf_engine.streams import AsyncStream, Stream, join


class Turn:
    """
    A turn that is being made: collects the text that was read, and is ended once.

    Args:
        on_end: Told the answer to remember, or None for none.
        keeps_part: A part of the answer is remembered when the reader leaves before its end.
    """

    def __init__(self, on_end: Callable[[str | None], object], *, keeps_part: bool) -> None:
        self._on_end, self._keeps_part = on_end, keeps_part
        self._texts: list[str] = []
        self._is_over = threading.Lock()  # taken by whoever ends it: reader and closer may be two threads

    @property
    def has_begun(self) -> bool:
        """Whether a piece was read, or the turn has ended."""
        return bool(self._texts) or self._is_over.locked()

    def hear(self, piece: Piece) -> None:
        """Add what was read; the last piece ends the turn."""
        self._texts.append(piece.text)
        if piece.finish_reason is not None:
            # An answer that ended by itself may be empty; one that was cut off before a word is none.
            self._end(is_remembered=piece.finish_reason != "cancelled" or any(self._texts))

    def leave(self) -> None:
        """End it where the reader stopped; nothing happens to one that has ended."""
        self._end(is_remembered=self._keeps_part and any(self._texts))

    def forget(self) -> None:
        """End it as if nothing had been asked; nothing happens to one that has ended."""
        self._end(is_remembered=False)

    def _end(self, *, is_remembered: bool) -> None:
        if self._is_over.acquire(blocking=False):
            self._on_end("".join(self._texts) if is_remembered else None)

    def __del__(self) -> None:
        self.leave()


class SessionStream(Iterator[Piece]):
    """The pieces of one answer of a session; see `Session.stream`, and `Stream`."""

    def __init__(self, stream: Stream, turn: Turn) -> None:
        self._stream, self._turn = stream, turn

    @property
    def seed(self) -> int:
        """What the draws of this answer are made with."""
        return self._stream.seed

    def __next__(self) -> Piece:
        try:
            piece = next(self._stream)
        except Exception:
            self._turn.forget()  # nothing to do when it was ended before
            raise
        self._turn.hear(piece)
        return piece

    def cancel(self) -> None:
        """End the answer; the pieces up to its last one, "cancelled", can still be read."""
        self._stream.cancel()

    def close(self) -> None:
        """End the answer and the iteration; what was read is remembered. Twice is fine."""
        self._stream.close()
        self._turn.leave()

    def completion(self) -> Completion:
        """
        Wait for the end and return the whole answer.

        Raises:
            EngineClosedError: The stream was closed, or some of it was read already.
        """
        if self._turn.has_begun:
            raise EngineClosedError(
                "this stream was closed or read already; join the pieces that were read"
            )
        return join(list(self), self.seed)

    def __enter__(self) -> SessionStream:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


class AsyncSessionStream(AsyncIterator[Piece]):
    """The same for asyncio; see `Session.astream`, and `AsyncStream`."""

    def __init__(self, stream: AsyncStream, turn: Turn) -> None:
        self._stream, self._turn = stream, turn

    @property
    def seed(self) -> int:
        """What the draws of this answer are made with."""
        return self._stream.seed

    async def __anext__(self) -> Piece:
        try:
            piece = await self._stream.__anext__()
        except Exception:
            self._turn.forget()
            raise
        except BaseException:  # the task was cancelled, and the stream is closed by that
            self._turn.leave()
            raise
        self._turn.hear(piece)
        return piece

    def cancel(self) -> None:
        """End the answer; the pieces up to its last one, "cancelled", can still be read."""
        self._stream.cancel()

    async def aclose(self) -> None:
        """End the answer and the iteration; what was read is remembered. Twice is fine."""
        self._stream.close()
        self._turn.leave()
