"""`gguf-engine bench` without measuring: what it refuses, and records beside each other."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from bench_samples import case, faster, record, trial
from cli_samples import run_cli

from gguf_engine.bench.plan import RANGES
from gguf_engine.bench.record import Record
from gguf_engine.cli.app import make_command
from gguf_engine.params import MAX_SEED


def write(path: Path, made: Record) -> str:
    path.write_text(made.to_json())
    return str(path)


def test_two_records_are_compared(tmp_path: Path) -> None:
    peer = case(trial(token_s=(), stages={}, total_s=None, decode_tokens_per_s=2.5), engine="llama-bench")
    first = write(tmp_path / "laptop.json", record(case(), peer))
    second = write(tmp_path / "server.json", record(case(faster(2.0)), marks=("it was busy",)))
    code, out, err = run_cli("bench", "compare", first, second)
    summary = json.loads(out.splitlines()[-1])
    assert code == 0
    assert [each["decode_ratio"] for each in summary["cases"]] == pytest.approx([1.0, 0.5, 2.0])
    assert "laptop: llama-bench, cpu, 1 thread" in err
    assert "mark: server: it was busy" in err
    assert summary["verdict"] in err


def test_the_table_shows_stages_and_the_unexplained_rest(tmp_path: Path) -> None:
    files = [write(tmp_path / f"{name}.json", record()) for name in "ab"]
    table = run_cli("bench", "compare", *files).err.partition("time, ms")[2]
    headings, row = table.splitlines()[:2]
    assert headings.split()[-2:] == ["rest", "total"]
    # encode, prefill, decode, sampling, detokenising, hand-over, rest, total: as in bench_samples
    assert row.split()[-8:] == ["100", "1000", "600", "100", "50", "50", "100", "2000"]


def test_an_html_report_is_written(tmp_path: Path) -> None:
    files = [write(tmp_path / f"{name}.json", record()) for name in "ab"]
    code, _, err = run_cli("bench", "compare", *files, "--html", str(tmp_path / "r.html"))
    assert (code, err.splitlines()[-1]) == (0, f"report: {tmp_path / 'r.html'}")
    assert "<svg" in (tmp_path / "r.html").read_text()


def test_records_that_cannot_be_compared_are_refused(tmp_path: Path) -> None:
    first = write(tmp_path / "a.json", record())
    other = replace(record().model, sha256="99" * 32)
    second = write(tmp_path / "b.json", record(model=other))
    code, out, err = run_cli("bench", "compare", first, second)
    assert (code, out) == (1, "")
    assert err.startswith("gguf-engine: a and b measure different models")


@pytest.mark.parametrize(
    ("args", "sentence"),
    [
        (("compare", "a.json"), "compare is ['a.json']; allowed: two records or more"),
        (("compare", "a.json", "b.json", "--depth", "4"), "--depth is '4'; allowed: with a model only"),
        (("haiku", "phi3-mini"), "NAME is 'phi3-mini'; allowed: one model"),
        (("haiku", "--threads", "two"), "--threads is 'two'; allowed: integers with commas"),
        (("haiku", "--threads", "0"), "--threads is 0; allowed: an integer in 1..512"),
        (("haiku", "--trials", "1"), "--trials is 1; allowed: an integer in 2..1000"),
        (("haiku", "--concurrency", "1,999"), "--concurrency is 999; allowed: an integer in 1..256"),
        (("haiku", "--peer", "vllm"), "--peer is 'vllm'; allowed: bare"),
        (("haiku", "--trials", "two"), "--trials is 'two'; allowed: an integer in 2..1000"),
        (("haiku", "--prompt-tokens", "0"), "--prompt-tokens is 0; allowed: an integer in 16..1048576"),
        (("haiku", "--seed", "-1"), "--seed is -1; allowed: an integer in 0..9223372036854775807"),
        (("haiku", "--json", "/nowhere/a.json"), "--json is '/nowhere/a.json'; allowed: a file that can"),
        (("haiku", "--html", "/nowhere/a.html"), "--html is '/nowhere/a.html'; allowed: a file that can"),
        (("haiku", "--json", "/"), "--json is '/'; allowed: a file that can be written; it is a folder"),
    ],
)
def test_what_is_out_of_range_is_refused_at_once(args: tuple[str, ...], sentence: str) -> None:
    code, out, err = run_cli("bench", *args)
    assert (code, out) == (2, "")
    assert err.startswith(f"gguf-engine: {sentence}")


def test_every_option_with_a_range_has_it_in_its_help() -> None:
    parameters = {each.name: each for each in make_command().commands["bench"].params}
    for name, (least, most) in RANGES.items():
        shown = "2^63-1" if most == MAX_SEED else most
        assert f"{least}..{shown}" in parameters[name.replace("-", "_")].help


def test_files_of_a_comparison_are_checked_before_anything_is_printed(tmp_path: Path) -> None:
    files = [write(tmp_path / f"{name}.json", record()) for name in "ab"]
    code, out, err = run_cli("bench", "compare", files[0], str(tmp_path / "none.json"))
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert "compare is '" in err
    assert "allowed: records that `bench NAME --json FILE` wrote; there is no such file" in err
    code, out, err = run_cli("bench", "compare", *files, "--html", str(tmp_path / "none" / "r.html"))
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert f"there is no folder {tmp_path / 'none'}" in err
