"""Sessions over FakeBackend: what is remembered, what is refused, what is never computed twice."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from engine_samples import thread_of
from session_samples import SHORT, SYSTEM, Make, make_llm

from gguf_engine import (
    LLM,
    BackendError,
    EngineClosedError,
    Message,
    OptionError,
    PromptTooLongError,
    Session,
    SessionBusyError,
    TemplateError,
)
from gguf_engine.backend.fake import FakeBackend
from gguf_engine.engine.engine import Engine
from gguf_engine.engine.worker import receive


@pytest.fixture
def make() -> Iterator[Make]:
    with contextlib.ExitStack() as stack:
        yield lambda *args, **options: stack.enter_context(make_llm(*args, **options))


@pytest.fixture
def llm(make: Make) -> LLM:
    return make()


def test_a_turn_is_what_chat_answers_to_the_same_messages(llm: LLM) -> None:
    session = llm.session(system=SYSTEM, **SHORT)
    for text in ("The ice", "and the snow?", "Why?"):
        messages = session.messages
        answer = session.send(text)
        asked: list[Message] = [*messages, {"role": "user", "content": text}]
        assert llm.chat(asked, **SHORT).text == answer.text
        assert session.messages == [*asked, {"role": "assistant", "content": answer.text}]
    assert session.n_turns == 3


def test_the_messages_are_a_copy(llm: LLM) -> None:
    session = llm.session(**SHORT)
    session.send("The ice")
    session.messages.clear()
    session.messages[0]["content"] = "other"
    assert session.messages[0] == {"role": "user", "content": "The ice"}


def test_options_of_a_turn_win_over_those_of_the_session(llm: LLM) -> None:
    session = llm.session(**SHORT)
    assert session.send("The ice", max_tokens=3).usage.n_completion == 3
    assert session.send("The ice").usage.n_completion == 12


@pytest.mark.parametrize(
    "options", [{"system": 5}, {"on_full": "drop"}, {"temprature": 1}, {"max_tokens": -1}]
)
def test_a_bad_option_is_refused_when_the_session_is_made(llm: LLM, options: dict[str, Any]) -> None:
    with pytest.raises(OptionError, match=next(iter(options))):
        llm.session(**options)


def test_a_model_without_a_template_has_no_sessions(make: Make) -> None:
    with pytest.raises(TemplateError, match="chat_template"):
        make(template=None).session()


def test_a_text_that_is_none_is_refused_and_nothing_changes(llm: LLM) -> None:
    session = llm.session(**SHORT)
    for text in (None, b"The ice", [{"role": "user", "content": "x"}]):
        with pytest.raises(OptionError, match="text"):
            session.send(text)  # type: ignore[arg-type]
    assert session.messages == []
    session.send("The ice")


def test_what_an_earlier_turn_computed_is_not_computed_again(llm: LLM) -> None:
    session = llm.session(system=SYSTEM, **SHORT)
    session.send("The ice " * 30)
    n_before = len(llm.encode(session.messages[:2]))
    assert session.send("and?").usage.n_cached >= n_before


# One turn at a time.


def test_a_second_turn_beside_a_running_one_is_refused(llm: LLM, tmp_path: Path) -> None:
    session = llm.session(**SHORT)
    stream = session.stream("The ice")
    for refused in (
        lambda: session.send("and?"),
        lambda: session.stream("and?"),
        session.rewind,
        lambda: session.save(tmp_path / "s"),
    ):
        with pytest.raises(SessionBusyError, match="still being made"):
            refused()
    assert stream.completion().finish_reason == "length"
    assert session.send("and?").text
    assert session.n_turns == 2


def test_of_many_threads_one_is_answered_and_the_others_are_told(make: Make) -> None:
    session = make(forward_s=0.02).session(**SHORT)
    barrier = threading.Barrier(8)
    outcomes: list[str] = []

    def ask() -> None:
        barrier.wait()
        try:
            session.send("The ice")
            outcomes.append("answered")
        except SessionBusyError:
            outcomes.append("busy")

    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert outcomes.count("answered") == session.n_turns >= 1
    assert len(outcomes) == 8


# Streams that end early.


def read(session: Session, n_chars: int) -> tuple[Any, str]:
    """Return a stream of which so much text was read."""
    stream = session.stream("The ice", max_tokens=400, ignore_eos=True)
    text = ""
    for piece in stream:
        text += piece.text
        if len(text) >= n_chars:
            break
    return stream, text


@pytest.mark.parametrize("how", ["close", "with", "drop"])
def test_a_stream_left_early_leaves_what_was_read(llm: LLM, how: str) -> None:
    session = llm.session(**SHORT)
    stream, text = read(session, 5)
    if how == "close":
        stream.close()
        stream.close()
    elif how == "with":
        with stream:
            pass
    del stream
    assert session.messages == [
        {"role": "user", "content": "The ice"},
        {"role": "assistant", "content": text},
    ]
    assert session.send("and?").text


def test_a_cancelled_stream_is_remembered_to_its_last_piece(llm: LLM) -> None:
    session = llm.session(**SHORT)
    stream, text = read(session, 5)
    stream.cancel()
    text += "".join(piece.text for piece in stream)
    assert session.messages[-1]["content"] == text


def test_a_stream_left_before_its_first_word_leaves_nothing(llm: LLM) -> None:
    session = llm.session(**SHORT)
    session.stream("The ice").close()
    assert session.messages == []
    assert session.send("and?").text


def test_a_read_or_closed_stream_has_no_completion(llm: LLM) -> None:
    session = llm.session(**SHORT)
    stream = session.stream("The ice")
    next(stream)
    with pytest.raises(EngineClosedError, match="read already"):
        stream.completion()
    stream.close()
    with pytest.raises(StopIteration):
        next(stream)
    assert stream.seed == 5


def test_a_fault_leaves_the_session_as_it_was(make: Make) -> None:
    session = make(fail_after=6).session(**SHORT)
    stream, _ = session.stream("The ice"), None
    with pytest.raises(BackendError, match="asked for"):
        list(stream)
    assert session.messages == []
    assert session.send("The ice").text
    assert session.n_turns == 1


def test_a_reader_interrupted_in_send_leaves_the_session_as_it_was(
    llm: LLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = llm.session(**SHORT)
    n_calls = 0

    def interrupt(source: Any) -> Any:
        nonlocal n_calls
        n_calls += 1
        if n_calls == 1:
            raise KeyboardInterrupt
        return receive(source)

    monkeypatch.setattr("gguf_engine.streams.receive", interrupt)
    with pytest.raises(KeyboardInterrupt):
        session.send("The ice", max_tokens=500, ignore_eos=True)
    assert session.messages == []
    assert session.send("The ice").text


# asyncio


def test_the_same_from_asyncio(llm: LLM) -> None:
    expected = llm.session(**SHORT)
    texts = [expected.send("The ice").text, expected.send("and?").text]

    async def talk() -> Session:
        session = llm.session(**SHORT)
        assert (await session.asend("The ice")).text == texts[0]
        stream = session.astream("and?")
        with pytest.raises(SessionBusyError):
            await session.asend("now?")
        assert "".join([piece.text async for piece in stream]) == texts[1]
        return session

    assert asyncio.run(talk()).messages == expected.messages


def test_a_cancelled_task_leaves_the_session_as_it_was(make: Make) -> None:
    async def talk() -> None:
        session = make(forward_s=0.01).session(**SHORT)
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(session.asend("The ice", max_tokens=None, ignore_eos=True), 0.2)
        assert session.messages == []
        assert (await session.asend("The ice")).text

    asyncio.run(talk())


def test_an_async_stream_left_early_leaves_what_was_read(llm: LLM) -> None:
    async def talk() -> None:
        session = llm.session(**SHORT)
        stream = session.astream("The ice", max_tokens=400, ignore_eos=True)
        text = ""
        async for piece in stream:
            text += piece.text
            if len(text) > 5:
                break
        await stream.aclose()
        assert session.messages[-1] == {"role": "assistant", "content": text}

    asyncio.run(talk())


# fork and rewind


def test_a_fork_and_its_origin_go_on_apart_and_compute_nothing_again(llm: LLM) -> None:
    session = llm.session(system=SYSTEM, **SHORT)
    session.send("The ice " * 20)
    n_shared = len(llm.encode(session.messages[:2]))
    fork = session.fork()
    answers = [session.send("left?"), fork.send("right?")]
    assert all(answer.usage.n_cached >= n_shared for answer in answers)
    assert session.messages[:3] == fork.messages[:3]
    assert session.messages[3:] != fork.messages[3:]
    assert (fork.params, fork.on_full, fork.system) == (session.params, session.on_full, SYSTEM)


def test_rewinding_forgets_whole_turns_from_the_end(llm: LLM) -> None:
    session = llm.session(system=SYSTEM, **SHORT)
    for text in ("a", "b", "c"):
        session.send(text)
    kept = session.messages[:3]
    session.rewind(2)
    assert session.messages == kept
    session.rewind()
    assert session.messages == [{"role": "system", "content": SYSTEM}]


@pytest.mark.parametrize("n_turns", [0, -1, 2, True, 1.0])
def test_rewinding_further_than_the_beginning_is_refused(llm: LLM, n_turns: Any) -> None:
    session = llm.session(**SHORT)
    with pytest.raises(OptionError, match="nothing before the first answer"):
        session.rewind()
    session.send("a")
    with pytest.raises(OptionError, match=r"n_turns is .*; allowed: 1\.\.1"):
        session.rewind(n_turns)
    assert session.n_turns == 1


# A full context.


def n_forwards_of(engine: Engine) -> int:
    assert isinstance(engine.backend, FakeBackend)
    return engine.backend.n_forwards


def test_a_full_context_is_refused_with_both_numbers_before_anything_is_computed(make: Make) -> None:
    llm = make(n_ctx=128)
    session = llm.session(seed=1, max_tokens=30, ignore_eos=True)
    session.send("The ice")
    session.send("The snow")
    before = session.messages
    n_forwards = thread_of(llm).call(n_forwards_of)
    with pytest.raises(PromptTooLongError) as caught:
        session.send("and the rain? " * 20)
    assert caught.value.n_ctx == 128
    assert caught.value.n_prompt >= 128
    assert thread_of(llm).call(n_forwards_of) == n_forwards
    assert session.messages == before


def test_the_oldest_turns_are_dropped_whole_and_counted_the_system_message_never(make: Make) -> None:
    llm = make(n_ctx=256)
    session = llm.session(system=SYSTEM, on_full="drop_oldest", seed=1, max_tokens=40, ignore_eos=True)
    said: list[Any] = []
    for n in range(12):
        answer = session.send(f"turn {n}")
        said += [{"role": "user", "content": f"turn {n}"}, {"role": "assistant", "content": answer.text}]
        assert answer.usage.n_completion == 40  # there was room for all of it
        assert session.messages[0] == {"role": "system", "content": SYSTEM}
        assert session.messages[1:] == said[2 * session.n_dropped :]
    assert 0 < session.n_dropped < 12


def test_turns_are_dropped_to_half_the_context_so_that_it_is_rare(make: Make) -> None:
    llm = make(n_ctx=256)
    session = llm.session(on_full="drop_oldest", seed=1, max_tokens=20, ignore_eos=True)
    dropped = []
    for n in range(20):
        n_before = session.n_dropped
        answer = session.send(f"turn {n}")
        if session.n_dropped > n_before:
            assert answer.usage.n_prompt <= 128
            dropped.append(n)
    assert len(dropped) >= 2
    assert min(b - a for a, b in itertools.pairwise(dropped)) >= 2


def test_a_question_that_does_not_fit_alone_is_refused_and_drops_nothing(make: Make) -> None:
    session = make(n_ctx=128).session(on_full="drop_oldest", **SHORT)
    session.send("The ice")
    with pytest.raises(PromptTooLongError, match="the context holds 128"):
        session.send("and the rain? " * 40)
    assert (session.n_turns, session.n_dropped) == (1, 0)


def test_turns_are_dropped_only_by_an_answer_that_is_remembered(make: Make) -> None:
    session = make(n_ctx=256, fail_after=30).session(on_full="drop_oldest", **{**SHORT, "max_tokens": 9})
    session.send("The ice " * 8)
    session.send("The snow " * 8)
    before = session.messages
    long = "The rain " * 30
    with pytest.raises(BackendError):
        session.send(long, max_tokens=64)
    assert (session.messages, session.n_dropped) == (before, 0)
    stream = session.stream(long, max_tokens=64)
    assert session.messages == before
    stream.close()
    assert (session.messages, session.n_dropped) == (before, 0)
    session.send(long, max_tokens=64)
    assert session.n_dropped > 0
    assert session.n_turns + session.n_dropped == 3
