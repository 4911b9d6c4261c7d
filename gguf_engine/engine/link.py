"""One child process as its parent sees it: what is sent there, what comes back, how it ended."""

from __future__ import annotations

import contextlib
import json
import os
import pickle
import signal
import subprocess
import sys
import tempfile
import threading
import time
from array import array
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, BinaryIO, Protocol

from gguf_engine.engine import wire
from gguf_engine.engine.embedding import DeliverVectors
from gguf_engine.engine.engine import EngineFacts, EngineStats
from gguf_engine.engine.request import Request
from gguf_engine.engine.sequence import Deliver
from gguf_engine.errors import EngineClosedError, EngineCrashed, OptionError
from gguf_engine.outputs import Piece, Timings, Usage

_WORDS_BYTES = 4096
# sys.path is the parent's: an application may have extended it, and what it asks for is imported there.
_BOOT = """\
import json, sys
sys.path[:] = json.loads(sys.argv[1])
from gguf_engine.engine.child import main
main()
"""
# Ended from outside: by a person, a supervisor or a machine out of memory. Says nothing of the file.
_FROM_OUTSIDE = ("SIGKILL", "SIGTERM", "SIGINT")
_ENDED_BY_OTHERS = {-getattr(signal, name) for name in _FROM_OUTSIDE if hasattr(signal, name)}


class Ticket:
    """A request on its way: what to send, and where its pieces go."""

    __slots__ = ("data", "deliver", "n_prompt", "number", "submitted_at")
    kind = "submit"

    def __init__(self, number: int, request: Request, deliver: Deliver) -> None:
        try:
            self.data = pickle.dumps(request)
        except Exception as error:
            what = request.constraint if request.constraint is not None else request.proposer
            allowed = "an object that can be pickled and whose class can be imported"
            raise OptionError("constraint or proposer", what, allowed, str(error)) from error
        self.number = number
        self.deliver: Callable[[Any], object] = deliver
        self.n_prompt = len(request.prompt_ids)
        self.submitted_at = time.perf_counter()

    def fail(self, error: BaseException) -> None:
        """End with an error; a reader that cannot even be told has gone."""
        with contextlib.suppress(Exception):
            self.deliver(error)

    def finish_unstarted(self) -> None:
        """End a request that no engine has seen."""
        waited = time.perf_counter() - self.submitted_at
        timings = Timings(
            queue_s=waited, ttft_s=waited, total_s=waited, prefill_tokens_per_s=0, decode_tokens_per_s=0
        )
        usage = Usage(n_prompt=self.n_prompt, n_completion=0, n_cached=0)
        with contextlib.suppress(Exception):
            self.deliver([Piece("", finish_reason="cancelled", usage=usage, timings=timings)])


class Command(Ticket):
    """A call of one of EngineWorker's methods there; an integer or an error is delivered."""

    __slots__ = ()
    kind = "command"

    def __init__(
        self, number: int, method: str, args: tuple[Any, ...], deliver: Callable[[Any], object]
    ) -> None:
        self.number, self.deliver = number, deliver
        self.data = pickle.dumps((method, args))


class EmbeddingTicket(Ticket):
    """Texts to embed; their vectors are delivered as `EngineWorker.embed` says."""

    __slots__ = ("n_bytes", "waiting")
    kind = "embed"

    def __init__(self, number: int, texts: Sequence[array[int]], deliver: DeliverVectors) -> None:
        self.number, self.deliver = number, deliver
        self.data = pickle.dumps(texts)
        self.waiting = set(range(len(texts)))
        self.n_bytes: int | None = None  # of a vector

    def take(self, encoded: list[Any]) -> None:
        """
        Deliver vectors as they came over the pipe.

        Raises:
            ValueError: They are none, or not those that were asked for.
        """
        vectors = wire.decode_vectors(encoded)
        for number, vector in vectors:
            if self.n_bytes is None:
                self.n_bytes = len(vector)
            if number not in self.waiting or not vector or len(vector) != self.n_bytes:
                raise ValueError(f"a vector of {len(vector)} bytes for text {number}")
            self.waiting.remove(number)
        try:
            self.deliver(vectors)
        except Exception as error:  # noqa: BLE001 - a reader's fault ends its own texts
            self.fail(error)

    def finish_unstarted(self) -> None:
        """End texts that no engine has seen."""
        self.fail(EngineClosedError("these embeddings were cancelled"))


class Listener(Protocol):
    """Who is told what a child says. Called in the thread that reads from the child."""

    def on_load(self, done: float) -> object:
        """Hear how much of the model is loaded, 0..1; an exception ends the child."""

    def on_ready(self, child: Child, facts: EngineFacts) -> None:
        """Hear that the model is loaded."""

    def on_stats(self, number: int, stats: EngineStats) -> None:
        """Hear what the engine is doing, as `Child.ask_stats` asked."""

    def on_end(self, child: Child) -> None:
        """Hear that the child has ended."""

    def cancel(self, ticket: Ticket) -> None:
        """End a request whose reader failed."""


class Child:
    """One child process. Written to by the manager; read by a thread that ends with it."""

    def __init__(self, setup: bytes, listener: Listener) -> None:
        self.tickets: dict[int, Ticket] = {}  # the manager adds, the reader takes out
        self.is_ready = False
        self.n_finished = 0
        self.failure: BaseException | None = None  # said by the child itself, before it left
        self.has_begun = False  # to load: until then nothing that happens is the file's doing
        self._listener = listener
        with contextlib.ExitStack() as undo:
            self._errors = undo.enter_context(tempfile.TemporaryFile())
            self._start()
            undo.callback(self._abandon)
            self._reader.start()
            undo.pop_all()
        self._write(setup)

    def _start(self) -> None:
        paths = json.dumps([path or str(Path.cwd()) for path in sys.path])
        self._process = subprocess.Popen(
            [sys.executable, "-I", "-c", _BOOT, paths],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            start_new_session=True,  # a Ctrl-C at the terminal is the parent's to handle
        )
        self.pid = self._process.pid
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._inbox: BinaryIO = self._process.stdin  # type: ignore[assignment]
        self._outbox: BinaryIO = self._process.stdout  # type: ignore[assignment]
        self._reader = threading.Thread(target=self._read, name="gguf-engine-reader", daemon=True)

    def _abandon(self) -> None:
        """End a process that nobody will read from."""
        self.kill()
        self._process.wait()
        self._inbox.close()
        self._outbox.close()

    def _write(self, data: bytes) -> None:
        # A child that has gone says so at the reading end.
        with contextlib.suppress(OSError):
            wire.write_frames(self._inbox, [data])

    def submit(self, ticket: Ticket) -> None:
        """Send a request or a command."""
        self.tickets[ticket.number] = ticket
        self._write(pickle.dumps((ticket.kind, ticket.number, ticket.data)))

    def cancel(self, ticket: Ticket) -> None:
        """Send that a request is to end."""
        if ticket.number in self.tickets:
            self._write(pickle.dumps(("cancel", ticket.number)))

    def ask_stats(self, number: int, *, in_pass: bool = False) -> None:
        """
        Ask what the engine is doing; the answer goes to `Listener.on_stats`.

        Args:
            number: Of the question.
            in_pass: Ask for `EngineWorker.stats_in_pass`; there may be no answer.
        """
        self._write(pickle.dumps(("stats_in_pass" if in_pass else "stats", number)))

    def _read(self) -> None:
        try:
            for frame in wire.read_frames(self._outbox):
                self._take(*wire.decode(frame))
        except Exception as error:  # noqa: BLE001 - a child that talks nonsense has crashed
            self.failure = self.failure or EngineCrashed(self.pid, f"sent what cannot be read: {error}", "")
            self.kill()
        self._process.wait()
        self._listener.on_end(self)

    def _take(self, kind: str, *values: Any) -> None:
        if self.failure is not None:
            return  # it is being killed; what it still had to say does not count
        if kind == "pieces":
            number, pieces = values
            self._hand_over(number, [wire.decode_piece(piece) for piece in pieces])
        elif kind == "error":
            ticket = self.tickets.pop(values[0], None)
            if ticket is not None:
                ticket.fail(wire.decode_error(values[1]))
        elif kind == "done":
            command = self.tickets.pop(values[0], None)
            if not isinstance(command, Command) or type(values[1]) is not int:
                raise ValueError(f"{str(values)[:80]} as the result of a command")
            command.deliver(values[1])
        elif kind == "vectors":
            self._take_vectors(*values)
        else:
            self._take_state(kind, *values)

    def _take_state(self, kind: str, *values: Any) -> None:
        """Take what a child says of itself, not of a request."""
        if kind == "loading":
            self.has_begun = True
        elif kind == "progress":
            self._report(float(values[0]))
        elif kind == "ready":
            self._listener.on_ready(self, wire.decode_facts(values[0]))
        elif kind == "stats":
            self._listener.on_stats(values[0], EngineStats(*values[1]))
        elif kind == "failed":
            self.failure = wire.decode_error(values[0])
        else:
            raise ValueError(f"a message of the kind {kind!r}")

    def _report(self, done: float) -> None:
        try:
            self._listener.on_load(done)
        except Exception as error:  # noqa: BLE001 - raised where the load is waited for
            self.failure = error
            self.kill()

    def _take_vectors(self, number: int, encoded: list[Any]) -> None:
        ticket = self.tickets.get(number)
        if ticket is None:
            return
        if not isinstance(ticket, EmbeddingTicket):
            raise ValueError("vectors for what is no embedding")
        ticket.take(encoded)
        if not ticket.waiting:
            del self.tickets[number]
            self.n_finished += 1

    def _hand_over(self, number: int, pieces: list[Piece]) -> None:
        ticket = self.tickets.get(number)
        if ticket is None:
            return
        if pieces[-1].finish_reason is not None:
            del self.tickets[number]
            self.n_finished += 1
        try:
            ticket.deliver(pieces)
        except Exception as error:  # noqa: BLE001 - a reader's fault ends its own request
            ticket.fail(error)
            self._listener.cancel(ticket)

    def why(self) -> BaseException:
        """Return what to tell the requests of a child that has ended."""
        if self.failure is not None:
            return self.failure
        end = _name_of(self._process.returncode)
        return EngineCrashed(self.pid, f"ended with {end}", self._last_words())

    @property
    def is_own_fault(self) -> bool:
        """Whether it ended by what it did with the file, not by what others did to it."""
        return self.has_begun and self.failure is None and self._process.returncode not in _ENDED_BY_OTHERS

    def _last_words(self) -> str:
        size = self._errors.seek(0, os.SEEK_END)
        self._errors.seek(max(0, size - _WORDS_BYTES))
        text = self._errors.read().decode("utf-8", "replace")
        return "; ".join(line.strip() for line in text.splitlines() if line.strip())

    def kill(self) -> None:
        """End it at once. From any thread."""
        self._process.kill()

    def close(self, *, grace_s: float) -> None:
        """Tell it to end, wait, and end it."""
        with contextlib.suppress(OSError):
            self._inbox.close()
        try:
            self._process.wait(grace_s)
        except subprocess.TimeoutExpired:
            self.kill()
            self._process.wait()
        self._reader.join()
        self._outbox.close()
        self._errors.close()


def _name_of(code: int) -> str:
    """Return an exit code in words."""
    if code < 0:
        with contextlib.suppress(ValueError):
            return signal.Signals(-code).name
    return f"exit code {code}"
