"""Embeddings of an engine in a child process: the same vectors; a crash costs what ran and nothing else."""

from __future__ import annotations

import os
import signal
import threading
from array import array
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest
from server_samples import wait_for
from text_samples import from_json, spm_json

from gguf_engine import LLM, BackendError, EmbeddingError, EngineClosedError, EngineCrashed
from gguf_engine.backend.fake import FakeBackend
from gguf_engine.engine import process, wire
from gguf_engine.engine.link import Child, EmbeddingTicket, Ticket
from gguf_engine.engine.process import ProcessWorker

TOKENIZER = from_json(spm_json())
TEXTS = [[5, 6, 7], [5, 6], [7, 6, 5, 4, 3, 2, 1] * 90]


@pytest.fixture
def isolate(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., LLM]]:
    monkeypatch.setattr(process, "BACK_OFF_S", 0.01)
    made: list[LLM] = []

    def make(**options: Any) -> LLM:
        options = {"n_ctx": 2048, "n_vocab": TOKENIZER.n_vocab, **options}
        made.append(LLM(partial(FakeBackend, **options), TOKENIZER, isolation="process"))
        return made[-1]

    yield make
    for llm in made:
        llm.close()


def worker_of(llm: LLM) -> ProcessWorker:
    assert isinstance(llm._worker, ProcessWorker)
    return llm._worker


def child_of(llm: LLM) -> Child:
    child = worker_of(llm)._child
    assert child is not None
    return child


def test_the_vectors_are_those_of_an_engine_in_a_thread(isolate: Callable[..., LLM]) -> None:
    with LLM(lambda: FakeBackend(n_vocab=TOKENIZER.n_vocab, n_ctx=2048), TOKENIZER) as llm:
        rows = llm.embed(TEXTS)
    isolated = isolate()
    assert (isolated.embed(TEXTS) == rows).all()
    assert child_of(isolated).n_finished == 1
    assert not child_of(isolated).tickets


def test_errors_cross_the_pipe(isolate: Callable[..., LLM]) -> None:
    with pytest.raises(EmbeddingError, match="a fake that was told so"):
        isolate(pooling=None).embed("x")


def test_a_crash_ends_what_waits_and_the_next_texts_start_it_again(isolate: Callable[..., LLM]) -> None:
    llm = isolate(forward_s=0.05)
    caught: list[EngineCrashed] = []

    def wait() -> None:
        with pytest.raises(EngineCrashed) as error:
            llm.embed([[1] * 2000])
        caught.append(error.value)

    waiting = threading.Thread(target=wait)
    waiting.start()
    wait_for(lambda: bool(child_of(llm).tickets))
    pid = child_of(llm).pid
    os.kill(pid, signal.SIGKILL)
    waiting.join()
    assert caught[0].pid == pid
    assert llm.embed([[1]]).shape == (1, 16)


def test_a_cancel_ends_the_pass_in_the_child_and_texts_that_wait_for_one(
    isolate: Callable[..., LLM],
) -> None:
    """The pass would take ten minutes."""
    llm = isolate(forward_s=600.0)
    ended: list[Any] = []
    cancel = worker_of(llm).embed([array("i", [1])], ended.append)
    wait_for(lambda: bool(child_of(llm).tickets))
    cancel()
    wait_for(lambda: bool(ended))
    assert isinstance(ended[0], EngineClosedError)
    assert not child_of(llm).tickets
    child_of(llm).is_ready = False  # as while it loads
    cancel = worker_of(llm).embed([array("i", [1])], ended.append)
    cancel()
    wait_for(lambda: len(ended) == 2)
    assert isinstance(ended[1], EngineClosedError)


def test_a_closed_engine_ends_what_waits(isolate: Callable[..., LLM]) -> None:
    llm = isolate(forward_s=600.0)
    ended: list[Any] = []
    worker_of(llm).embed([array("i", [1])], ended.append)
    llm.close()
    assert isinstance(ended[0], EngineClosedError)
    with pytest.raises(EngineClosedError):
        llm.embed("x")


@pytest.mark.parametrize(
    "encoded",
    [
        [[0, "AAAA!"]],
        [[0, "AAA="]],
        [[0, ""]],
        [["0", "AAAAAA=="]],
        [[2, "AAAAAA=="]],
        [[0, "AAAAAA=="], [0, "AAAAAA=="]],
        [[0, "AAAAAA=="], [1, "AAAAAAAAAAA="]],
        [[0]],
    ],
)
def test_vectors_that_were_not_asked_for_or_are_none_are_nonsense(encoded: Any) -> None:
    ticket = EmbeddingTicket(1, [array("i", [1]), array("i", [2])], lambda _: None)
    with pytest.raises(ValueError, match=r"vector|base64|unpack|padding|expected"):
        ticket.take(encoded)


def test_a_child_that_sends_vectors_for_something_else_has_crashed(isolate: Callable[..., LLM]) -> None:
    llm = isolate(forward_s=600.0)
    stream = llm.stream([1, 2])
    wait_for(lambda: bool(child_of(llm).tickets))
    ((number, ticket),) = child_of(llm).tickets.items()
    assert type(ticket) is Ticket
    with pytest.raises(ValueError, match="no embedding"):
        child_of(llm)._take("vectors", number, wire.encode_vectors([(0, b"\0" * 4)]))
    stream.close()


def test_a_fault_of_the_reader_is_told_to_it_and_to_nobody_else() -> None:
    seen: list[Any] = []

    def deliver(delivered: Any) -> None:
        seen.append(delivered)
        if not isinstance(delivered, BaseException):
            raise BackendError(0, "a reader's")

    EmbeddingTicket(1, [array("i", [1])], deliver).take(wire.encode_vectors([(0, b"\0" * 4)]))
    assert isinstance(seen[1], BackendError)
