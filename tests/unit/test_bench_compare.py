"""Records beside each other: what is refused, the ratios, and a verdict that tells of marks."""

from __future__ import annotations

from dataclasses import replace

import pytest
from bench_samples import case, faster, record

from gguf_engine.bench.compare import check_comparable, label_files, summarize
from gguf_engine.bench.record import RecordError

NAMES = ["laptop", "server"]


def test_another_model_is_refused_by_its_hash() -> None:
    other = record(model=replace(record().model, sha256="99" * 32))
    with pytest.raises(RecordError, match=r"different models: .*abababababab.*999999999999"):
        check_comparable([record(), other], NAMES)


def test_other_work_is_refused_by_its_fields() -> None:
    other = record(workload=replace(record().workload, n_tokens=8, seed=2))
    with pytest.raises(RecordError, match=r"laptop and server .* n_tokens 4 and 8; seed 1 and 2"):
        check_comparable([record(), other], NAMES)


def test_another_machine_and_build_are_what_records_are_compared_for() -> None:
    software = replace(record().software, llama_cpp="4", build_flags="AVX512 = 1")
    check_comparable([record(), record(software=software)], NAMES)


def test_ratios_are_to_the_first_of_ours_that_did_the_same() -> None:
    first = record(case(), case(depth=64), case(faster(0.5), engine="bare"))
    second = record(case(faster(2.0)), case(faster(4.0), depth=64))
    cases = summarize([first, second], NAMES)["cases"]
    assert [round(each["decode_ratio"], 3) for each in cases] == [1.0, 1.0, 0.5, 2.0, 4.0]
    assert [round(each["prefill_ratio"], 3) for each in cases] == [1.0, 1.0, 0.5, 2.0, 4.0]


def test_the_verdict_names_the_faster_one() -> None:
    verdict = summarize([record(), record(case(faster(2.0)))], NAMES)["verdict"]
    assert "of server is fastest: 2.00 times as fast as A CPU (cpu, 1 thread) of laptop" in verdict
    assert "marked" not in verdict


def test_a_marked_run_is_shown_as_marked() -> None:
    summary = summarize([record(), record(case(faster(2.0)), marks=("it was busy",))], NAMES)
    assert summary["verdict"].endswith("But server is marked: the figures are doubtful.")
    assert summary["marks"] == ["server: it was busy"]


def test_one_record_is_a_summary_too() -> None:
    (only,) = summarize([record(marks=("it was busy",), notes=("left out",))], ["m"])["cases"]
    assert only["decode_tokens_per_s"] == pytest.approx([5.0, 5.0, 5.0])
    assert only["rest_s"] == pytest.approx([0.1] * 3)
    assert only["memory_copy_bytes_per_s"] == 20_000.0


def test_other_answers_are_shown_as_such() -> None:
    answers = replace(record().answers[0], greedy_ids=(1, 2, 9), top_ids=((1, 2), (4, 3)))
    (row,) = summarize([record(), record(answers=(answers,))], NAMES)["answers"]
    assert row["greedy"] == "the same up to token 2 of 3"
    assert row["top_1"] == "50.0% of 2 positions"


def test_files_are_called_by_what_tells_them_apart() -> None:
    assert label_files(["x/a.json", "y/b.json"]) == ["a", "b"]
    assert label_files(["x/a.json", "y/a.json"]) == ["x/a", "y/a"]
    assert label_files(["a.json", "a.json"]) == ["a.json (1)", "a.json (2)"]
