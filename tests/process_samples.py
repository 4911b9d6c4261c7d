"""An engine in a child process, for the tests of it: how to make one, and what its process does."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest
from text_samples import from_json, spm_json

from gguf_engine import (
    LLM,
)
from gguf_engine.backend.fake import FakeBackend
from gguf_engine.engine import process
from gguf_engine.engine.process import ProcessWorker

TOKENIZER = from_json(spm_json())
SAME = {"seed": 5, "max_tokens": 12, "ignore_eos": True}

Isolate = Callable[..., LLM]


@pytest.fixture
def isolate(monkeypatch: pytest.MonkeyPatch) -> Iterator[Isolate]:
    """Return a function that makes an LLM over a backend in a child process."""
    monkeypatch.setattr(process, "BACK_OFF_S", 0.01)
    made: list[LLM] = []

    def make(backend: Callable[..., Any] = FakeBackend, *args: Any, **options: Any) -> LLM:
        hooks = {name: options.pop(name) for name in ("on_load", "on_killed") if name in options}
        options = {"n_ctx": 512, "n_vocab": TOKENIZER.n_vocab, **options}
        llm = LLM(partial(backend, *args, **options), TOKENIZER, isolation="process", **hooks)
        made.append(llm)
        return llm

    yield make
    for llm in made:
        llm.close()


def worker_of(llm: LLM) -> ProcessWorker:
    assert isinstance(llm._worker, ProcessWorker)
    return llm._worker


def pid_of(llm: LLM) -> int:
    pid = worker_of(llm).pid
    assert pid is not None
    return pid


def is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def wait_for_end(pid: int) -> None:
    for _ in range(2000):
        if not is_running(pid):
            return
        time.sleep(0.01)
    raise AssertionError(f"process {pid} still runs")
