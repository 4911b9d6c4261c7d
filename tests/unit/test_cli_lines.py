"""`lines`: one line in, one line out, whatever happens to a line."""

from __future__ import annotations

import json

import pytest
from cli_samples import FakeModel, run_cli
from hypothesis import given
from hypothesis import strategies as st

from gguf_engine import OptionError
from gguf_engine.cli.lines import escape, unescape


def text_of(prompt: object, **options: object) -> str:
    with FakeModel().load("x") as llm:
        return llm.chat(prompt, **options).text  # type: ignore[arg-type]


def objects(*lines: object, args: tuple[str, ...] = ()) -> list[dict[str, object]]:
    stdin = "".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines).encode()
    code, out, _ = run_cli("lines", "--json", "-n", "8", "--seed", "5", *args, stdin=stdin)
    assert code == 0
    return [json.loads(line) for line in out.splitlines()]


@given(st.text())
def test_escaped_text_is_one_line_and_comes_back(text: str) -> None:
    line = escape(text)
    assert not {"\n", "\r"} & set(line)
    assert unescape(line) == text


@pytest.mark.parametrize("line", ["\\t", "a\\", "\\\\\\x"])
def test_other_escapes_are_refused(line: str) -> None:
    with pytest.raises(OptionError, match="double the backslash"):
        unescape(line)


def test_every_line_is_answered_in_order() -> None:
    code, out, err = run_cli("lines", "--seed", "5", stdin=b"one\ntwo\\nthree\r\nfour")
    expected = [escape(text_of(prompt, seed=5)) for prompt in ("one", "two\nthree", "four")]
    assert (code, err) == (0, "")
    assert out == "".join(line + "\n" for line in expected)


def test_a_line_that_fails_is_told_and_the_next_one_served() -> None:
    long = b"a long prompt " * 9
    model = FakeModel({"n_ctx": 64})
    args = ("lines", "--seed", "5", "-n", "8")
    code, out, err = run_cli(*args, stdin=long + b"\nb\xff\n\\q\none\n", model=model)
    alone = run_cli(*args, stdin=b"one\n", model=model).out
    assert (code, out) == (0, "\n\n\n" + alone)
    assert [line.split(":")[1] for line in err.splitlines()] == [" line 1", " line 2", " line 3"]


def test_no_lines_no_answers() -> None:
    assert run_cli("lines", stdin=b"") == (0, "", "")


def test_objects_carry_id_options_and_the_whole_answer() -> None:
    first, second = objects({"id": 7, "prompt": "one", "seed": 9, "max_tokens": 3}, {"prompt": "one"})
    assert (first["id"], second["id"]) == (7, None)
    assert (first["seed"], second["seed"]) == (9, 5)
    assert first["text"] == text_of("one", seed=9, max_tokens=3)
    assert second["text"] == text_of("one", seed=5, max_tokens=8)


def test_messages_are_taken_as_they_are() -> None:
    messages = [{"role": "system", "content": "brief"}, {"role": "user", "content": "one"}]
    (answer,) = objects({"messages": messages}, args=("--system", "other"))
    assert answer["text"] == text_of(messages, seed=5, max_tokens=8)


@pytest.mark.parametrize(
    ("line", "kind", "says"),
    [
        ("{", "OptionError", "a JSON object"),
        ("[1]", "OptionError", "a JSON object"),
        ("[" * 100_000, "OptionError", "a JSON object"),
        ({"id": 1}, "OptionError", '"prompt" or "messages"'),
        ({"id": 1, "prompt": "a", "messages": []}, "OptionError", '"prompt" or "messages"'),
        ({"id": 1, "prompt": 5}, "OptionError", "a text"),
        ({"id": 1, "prompt": "a", "top_k": -1}, "OptionError", "top_k is -1"),
        ({"id": 1, "prompt": "a", "temprature": 1}, "OptionError", "'temprature'"),
        ({"id": 1, "messages": ["a"]}, "OptionError", '"role"'),
        ({"id": 1, "messages": [{"role": "king", "content": ""}]}, "TemplateError", "king"),
    ],
)
def test_an_object_that_fails_is_answered_by_an_error(line: object, kind: str, says: str) -> None:
    failed, served = objects(line, {"prompt": "one"})
    assert failed["id"] == (1 if isinstance(line, dict) else None)
    error = failed["error"]
    assert isinstance(error, dict)
    assert error["type"] == kind
    assert says in error["message"]
    assert served["text"] == text_of("one", seed=5, max_tokens=8)
