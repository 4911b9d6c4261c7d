"""`gguf_engine.batch`: lines in, answers out in order; an output that is cut anywhere is gone on with."""

from __future__ import annotations

import contextlib
import io
import itertools
import json
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from text_samples import PHI3_TEMPLATE, from_json, spm_json

from gguf_engine import LLM, EngineClosedError, OptionError, SamplingParams
from gguf_engine.backend.fake import FakeBackend
from gguf_engine.batch import BatchOptions, BatchStats, Line, Output, read_csv, read_jsonl, run_batch
from gguf_engine.batch import lines as lines_module
from gguf_engine.text.chat import ChatTemplate

GREEDY = BatchOptions(sampling=SamplingParams(seed=5, max_tokens=8))


@pytest.fixture
def llm() -> Iterator[LLM]:
    tokenizer = from_json(spm_json())
    template = ChatTemplate.for_tokenizer(PHI3_TEMPLATE, tokenizer)
    make = lambda: FakeBackend(n_vocab=tokenizer.n_vocab, n_ctx=256, n_slots=4)  # noqa: E731
    with LLM(make, tokenizer, template=template) as llm:
        yield llm


def jsonl(*values: Any) -> list[Line]:
    texts = (value if isinstance(value, bytes) else json.dumps(value).encode() for value in values)
    return list(read_jsonl(io.BytesIO(b"".join(text + b"\n" for text in texts))))


def answers(llm: LLM, *values: Any, options: BatchOptions = GREEDY) -> list[dict[str, Any]]:
    return [answer.data for answer in run_batch(llm, jsonl(*values), options)]


def test_lines_are_numbered_and_blank_ones_left_out() -> None:
    data = b'\xef\xbb\xbf{"a": 1}\r\n\n  \n{"b": 2}'
    lines = list(read_jsonl(io.BytesIO(data)))
    assert [(line.number, line.end, line.data) for line in lines] == [
        (1, 13, b'{"a": 1}'),
        (4, 25, b'{"b": 2}'),
    ]


def test_a_line_too_long_is_a_fault_and_the_next_one_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lines_module, "MAX_LINE_BYTES", 10)
    lines = list(read_jsonl(io.BytesIO(b"x" * 35 + b"\n{}\n")))
    assert [(line.number, line.end, line.fault) for line in lines] == [
        (1, 36, "it is longer than 10 bytes"),
        (2, 39, ""),
    ]


def test_a_csv_is_the_jsonl_it_stands_for() -> None:
    data = '\ufeffid,text,more\nx,"two\nlines",1\n\n,"""q"" ü",2\nonly\n'.encode()
    lines = list(read_csv(io.BytesIO(data), "text"))
    assert [line.number for line in lines] == [2, 5, 6]
    assert [json.loads(line.data) for line in lines[:2]] == [
        {"id": "x", "input": "two\nlines"},
        {"input": '"q" ü'},
    ]
    assert lines[2].fault == "it has 1 columns, and 'text' is column 2"
    assert lines[2].end == len(data)


def test_a_row_that_is_no_csv_is_a_fault_and_the_next_one_is_read() -> None:
    lines = list(read_csv(io.BytesIO(b'text\n"a"b\nc\n'), "text"))
    assert [bool(line.fault) for line in lines] == [True, False]
    assert json.loads(lines[1].data) == {"input": "c"}


@pytest.mark.parametrize("data", [b"", b"a,b\n1,2\n", b"text,text\n"])
def test_a_column_that_is_not_there_once_is_refused(data: bytes) -> None:
    with pytest.raises(OptionError, match="column is 'text'; allowed: one that the first row names once"):
        list(read_csv(io.BytesIO(data), "text"))


def test_several_engines_take_the_lines_in_turn_and_the_order_stays() -> None:
    tokenizer = from_json(spm_json())
    values = [{"id": f"n{n}", "input": f"number {n}"} for n in range(40)]
    backends: list[FakeBackend] = []

    def make() -> FakeBackend:
        # One is slow: the order of the answers is that of the lines all the same.
        backends.append(FakeBackend(n_vocab=tokenizer.n_vocab, n_slots=2, forward_s=0.002 * len(backends)))
        return backends[-1]

    template = ChatTemplate.for_tokenizer(PHI3_TEMPLATE, tokenizer)
    with contextlib.ExitStack() as stack:
        llms = [stack.enter_context(LLM(make, tokenizer, template=template)) for _ in range(3)]
        alone = [answer.data for answer in run_batch(llms[0], jsonl(*values), GREEDY)]
        n_before = [backend.n_tokens for backend in backends]
        shared = [answer.data for answer in run_batch(llms, jsonl(*values), GREEDY)]
        assert [data["id"] for data in shared] == [value["id"] for value in values]
        assert [data["text"] for data in shared] == [data["text"] for data in alone]
        with pytest.raises(OptionError, match="a model, or several"):
            run_batch([], jsonl(*values))
        done = [backend.n_tokens - n for backend, n in zip(backends, n_before, strict=True)]
        assert all(done)


def test_answers_come_in_order_and_are_those_of_single_requests(llm: LLM) -> None:
    prompts = [f"number {n}" for n in range(40)]
    values = [{"id": f"id{n}", "input": prompt, "seed": n} for n, prompt in enumerate(prompts)]
    got = answers(llm, *values)
    assert [answer["id"] for answer in got] == [f"id{n}" for n in range(40)]
    alone = [llm.chat(prompt, seed=n, max_tokens=8) for n, prompt in enumerate(prompts)]
    assert [answer["text"] for answer in got] == [completion.text for completion in alone]
    assert got[3]["seed"] == 3


def test_messages_raw_system_and_options_of_a_line(llm: LLM) -> None:
    messages = [{"role": "system", "content": "brief"}, {"role": "user", "content": "one"}]
    with_system = BatchOptions(sampling=GREEDY.sampling, system="brief")
    first, second = answers(llm, {"messages": messages}, {"input": "one"}, options=with_system)
    assert first["text"] == second["text"] == llm.chat(messages, seed=5, max_tokens=8).text  # type: ignore[arg-type]
    (raw,) = answers(llm, {"input": "one"}, options=BatchOptions(sampling=GREEDY.sampling, raw=True))
    assert raw["text"] == llm.generate("one", seed=5, max_tokens=8).text
    (biased,) = answers(llm, {"input": "one", "logit_bias": {"70": 1000}, "logprobs": 1, "max_tokens": 2})
    assert biased["token_ids"] == (70, 70)
    assert biased["top_logprobs"][0][0]["token_id"] == 70


@pytest.mark.parametrize(
    ("line", "code", "says"),
    [
        (b"{", "option", "a JSON object"),
        (b"[1]", "option", "a JSON object"),
        (b"[" * 100_000, "option", "a JSON object"),
        (b'{"input": "\xff"}', "option", "UTF-8"),
        (b'{"input": "\\ud800"}', "option", "UTF-8"),
        (b'{"input": "a", "top_p": NaN}', "option", "NaN is no JSON number"),
        ({"id": 1}, "option", '"input" or "messages"'),
        ({"id": 1, "input": "a", "messages": []}, "option", '"input" or "messages"'),
        ({"id": 1, "input": 5}, "option", "a text"),
        ({"id": 1, "input": "a", "top_k": -1}, "option", "top_k is -1"),
        ({"id": 1, "input": "a", "temprature": 1}, "option", "'temprature'"),
        ({"id": 1, "input": "a", "logit_bias": {"x": 1}}, "option", "logit_bias"),
        ({"id": 1, "messages": ["a"]}, "option", '"role"'),
        ({"id": 1, "messages": [{"role": "king", "content": ""}]}, "template", "king"),
        ({"id": 1, "input": "long " * 300}, "prompt_too_long", "the context holds 256"),
        ({"id": [1], "input": "a"}, "option", "id is [1]"),
        ({"id": "x" * 1001, "input": "a"}, "option", "at most 1000 characters"),
    ],
)
def test_a_line_that_fails_is_answered_by_an_error(llm: LLM, line: Any, code: str, says: str) -> None:
    failed, served = answers(llm, line, {"input": "one"})
    assert failed["id"] == 1
    assert failed["error"]["code"] == code
    assert says in failed["error"]["message"]
    assert served["text"] == llm.chat("one", seed=5, max_tokens=8).text


def test_what_is_read_ahead_is_bounded_by_the_window(llm: LLM) -> None:
    n_read = 0

    def endless() -> Iterator[Line]:
        nonlocal n_read
        for n in itertools.count(1):
            n_read = n
            yield Line(n, n, b'{"input": "one"}')

    running = run_batch(llm, endless(), BatchOptions(sampling=GREEDY.sampling, window=3))
    for n in range(20):
        next(running)
        assert n_read <= n + 1 + 3 + 1 + 1  # answered, in the queue, being put, being read
    running.close()
    thread = next((t for t in threading.enumerate() if t.name == "gguf-engine-batch"), None)
    if thread is not None:
        thread.join(30)
        assert not thread.is_alive()
    assert llm.stats().n_running == 0


def test_an_error_of_the_source_is_raised_after_the_answers_before_it(llm: LLM) -> None:
    def broken() -> Iterator[Line]:
        yield Line(1, 1, b'{"input": "one"}')
        raise OSError("gone")

    running = run_batch(llm, broken(), GREEDY)
    assert next(running).data["id"] == 1
    with pytest.raises(OSError, match="gone"):
        next(running)


def test_an_engine_that_was_closed_ends_the_run(llm: LLM) -> None:
    gate = threading.Event()

    def lines() -> Iterator[Line]:
        yield Line(1, 1, b'{"input": "one"}')
        gate.wait(30)
        yield Line(2, 2, b'{"input": "two"}')

    running = run_batch(llm, lines(), GREEDY)
    next(running)
    llm.close()
    gate.set()
    with pytest.raises(EngineClosedError):
        next(running)


def test_stats_count_what_was_done(llm: LLM) -> None:
    stats = BatchStats()
    list(run_batch(llm, jsonl({"input": "one"}, {"input": 1}, {"input": "two"}), GREEDY, stats))
    assert (stats.n_answered, stats.n_failed) == (3, 1)
    assert stats.n_prompt == sum(len(llm.encode(text, chat=True)) for text in ("one", "two"))
    assert 2 <= stats.n_completion <= 16
    assert stats.inference_s > 0
    assert stats.encode_s > 0


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"task": "guess"}, "task is 'guess'; allowed: generate, score, choose"),
        ({"window": 0}, "window is 0; allowed: an integer in 1..65536"),
        ({"raw": True, "system": "x"}, "drop raw or system"),
        ({"task": "score", "sampling": SamplingParams(seed=1)}, "nothing is sampled"),
    ],
)
def test_options_out_of_range_are_refused(options: dict[str, Any], says: str) -> None:
    with pytest.raises(OptionError, match=says):
        BatchOptions(**options)


def test_a_score_is_what_generation_said_of_the_same_ids(llm: LLM) -> None:
    """Bit for bit on the fake backend: its rows depend on the ids alone."""
    said = llm.generate("one", seed=3, max_tokens=6, ignore_eos=True, logprobs=0, raw_logprobs=True)
    scored = llm.stream_target("one", said.token_ids).completion()
    assert (scored.token_ids, scored.logprobs) == (said.token_ids, said.logprobs)
    assert scored.timings.n_accepted == 4  # two passes: each draws one id more than it verifies


def test_an_end_token_can_be_scored_in_the_middle(llm: LLM) -> None:
    end = min(llm.end_ids)
    assert llm.stream_target("one", [end, 70, end]).completion().token_ids == (end, 70, end)


def test_a_target_that_is_empty_or_does_not_fit_is_refused(llm: LLM) -> None:
    with pytest.raises(OptionError, match="at least one token"):
        llm.stream_target("one", [])
    with pytest.raises(OptionError, match="token ids in"):
        llm.stream_target("one", [10**6])
    n_left = llm.n_ctx - len(llm.encode("one"))
    assert len(llm.stream_target("one", [70] * n_left).completion().logprobs) == n_left
    with pytest.raises(ValueError, match=f"prompt is {llm.n_ctx + 1} tokens"):
        llm.stream_target("one", [70] * (n_left + 1))


def test_scores_of_texts_are_of_their_own_tokens(llm: LLM) -> None:
    options = BatchOptions(task="score", raw=True)
    (raw,) = answers(llm, {"input": "one", "target": " two"}, options=options)
    assert llm.encode("one") + list(raw["token_ids"]) == llm.encode("one two")
    (chat,) = answers(llm, {"input": "one", "target": "two"}, options=BatchOptions(task="score"))
    turns = [{"role": "user", "content": "one"}, {"role": "assistant", "content": "two"}]
    whole = llm.template.encode(turns, llm.tokenizer, add_generation_prompt=False)  # type: ignore[arg-type]
    n_prompt = len(llm.encode("one", chat=True))
    n_tokens = chat["n_tokens"]
    assert list(chat["token_ids"]) == whole[n_prompt : n_prompt + n_tokens]
    assert whole[n_prompt + n_tokens] in llm.tokenizer.special_ids
    assert chat["logprob"] == pytest.approx(sum(chat["logprobs"]))
    assert chat["mean_logprob"] == pytest.approx(chat["logprob"] / n_tokens)


def test_the_choice_is_the_most_probable(llm: LLM) -> None:
    choices = ["two", "three three", "a"]
    by_total, by_mean = answers(
        llm,
        {"input": "one", "choices": choices},
        {"input": "one", "choices": choices, "by": "mean"},
        options=BatchOptions(task="choose"),
    )
    totals = [
        answers(llm, {"input": "one", "target": choice}, options=BatchOptions(task="score"))[0]["logprob"]
        for choice in choices
    ]
    assert [score["logprob"] for score in by_total["scores"]] == totals
    assert by_total["index"] == totals.index(max(totals))
    means = [score["mean_logprob"] for score in by_mean["scores"]]
    assert by_mean["choice"] == choices[means.index(max(means))]


@pytest.mark.parametrize(
    ("task", "value", "says"),
    [
        ("score", {"input": "a"}, "target is None"),
        ("score", {"input": "a", "target": "b", "seed": 1}, "remove 'seed'"),
        ("choose", {"input": "a", "choices": ["b"]}, "2..256 texts"),
        ("choose", {"input": "a", "choices": ["b", ""]}, "at least one token"),
        ("choose", {"input": "a", "choices": ["b", "c"], "by": "luck"}, '"total" or "mean"'),
    ],
)
def test_a_line_that_cannot_be_scored_says_why(llm: LLM, task: Any, value: Any, says: str) -> None:
    (failed,) = answers(llm, value, options=BatchOptions(task=task))
    assert says in failed["error"]["message"]


LINES = jsonl(*({"input": f"line {n}"} for n in range(5)))


def written(path: Path, n: int = 5, digest: str = "d") -> bytes:
    output = Output(path, digest)
    for line in LINES[:n]:
        output.write({"id": line.number, "text": "ü"}, line)
    output.close()
    output.close()
    return path.read_bytes()


def test_an_output_cut_at_any_byte_is_gone_on_with_to_the_same_bytes(tmp_path: Path) -> None:
    path = tmp_path / "out.jsonl"
    whole = written(path, 2)
    for n_bytes in range(len(whole) + 1):
        path.write_bytes(whole[:n_bytes])
        output = Output(path, "d")
        rest = iter(LINES[:2])
        done = output.skip(rest)
        n_done = whole[:n_bytes].count(b"\n")
        assert path.read_bytes() == b"".join(whole.splitlines(keepends=True)[:n_done])
        assert output.n_answered == n_done
        assert done == (LINES[n_done - 1].end if n_done else 0)
        for line in rest:
            output.write({"id": line.number, "text": "ü"}, line)
        output.close()
        assert path.read_bytes() == whole


def test_an_input_that_grew_is_gone_on_with(tmp_path: Path) -> None:
    written(tmp_path / "out.jsonl", 3)
    output = Output(tmp_path / "out.jsonl", "d")
    rest = iter(LINES)
    output.skip(rest)
    assert next(rest) is LINES[3]
    output.close()


@pytest.mark.parametrize(
    ("lines", "digest", "says"),
    [
        ([LINES[0], LINES[2], LINES[1]], "d", "at its line 2: the input has changed: its line 3"),
        (LINES[:2], "d", "at its line 3: the input has changed: it has 2 lines"),
        (LINES, "e", "at its line 1: the model, the task or an option is another one"),
    ],
)
def test_another_input_or_other_options_are_refused(
    tmp_path: Path, lines: list[Line], digest: str, says: str
) -> None:
    before = written(tmp_path / "out.jsonl", 3)
    output = Output(tmp_path / "out.jsonl", digest)
    with pytest.raises(OptionError, match=says):
        output.skip(iter(lines))
    output.close()
    assert (tmp_path / "out.jsonl").read_bytes() == before


@pytest.mark.parametrize(
    "data", [b"dear diary", b"dear diary\n", b'{"id": 1}\n', b"[" * 99_999 + b"\n", b"\0" * 9]
)
def test_a_file_that_is_no_output_is_refused_and_left_alone(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "out.jsonl"
    path.write_bytes(data)
    output = Output(path, "d")
    with pytest.raises(OptionError, match="no output of a batch"):
        output.skip(iter(LINES))
    output.close()
    assert path.read_bytes() == data


def test_without_resume_it_is_begun_anew(tmp_path: Path) -> None:
    written(tmp_path / "out.jsonl")
    output = Output(tmp_path / "out.jsonl", "e", resume=False)
    assert (output.skip(iter([])), output.n_answered) == (0, 0)
    output.close()
    assert (tmp_path / "out.jsonl").read_bytes() == b""


def test_two_batches_do_not_share_an_output(tmp_path: Path) -> None:
    output = Output(tmp_path / "out.jsonl", "d")
    with pytest.raises(OptionError, match="no other batch writes to"):
        Output(tmp_path / "out.jsonl", "d", resume=False)
    output.close()
    Output(tmp_path / "out.jsonl", "d").close()


def test_answers_reach_the_disk_once_a_second_and_at_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 0.0
    synced: list[float] = []
    monkeypatch.setattr(os, "fsync", lambda _: synced.append(now))
    output = Output(tmp_path / "out.jsonl", "d", clock=lambda: now)
    synced.clear()  # the folder, for a new file
    for moment, line in zip((0.1, 0.9, 1.0, 1.9, 2.5), LINES, strict=True):
        now = moment
        output.write({"id": line.number}, line)
    output.close()
    assert synced == [1.0, 2.5, 2.5]
