"""`tools/bench_compare.py`: what counts as slower, and what a record keeps."""

from __future__ import annotations

import json
from pathlib import Path

from bench_compare import last_record, ratios, read_parts, slower, table

OLD = {name: {"min_us": us, "median_us": us, "n": 9} for name, us in (("anchor", 100.0), ("step", 10.0))}


def parts(**fastest: float) -> dict[str, dict[str, float]]:
    return {name: {"min_us": us, "median_us": us, "n": 9} for name, us in fastest.items()}


def test_a_part_that_takes_longer_is_named_with_how_much() -> None:
    changes = ratios(parts(anchor=100, step=15), OLD)
    assert changes == {"step": 1.5}
    assert slower(changes, 25) == ["step takes 50 % longer than in the last record; 25 % may be noise"]
    assert slower(changes, 60) == []


def test_a_machine_twice_as_slow_is_not_slower_code() -> None:
    changes = ratios(parts(anchor=200, step=20), OLD)
    assert changes == {"step": 1.0}
    assert slower(changes, 25) == []


def test_new_parts_have_no_ratio_and_parts_that_are_gone_are_named() -> None:
    new = parts(anchor=100, fresh=1)
    changes = ratios(new, OLD)
    assert changes == {}
    text = table(new, OLD, changes)
    assert "new" in next(line for line in text.splitlines() if line.startswith("fresh"))
    assert text.endswith("step                         is gone")


def test_a_record_keeps_no_host_and_no_user() -> None:
    stats = {"min": 1e-6, "median": 2e-6, "rounds": 3, "data": [1e-6]}
    report = {
        "machine_info": {"node": "laptop-of-somebody"},
        "commit_info": {"author_time": "now"},
        "benchmarks": [{"name": "test_step", "fullname": "/home/me/b.py::test_step", "stats": stats}],
    }
    assert read_parts(report) == {"step": {"min_us": 1.0, "median_us": 2.0, "n": 3}}


def test_the_newest_record_is_the_last_line(tmp_path: Path) -> None:
    path = tmp_path / "hot.jsonl"
    assert last_record(path) is None
    path.write_text("".join(json.dumps({"n": n}) + "\n" for n in (1, 2)))
    assert last_record(path) == {"n": 2}
