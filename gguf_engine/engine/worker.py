"""
EngineWorker: the one thread that owns an Engine. Messages in, pieces out.

Callers never touch the engine: they put a message in the inbox and read the pieces that each request
delivers. The thread sleeps when there is nothing to do.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import queue
import threading
import time
from array import array
from collections.abc import Callable, Iterable
from collections.abc import Sequence as SequenceABC
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from gguf_engine.engine.embedding import DeliverVectors, EmbeddingJob
from gguf_engine.engine.engine import Engine, EngineFacts, EngineStats
from gguf_engine.engine.sequence import Deliver, Sequence
from gguf_engine.engine.state import (
    StateOrigin,
    pack_state,
    read_state,
    take_prefix,
    unpack_state,
    write_state,
)
from gguf_engine.errors import EngineClosedError, EngineSilentError, StateError

if TYPE_CHECKING:
    from gguf_engine.engine.request import Request
    from gguf_engine.text.pieces import PieceTable
    from gguf_engine.text.tokenizer import Tokenizer

_T = TypeVar("_T")
_Message = Callable[[Engine], None]

# llama.cpp sees that a load is to end between two tensors, and not while it makes the context, which takes
# seconds for a large one. Whoever pressed Ctrl-C does not wait for that.
ABORT_LOAD_S = 0.2

# A question is answered between two passes. Where that takes longer, for a prompt's pass may take seconds,
# what held when it began is answer enough; but not once it takes so long that it may never end.
PATIENCE_S = 0.25
LONG_PASS_S = 120.0

# A signal that comes a moment before a wait begins does not end the wait: cut up, it cannot be overlooked.
PULSE_S = 0.1


def receive(source: queue.SimpleQueue[_T]) -> _T:
    """Wait for what a queue brings, and for Ctrl-C."""
    while True:
        with contextlib.suppress(queue.Empty):
            return source.get(timeout=PULSE_S)


def refuse_fork(loaded_by: int) -> None:
    """
    Refuse use in a fork of the process that loaded an engine.

    Raises:
        EngineClosedError: This is not the process `loaded_by`.
    """
    if os.getpid() != loaded_by:
        raise EngineClosedError(
            f"this engine was loaded by process {loaded_by} and cannot be used in its forked "
            f"child {os.getpid()}; start the child afresh (multiprocessing's 'spawn') and load there"
        )


class Worker(Protocol):
    """Whatever runs requests: an engine in a thread (EngineWorker) or in a process (ProcessWorker)."""

    def wait_until_ready(self) -> EngineFacts:
        """Wait until the model is loaded; to be called once. Raises what the load raised."""

    def open(self, request: Request, deliver: Deliver) -> Any:
        """Return a ticket for a request: what `submit` and `cancel` take."""

    def submit(self, ticket: Any) -> None:
        """Queue a request; its pieces come through `deliver`."""

    def cancel(self, ticket: Any) -> None:
        """End a request; its last piece says "cancelled". Fine at any time, from any thread."""

    def embed(self, texts: SequenceABC[array[int]], deliver: DeliverVectors) -> Callable[[], None]:
        """Queue texts to embed; return what ends that early, at any time and from any thread."""

    def stats(self, timeout_s: float) -> EngineStats:
        """Return what the engine is doing now. Raises EngineSilentError when it does not answer in time."""

    def save_prefix(self, token_ids: array[int], origin: StateOrigin, path: str, front: bytes) -> int:
        """Write the longest kept beginning of some ids to a file; see EngineWorker."""

    def load_prefix(self, path: str, offset: int, origin: StateOrigin) -> int:
        """Restore what `save_prefix` wrote; see EngineWorker."""

    def check_process(self) -> None:
        """Refuse use in a forked child."""

    def close(self) -> None:
        """End every request with EngineClosedError and free the model; twice is fine."""


class EngineWorker:
    """
    Runs one engine in a thread of its own.

    Args:
        make_engine: Makes the engine, in that thread, so that one thread alone ever sees it.
        vocabulary: What the ids of a `Request` stand for; None for sequences made elsewhere.
        end_candidates: Ids that may end a generation.
        abort_making: Makes `make_engine` give up soon; called by a `close` before it has ended.
        flush: Called in that thread when what requests have delivered is to reach their readers.
    """

    def __init__(
        self,
        make_engine: Callable[[], Engine],
        vocabulary: Tokenizer | PieceTable | None = None,
        *,
        end_candidates: Iterable[int] = (),
        abort_making: Callable[[], None] = lambda: None,
        flush: Callable[[], None] = lambda: None,
    ) -> None:
        self._inbox: queue.SimpleQueue[_Message | None] = queue.SimpleQueue()
        self._pid = os.getpid()
        self._is_closed, self._is_loading = False, True
        self._make_engine: Callable[[], Engine] | None = make_engine
        self._vocabulary, self._end_candidates = vocabulary, end_candidates
        self._abort, self._flush = abort_making, flush
        self._abort_prompt: Callable[[Sequence], None] = lambda _: None
        self._abort_embedding: Callable[[EmbeddingJob], None] = lambda _: None
        self._read_stats: Callable[[], EngineStats] | None = None  # once the engine is there
        self._step_began_at = 0.0  # on the clock of time.monotonic; 0 between two steps
        self._ready: queue.SimpleQueue[EngineFacts | BaseException] = queue.SimpleQueue()
        thread = threading.Thread(target=self._run, name="gguf-engine", daemon=True)
        self._thread: threading.Thread | None = thread
        try:
            thread.start()
        except BaseException:  # a Ctrl-C while the thread comes up
            self.close()
            raise

    def wait_until_ready(self) -> EngineFacts:
        """
        Wait for `make_engine`; to be called once.

        Raises:
            Exception: Whatever it raised.
        """
        answer = receive(self._ready)
        if isinstance(answer, BaseException):
            raise answer
        return answer

    def open(self, request: Request, deliver: Deliver) -> Sequence:
        """Return the sequence of a request."""
        assert self._vocabulary is not None
        return request.sequence(self._vocabulary, deliver)

    def submit(self, sequence: Sequence) -> None:
        """
        Queue a request; its pieces come through `sequence.deliver`.

        Raises:
            EngineClosedError: After `close`, or in a forked child.
        """
        self._send(lambda engine: engine.submit(sequence))

    def cancel(self, sequence: Sequence) -> None:
        """End a request; its last piece says "cancelled". Fine at any time, from any thread."""
        if self._is_closed or os.getpid() != self._pid:
            return
        self._inbox.put(lambda engine: engine.cancel(sequence))
        self._abort_prompt(sequence)

    def embed(self, texts: SequenceABC[array[int]], deliver: DeliverVectors) -> Callable[[], None]:
        """
        Queue texts to embed; their vectors come through `deliver`.

        Args:
            texts: Their ids, at least one each, and none longer than the context.
            deliver: See EmbeddingJob.

        Returns:
            What ends the job early; fine at any time, from any thread.

        Raises:
            EngineClosedError: After `close`, or in a forked child.
        """
        job = EmbeddingJob(texts, deliver)
        self._send(lambda engine: engine.embeddings.add(job))
        return lambda: self._cancel_embedding(job)

    def _cancel_embedding(self, job: EmbeddingJob) -> None:
        if self._is_closed or os.getpid() != self._pid:
            return
        self._inbox.put(lambda engine: engine.embeddings.cancel(job))
        self._abort_embedding(job)

    def stats(self, timeout_s: float) -> EngineStats:
        """
        Return what the engine is doing now; in a long pass, what it did when that began.

        Raises:
            EngineSilentError: No answer within `timeout_s`, and the pass under way takes suspiciously long.
            EngineClosedError: After `close`, or in a forked child.
        """
        with contextlib.suppress(EngineSilentError):
            return self.call(Engine.stats, min(PATIENCE_S, timeout_s))
        if (stats := self.stats_in_pass()) is not None:
            return stats
        try:
            return self.call(Engine.stats, max(0.0, timeout_s - PATIENCE_S))
        except EngineSilentError:
            raise EngineSilentError(timeout_s) from None

    def stats_in_pass(self) -> EngineStats | None:
        """Return what the engine does in the pass under way; None without one, or if it takes too long."""
        began_at, read = self._step_began_at, self._read_stats
        if not began_at or read is None or time.monotonic() - began_at > LONG_PASS_S:
            return None
        return read()  # counts alone, which the engine's thread does not change within a pass

    def save_prefix(self, token_ids: array[int], origin: StateOrigin, path: str, front: bytes) -> int:
        """
        Write the state of the longest beginning of some ids that is in the KV cache to a file.

        Args:
            token_ids: The ids.
            origin: What the state belongs to.
            path: Of the file, absolute; it is replaced whole or stays as it was.
            front: What the file begins with.

        Returns:
            How many of the ids its state holds; with 0 nothing was written.

        Raises:
            StateError: The file cannot be written.
            BackendError: The backend failed to save it.
            EngineClosedError: After `close`, or in a forked child.
        """
        state = self.call(lambda engine: take_prefix(engine.kv_cache, token_ids))
        if state is None:
            return 0
        try:  # in the caller's thread: other requests go on meanwhile
            write_state(Path(path), pack_state(state, origin), front)
        except OSError as error:
            raise StateError("file", path, f"it cannot be written: {error}") from error
        return len(state.token_ids)

    def load_prefix(self, path: str, offset: int, origin: StateOrigin) -> int:
        """
        Restore what `save_prefix` wrote, for the next request that begins with its ids.

        Args:
            path: Of the file, absolute.
            offset: How long its front is.
            origin: What this engine's states belong to.

        Returns:
            How many ids are in the KV cache by it; 0 when running requests have all its room.

        Raises:
            StateError: It cannot be read, is damaged, or belongs to another model or other settings.
            BackendError: The backend refused it all the same.
            EngineClosedError: After `close`, or in a forked child.
        """
        try:
            packed = read_state(Path(path), offset=offset)
        except OSError as error:
            raise StateError("file", path, f"it cannot be read: {error}") from error
        state = unpack_state(packed, origin, path)
        slot = self.call(lambda engine: engine.kv_cache.load(state.token_ids, state.data))
        return 0 if slot is None else len(state.token_ids)

    def post(self, function: Callable[[Engine], None]) -> None:
        """Run a function on the engine's thread, between two passes, some time."""
        self._send(function)

    def call(self, function: Callable[[Engine], _T], timeout_s: float | None = None) -> _T:
        """
        Run a function on the engine's thread, between two passes, and return its result.

        Raises:
            EngineSilentError: It took longer than `timeout_s`.
        """
        # Not a Future, whose lock a signal handler that closes the engine would wait for in vain.
        answer: queue.SimpleQueue[tuple[_T] | Exception] = queue.SimpleQueue()

        def message(engine: Engine) -> None:
            try:
                answer.put((function(engine),))
            except Exception as error:  # noqa: BLE001 - handed to the caller, who is waiting
                answer.put(error)

        self._send(message)
        try:
            answered = receive(answer) if timeout_s is None else answer.get(timeout=timeout_s)
        except queue.Empty:
            assert timeout_s is not None
            raise EngineSilentError(timeout_s) from None
        if isinstance(answered, Exception):
            raise answered
        return answered[0]

    def check_process(self) -> None:
        """
        Refuse use in a forked child.

        Raises:
            EngineClosedError: This is a child of the process that loaded the engine.
        """
        refuse_fork(self._pid)

    def _send(self, message: _Message) -> None:
        self.check_process()
        if not self._is_closed:
            self._inbox.put(message)
        # Asked again: the thread says that it ends before it looks into the inbox for the last time, so a
        # message is answered there or refused here. No lock: a signal handler may be the one who closes.
        if self._is_closed:
            raise EngineClosedError("the engine is closed; load the model again")

    def close(self) -> None:
        """End every request with EngineClosedError, free the model, join the thread; twice is fine."""
        if os.getpid() != self._pid:
            return
        self._is_closed = True
        self._inbox.put(None)
        self._abort()
        thread = self._thread
        if thread is None or thread.ident is None or threading.current_thread() is thread:
            return
        thread.join(ABORT_LOAD_S if self._is_loading else None)
        if thread.is_alive():
            atexit.register(thread.join)  # it frees what it has loaded, and ends
        else:
            # Here, not together with all that a model holds, which takes a while: after it the first Python
            # to run would be a callback on the end of a thread, and there a Ctrl-C is lost.
            self._thread = None

    def _run(self) -> None:
        make_engine, self._make_engine = self._make_engine, None
        assert make_engine is not None
        try:
            engine = make_engine()
            self._abort, self._abort_prompt = engine.abort, engine.abort_prompt
            self._abort_embedding = engine.embeddings.abort
            engine.flush = self._flush
            self._read_stats = engine.stats
            facts = engine.facts(self._end_candidates)
        except BaseException as error:  # noqa: BLE001 - handed to wait_until_ready
            self._ready.put(error)
            return
        self._is_loading = False
        del make_engine  # it may hold whoever holds this worker
        self._ready.put(facts)
        try:
            self._loop(engine)
        finally:
            self._end(engine)

    def _end(self, engine: Engine) -> None:
        """Answer whatever is still in the inbox, so that nobody waits for a thread that has gone."""
        self._is_closed = True
        while not self._inbox.empty():
            message = self._inbox.get()
            if message is not None:
                message(engine)
        engine.fail_all(EngineClosedError("the engine was closed while this request ran"))
        self._flush()
        engine.close()

    def _handle(self, engine: Engine) -> bool:
        """Wait for a message and do it; False when it says to end."""
        # A function of its own: a message kept in the loop's frame would keep what it refers to alive.
        message = self._inbox.get()
        if message is None:
            return False
        message(engine)
        return True

    def _loop(self, engine: Engine) -> None:
        inbox = self._inbox
        while True:
            while not engine.has_work or not inbox.empty():
                if not self._handle(engine):
                    return
                self._flush()
            self._step_began_at = time.monotonic()
            try:
                engine.step()
            except Exception as error:  # noqa: BLE001 - our bug: it ends the requests, not the thread
                engine.fail_all(error)
            self._step_began_at = 0.0
            self._flush()
