"""One thread owns the engine: messages in, pieces out, whatever happens around it."""

from __future__ import annotations

import os
import queue
import signal
import threading
from collections.abc import Iterator

import pytest
from engine_samples import Request

from gguf_engine.backend.base import Batch, Rows
from gguf_engine.backend.fake import FakeBackend
from gguf_engine.engine.engine import Engine
from gguf_engine.engine.worker import EngineWorker
from gguf_engine.errors import EngineClosedError, EngineSilentError
from gguf_engine.outputs import Piece


@pytest.fixture
def worker() -> Iterator[EngineWorker]:
    worker = EngineWorker(lambda: Engine(FakeBackend(n_ctx=4096, n_slots=4)))
    worker.wait_until_ready()
    yield worker
    worker.close()


def submit(worker: EngineWorker, **options: object) -> tuple[Request, queue.SimpleQueue[object]]:
    request = worker.call(lambda engine: Request(engine, [1, 2], **options))
    delivered: queue.SimpleQueue[object] = queue.SimpleQueue()

    def deliver(items: object) -> None:
        for item in items if isinstance(items, list) else [items]:
            delivered.put(item)

    request.sequence.deliver = deliver
    worker.submit(request.sequence)
    return request, delivered


def last(delivered: queue.SimpleQueue[object]) -> object:
    while True:
        item = delivered.get(timeout=20)
        if not isinstance(item, Piece) or item.finish_reason is not None:
            return item


def test_a_request_runs_to_its_end(worker: EngineWorker) -> None:
    _, delivered = submit(worker, max_tokens=5)
    piece = last(delivered)
    assert isinstance(piece, Piece)
    assert piece.finish_reason == "length"


def test_the_engine_is_made_and_used_in_one_thread() -> None:
    seen: set[int] = set()

    def make() -> Engine:
        seen.add(threading.get_ident())
        return Engine(FakeBackend())

    worker = EngineWorker(make)
    worker.call(lambda engine: seen.add(threading.get_ident()))
    worker.close()
    assert len(seen) == 1
    assert threading.get_ident() not in seen


def test_an_engine_that_cannot_be_made_raises_where_it_is_waited_for() -> None:
    def fail() -> Engine:
        raise RuntimeError("no")

    worker = EngineWorker(fail)
    with pytest.raises(RuntimeError, match="no"):
        worker.wait_until_ready()
    worker.close()


def test_a_cancel_ends_a_running_request(worker: EngineWorker) -> None:
    request, delivered = submit(worker, max_tokens=None)
    delivered.get(timeout=20)
    worker.cancel(request.sequence)
    piece = last(delivered)
    assert isinstance(piece, Piece)
    assert piece.finish_reason == "cancelled"


def test_a_cancel_interrupts_the_pass_under_way() -> None:
    started = threading.Event()

    class Slow(FakeBackend):
        def forward(self, batch: Batch) -> Rows:
            started.set()
            return super().forward(batch)

    worker = EngineWorker(lambda: Engine(Slow(forward_s=3600)))
    worker.wait_until_ready()
    request, delivered = submit(worker)
    assert started.wait(20)
    worker.cancel(request.sequence)
    piece = last(delivered)
    assert isinstance(piece, Piece)
    assert piece.finish_reason == "cancelled"
    worker.close()


def test_closing_ends_running_requests_with_a_sentence() -> None:
    worker = EngineWorker(lambda: Engine(FakeBackend(n_ctx=100_000, n_slots=1)))
    _, running = submit(worker, max_tokens=None)
    _, waiting = submit(worker, max_tokens=None)
    running.get(timeout=20)
    worker.close()
    assert isinstance(last(running), EngineClosedError)
    assert isinstance(last(waiting), EngineClosedError)


def test_closing_twice_is_fine_and_use_after_it_is_an_error(worker: EngineWorker) -> None:
    worker.close()
    worker.close()
    with pytest.raises(EngineClosedError, match="closed"):
        worker.call(lambda engine: None)


def test_a_bug_in_one_step_ends_the_requests_and_not_the_thread(
    worker: EngineWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[int] = []
    step = Engine.step

    def broken(self: Engine) -> None:
        if not calls:
            calls.append(1)
            raise ZeroDivisionError
        step(self)

    monkeypatch.setattr(Engine, "step", broken)
    _, delivered = submit(worker)
    assert isinstance(last(delivered), ZeroDivisionError)
    _, delivered = submit(worker, max_tokens=2)
    assert isinstance(last(delivered), Piece)


def test_a_reader_that_fails_costs_itself_alone(worker: EngineWorker) -> None:
    request, _ = submit(worker, max_tokens=None)

    def fail(_: object) -> None:
        raise ZeroDivisionError

    request.sequence.deliver = fail
    worker.cancel(request.sequence)
    _, delivered = submit(worker, max_tokens=2)
    assert isinstance(last(delivered), Piece)


def test_a_message_that_comes_too_late_is_answered(monkeypatch: pytest.MonkeyPatch) -> None:
    worker = EngineWorker(lambda: Engine(FakeBackend()))
    worker.wait_until_ready()
    late: list[EngineClosedError] = []

    def end(self: EngineWorker, engine: Engine) -> None:
        self._inbox.put(lambda engine: engine.submit(request.sequence))
        original(self, engine)

    original = EngineWorker._end
    monkeypatch.setattr(EngineWorker, "_end", end)
    request = worker.call(lambda engine: Request(engine, [1]))
    request.sequence.deliver = late.append  # type: ignore[assignment]
    worker.close()
    assert isinstance(late[0], EngineClosedError)


def call_for_ever(worker: EngineWorker) -> None:
    while True:
        worker.call(lambda engine: None)


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="this system has no interval timer")
def test_a_signal_handler_may_close_the_engine_that_its_thread_is_using() -> None:
    for n in range(50):
        worker = EngineWorker(lambda: Engine(FakeBackend()))
        previous = signal.signal(signal.SIGVTALRM, lambda *_, worker=worker: worker.close())
        signal.setitimer(signal.ITIMER_VIRTUAL, 0.001 + n * 1e-5)
        try:
            with pytest.raises(EngineClosedError):
                call_for_ever(worker)
        finally:
            signal.setitimer(signal.ITIMER_VIRTUAL, 0)
            signal.signal(signal.SIGVTALRM, previous)


def test_an_error_in_a_call_is_the_callers(worker: EngineWorker) -> None:
    with pytest.raises(ZeroDivisionError):
        worker.call(lambda engine: 1 / 0)


def test_stats_count_what_runs_and_waits() -> None:
    worker = EngineWorker(lambda: Engine(FakeBackend(n_ctx=100_000, n_slots=1, forward_s=0.001)))
    worker.wait_until_ready()
    _, running = submit(worker, max_tokens=None)
    submit(worker, max_tokens=None)
    running.get(timeout=20)
    stats = worker.stats(20)
    assert (stats.n_running, stats.n_waiting, stats.n_slots, stats.pid) == (1, 1, 1, os.getpid())
    assert 0 < stats.n_cells_used < stats.n_cells
    worker.close()


def test_an_engine_in_a_long_pass_says_what_it_began_and_in_an_endless_one_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    started = threading.Event()

    class Slow(FakeBackend):
        def forward(self, batch: Batch) -> Rows:
            started.set()
            return super().forward(batch)

    worker = EngineWorker(lambda: Engine(Slow(forward_s=3600)))
    worker.wait_until_ready()
    submit(worker)
    assert started.wait(20)
    stats = worker.stats(20)
    assert (stats.n_running, stats.n_waiting, stats.pid) == (1, 0, os.getpid())
    monkeypatch.setattr("gguf_engine.engine.worker.LONG_PASS_S", 0.0)
    with pytest.raises(EngineSilentError, match=r"within 0\.05 s"):
        worker.stats(0.05)
    worker.close()
    with pytest.raises(EngineClosedError):
        worker.stats(1)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
def test_use_after_a_fork_is_an_error_and_never_a_hang(worker: EngineWorker) -> None:
    child = os.fork()
    if child == 0:
        try:
            worker.call(lambda engine: None)
        except EngineClosedError:
            os._exit(0)
        os._exit(1)
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 0
