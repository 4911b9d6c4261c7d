"""
ProcessWorker: an EngineWorker in a process of its own. A crash costs its requests, not the application.

The child is a fresh interpreter that imports nothing of the caller's: no fork, no second run of the
caller's main module. One thread of the parent (the manager) owns the child: starts it, writes to it,
starts it again after a crash when the next request comes. One more reads what the child sends.
"""

from __future__ import annotations

import contextlib
import copy
import itertools
import os
import pickle
import queue
import sys
import threading
import time
from array import array
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

from gguf_engine.engine.embedding import DeliverVectors
from gguf_engine.engine.engine import EngineFacts, EngineStats
from gguf_engine.engine.link import Child, Command, EmbeddingTicket, Ticket
from gguf_engine.engine.request import Request
from gguf_engine.engine.sequence import Deliver
from gguf_engine.engine.worker import PATIENCE_S, receive, refuse_fork
from gguf_engine.errors import (
    EngineClosedError,
    EngineCrashed,
    EngineSilentError,
    GGUFEngineError,
    OptionError,
)
from gguf_engine.text.pieces import PieceTable

if TYPE_CHECKING:
    from gguf_engine.engine.engine import Engine
    from gguf_engine.engine.state import StateOrigin
    from gguf_engine.text.tokenizer import Tokenizer

BACK_OFF_S = 0.25
MAX_BACK_OFF_S = 30.0
MAX_CRASHES = 3
"""Crashes with no request finished ever, after which a file is not tried again."""
GRACE_S = 5.0
STALL_S = 600.0
"""A loaded child that answers no question for so long hangs, and is ended; no pass takes nearly as long."""


class ProcessWorker:
    """
    Runs one engine in a child process.

    Args:
        make_engine: Makes the engine, there; its backend is a class or function that can be imported, or
            a `partial` of one.
        vocabulary: What the ids stand for.
        end_candidates: Ids that may end a generation.
        on_load: Called with 0..1 while the model loads; `make_engine` is then given a progress callback.
        on_killed: Told why when the file, as far as can be known, kills whoever loads it.

    Raises:
        OptionError: No interpreter to start, or an argument that cannot be sent.
    """

    def __init__(
        self,
        make_engine: Callable[..., Engine],
        vocabulary: Tokenizer | PieceTable,
        *,
        end_candidates: Iterable[int] = (),
        on_load: Callable[[float], object] | None = None,
        on_killed: Callable[[str], object] = lambda _: None,
    ) -> None:
        if not sys.executable:
            raise OptionError("isolation", "process", "'thread' in a program without a Python interpreter")
        table = vocabulary if isinstance(vocabulary, PieceTable) else vocabulary.table() or vocabulary
        try:
            self._setup = pickle.dumps((make_engine, table, tuple(end_candidates), on_load is not None))
        except Exception as error:
            raise OptionError(
                "make_backend", make_engine, "what can be pickled, with isolation='process'", str(error)
            ) from error
        self.on_load = on_load or (lambda _: None)
        self._on_killed = on_killed
        self._pid = os.getpid()
        self._is_closed = False
        self._numbers = itertools.count()
        self._asked: dict[int, queue.SimpleQueue[EngineStats | BaseException]] = {}
        self._silent_since: tuple[Child, float] | None = None
        self._inbox: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._ready: queue.SimpleQueue[EngineFacts | BaseException] = queue.SimpleQueue()
        # The manager's own, from here on.
        self._facts: EngineFacts | None = None
        self._child: Child | None = None
        self._waiting: list[Ticket] = []
        self._is_wanted = False  # somebody asked how an engine is that is not there
        self._n_crashes = 0  # in a row
        self._has_answered = False  # this file has finished a request: what crashes now is not the file
        self._n_crashed = 0  # in all
        self._start_at = 0.0
        self._given_up: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="gguf-engine-manager", daemon=True)
        try:
            self._thread.start()
        except BaseException:  # a Ctrl-C while the thread comes up
            self.close()
            raise

    def wait_until_ready(self) -> EngineFacts:
        """
        Wait until the first child has loaded the model; to be called once.

        Raises:
            EngineCrashed: The child died.
            GGUFEngineError: Whatever the backend raised there.
        """
        answer = receive(self._ready)
        if isinstance(answer, BaseException):
            raise answer
        return answer

    @property
    def pid(self) -> int | None:
        """The child's process id; None while there is none."""
        child = self._child
        return None if child is None else child.pid

    def open(self, request: Request, deliver: Deliver) -> Ticket:
        """
        Return a request that can be submitted.

        Raises:
            OptionError: Its constraint or proposer cannot be sent to another process.
        """
        return Ticket(next(self._numbers), request, deliver)

    def submit(self, ticket: Ticket) -> None:
        """
        Queue a request; after a crash this starts the engine again.

        Raises:
            EngineClosedError: After `close`, or in a forked child.
        """
        self.check_process()
        if not self._is_closed:
            self._inbox.put(lambda: self._submit(ticket))
        # Asked again, as in EngineWorker: no lock, a signal handler may be the one who closes.
        if self._is_closed:
            raise EngineClosedError("the engine is closed; load the model again")

    def cancel(self, ticket: Ticket) -> None:
        """End a request; its last piece says "cancelled". Fine at any time, from any thread."""
        if not self._is_closed and os.getpid() == self._pid:
            self._inbox.put(lambda: self._cancel(ticket))

    def embed(self, texts: Sequence[array[int]], deliver: DeliverVectors) -> Callable[[], None]:
        """See EngineWorker; after a crash this starts the engine again."""
        ticket = EmbeddingTicket(next(self._numbers), texts, deliver)
        self.submit(ticket)
        return lambda: self.cancel(ticket)

    def stats(self, timeout_s: float) -> EngineStats:
        """
        Return what the engine is doing now, see EngineWorker; after a crash this starts it again.

        One that never answers is ended after STALL_S, so that the next request starts another.

        Raises:
            EngineSilentError: No answer within `timeout_s`: it may be loading.
            EngineCrashed: It is not started again.
            EngineClosedError: After `close`, or in a forked child.
        """
        self.check_process()
        if self._is_closed:
            raise EngineClosedError("the engine is closed; load the model again")
        answer: queue.SimpleQueue[EngineStats | BaseException] = queue.SimpleQueue()
        number = next(self._numbers)
        self._asked[number] = answer
        try:
            stats = self._await_stats(number, answer, timeout_s)
        except queue.Empty:
            self._note_silence()
            raise EngineSilentError(timeout_s) from None
        finally:
            self._asked.pop(number, None)
        if isinstance(stats, BaseException):
            raise stats
        return stats._replace(n_crashes=self._n_crashed)

    def _await_stats(
        self, number: int, answer: queue.SimpleQueue[EngineStats | BaseException], timeout_s: float
    ) -> EngineStats | BaseException:
        """Ask the engine's thread, then the one that reads the pipe. Raises queue.Empty."""
        patience_s = min(PATIENCE_S, timeout_s / 2)
        self._inbox.put(lambda: self._ask(number))
        with contextlib.suppress(queue.Empty):
            return answer.get(timeout=patience_s)
        self._inbox.put(lambda: self._ask(number, in_pass=True))
        return answer.get(timeout=timeout_s - patience_s)

    def _note_silence(self) -> None:
        child, now = self._child, time.monotonic()
        if child is None or not child.is_ready:
            return
        if self._silent_since is None or self._silent_since[0] is not child:
            self._silent_since = (child, now)
        elif now - self._silent_since[1] > STALL_S:
            child.kill()

    def _ask(self, number: int, *, in_pass: bool = False) -> None:
        if self._given_up is not None and (answer := self._asked.get(number)) is not None:
            answer.put(copy.copy(self._given_up))
        elif self._child is not None and self._child.is_ready:
            self._child.ask_stats(number, in_pass=in_pass)
        else:
            self._is_wanted = True

    def on_stats(self, number: int, stats: EngineStats) -> None:
        """See Listener."""
        self._silent_since = None
        if (answer := self._asked.get(number)) is not None:
            answer.put(stats)

    def save_prefix(self, token_ids: array[int], origin: StateOrigin, path: str, front: bytes) -> int:
        """See EngineWorker; the child itself writes the file."""
        return self._command("save_prefix", token_ids, origin, path, front)

    def load_prefix(self, path: str, offset: int, origin: StateOrigin) -> int:
        """See EngineWorker; the child itself reads the file."""
        return self._command("load_prefix", path, offset, origin)

    def _command(self, method: str, *args: Any) -> int:
        """
        Have the child call a method of its worker.

        Raises:
            EngineCrashed: The child died of it.
            EngineClosedError: After `close`, or in a forked child.
            GGUFEngineError: What the method raised.
        """
        answer: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self.submit(Command(next(self._numbers), method, args, answer.put))
        result = receive(answer)
        if isinstance(result, BaseException):
            raise result
        assert isinstance(result, int)
        return result

    def check_process(self) -> None:
        """
        Refuse use in a forked child.

        Raises:
            EngineClosedError: This is a fork of the process that loaded the engine.
        """
        refuse_fork(self._pid)

    def close(self) -> None:
        """End every request with EngineClosedError, end the child, join the thread; twice is fine."""
        if os.getpid() != self._pid:
            return
        self._is_closed = True
        self._inbox.put(None)
        if self._thread.ident is None or threading.current_thread() is self._thread:
            return
        self._thread.join(2 * GRACE_S)
        if self._thread.is_alive() and (child := self._child) is not None:
            child.kill()  # the manager is stuck writing to it
            self._thread.join()

    def on_ready(self, child: Child, facts: EngineFacts) -> None:
        """See Listener."""
        self._inbox.put(lambda: self._greet(child, facts))

    def on_end(self, child: Child) -> None:
        """See Listener."""
        self._inbox.put(lambda: self._bury(child))

    def _greet(self, child: Child, facts: EngineFacts) -> None:
        """Send a child what has waited for it."""
        if child is not self._child:
            return
        if self._facts is None:
            self._facts = facts
            self._ready.put(facts)
        elif facts[:4] != self._facts[:4]:
            child.failure = EngineCrashed(child.pid, "loaded another model: its file has changed", "")
            child.kill()
            return
        child.is_ready = True
        waiting, self._waiting = self._waiting, []
        for ticket in waiting:
            child.submit(ticket)

    def _bury(self, child: Child) -> None:
        """Tell everybody whose request a child took with it, and plan the next one."""
        if child is not self._child:
            return
        error = child.why()
        loading = not child.is_ready
        if child.n_finished:
            self._n_crashes, self._has_answered = 0, True
        self._plan_next()
        # A file that has loaded, or answered, before is not given up for what happens later: an update
        # under way, a machine out of memory, one request that crashes. It is tried again for ever.
        tried_enough = self._facts is None if loading else self._n_crashes >= MAX_CRASHES
        if child.is_own_fault and tried_enough and not self._has_answered:
            self._given_up = error
            self._on_killed(str(error))
        self._child = None
        child.close(grace_s=GRACE_S)
        if self._facts is None:
            self._ready.put(error)
        self._fail(child.tickets.values(), error)
        if loading or self._given_up is not None:
            self._fail_waiting(error)

    def _plan_next(self) -> None:
        """Count a crash; the more there are in a row, the later the next child is started."""
        self._n_crashes += 1
        self._n_crashed += 1
        doublings = min(self._n_crashes - 1, 16)
        self._start_at = time.monotonic() + min(BACK_OFF_S * 2**doublings, MAX_BACK_OFF_S)

    def _fail_waiting(self, error: BaseException) -> None:
        waiting, self._waiting = self._waiting, []
        self._fail(waiting, error)

    def _fail(self, tickets: Iterable[Ticket], error: BaseException) -> None:
        for ticket in tickets:
            # Several readers raise it, and each raise adds to an exception's traceback.
            ticket.fail(copy.copy(error) if isinstance(error, GGUFEngineError) else error)

    def _submit(self, ticket: Ticket) -> None:
        if self._given_up is not None:
            ticket.fail(self._given_up)
        elif self._child is not None and self._child.is_ready:
            self._child.submit(ticket)
        else:
            self._waiting.append(ticket)

    def _cancel(self, ticket: Ticket) -> None:
        if ticket in self._waiting:
            self._waiting.remove(ticket)
            ticket.finish_unstarted()
        elif self._child is not None:
            self._child.cancel(ticket)

    def _run(self) -> None:
        try:
            self._start()
            while self._handle():
                if self._wants_child and time.monotonic() >= self._start_at:
                    self._start()
        except BaseException as error:  # noqa: BLE001 - no child could be started: told to who waits
            self._is_closed = True
            self._ready.put(error)
            self._fail_waiting(error)
        self._end()

    @property
    def _wants_child(self) -> bool:
        wanted = bool(self._waiting) or (self._is_wanted and self._given_up is None)
        return wanted and self._child is None

    def _start(self) -> None:
        self._is_wanted = False
        try:
            self._child = Child(self._setup, self)
        except (OSError, RuntimeError, MemoryError) as error:
            if self._facts is None:
                raise
            # No descriptor, thread or temporary folder to be had, now: a crash like others.
            self._plan_next()
            self._fail_waiting(EngineCrashed(None, f"could not be started: {error}", ""))

    def _handle(self) -> bool:
        """Do the next message, or wait until a child is to be started; False when it says to end."""
        wait_s = None
        if self._wants_child:
            wait_s = max(0.0, self._start_at - time.monotonic())
        try:
            message = self._inbox.get(timeout=wait_s)
        except queue.Empty:
            return True
        if message is None:
            return False
        message()
        return True

    def _end(self) -> None:
        self._is_closed = True
        child, self._child = self._child, None
        if child is not None:
            if not child.is_ready:
                child.kill()
            child.close(grace_s=GRACE_S)
            self._waiting += child.tickets.values()
        while not self._inbox.empty():
            message = self._inbox.get()
            if message is not None:
                message()
        self._fail_waiting(EngineClosedError("the engine was closed while this request ran"))
