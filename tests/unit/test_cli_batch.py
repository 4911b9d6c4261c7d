"""`gguf-engine batch` in this process, on a fake model: files, pipes, exit codes, what it says it took."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from cli_samples import FakeModel, Result, run_cli

from gguf_engine import LLM, EngineClosedError, ModelNotFoundError

ARGS = ("batch", "--seed", "5", "-n", "8")
PROMPTS = [{"id": n, "input": f"line {n}"} for n in range(4)]


def jsonl(*values: Any) -> bytes:
    return b"".join(json.dumps(value).encode() + b"\n" for value in values)


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def run_files(tmp_path: Path, *args: str, data: bytes = jsonl(*PROMPTS)) -> Result:
    (tmp_path / "in.jsonl").write_bytes(data)
    files = ("--input", str(tmp_path / "in.jsonl"), "--output", str(tmp_path / "out.jsonl"))
    return run_cli(*ARGS, *files, *args)


def test_stdin_to_stdout() -> None:
    code, out, err = run_cli(*ARGS, stdin=jsonl(*PROMPTS, {"input": "no id"}))
    answers = [json.loads(line) for line in out.splitlines()]
    assert code == 0
    assert [answer["id"] for answer in answers] == [0, 1, 2, 3, 5]
    assert set(answers[0]) == {"id", "text", "finish_reason", "seed", "usage"}
    assert err.startswith("answered     5 lines; 0 failed\n")


def test_nothing_in_nothing_out() -> None:
    code, out, err = run_cli(*ARGS)
    assert (code, out) == (0, "")
    assert err.startswith("answered     0 lines; 0 failed\n")


class NotThere(FakeModel):
    """No model at all."""

    def load(self, model: str, **options: Any) -> LLM:
        raise ModelNotFoundError(model, "no such file")


def test_a_model_that_cannot_be_loaded_leaves_an_error_and_no_table() -> None:
    code, out, err = run_cli(*ARGS, stdin=jsonl(*PROMPTS), model=NotThere())
    assert (code, out) == (3, "")
    assert err.startswith("gguf-engine: model ")
    assert len(err.splitlines()) == 1


def test_a_line_that_fails_makes_the_code_7_and_the_others_are_served() -> None:
    code, out, err = run_cli(*ARGS, stdin=b"nonsense\n" + jsonl(PROMPTS[1]))
    failed, served = (json.loads(line) for line in out.splitlines())
    assert (code, failed["id"], failed["error"]["code"]) == (7, 1, "option")
    assert served["id"] == 1
    assert err.startswith("answered     2 lines; 1 failed\n")
    assert err.endswith("gguf-engine: 1 of 2 lines failed; their errors stand in the output\n")


def test_files_and_the_record(tmp_path: Path) -> None:
    code, out, _ = run_files(tmp_path, "--record", str(tmp_path / "record.json"))
    assert (code, out) == (0, "")
    answers = read(tmp_path / "out.jsonl")
    piped = run_cli(*ARGS, stdin=jsonl(*PROMPTS)).out
    assert [answer["text"] for answer in answers] == [
        json.loads(line)["text"] for line in piped.splitlines()
    ]
    record = json.loads((tmp_path / "record.json").read_text())
    assert (record["n_answered"], record["n_failed"], record["n_answered_before"]) == (4, 0, 0)
    stages = sum(record[name] for name in ("boot_s", "inference_s", "rest_s"))
    assert stages == pytest.approx(record["total_s"])
    assert record["n_completion"] == sum(answer["usage"]["n_completion"] for answer in answers)
    assert record["peak_memory_bytes"] > 10**6


@pytest.mark.parametrize(
    ("typed", "expected"),
    [
        ((), (None, None)),
        (("--engines", "4"), (2, 2)),
        (("--engines", "32"), (1, 1)),
        (("--engines", "4", "--n-threads", "3"), (3, 3)),
        (("--engines", "4", "--n-threads-batch", "5"), (2, 5)),
    ],
)
def test_engines_share_the_processors_unless_told_otherwise(
    typed: tuple[str, ...], expected: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gguf_engine.backend.processors.usable_processors", lambda: 8)
    loaded: list[LLM] = []

    class Counted(FakeModel):
        def load(self, model: str, **options: Any) -> LLM:
            loaded.append(super().load(model, **options))
            return loaded[-1]

    model = Counted()
    code, out, _ = run_cli(*ARGS, *typed, stdin=jsonl(*PROMPTS), model=model)
    assert (code, len(out.splitlines())) == (0, 4)
    assert (model.asked["n_threads"], model.asked["n_threads_batch"]) == expected
    assert len(loaded) == (int(typed[1]) if typed else 1)
    for llm in loaded:
        with pytest.raises(EngineClosedError):
            llm.stats()


def test_an_engine_that_cannot_be_loaded_closes_the_others() -> None:
    loaded: list[LLM] = []

    class Second(FakeModel):
        def load(self, model: str, **options: Any) -> LLM:
            if loaded:
                raise ModelNotFoundError(model, "it is gone", "look for it")
            loaded.append(super().load(model, **options))
            return loaded[-1]

    code, out, err = run_cli(*ARGS, "--engines", "2", stdin=jsonl(*PROMPTS), model=Second())
    assert (code, out) == (3, "")
    assert "it is gone" in err
    with pytest.raises(EngineClosedError):
        loaded[0].stats()


def test_a_finished_output_is_left_and_the_model_not_loaded(tmp_path: Path) -> None:
    run_files(tmp_path)
    before = (tmp_path / "out.jsonl").read_bytes()
    model = FakeModel()
    files = ("-i", str(tmp_path / "in.jsonl"), "-o", str(tmp_path / "out.jsonl"))
    code, _, err = run_cli(*ARGS, *files, model=model)
    assert (code, model.asked) == (0, {})
    assert err.startswith("answered     0 lines, 4 before; 0 failed\n")
    assert (tmp_path / "out.jsonl").read_bytes() == before


def test_a_failed_line_of_an_earlier_run_still_counts(tmp_path: Path) -> None:
    data = b"nonsense\n" + jsonl(*PROMPTS)
    assert run_files(tmp_path, data=data).code == 7
    assert run_files(tmp_path, data=data).code == 7


def test_another_input_or_option_is_refused_and_no_resume_begins_anew(tmp_path: Path) -> None:
    run_files(tmp_path)
    changed = jsonl(PROMPTS[0], {"id": 1, "input": "changed"}, *PROMPTS[2:])
    code, _, err = run_files(tmp_path, data=changed)
    assert (code, "its line 2 is not the one that was answered" in err) == (2, True)
    code, _, err = run_files(tmp_path, "--top-k", "3")
    assert (code, "an option is another one" in err) == (2, True)
    assert run_files(tmp_path, "--no-resume", data=changed).code == 0
    assert len(read(tmp_path / "out.jsonl")) == 4


def test_a_csv_column(tmp_path: Path) -> None:
    data = b'id,text\na,"line 0"\n,"line 1"\n'
    code, out, _ = run_cli(*ARGS, "--column", "text", stdin=data)
    answers = [json.loads(line) for line in out.splitlines()]
    assert (code, [answer["id"] for answer in answers]) == (0, ["a", 3])
    assert answers[0]["text"] == json.loads(run_cli(*ARGS, stdin=jsonl(PROMPTS[0])).out)["text"]


def test_tasks() -> None:
    code, out, _ = run_cli("batch", "--task", "score", stdin=jsonl({"input": "a", "target": "b"}))
    assert (code, json.loads(out)["logprob"] < 0) == (0, True)
    code, out, _ = run_cli("batch", "--task", "choose", stdin=jsonl({"input": "a", "choices": ["b", "c"]}))
    assert (code, json.loads(out)["choice"] in "bc") == (0, True)


@pytest.mark.parametrize(
    ("args", "code", "says"),
    [
        (("--task", "guess"), 2, "--task is 'guess'; allowed: generate, score, choose"),
        (("--task", "score", "--column", "text"), 2, "use JSONL"),
        (("--column", "text"), 2, "--column is 'text'; allowed"),
        (("--window", "0"), 2, "--window is 0"),
        (("--engines", "0"), 2, "--engines is 0; allowed: an integer in 1..64"),
        (("--window", "x"), 2, "--window is 'x'; allowed: an integer in 1..65536"),
        (("--raw", "--system", "x"), 2, "drop raw or system"),
        (("--input", "missing.jsonl"), 2, "--input is 'missing.jsonl'; allowed: a file of JSONL or CSV"),
        (("--input", "/"), 2, "or - for stdin; it is a folder"),
        (("--output", "missing/out.jsonl"), 2, "--output is 'missing/out.jsonl'; allowed: a file"),
        (("--output", "/"), 2, "--output is '/'; allowed: a file that can be written; it is a folder"),
        (("--output", "/dev/null"), 2, "a regular file, which a later run can go on with"),
        (("--record", "missing/r.json"), 2, "--record is 'missing/r.json'; allowed: a file"),
        (("--record", "/"), 2, "--record is '/'"),
    ],
)
def test_wrong_usage_is_one_sentence(args: tuple[str, ...], code: int, says: str) -> None:
    model = FakeModel()
    result = run_cli("batch", *args, stdin=jsonl(*PROMPTS), model=model)
    assert (result.code, result.out, model.asked) == (code, "", {})
    assert says in result.err
    assert result.err.count("\n") == 1


def test_a_file_that_the_system_will_not_open_is_one_sentence(tmp_path: Path) -> None:
    code, _, err = run_cli("batch", "--output", str(tmp_path / ("x" * 300)), stdin=jsonl(*PROMPTS))
    assert (code, "a file that can be written; File name too long" in err) == (2, True)


@pytest.mark.parametrize("name", ["in.csv", "IN.CSV"])
def test_a_csv_without_a_column_is_refused_with_the_columns_it_has(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("id,text\na,one\n")
    model = FakeModel()
    code, out, err = run_cli("batch", "-i", str(tmp_path / name), model=model)
    assert (code, out, model.asked, err.count("\n")) == (2, "", {}, 1)
    assert "allowed: JSONL, or CSV with --column NAME; the columns its first row names: id, text" in err


def test_a_column_that_is_not_there_is_refused_before_anything_is_loaded_or_made(tmp_path: Path) -> None:
    (tmp_path / "in.csv").write_text("id,text\na,one\n")
    model = FakeModel()
    files = ("-i", str(tmp_path / "in.csv"), "-o", str(tmp_path / "out.jsonl"))
    code, out, err = run_cli("batch", *files, "--column", "foo", model=model)
    assert (code, out, model.asked, err.count("\n")) == (2, "", {}, 1)
    assert "--column is 'foo'; allowed: one that the first row names once: id, text" in err
    assert not (tmp_path / "out.jsonl").exists()


def test_the_output_is_not_the_input(tmp_path: Path) -> None:
    path = tmp_path / "in.jsonl"
    path.write_bytes(jsonl(*PROMPTS))
    code, _, err = run_cli(*ARGS, "-i", str(path), "-o", str(path), "--no-resume")
    assert (code, "another file than --input" in err) == (2, True)
    assert path.read_bytes() == jsonl(*PROMPTS)
