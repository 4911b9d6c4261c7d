"""LLM over FakeBackend and a small tokenizer: text in, text out, from any thread, ended at any time."""

from __future__ import annotations

import asyncio
import gc
import os
import threading
import time
from collections.abc import Callable, Iterator

import pytest
from engine_samples import thread_of
from text_samples import PHI3_TEMPLATE, from_json, spm_json

from gguf_engine import (
    LLM,
    EngineClosedError,
    OptionError,
    PromptTooLongError,
    SamplingParams,
    TemplateError,
)
from gguf_engine.backend.fake import FakeBackend
from gguf_engine.text.chat import ChatTemplate

Make = Callable[..., LLM]


@pytest.fixture
def make_llm() -> Iterator[Make]:
    tokenizer = from_json(spm_json())
    made: list[LLM] = []

    def make(*, template: str | None = PHI3_TEMPLATE, **sizes: object) -> LLM:
        sizes = {"n_ctx": 512, **sizes}
        llm = LLM(
            lambda: FakeBackend(n_vocab=tokenizer.n_vocab, **sizes),  # type: ignore[arg-type]
            tokenizer,
            template=None if template is None else ChatTemplate.for_tokenizer(template, tokenizer),
        )
        made.append(llm)
        return llm

    yield make
    for llm in made:
        llm.close()


def wait_until_idle(llm: LLM) -> None:
    for _ in range(1000):
        if not thread_of(llm).call(lambda engine: engine.has_work):
            return
        time.sleep(0.01)
    raise AssertionError("a request still runs")


def test_a_completion_is_its_stream_joined(make_llm: Make) -> None:
    llm = make_llm()
    pieces = list(llm.stream("The ice", seed=3, max_tokens=20, ignore_eos=True))
    completion = llm.generate("The ice", seed=3, max_tokens=20, ignore_eos=True)
    assert completion.text == "".join(piece.text for piece in pieces)
    assert completion.finish_reason == pieces[-1].finish_reason == "length"
    assert completion.usage == pieces[-1].usage
    assert pieces[-1].timings is not None


def test_the_same_seed_gives_the_same_text_and_the_seed_is_told(make_llm: Make) -> None:
    llm = make_llm()
    first = llm.generate("The ice")
    again = llm.generate("The ice", seed=first.seed)
    assert again.text == first.text
    assert llm.generate("The ice").seed != first.seed


def test_a_string_is_raw_text_for_generate_and_a_turn_for_chat(make_llm: Make) -> None:
    llm = make_llm()
    turn = llm.encode([{"role": "user", "content": "The ice"}])
    assert llm.encode("The ice", chat=True) == turn
    assert llm.encode("The ice") != turn
    assert llm.chat("The ice", seed=1).text == llm.generate(turn, seed=1).text
    assert (
        llm.chat([{"role": "user", "content": "The ice"}], seed=1).text == llm.chat("The ice", seed=1).text
    )


def test_token_ids_are_a_prompt(make_llm: Make) -> None:
    llm = make_llm()
    assert llm.generate(llm.encode("The ice"), seed=1).text == llm.generate("The ice", seed=1).text


@pytest.mark.parametrize("prompt", ["", [], [-1], [10**6], [True], [1.5]])
def test_a_prompt_that_is_none_is_refused(make_llm: Make, prompt: object) -> None:
    with pytest.raises(OptionError, match="prompt"):
        make_llm().generate(prompt)  # type: ignore[arg-type]


def test_a_prompt_longer_than_the_context_is_refused_with_both_numbers(make_llm: Make) -> None:
    with pytest.raises(PromptTooLongError, match=r"prompt is 600 tokens, the context holds 512"):
        make_llm().generate([5] * 600)


def test_a_model_without_a_template_says_what_to_pass(make_llm: Make) -> None:
    with pytest.raises(TemplateError, match="chat_template"):
        make_llm(template=None).chat("Hello")


def test_an_unknown_option_is_refused_before_anything_runs(make_llm: Make) -> None:
    with pytest.raises(OptionError, match="temprature"):
        make_llm().stream("The ice", temprature=1)


def test_options_and_params_are_one_thing(make_llm: Make) -> None:
    llm = make_llm()
    params = SamplingParams(temperature=0.5, seed=9, max_tokens=12)
    assert llm.generate("x", params).text == llm.generate("x", temperature=0.5, seed=9, max_tokens=12).text


def test_a_stream_that_is_closed_frees_its_slot(make_llm: Make) -> None:
    llm = make_llm(n_slots=1, n_ctx=100_000)
    stream = llm.stream("The ice", max_tokens=None, ignore_eos=True)
    next(stream)
    stream.close()
    assert list(stream) == []
    assert llm.generate("Next", max_tokens=3, ignore_eos=True).finish_reason == "length"


def test_a_stream_that_is_dropped_frees_its_slot(make_llm: Make) -> None:
    llm = make_llm(n_slots=1, n_ctx=100_000)
    next(llm.stream("The ice", max_tokens=None, ignore_eos=True))
    gc.collect()
    wait_until_idle(llm)


def test_leaving_a_loop_by_an_exception_is_that_exception(make_llm: Make) -> None:
    llm = make_llm(n_slots=1, n_ctx=100_000)

    def read() -> None:
        with llm.stream("The ice", max_tokens=None, ignore_eos=True) as stream:
            for _ in stream:
                raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        read()
    wait_until_idle(llm)


def test_a_cancelled_stream_still_gives_its_last_piece(make_llm: Make) -> None:
    llm = make_llm(n_ctx=100_000)
    stream = llm.stream("The ice", max_tokens=None, ignore_eos=True)
    next(stream)
    stream.cancel()
    assert list(stream)[-1].finish_reason == "cancelled"


def test_sixteen_threads_each_get_what_they_would_get_alone(make_llm: Make) -> None:
    llm = make_llm(n_slots=4)
    expected = [llm.generate(f"Line {n}", seed=n, max_tokens=30).text for n in range(16)]
    got: dict[int, str] = {}

    def ask(n: int) -> None:
        got[n] = llm.generate(f"Line {n}", seed=n, max_tokens=30).text

    threads = [threading.Thread(target=ask, args=(n,)) for n in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [got[n] for n in range(16)] == expected


def test_a_stream_may_stay_unread_while_others_run(make_llm: Make) -> None:
    llm = make_llm(n_slots=2)
    unread = llm.stream("The ice", seed=1, max_tokens=50)
    assert llm.generate("Other", max_tokens=20, ignore_eos=True).finish_reason == "length"
    assert unread.completion().text == llm.generate("The ice", seed=1, max_tokens=50).text


def test_asyncio_gives_the_same_pieces(make_llm: Make) -> None:
    llm = make_llm()

    async def collect(seed: int) -> str:
        return "".join([piece.text async for piece in llm.astream("The ice", seed=seed)])

    async def both() -> tuple[str, str]:
        return await asyncio.gather(collect(1), collect(2))

    assert list(asyncio.run(both())) == [llm.generate("The ice", seed=seed).text for seed in (1, 2)]


def test_a_cancelled_task_frees_its_slot(make_llm: Make) -> None:
    llm = make_llm(n_slots=1, n_ctx=100_000)

    async def read(is_running: asyncio.Event) -> None:
        async for _ in llm.astream("The ice", max_tokens=None, ignore_eos=True):
            is_running.set()

    async def main() -> None:
        is_running = asyncio.Event()
        task = asyncio.create_task(read(is_running))
        await is_running.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(main())
    wait_until_idle(llm)


def test_an_event_loop_that_ends_early_does_not_disturb_the_engine(make_llm: Make) -> None:
    llm = make_llm(n_ctx=100_000)

    async def leave() -> None:
        await anext(llm.astream("The ice", max_tokens=None, ignore_eos=True))

    asyncio.run(leave())
    gc.collect()
    assert llm.generate("Next", max_tokens=3, ignore_eos=True).finish_reason == "length"


def test_a_stream_keeps_its_model_alive() -> None:
    tokenizer = from_json(spm_json())
    stream = LLM(lambda: FakeBackend(n_vocab=tokenizer.n_vocab), tokenizer).stream(
        "The ice", max_tokens=50, ignore_eos=True
    )
    gc.collect()
    assert stream.completion().finish_reason == "length"


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
def test_a_stream_read_in_a_forked_child_is_an_error_and_never_a_hang(make_llm: Make) -> None:
    stream = make_llm(n_ctx=100_000).stream("The ice", max_tokens=None, ignore_eos=True)
    child = os.fork()
    if child == 0:
        try:
            for _ in stream:
                pass
        except EngineClosedError:
            os._exit(0)
        os._exit(1)
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 0


@pytest.mark.parametrize("prompt", [None, 5, b"The ice", {"role": "user", "content": "x"}, iter("x")])
def test_a_prompt_of_another_kind_is_refused_by_name(make_llm: Make, prompt: object) -> None:
    with pytest.raises(OptionError, match="text, or a list of messages or of token ids"):
        make_llm().generate(prompt)  # type: ignore[arg-type]


def test_token_ids_are_no_conversation(make_llm: Make) -> None:
    with pytest.raises(TemplateError):
        make_llm().chat([5, 6])  # type: ignore[list-item]


def test_params_of_another_kind_are_refused(make_llm: Make) -> None:
    with pytest.raises(OptionError, match="SamplingParams"):
        make_llm().generate("x", {"temperature": 1.0})  # type: ignore[arg-type]


def test_a_number_too_large_for_a_float_is_out_of_range(make_llm: Make) -> None:
    with pytest.raises(OptionError, match="temperature"):
        make_llm().generate("x", temperature=10**400)


def test_a_stream_that_was_read_or_closed_cannot_be_joined(make_llm: Make) -> None:
    llm = make_llm()
    read, closed = (llm.stream("The ice", max_tokens=3, ignore_eos=True) for _ in range(2))
    list(read)
    closed.close()
    for stream in (read, closed):
        with pytest.raises(EngineClosedError, match="closed or read"):
            stream.completion()


def test_closing_is_final_and_may_be_repeated(make_llm: Make) -> None:
    llm = make_llm()
    with llm:
        pass
    llm.close()
    with pytest.raises(EngineClosedError):
        llm.generate("The ice")


def test_a_model_that_is_forgotten_ends_its_thread(make_llm: Make) -> None:
    tokenizer = from_json(spm_json())
    llm = LLM(lambda: FakeBackend(n_vocab=tokenizer.n_vocab), tokenizer)
    thread = thread_of(llm)._thread
    assert thread is not None
    del llm
    gc.collect()
    thread.join(timeout=20)
    assert not thread.is_alive()
