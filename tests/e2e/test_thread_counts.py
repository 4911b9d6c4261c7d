"""Threads on real llama.cpp: how many there are, and whether they change, is not seen in the text."""

from __future__ import annotations

from typing import Any

import pytest
from engine_samples import thread_of

from gguf_engine import LLM
from gguf_engine.engine.engine import Engine

pytestmark = pytest.mark.e2e

PROMPTS = ("ice hockey", "a paper boat", "moss")
GREEDY: dict[str, Any] = {"temperature": 0, "max_tokens": 200, "ignore_eos": True}


class Restless:
    """A governor that changes its mind with every pass."""

    def __init__(self) -> None:
        self.n_passes = 0

    def n_threads(self, n_tokens: int) -> int:
        self.n_passes += 1
        return 1 + self.n_passes % 2

    def record(self, n_tokens: int, seconds: float) -> None:
        """Learn nothing."""


def texts(llm: LLM) -> list[str]:
    return [llm.chat(f"Write a haiku about {topic}", **GREEDY).text for topic in PROMPTS]


def make_restless(engine: Engine) -> Restless:
    engine.backend._governor = Restless()  # type: ignore[attr-defined]
    return engine.backend._governor  # type: ignore[attr-defined,no-any-return]


def test_one_thread_two_threads_and_threads_that_change_write_the_same_text() -> None:
    options: dict[str, Any] = {"device": "cpu", "n_ctx": 1024, "n_slots": 1, "tuned": False}
    with LLM.load("haiku", n_threads=1, **options) as llm:
        one = texts(llm)
    with LLM.load("haiku", n_threads=2, adapt_threads="never", **options) as llm:
        assert texts(llm) == one
    with LLM.load("haiku", n_threads=2, **options) as llm:
        governor = thread_of(llm).call(make_restless)
        assert texts(llm) == one
        assert governor.n_passes > 500
