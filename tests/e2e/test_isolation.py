"""Kill -9 of the engine's process while real requests run: they end with an error, nothing else does."""

from __future__ import annotations

import os
import random
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from faulty_backends import DiesLoadingFile
from promises import report
from thoroughness import rounds

from gguf_engine import LLM, Completion, EngineCrashed, ModelFileError
from gguf_engine.backend import llama
from gguf_engine.engine import process
from gguf_engine.engine.process import ProcessWorker

pytestmark = pytest.mark.e2e

ASKED = {"max_tokens": 400, "ignore_eos": True}


def test_a_family_without_rules_of_its_own_runs_in_a_process(make_tiny_model: Callable[..., Path]) -> None:
    path = make_tiny_model(arch="stablelm")
    with LLM.load(path) as llm:
        assert llm.isolation == "process"
        assert llm.generate("a", max_tokens=3, ignore_eos=True).usage.n_completion == 3
    with LLM.load(path, isolation="thread") as llm:
        assert llm.isolation == "thread"
    with LLM.load("haiku", n_threads=1) as llm:
        assert llm.isolation == "thread"


def test_a_model_that_killed_is_not_loaded_again(
    make_tiny_model: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = make_tiny_model(arch="stablelm")
    with monkeypatch.context() as patch:
        patch.setattr(llama, "LlamaBackend", DiesLoadingFile)
        with pytest.raises(EngineCrashed, match="GGML_ASSERT"):
            LLM.load(path)
    with pytest.raises(ModelFileError, match="GGML_ASSERT") as refused:
        LLM.load(path)
    assert refused.value.code == "killed_before"
    LLM.load(path, preflight=False, isolation="thread").close()


def test_a_killed_engine_costs_its_own_requests_and_comes_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "BACK_OFF_S", 0.01)
    n_rounds = rounds(quick=5, thorough=100)
    chance = random.Random(11)
    came_back_s: list[float] = []
    n_lost = 0
    with (
        LLM.load("haiku", isolation="process", n_ctx=1024, n_threads=1) as llm,
        LLM.load("haiku", n_ctx=1024, n_threads=1) as other,
    ):
        expected = other.chat("Write a haiku about moss", seed=1)
        for _ in range(n_rounds):
            assert isinstance(llm._worker, ProcessWorker)
            pid = llm._worker.pid
            assert pid is not None
            streams = [llm.stream("Write a haiku", chat=True, **ASKED) for _ in range(4)]  # type: ignore[arg-type]
            killer = threading.Timer(chance.uniform(0, 0.1), os.kill, (pid, signal.SIGKILL))
            killer.start()
            elsewhere = other.stream("Write a haiku about moss", chat=True, seed=1)
            for stream in streams:
                with pytest.raises(EngineCrashed, match="SIGKILL"):
                    stream.completion()
                n_lost += 1
            start = time.monotonic()
            assert elsewhere.completion().text == expected.text
            answer: Completion = llm.chat("Write a haiku about moss", seed=1)
            came_back_s.append(time.monotonic() - start)
            assert answer.text == expected.text
    median, most = sorted(came_back_s)[n_rounds // 2], max(came_back_s)
    report(
        "A killed engine costs its own requests and nothing else",
        n_rounds,
        f"{n_lost} of {4 * n_rounds} running requests got an error, another engine's answers stayed the "
        f"same; serving again after {median:.1f} s, at most {most:.1f} s",
    )
