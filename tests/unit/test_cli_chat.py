"""`chat` through a pipe: answers on stdout, everything else on stderr, state in one place."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Any

import pytest
from cli_samples import FakeModel, run_cli

from gguf_engine import OptionError, SamplingParams
from gguf_engine.cli import answer
from gguf_engine.cli.chat import COMMANDS
from gguf_engine.cli.conversation import Conversation

SYSTEM = {"role": "system", "content": "be brief"}


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def assistant(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


def text_of(*messages: Any, **options: Any) -> str:
    with FakeModel().load("x") as llm:
        return llm.chat(list(messages), **{"max_tokens": 8, "seed": 5, **options}).text


def say(*entries: str, args: tuple[str, ...] = (), model: FakeModel | None = None) -> tuple[str, str]:
    stdin = "".join(entry + "\n" for entry in entries).encode()
    code, out, err = run_cli("chat", "--seed", "5", "-n", "8", *args, stdin=stdin, model=model)
    assert code == 0
    return out, err


def test_answers_know_what_was_said_before() -> None:
    first = text_of(user("one"))
    second = text_of(user("one"), assistant(first), user("two"))
    out, err = say("one", "two")
    assert out == f"{first}\n{second}\n"
    assert "Traceback" not in err


def test_the_system_message_counts_until_it_is_taken_back() -> None:
    with_system, without = text_of(SYSTEM, user("one")), text_of(user("one"))
    out, _ = say("/system be brief", "one", "/clear", "/system none", "one")
    assert out == f"{with_system}\n{without}\n"
    assert say("one", args=("--system", "be brief"))[0] == f"{with_system}\n"


def test_lines_join_by_a_backslash_or_in_a_block() -> None:
    joined = text_of(user("one\ntwo"))
    assert say("one\\", "two")[0] == f"{joined}\n"
    assert say('"""', "one", "two", '"""')[0] == f"{joined}\n"
    assert say('"""one', 'two"""')[0] == f"{joined}\n"


def test_regen_answers_the_last_question_again() -> None:
    first = text_of(user("one"))
    out, err = say("one", "/regen", "two")
    second = text_of(user("one"), assistant(first), user("two"))
    assert out == f"{first}\n{first}\n{second}\n"
    assert "the seed is fixed" in err


def test_set_changes_the_next_answer_and_default_takes_it_back() -> None:
    short, usual = text_of(user("one"), max_tokens=2), text_of(user("one"), max_tokens=100)
    out, err = say("/set max-tokens 2", "one", "/clear", "/set max_tokens default", "one")
    assert out == f"{short}\n{usual}\n"
    assert "max_tokens         2\n" in err


@pytest.mark.parametrize(
    ("entry", "says"),
    [
        ("/set top_k -1", "top_k is -1; allowed"),
        ("/set temprature 1", "'temprature'"),
        ("/set temprature", "did you mean temperature?"),
        ("/set logprobs 1", "chat shows text only"),
        ("/set raw-logprobs", "chat shows text only"),
        ("/rgen", "did you mean /regen?"),
        ("/", "begin with a space"),
        ("/save", "/save FILE"),
        ("/load /nowhere/x.json", "a file that /save wrote"),
        ("/save /nowhere/x.json", "a file that can be written"),
        ("/regen", "nothing was asked yet"),
        ('"""open', "a block that ends with"),
        ("a long prompt " * 100, "/clear forgets the conversation"),
    ],
)
def test_a_mistake_is_one_line_and_the_chat_goes_on(entry: str, says: str) -> None:
    out, err = say("/clear", entry)
    assert out == ""
    assert says in err
    if not entry.startswith('"""'):
        assert say(entry, "one")[0] == text_of(user("one")) + "\n"


@pytest.mark.parametrize("entry", ["/set", "/set foo 1", "/set logprobs 1"])
def test_what_chat_cannot_show_is_not_among_what_it_offers(entry: str) -> None:
    offered = say(entry)[1].partition("allowed: ")[2] or say(entry)[1]
    assert "temperature" in offered
    assert not {"logprobs", "raw_logprobs"} & set(offered.partition(";")[0].replace(",", " ").split())


def test_a_question_that_does_not_fit_is_not_kept() -> None:
    first = text_of(user("one"))
    second = text_of(user("one"), assistant(first), user("two"))
    assert say("one", "a long prompt " * 100, "two")[0] == f"{first}\n{second}\n"


def test_help_lists_every_command_on_stderr() -> None:
    out, err = say("/help")
    assert out == ""
    assert all(f"{command.usage} " in err for command in COMMANDS.values())


def test_exit_ends_the_chat_before_what_follows() -> None:
    assert say("/exit", "one")[0] == ""


def test_a_limit_that_was_reached_is_told() -> None:
    assert "[cut off at max_tokens=8; /set max_tokens none" in say("one")[1]
    err = say("one", args=("--max-tokens", "none"), model=FakeModel({"n_ctx": 32}))[1]
    assert "[the context of 32 tokens is full; /clear" in err


def test_timings_follow_each_answer_on_stderr() -> None:
    out, err = say("one", "two", args=("--timings",))
    assert out.count("\n") == say("one", "two")[0].count("\n")
    assert err.count("first token") == 2


def test_a_stopped_answer_stays_as_far_as_it_came(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    show, n_times = answer.write_out, iter([True])

    def interrupting(text: str) -> None:
        show(text)
        if next(n_times, False):
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(answer, "write_out", interrupting)
    model = FakeModel({"n_ctx": 512, "forward_s": 0.01})
    out, err = say("/set max_tokens 400", "one", f"/save {tmp_path / 'c.json'}", model=model)
    assert "[stopped; this much stays in the conversation" in err
    messages = json.loads((tmp_path / "c.json").read_text())["messages"]
    assert messages == [user("one"), assistant(out[:-1])]


def test_bytes_that_are_not_utf8_are_told_and_the_chat_goes_on() -> None:
    code, out, err = run_cli("chat", "--seed", "5", "-n", "8", stdin=b"\xff\none\n")
    assert (code, out) == (0, text_of(user("one")) + "\n")
    assert "UTF-8" in err


def test_a_saved_conversation_goes_on_where_it_was(tmp_path: Path) -> None:
    path = tmp_path / "c.json"
    first = text_of(user("one"))
    say("one", "/set logit_bias 5=-inf", f"/save {path}")
    out, err = say(f"/load {path}", "two", args=("--temperature", "0.1"))
    biased = text_of(user("one"), assistant(first), user("two"), logit_bias={5: float("-inf")})
    assert out == f"{biased}\n"
    assert "[2 messages loaded" in err


@pytest.mark.parametrize(
    "change",
    [
        {"format": "other"},
        {"messages": [user("a")]},
        {"messages": [assistant("a"), user("b")]},
        {"messages": [user("a"), {"role": "assistant", "content": 5}]},
        {"messages": "no"},
        {"system": 5},
        {"sampling": {"top_k": -1}},
        {"sampling": []},
        {"model": None},
        {"more": 1},
    ],
)
def test_a_file_that_is_not_whole_changes_nothing(tmp_path: Path, change: dict[str, object]) -> None:
    path = tmp_path / "c.json"
    Conversation(SamplingParams()).save(path, "m")
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    conversation = Conversation(SamplingParams(top_k=3), "keep")
    conversation.turns = [user("q"), assistant("a")]  # type: ignore[list-item]
    with pytest.raises(OptionError):
        conversation.load(path)
    assert (conversation.system, conversation.sampling.top_k, len(conversation.turns)) == ("keep", 3, 2)


def test_a_session_of_the_library_is_called_that(tmp_path: Path) -> None:
    path = tmp_path / "poet.session"
    with FakeModel().load("x") as llm:
        session = llm.session()
        session.send("one", max_tokens=2)
        session.save(path)
    out, err = say(f"/load {path}")
    assert out == ""
    assert "a session that `Session.save` wrote in Python" in err
    assert "Session.load(path, llm)" in err


@pytest.mark.parametrize("content", [b"", b"{", b"\xff", b"[" * 100_000])
def test_a_file_that_is_no_json_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "c.json"
    path.write_bytes(content)
    with pytest.raises(OptionError, match="a file that /save wrote"):
        Conversation(SamplingParams()).load(path)
