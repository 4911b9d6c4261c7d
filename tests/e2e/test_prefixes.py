"""Shared and kept prefixes on real llama.cpp, the bundled model."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
from engine_samples import thread_of

from gguf_engine import LLM, AsyncStream, OptionError
from gguf_engine.engine.engine import Engine

pytestmark = pytest.mark.e2e

SYSTEM = "You write haiku. You like quiet places, snow, rivers, old wood and the sound of rain on tin. " * 4
GREEDY: dict[str, Any] = {"temperature": 0.0, "max_tokens": 30, "logprobs": 2}
TIE = 0.5  # see test_haiku.py


def chat(text: str) -> list[Any]:
    return [{"role": "system", "content": SYSTEM}, {"role": "user", "content": text}]


def n_computed(engine: Engine) -> int:
    return engine.kv_cache._next_cell


def test_a_system_prompt_is_computed_once_and_found_again_after_a_restart(tmp_path: Path) -> None:
    answers = []
    for isolation in ("thread", "process", "thread"):
        with LLM.load("haiku", n_threads=1, prefix_cache=tmp_path, isolation=isolation) as llm:
            answers.append(llm.chat(chat("Write a haiku about moss"), **GREEDY))
    n_cached = [answer.usage.n_cached for answer in answers]
    assert n_cached[0] == 0
    assert n_cached[1] == n_cached[2] > 64
    (file,) = (path for path in tmp_path.rglob("*") if path.is_file())
    assert file.name.startswith(f"{n_cached[1]}-")
    for answer in answers[1:]:
        pairs = zip(answer.token_ids, answers[0].token_ids, strict=False)
        parted = next((i for i, (a, b) in enumerate(pairs) if a != b), None)
        if parted is not None:  # a near tie: other batches make other last bits
            best, second = answers[0].top_logprobs[parted]
            assert best.logprob - second.logprob < TIE


def test_several_answers_come_from_one_computed_prompt() -> None:
    with LLM.load("haiku", n_threads=1) as llm:
        ids = llm.encode(chat("Write a haiku about bread"))
        streams = llm.streams(chat("Write a haiku about bread"), 3, seed=5, max_tokens=1)
        answers = [stream.completion() for stream in streams]
        assert [answer.seed for answer in answers] == [5, 6, 7]
        assert [answer.usage.n_cached for answer in answers] == [0, len(ids) - 1, len(ids) - 1]
        assert thread_of(llm).call(n_computed) == len(ids) + 2
        again = llm.chat(chat("Write a haiku about bread"), seed=6, max_tokens=1)
        assert again.token_ids == answers[1].token_ids

        async def count(stream: AsyncStream) -> int:
            return len([piece async for piece in stream])

        async def ask() -> list[int]:
            streams = llm.astreams("The ice", 2, seed=1, max_tokens=3, ignore_eos=True)
            return [await count(stream) for stream in streams]

        assert asyncio.run(ask()) == [3, 3]


@pytest.mark.parametrize(
    ("name", "value"), [("n", 0), ("n", 257), ("n", True), ("priority", 101), ("priority", 1.5)]
)
def test_a_count_or_priority_out_of_range_is_refused(name: str, value: Any) -> None:
    with LLM.load("haiku", n_threads=1) as llm, pytest.raises(OptionError, match=name):
        llm.streams("The ice", **{"n": 1, name: value})
