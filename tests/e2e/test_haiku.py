"""The bundled model on real llama.cpp: the whole path, and the equalities as greedy text."""

from __future__ import annotations

import threading
from array import array
from collections.abc import Iterator, Sequence
from typing import Any

import pytest
from engine_samples import thread_of

from gguf_engine import LLM, Completion, EngineParams, OptionError
from gguf_engine.cli.answer import figures
from gguf_engine.engine.draft import DraftModel
from gguf_engine.engine.draft_length import PassCosts
from gguf_engine.engine.engine import Engine
from gguf_engine.streams import Stream

pytestmark = pytest.mark.e2e

TOPICS = ("ice hockey", "a paper boat", "night trains", "bread", "the tax office", "moss")
GREEDY: dict[str, Any] = {"temperature": 0.0, "max_tokens": 60, "logprobs": 2}
# Other batches make other last bits in llama.cpp's sums, and 8-bit activations make up to a quarter of a
# logit of one. Where the two best ids lie closer than this, either may be the greedy one.
TIE = 0.5


@pytest.fixture(scope="module")
def llm() -> Iterator[LLM]:
    with LLM.load("haiku", n_ctx=1024, n_slots=8, n_threads=1) as llm:
        yield llm


@pytest.fixture(scope="module")
def alone(llm: LLM) -> dict[str, Completion]:
    """Each topic's greedy haiku, asked for with nothing beside it and nothing kept from before."""
    answers = {}
    for topic in TOPICS:
        answers[topic] = llm.chat(prompt(topic), **GREEDY)
        thread_of(llm).call(forget)
    return answers


def prompt(topic: str) -> str:
    return f"Write a haiku about {topic}"


def forget(engine: Engine) -> None:
    """Empty every idle slot."""
    for slot in list(engine.kv_cache._idle):
        engine.kv_cache.drop(slot)


def preempt(engine: Engine) -> None:
    if engine.scheduler.running:
        engine.scheduler.preempt_youngest()


def same_up_to_ties(answer: Completion, expected: Completion) -> bool:
    """Tell whether two greedy answers are one, or part at a near tie of the expected one."""
    pairs = zip(answer.token_ids, expected.token_ids, strict=False)
    parted = next((i for i, (a, b) in enumerate(pairs) if a != b), None)
    if parted is None:
        return answer.text == expected.text
    best, second = expected.top_logprobs[parted]
    return best.logprob - second.logprob < TIE


def together(llm: LLM, prompts: Sequence[Any], **options: Any) -> list[Completion]:
    streams = [llm.stream(each, chat=True, **options) for each in prompts]
    return [stream.completion() for stream in streams]


def test_a_haiku_streams_in_three_lines_and_ends_by_itself(alone: dict[str, Completion]) -> None:
    completion = alone["ice hockey"]
    assert completion.finish_reason == "stop"
    assert len(completion.text.splitlines()) == 3
    assert "ice hockey" in completion.text


def test_the_pieces_are_the_text_of_the_ids(llm: LLM) -> None:
    for seed in range(20):
        completion = llm.chat(prompt("rain on tin"), seed=seed)
        ids = [i for i in completion.token_ids if i not in llm.end_ids]
        assert completion.text == llm.tokenizer.decode(ids)


def test_in_company_the_text_is_the_same(llm: LLM, alone: dict[str, Completion]) -> None:
    answers = together(llm, [prompt(topic) for topic in TOPICS], **GREEDY)
    for topic, answer in zip(TOPICS, answers, strict=True):
        assert same_up_to_ties(answer, alone[topic])


def test_after_preemptions_the_text_is_the_same(llm: LLM, alone: dict[str, Completion]) -> None:
    streams = [llm.stream(prompt(topic), chat=True, **GREEDY) for topic in TOPICS[:3]]
    for _ in range(3):
        thread_of(llm).call(preempt)
    for topic, stream in zip(TOPICS, streams, strict=False):
        assert same_up_to_ties(stream.completion(), alone[topic])


class Repeat:
    """A proposer that expects a known answer, with every fifth guess wrong."""

    n_max = 5

    def __init__(self, answer: Completion, n_prompt: int) -> None:
        self.answer, self.n_prompt = answer, n_prompt

    def propose(self, ids: array[int], k: int) -> list[int]:
        start = len(ids) - self.n_prompt
        ahead = self.answer.token_ids[start : start + k]
        return [5 if (start + i) % 5 == 4 else token_id for i, token_id in enumerate(ahead)]


def test_with_speculation_the_text_is_the_same(llm: LLM, alone: dict[str, Completion]) -> None:
    for topic in TOPICS:
        expected = alone[topic]
        proposer = Repeat(expected, expected.usage.n_prompt)
        make = llm._request(prompt(topic), None, chat=True, options=dict(GREEDY), proposer=proposer)
        completion = Stream(llm._worker, make).completion()
        assert same_up_to_ties(completion, expected)
        assert 0 < completion.timings.n_accepted < completion.timings.n_drafted


@pytest.mark.parametrize("draft", ["lookup", "haiku"])
def test_with_a_draft_the_text_is_the_same_alone_and_in_company(
    draft: str, alone: dict[str, Completion]
) -> None:
    with LLM.load("haiku", n_ctx=1024, n_slots=8, n_threads=1, draft=draft) as guessing:
        answers = [guessing.chat(prompt(topic), **GREEDY) for topic in TOPICS]
        answers += together(guessing, [prompt(topic) for topic in TOPICS], **GREEDY)
        assert guessing.stats().n_draft_faults == 0
    for topic, answer in zip(TOPICS * 2, answers, strict=True):
        assert same_up_to_ties(answer, alone[topic])


def test_a_model_that_guesses_for_itself_is_nearly_always_right() -> None:
    """Nearly: rows of batches of different sizes differ in their last bits."""
    with pytest.MonkeyPatch.context() as patch:
        # By what it costs a model would never guess for itself; all passes for free, it always does.
        patch.setattr(PassCosts, "seconds", lambda *_: 1.0)
        patch.setattr(DraftModel, "seconds", lambda *_: 0.0)
        with LLM.load("haiku", n_ctx=1024, n_threads=1, draft="haiku", n_draft=7) as guessing:
            for seed in range(5):
                options: dict[str, Any] = {
                    "seed": seed,
                    "max_tokens": 100,
                    "ignore_eos": True,
                    "min_p": 0.1,
                }
                answer = guessing.chat(prompt("snow"), **options)
                assert answer.timings.n_drafted > 50
                assert answer.timings.n_accepted >= 0.9 * answer.timings.n_drafted
            shown = figures(answer, guessing)
    drafted, accepted = answer.timings.n_drafted, answer.timings.n_accepted
    assert f"guessed        {drafted} tokens, {accepted} of them right" in shown
    assert "threads        1, 1 for prompts" in shown
    assert [line for line in shown if line.startswith("draft model    cpu, 3 MB")]


def test_on_a_reused_prefix_the_text_is_the_same(llm: LLM) -> None:
    history = "You are a poet of few words and you like quiet places, snow, rivers and old wood."
    messages = [{"role": "system", "content": history}, {"role": "user", "content": prompt("moss")}]
    thread_of(llm).call(forget)
    cold = llm.chat(messages, **GREEDY)  # type: ignore[arg-type]
    warm = llm.chat(messages, **GREEDY)  # type: ignore[arg-type]
    assert cold.usage.n_cached == 0
    assert warm.usage.n_cached > 0
    assert same_up_to_ties(warm, cold)


def test_a_seed_gives_the_same_text_again(llm: LLM) -> None:
    for seed in range(10):
        assert llm.chat(prompt("snow"), seed=seed).text == llm.chat(prompt("snow"), seed=seed).text


def test_sixteen_threads_get_what_they_get_alone(llm: LLM) -> None:
    expected = [llm.chat(prompt(f"snow on roof {n}"), **GREEDY) for n in range(16)]
    got: dict[int, Completion] = {}

    def ask(n: int) -> None:
        got[n] = llm.chat(prompt(f"snow on roof {n}"), **GREEDY)

    threads = [threading.Thread(target=ask, args=(n,)) for n in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(same_up_to_ties(got[n], expected[n]) for n in range(16))


def test_a_full_context_ends_with_length_at_the_context_asked_for(llm: LLM) -> None:
    completion = llm.generate("The ice", max_tokens=None, ignore_eos=True)
    assert completion.finish_reason == "length"
    assert completion.usage.n_prompt + completion.usage.n_completion == 1024


def test_a_long_prompt_does_not_stop_a_running_stream(llm: LLM) -> None:
    running = llm.stream("The ice", max_tokens=400, ignore_eos=True)
    next(running)
    long = llm.stream("snow and rain " * 60, max_tokens=1)
    n_between = 0
    for piece in running:
        n_between += 1
        if piece.finish_reason is not None:
            break
    assert long.completion().finish_reason in ("length", "stop")
    assert n_between == 399


def test_control_tokens_that_a_user_types_stay_text(llm: LLM) -> None:
    ids = llm.encode("<|end|><|assistant|>", chat=True)
    plain = llm.encode("x", chat=True)
    controls = [i for i in ids if i in llm.tokenizer.special_ids]
    assert controls == [i for i in plain if i in llm.tokenizer.special_ids]


def test_where_the_model_landed_is_told(llm: LLM) -> None:
    placement = llm.placement
    assert placement is not None
    assert placement.device == "cpu"
    assert "cpu" in placement.reason
    assert placement.n_layers > 0
    assert sum(placement.weight_bytes.values()) > 10**6
    assert sum(placement.kv_cache_bytes.values()) > 0


def test_progress_is_told_and_can_be_interrupted() -> None:
    class InterruptedLoadError(Exception):
        pass

    seen: dict[str, float] = {}

    def watch(stage: str, name: str, done: int, total: int | None) -> None:
        assert total is not None
        seen[stage] = done / total

    with LLM.load("haiku", progress=watch):
        assert seen == {"check": 1.0, "load": 1.0}  # the first load of a file reads it whole
    seen.clear()
    with LLM.load("haiku", progress=watch):
        assert seen == {"load": 1.0}

    def interrupt(stage: str, name: str, done: int, total: int | None) -> None:
        raise InterruptedLoadError

    with pytest.raises(InterruptedLoadError):
        LLM.load("haiku", progress=interrupt)


def test_engine_params_may_be_passed_whole() -> None:
    with LLM.load("haiku", params=EngineParams(n_ctx=128, n_slots=1), n_slots=2) as llm:
        assert llm.n_ctx == 128


@pytest.mark.parametrize("model", [None, 5])
def test_a_model_that_is_no_name_is_refused(model: Any) -> None:
    with pytest.raises(OptionError, match="model"):
        LLM.load(model)


def test_a_context_beyond_training_is_refused() -> None:
    with pytest.raises(OptionError, match="4096"):
        LLM.load("haiku", n_ctx=8192)


@pytest.mark.parametrize(
    ("options", "n_slots"),
    [({}, 16), ({"n_ctx": 8}, 8), ({"preset": "throughput"}, 32), ({"n_slots": 3}, 3)],
)
def test_so_many_requests_run_at_once(options: dict[str, Any], n_slots: int) -> None:
    with LLM.load("haiku", n_threads=1, **options) as llm:
        assert llm.stats().n_slots == n_slots
