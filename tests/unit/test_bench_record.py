"""A record is written and read back whole; what is no record is refused with a sentence."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from bench_samples import case, record, trial

from gguf_engine.bench.record import RecordError, parse_record, read_record


def changed(**changes: Any) -> str:
    return json.dumps({**json.loads(record().to_json()), **changes})


def test_a_record_is_read_back_as_it_was_written(tmp_path: Path) -> None:
    sparse = trial(import_s=None, token_s=(), total_s=None, stages={}, decode_tokens_per_s=5.0)
    made = record(case(), case(sparse, engine="llama-bench"), marks=("a reason",))
    (tmp_path / "a.json").write_text(made.to_json())
    assert read_record(tmp_path / "a.json") == made


def test_another_version_of_the_format_is_refused() -> None:
    with pytest.raises(
        RecordError, match=r"^b\.json has version 2 of the record format, this program reads 1"
    ):
        parse_record(changed(version=2), "b.json")


@pytest.mark.parametrize("text", ["[]", "{}", '{"format": "other"}'])
def test_other_json_is_no_record(text: str) -> None:
    with pytest.raises(RecordError, match="b is no record of this program"):
        parse_record(text, "b")


def test_what_is_no_json_is_refused() -> None:
    with pytest.raises(RecordError, match=r"^b is no JSON: .*bench --json FILE"):
        parse_record("nonsense", "b")


def test_a_file_that_is_not_there_is_refused() -> None:
    with pytest.raises(RecordError, match=r"^nowhere\.json cannot be read"):
        read_record("nowhere.json")


def test_a_missing_and_an_unknown_field_are_named() -> None:
    with pytest.raises(RecordError, match="b: the fields extra are missing, or are none of a record"):
        parse_record(changed(extra=1), "b")
    data = json.loads(record().to_json())
    del data["model"]["sha256"]
    with pytest.raises(RecordError, match="b: model: the fields sha256 are missing"):
        parse_record(json.dumps(data), "b")


@pytest.mark.parametrize(
    ("name", "value", "place"),
    [
        ("seconds", "ten", "b: seconds is 'ten'"),
        ("seconds", True, "b: seconds is True"),
        ("seconds", None, "b: seconds is None"),
        ("marks", "one", "b: marks is 'one'"),
        ("marks", [1], r"b: marks\[0\] is 1"),
        ("cases", [1], r"b: cases\[0\] is 1, an object"),
    ],
)
def test_a_value_of_another_type_is_named(name: str, value: Any, place: str) -> None:
    with pytest.raises(RecordError, match=f"^{place}"):
        parse_record(changed(**{name: value}), "b")
