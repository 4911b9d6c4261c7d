"""`gguf-engine bench` on the bundled model, with real peers: the record and what is printed of it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from gguf_engine.bench import figures
from gguf_engine.bench.record import OURS, STAGES, Case, Record, read_record

pytestmark = pytest.mark.e2e

ARGS = (
    "--threads", "1", "--depth", "0,40", "--concurrency", "1,2", "--trials", "2", "--prompt-tokens", "24",
    "--tokens", "12", "--peer", "bare", "--peer", "llama-cpp-python", "--peer", "xllamacpp",
)  # fmt: skip


def bench(*args: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "gguf_engine", "bench", *args], capture_output=True, text=True, timeout=110
    )


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> tuple[Record, Any, str]:
    """One run for all tests: its record, the last line of its stdout, its stderr."""
    path = tmp_path_factory.mktemp("bench") / "record.json"
    done = bench("haiku", *ARGS, "--json", str(path))
    assert done.returncode == 0, done.stderr
    return read_record(path), json.loads(done.stdout.splitlines()[-1]), done.stderr


def cases_of(record: Record, engine: str) -> dict[tuple[int, int], Case]:
    return {(case.depth, case.concurrency): case for case in record.cases if case.engine == engine}


def test_every_case_has_every_trial(ran: tuple[Record, Any, str]) -> None:
    record, _, _ = ran
    all_four = {(0, 1), (0, 2), (40, 1), (40, 2)}
    assert set(cases_of(record, OURS)) == set(cases_of(record, "bare")) == all_four
    assert set(cases_of(record, "llama-cpp-python")) == {(0, 1), (40, 1)}  # one request at a time
    for case in record.cases:
        assert len(case.trials) == 2
        for trial in case.trials:
            assert [len(times) for times in trial.token_s] == [12] * case.concurrency
            assert all(list(times) == sorted(times) for times in trial.token_s)


def test_stages_explain_the_total_but_for_a_rest(ran: tuple[Record, Any, str]) -> None:
    record, _, _ = ran
    for case in cases_of(record, OURS).values():
        for trial in case.trials:
            assert set(trial.stages) == set(STAGES)
            assert min(trial.stages.values()) > 0
            rest, total = figures.rest_s(trial), trial.total_s
            assert rest is not None
            assert total is not None
            assert 0 < rest < total


def test_engines_on_one_library_give_the_same_answers(ran: tuple[Record, Any, str]) -> None:
    record, printed, _ = ran
    answers = {each.engine: each for each in record.answers}
    assert answers[OURS].greedy_ids == answers["bare"].greedy_ids
    assert answers[OURS].greedy_text == answers["bare"].greedy_text != ""
    assert len(answers[OURS].top_ids) == record.workload.n_fixed
    row = next(row for row in printed["answers"] if "bare" in row["pair"])
    assert (row["greedy"], row["mean_kl"]) == ("the same, all 12 tokens", "0")


def test_a_peer_that_is_not_installed_is_left_out_with_the_line_that_installs_it(
    ran: tuple[Record, Any, str],
) -> None:
    record, printed, err = ran
    (note,) = (note for note in record.notes if "xllamacpp" in note)
    assert note.startswith("left out: xllamacpp is not installed; `python")
    assert note.endswith("-m pip install xllamacpp`")
    assert note in printed["notes"]
    assert note in err


def test_the_record_says_what_was_measured_where(ran: tuple[Record, Any, str]) -> None:
    record, _, err = ran
    assert record.model.sha256 == "6fdcaaab4515a0dd48bb5a113e20032a418933a64a92d1515387fa0edf6f4568"
    assert record.model.n_params == 3934464  # as llama-bench counts them
    assert record.machine.devices[0].name == "cpu"
    assert record.software.build_flags.startswith("CPU")
    assert [speed.n_threads for speed in record.memory] == [1]
    assert len(record.anchor.decode_tokens_per_s) == 5  # twice a round, and at the end
    assert "only 2 trials, fewer than 5" in record.marks
    assert "mark: only 2 trials, fewer than 5" in err


def test_more_depth_than_the_model_has_context_is_refused(tmp_path: Path) -> None:
    done = bench("haiku", "--depth", "4000")
    assert done.returncode == 2
    assert "--depth is 4000; allowed: at most 3320" in done.stderr
