"""`run`: the answer on stdout and nothing else, the same request as `LLM.chat`."""

from __future__ import annotations

import json
import signal
import sys
from typing import Any

import pytest
from cli_samples import FakeModel, run_cli

from gguf_engine import LLM, SamplingParams
from gguf_engine.cli import answer
from gguf_engine.cli.main import run_command


def chat(prompt: Any, **options: Any) -> Any:
    with FakeModel().load("phi3-mini") as llm:
        return llm.chat(prompt, **options)


def test_stdout_is_the_answer_of_chat_and_a_newline() -> None:
    expected = chat("one two", seed=5)
    assert run_cli("run", "--seed", "5", "one two") == (0, expected.text + "\n", "")


def test_the_object_holds_the_ids_of_chat() -> None:
    code, out, err = run_cli("run", "--seed", "5", "--json", "one two")
    expected = chat("one two", seed=5)
    values = json.loads(out)
    assert (code, err, out.count("\n")) == (0, "", 1)
    assert values["token_ids"] == list(expected.token_ids)
    assert (values["text"], values["seed"]) == (expected.text, 5)
    assert (values["finish_reason"], values["usage"]["n_completion"]) == ("length", 100)
    assert values["timings"].keys() >= {"ttft_s", "prefill_tokens_per_s", "decode_tokens_per_s"}
    assert "logprobs" not in values


def test_log_probabilities_are_in_the_object_on_request() -> None:
    values = json.loads(run_cli("run", "--json", "--logprobs", "2", "-n", "3", "one").out)
    assert len(values["logprobs"]) == 3
    assert [len(best) for best in values["top_logprobs"]] == [2, 2, 2]


def test_a_system_message_comes_first() -> None:
    messages = [{"role": "system", "content": "be brief"}, {"role": "user", "content": "one"}]
    expected = chat(messages, seed=5)
    assert run_cli("run", "--seed", "5", "--system", "be brief", "one").out == expected.text + "\n"


def test_raw_continues_the_text() -> None:
    with FakeModel().load("x") as llm:
        expected = llm.generate("one two", seed=5)
    assert run_cli("run", "--seed", "5", "--raw", "one two").out == expected.text + "\n"


@pytest.mark.parametrize("typed", [b"one two", b"one two\n", b"one two\r\n"])
def test_a_dash_reads_stdin_less_one_newline(typed: bytes) -> None:
    assert run_cli("run", "--seed", "5", "-", stdin=typed) == run_cli("run", "--seed", "5", "one two")


def test_stdin_that_is_not_utf8_is_one_sentence() -> None:
    code, out, err = run_cli("run", "-", stdin=b"ab\xff")
    assert (code, out) == (2, "")
    assert err == "gguf-engine: stdin is b'\\xff'; allowed: UTF-8 text; byte 2 is not\n"


def test_options_arrive_where_they_belong() -> None:
    model = FakeModel()
    args = (
        "--model",
        "m.gguf",
        "--n-ctx",
        "128",
        "--no-mmap",
        "--offline",
        "--no-preflight",
        "--device",
        "cpu",
    )
    assert run_cli("run", *args, "one", model=model).code == 0
    asked = model.asked
    assert (asked["model"], asked["n_ctx"], asked["use_mmap"]) == ("m.gguf", 128, False)
    assert (asked["offline"], asked["preflight"], asked["device"]) == (True, False, "cpu")


def test_the_default_model_is_phi3_mini() -> None:
    model = FakeModel()
    run_cli("run", "one", model=model)
    assert model.asked["model"] == "phi3-mini"


def test_timings_go_to_stderr_with_the_seed() -> None:
    code, out, err = run_cli("run", "--seed", "5", "--timings", "one two")
    assert (code, out) == (0, chat("one two", seed=5).text + "\n")
    names = [line[:14].strip() for line in err.splitlines()]
    assert names[:3] == ["seed", "prompt tokens", "answer tokens"]
    assert {"first token", "prefill", "decode", "finish reason"} <= set(names)


def test_a_prompt_longer_than_the_context_is_six() -> None:
    code, out, err = run_cli("run", "a long prompt " * 9, model=FakeModel({"n_ctx": 16}))
    assert (code, out) == (6, "")
    assert "the context holds 16; shorten it" in err


def test_a_model_without_a_template_is_three_and_raw_works() -> None:
    code, out, err = run_cli("run", "one", model=FakeModel(template=None))
    assert (code, out) == (3, "")
    assert "--raw" in err
    assert run_cli("run", "--raw", "one", model=FakeModel(template=None)).code == 0


def test_a_backend_that_fails_is_one_and_the_text_so_far_stands() -> None:
    code, out, err = run_cli("run", "--seed", "5", "one", model=FakeModel({"n_ctx": 512, "fail_after": 9}))
    assert code == 1
    assert chat("one", seed=5).text.startswith(out[:-1])
    assert out.endswith("\n")
    assert "fault asked for" in err
    assert "Traceback" not in err


def test_ctrl_c_keeps_the_text_so_far_and_ends_with_130(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = chat("one two", seed=5, max_tokens=400).text
    show = answer.write_out

    n_times = iter([True])

    def interrupting(text: str) -> None:
        show(text)
        if next(n_times, False):
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(answer, "write_out", interrupting)
    model = FakeModel({"n_ctx": 512, "forward_s": 0.01})
    code, out, err = run_cli("run", "--seed", "5", "-n", "400", "one two", model=model)
    assert (code, err) == (130, "")
    assert out.endswith("\n")
    assert whole.startswith(out[:-1])
    assert 0 < len(out) < len(whole)


def test_a_second_ctrl_c_does_not_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    show = answer.write_out

    def interrupting(text: str) -> None:
        show(text)
        if text != "\n":
            signal.raise_signal(signal.SIGINT)
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(answer, "write_out", interrupting)
    code, out, err = run_cli("run", "--seed", "5", "one two")
    assert (code, err) == (130, "")
    assert out.endswith("\n")


def test_a_background_job_goes_on_ignoring_ctrl_c() -> None:
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with FakeModel().load("x") as llm:
            stream = llm.stream("one", seed=5)
            completion = answer.stream_answer(stream, lambda _: signal.raise_signal(signal.SIGINT))
    finally:
        signal.signal(signal.SIGINT, before)
    assert completion.finish_reason == "length"


def test_after_an_answer_ctrl_c_is_what_it_was() -> None:
    before = signal.getsignal(signal.SIGINT)
    with FakeModel().load("x") as llm:
        completion = answer.stream_answer(llm.stream("one", seed=5), write=lambda _: None)
        assert completion.text == llm.generate("one", seed=5).text
    assert signal.getsignal(signal.SIGINT) is before


def test_a_reader_that_leaves_ends_the_program_quietly(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(_text: str) -> None:
        raise BrokenPipeError

    monkeypatch.setattr(LLM, "load", FakeModel().load)
    monkeypatch.setattr(answer, "write_out", broken)
    assert run_command(["run", "one"]) == 141
    assert capsys.readouterr() == ("", "")
    assert sys.stdout.writable()


def test_the_defaults_of_the_command_are_those_of_the_class() -> None:
    values = json.loads(run_cli("run", "--json", "--seed", "5", "one").out)
    with FakeModel().load("x") as llm:
        expected = llm.chat("one", SamplingParams(seed=5))
    assert values["token_ids"] == list(expected.token_ids)
