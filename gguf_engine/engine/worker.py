"""
EngineWorker: the one thread that owns an Engine. Messages in, pieces out.

Callers never touch the engine: they put a message in the inbox and read the pieces that each request
delivers. The thread sleeps when there is nothing to do.
"""

from __future__ import annotations

import os
import queue
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import TypeVar

from gguf_engine.engine.engine import Engine
from gguf_engine.engine.sequence import Sequence
from gguf_engine.errors import EngineClosedError

_T = TypeVar("_T")
_Message = Callable[[Engine], None]


class EngineWorker:
    """
    Runs one engine in a thread of its own.

    Args:
        make_engine: Makes the engine, in that thread, so that one thread alone ever sees it.
        abort_making: Makes `make_engine` give up soon; called by a `close` before it has ended.
    """

    def __init__(
        self, make_engine: Callable[[], Engine], abort_making: Callable[[], None] = lambda: None
    ) -> None:
        self._inbox: queue.SimpleQueue[_Message | None] = queue.SimpleQueue()
        self._pid = os.getpid()
        self._is_closed = False
        self._close_lock = threading.Lock()
        self._abort = abort_making
        self._ready: Future[None] = Future()
        self._thread = threading.Thread(
            target=self._run, args=(make_engine,), name="gguf-engine", daemon=True
        )
        self._thread.start()

    def wait_until_ready(self) -> None:
        """
        Wait for `make_engine`.

        Raises:
            Exception: Whatever it raised.
        """
        self._ready.result()

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
        # A long prompt is worth interrupting; a decode pass ends soon by itself.
        if not sequence.token_ids:
            self._abort()

    def call(self, function: Callable[[Engine], _T]) -> _T:
        """Run a function on the engine's thread, between two passes, and return its result."""
        future: Future[_T] = Future()

        def message(engine: Engine) -> None:
            try:
                future.set_result(function(engine))
            except Exception as error:  # noqa: BLE001 - handed to the caller, who is waiting
                future.set_exception(error)

        self._send(message)
        return future.result()

    def _send(self, message: _Message) -> None:
        if os.getpid() != self._pid:
            raise EngineClosedError(
                f"this engine was loaded by process {self._pid} and cannot be used in its forked "
                f"child {os.getpid()}; load a model in the child"
            )
        with self._close_lock:
            if self._is_closed:
                raise EngineClosedError("the engine is closed; load the model again")
            self._inbox.put(message)

    def close(self) -> None:
        """End every request with EngineClosedError, free the model, join the thread; twice is fine."""
        if os.getpid() != self._pid:
            return
        with self._close_lock:
            if not self._is_closed:
                self._is_closed = True
                self._inbox.put(None)
                self._abort()
        if threading.current_thread() is not self._thread:
            self._thread.join()

    def _run(self, make_engine: Callable[[], Engine]) -> None:
        try:
            engine = make_engine()
            self._abort = engine.backend.abort
        except BaseException as error:  # noqa: BLE001 - handed to wait_until_ready
            self._ready.set_exception(error)
            return
        self._ready.set_result(None)
        try:
            self._loop(engine)
        finally:
            engine.fail_all(EngineClosedError("the engine was closed while this request ran"))
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
            try:
                engine.step()
            except Exception as error:  # noqa: BLE001 - our bug: it ends the requests, not the thread
                engine.fail_all(error)
