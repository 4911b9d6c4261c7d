"""Forked, rewound and restarted sessions answer as a fresh model does, bit for bit on FakeBackend."""

from __future__ import annotations

import contextlib
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from session_samples import make_llm

from gguf_engine import (
    Session,
)

texts = st.text("abc ice", min_size=1, max_size=40)
steps = st.one_of(
    st.tuples(st.just("send"), texts),
    st.tuples(st.sampled_from(["fork", "rewind", "restart"]), st.just("")),
)


@settings(max_examples=40)
@given(
    plan=st.lists(steps, min_size=1, max_size=6),
    seed=st.integers(0, 10**6),
    temperature=st.sampled_from([0.0, 0.8]),
    n_slots=st.integers(1, 3),
    can_truncate=st.booleans(),
)
def test_forked_rewound_and_restarted_sessions_answer_as_a_fresh_model_does(  # noqa: PLR0917
    tmp_path_factory: pytest.TempPathFactory,
    plan: list[tuple[str, str]],
    seed: int,
    temperature: float,
    n_slots: int,
    can_truncate: bool,
) -> None:
    path = tmp_path_factory.mktemp("session") / "s"
    options: dict[str, Any] = {"seed": seed, "temperature": temperature, "max_tokens": 9}
    sizes: dict[str, Any] = {"n_slots": n_slots, "can_truncate": can_truncate, "n_ctx": 2048}
    with contextlib.ExitStack() as stack:
        session = stack.enter_context(make_llm(**sizes)).session(**options)
        for step, text in [*plan, ("send", "and so?")]:
            if step == "send":
                messages = [*session.messages, {"role": "user", "content": text}]
                answer = session.send(text)
                with make_llm(n_slots=1, n_ctx=2048) as fresh:
                    expected = fresh.chat(messages, **options)  # type: ignore[arg-type]
                assert expected.usage.n_cached == 0
                assert (answer.token_ids, answer.text) == (expected.token_ids, expected.text)
            elif step == "fork":
                forked = session.fork()
                session.send("another way")
                session = forked
            elif step == "rewind" and session.n_turns:
                session.rewind()
            elif step == "restart":
                n_kept = session.save(path)
                session = Session.load(path, stack.enter_context(make_llm(**sizes)))
                assert session.n_restored == n_kept
