"""The child process of `ProcessWorker`: an EngineWorker that is spoken to over pipes."""

from __future__ import annotations

import contextlib
import os
import pickle
import sys
import threading
import time
from collections.abc import Callable
from typing import Any, BinaryIO

from gguf_engine.backend.log import LogTail
from gguf_engine.engine import wire
from gguf_engine.engine.embedding import Vectors
from gguf_engine.engine.request import Request
from gguf_engine.engine.sequence import Deliver, Sequence
from gguf_engine.engine.worker import EngineWorker
from gguf_engine.outputs import Piece

_WATCH_S = 1.0
_MAX_WORDS_BYTES = 2**20
_PROGRESS_S = 0.05


def main() -> None:
    """Serve the requests that come over stdin until it ends. Does not return."""
    inbox, outbox = _take_standard_streams()
    threading.Thread(target=_watch, args=(os.getppid(),), daemon=True).start()
    LogTail.echoes_errors = True
    frames = wire.read_frames(inbox)
    server = _Server(outbox)
    try:
        server.open(next(frames))
        for frame in frames:
            server.handle(frame)
    except BaseException as error:  # noqa: BLE001 - told to the parent, who raises it
        server.tell(["failed", wire.encode_error(error)])
    server.close()
    # Nothing is left to do that an interpreter's shutdown would do better.
    os._exit(0)


def _take_standard_streams() -> tuple[BinaryIO, BinaryIO]:
    """Keep the pipes for ourselves: whatever libraries print goes to stderr."""
    inbox = os.fdopen(os.dup(0), "rb")
    outbox = os.fdopen(os.dup(1), "wb")
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)
    os.dup2(2, 1)
    sys.stdout = sys.stderr
    return inbox, outbox


def _watch(parent: int) -> None:
    """End when the parent has ended: a pipe that a forked sibling holds open would not tell."""
    while os.getppid() == parent:
        trim(2, _MAX_WORDS_BYTES)
        time.sleep(_WATCH_S)
    os._exit(0)


def trim(descriptor: int, max_bytes: int) -> None:
    """Empty a file that has grown too long: of what is written to stderr only the end is ever read."""
    with contextlib.suppress(OSError):  # a terminal or a pipe has no length
        if os.fstat(descriptor).st_size > max_bytes:
            os.ftruncate(descriptor, 0)
            os.lseek(descriptor, 0, os.SEEK_SET)


class _Server:
    """Hands what comes in to the worker, and what the worker delivers to the parent."""

    def __init__(self, outbox: BinaryIO) -> None:
        self._outbox = outbox
        self._lock = threading.Lock()  # the engine's thread and the reading one both write
        self._delivered: list[bytes] = []  # in this pass: the engine's thread's own
        self._worker: EngineWorker | None = None
        self._running: dict[int, Sequence] = {}
        self._embedded: dict[int, Callable[[], None]] = {}  # how to end each

    def tell(self, message: list[Any]) -> None:
        """Send one message; a parent that has gone needs none."""
        self._write([wire.encode(message)])

    def _write(self, frames: list[bytes]) -> None:
        try:
            with self._lock:
                wire.write_frames(self._outbox, frames)
        except OSError:
            os._exit(0)

    def _tell_later(self, message: list[Any]) -> None:
        """Send a message of the engine's thread with all others of this pass: a write wakes the parent."""
        self._delivered.append(wire.encode(message))

    def _flush(self) -> None:
        if self._delivered:
            frames, self._delivered = self._delivered, []
            self._write(frames)

    def open(self, frame: bytes) -> None:
        """Load the model that the first frame describes."""
        make_engine, self._vocabulary, candidates, reports = pickle.loads(frame)  # noqa: S301 - our parent's
        on_load = [self._report()] if reports else []
        self.tell(["loading"])
        self._worker = worker = EngineWorker(
            lambda: make_engine(*on_load), end_candidates=candidates, flush=self._flush
        )
        self.tell(["ready", wire.encode_facts(worker.wait_until_ready())])

    def _report(self) -> Callable[[float], bool]:
        last = 0.0

        def report(done: float) -> bool:
            nonlocal last
            now = time.monotonic()
            if now - last >= _PROGRESS_S or done >= 1:
                last = now
                self.tell(["progress", done])
            return True

        return report

    def handle(self, frame: bytes) -> None:
        """Do what one frame says: ("submit" or "command", id, pickled), ("cancel", "stats"..., id)."""
        assert self._worker is not None
        kind, number, *rest = pickle.loads(frame)  # noqa: S301 - our parent's
        if kind == "submit":
            self._submit(self._worker, number, rest[0])
        elif kind == "embed":
            self._embed(self._worker, number, rest[0])
        elif kind == "command":
            # Beside: what it reads or writes may take long, and a cancel must not wait for it.
            args = (self._worker, number, rest[0])
            threading.Thread(target=self._command, args=args, daemon=True).start()
        elif kind == "stats":
            self._worker.post(lambda engine: self.tell(["stats", number, engine.stats()]))
        elif kind == "stats_in_pass":
            if (stats := self._worker.stats_in_pass()) is not None:
                self.tell(["stats", number, stats])
        elif number in self._running:
            self._worker.cancel(self._running[number])
        elif (cancel := self._embedded.get(number)) is not None:
            cancel()

    def _command(self, worker: EngineWorker, number: int, pickled: bytes) -> None:
        try:
            method, args = pickle.loads(pickled)  # noqa: S301 - our parent's
            self.tell(["done", number, getattr(worker, method)(*args)])
        except Exception as error:  # noqa: BLE001 - told to the caller, who waits
            self.tell(["error", number, wire.encode_error(error)])

    def _submit(self, worker: EngineWorker, number: int, pickled: bytes) -> None:
        try:
            request: Request = pickle.loads(pickled)  # noqa: S301 - our parent's
            sequence = request.sequence(self._vocabulary, self._deliver(number))
        except Exception as error:  # noqa: BLE001 - this request's own fault
            self.tell(["error", number, wire.encode_error(error)])
            return
        self._running[number] = sequence
        worker.submit(sequence)

    def _embed(self, worker: EngineWorker, number: int, pickled: bytes) -> None:
        texts = pickle.loads(pickled)  # noqa: S301 - our parent's
        n_left = len(texts)

        def deliver(delivered: Vectors | BaseException) -> None:
            nonlocal n_left
            if isinstance(delivered, BaseException):
                n_left = 0
                self.tell(["error", number, wire.encode_error(delivered)])
            else:
                n_left -= len(delivered)
                self.tell(["vectors", number, wire.encode_vectors(delivered)])
            if n_left <= 0:
                self._embedded.pop(number, None)

        self._embedded[number] = worker.embed(texts, deliver)
        if n_left <= 0:  # it was faster
            self._embedded.pop(number, None)

    def _deliver(self, number: int) -> Deliver:
        def deliver(delivered: list[Piece] | BaseException) -> None:
            if isinstance(delivered, BaseException):
                self._running.pop(number, None)
                self._tell_later(["error", number, wire.encode_error(delivered)])
                return
            if delivered[-1].finish_reason is not None:
                self._running.pop(number, None)
            self._tell_later(["pieces", number, [wire.encode_piece(piece) for piece in delivered]])

        return deliver

    def close(self) -> None:
        """End every request and free the model."""
        if self._worker is not None:
            self._worker.close()
