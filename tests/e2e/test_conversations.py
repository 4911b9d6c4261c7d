"""Sessions on real llama.cpp, the bundled model: what is kept, and that it changes no text."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from gguf_engine import LLM, Completion, PromptTooLongError, Session, StateError

pytestmark = pytest.mark.e2e

SYSTEM = "You write haiku. You like quiet places, snow, rivers, old wood and the sound of rain on tin."
GREEDY: dict[str, Any] = {"temperature": 0.0, "max_tokens": 40, "logprobs": 2}
TIE = 0.5  # see test_haiku.py
SIZES: dict[str, Any] = {"n_ctx": 1024, "n_threads": 1}


@pytest.fixture(scope="module")
def llm() -> Iterator[LLM]:
    with LLM.load("haiku", **SIZES) as llm:
        yield llm


def fresh(session: Session, text: str) -> Completion:
    """Return what a model that has computed nothing yet answers next."""
    with LLM.load("haiku", **SIZES) as cold:
        answer = cold.chat([*session.messages, {"role": "user", "content": text}], **GREEDY)
    assert answer.usage.n_cached == 0
    return answer


def same_up_to_ties(answer: Completion, expected: Completion) -> bool:
    pairs = zip(answer.token_ids, expected.token_ids, strict=False)
    parted = next((i for i, (a, b) in enumerate(pairs) if a != b), None)
    if parted is None:
        return answer.text == expected.text
    best, second = expected.top_logprobs[parted]
    return best.logprob - second.logprob < TIE


def talked(llm: LLM, **options: Any) -> Session:
    session = llm.session(system=SYSTEM, **{**GREEDY, **options})
    for topic in ("moss", "night trains"):
        session.send(f"Write a haiku about {topic}")
    return session


def test_forked_and_rewound_sessions_answer_as_a_fresh_model_and_compute_little(llm: LLM) -> None:
    session = talked(llm)
    fork = session.fork()
    fork.rewind()
    for each, text in ((session, "Write a haiku about bread"), (fork, "Write a haiku about a paper boat")):
        expected = fresh(each, text)
        n_history = len(llm.encode(each.messages))
        answer = each.send(text)
        assert same_up_to_ties(answer, expected)
        assert answer.usage.n_cached > n_history // 2


@pytest.mark.parametrize("isolation", ["thread", "process"])
@pytest.mark.parametrize("kv_cache_type", ["f16", "q8_0"])
def test_after_a_restart_only_the_question_is_computed_and_the_text_is_the_same(
    tmp_path: Path, isolation: Any, kv_cache_type: Any
) -> None:
    path = tmp_path / "poet.session"
    options = {**SIZES, "isolation": isolation, "kv_cache_type": kv_cache_type}
    with LLM.load("haiku", **options) as first:
        session = talked(first)
        n_kept = session.save(path)
        uninterrupted = session.fork().send("Write a haiku about bread")
    with LLM.load("haiku", **options) as second:
        loaded = Session.load(path, second)
        assert loaded.messages == session.messages
        answer = loaded.send("Write a haiku about bread")
    assert answer.usage.n_cached == loaded.n_restored == n_kept > len(SYSTEM) // 8
    question = first.encode("Write a haiku about bread", chat=True)
    assert answer.usage.n_prompt - n_kept <= len(question)
    assert same_up_to_ties(answer, uninterrupted)


def test_a_session_saved_by_one_program_goes_on_in_another(tmp_path: Path) -> None:
    saver = (
        "from gguf_engine import LLM\n"
        f"with LLM.load('haiku', n_ctx=1024, n_threads=1) as llm:\n"
        f"    session = llm.session(system={SYSTEM!r}, temperature=0.0, max_tokens=40)\n"
        "    session.send('Write a haiku about moss')\n"
        "    print(session.save('moss.session'))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", saver], cwd=tmp_path, check=True, capture_output=True, text=True
    )
    with LLM.load("haiku", **SIZES) as llm:
        loaded = Session.load(tmp_path / "moss.session", llm)
        assert loaded.n_restored == int(done.stdout) > 0
        assert loaded.send("and bread?").usage.n_cached == loaded.n_restored


def test_what_was_computed_under_other_settings_is_refused_and_the_messages_are_not(
    llm: LLM, tmp_path: Path
) -> None:
    session = talked(llm)
    session.save(tmp_path / "s")
    with LLM.load("haiku", n_ctx=512, n_threads=1) as other:
        with pytest.raises(StateError, match="other_settings"):
            Session.load(tmp_path / "s", other)
        assert Session.load(tmp_path / "s", other, computed=False).messages == session.messages


def test_a_full_context_is_a_choice() -> None:
    with LLM.load("haiku", n_ctx=256, n_threads=1) as llm:
        strict, loose = llm.session(**GREEDY), llm.session(on_full="drop_oldest", **GREEDY)
        talk = (strict.send(f"Write a haiku about snow on roof {n}") for n in range(30))
        with pytest.raises(PromptTooLongError, match="the context holds 256"):
            list(talk)
        for n in range(strict.n_turns + 1):
            loose.send(f"Write a haiku about snow on roof {n}")
        assert loose.n_dropped > 0
        assert same_up_to_ties(loose.send("and moss?"), llm.chat(loose.messages[:-1], **GREEDY))
