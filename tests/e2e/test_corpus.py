"""
Broken model files: none kills, hangs or fools the process that checks it, or a child that loads it.

The corpus has every mutation of tools/gguf_mutate_*.py over a dozen good models of ten families; what
the pre-flight check lets pass is loaded and used by llama.cpp in a child process.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from corpus_samples import KILLERS
from fuzz_gguf import Run, fuzz
from fuzz_reader import check_bytes
from gguf_corpus import judge_cases
from gguf_edits import make_case
from gguf_judge import Answer, Judge, ask_preflight
from gguf_mutations import BASES, MUTATIONS, Base, Case, list_cases, make_bases, names_of_mutations
from gguf_raw import read_raw
from gguf_tally import Tally
from promises import report
from thoroughness import rounds

pytestmark = pytest.mark.e2e

SHARE_WITH_WHERE = 0.95


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> list[Base]:
    return make_bases(tmp_path_factory.mktemp("bases"))


@pytest.fixture(scope="module")
def judge() -> Iterator[Judge]:
    with Judge() as judge:
        yield judge


def test_parts_put_together_again_are_the_file(tmp_path: Path) -> None:
    make_bases(tmp_path)
    for name in BASES:
        path = tmp_path / f"{name}.gguf"
        assert read_raw(path).to_bytes() == path.read_bytes()


def test_there_are_at_least_64_mutations_and_each_says_what_it_breaks() -> None:
    assert len(names_of_mutations()) >= 64
    for mutation in MUTATIONS.values():
        assert len(mutation.breaks.split()) >= 4, mutation.name
        assert mutation.breaks.endswith("."), mutation.name


@pytest.mark.timeout(3600)
def test_no_file_of_the_corpus_kills_hangs_or_fools(
    bases: list[Base], judge: Judge, tmp_path: Path
) -> None:
    cases = list_cases(bases, at_most=rounds(quick=1, thorough=8))
    tally = judge_cases(cases, judge, tmp_path)
    figures = tally.figures()
    assert tally.findings == []
    assert figures["share_with_code"] == 1.0
    assert figures["share_with_where"] >= SHARE_WITH_WHERE
    assert len(tally.by_class) == len(names_of_mutations())
    assert figures["worked"] > 100  # else the corpus would say nothing about what is accepted
    report(
        "No model file kills or hangs the process",
        figures["files"],
        f"{len(tally.by_class)} kinds of damage: {figures['deaths']} deaths, {figures['hangs']} hangs; "
        f"{figures['refused']:,} refused, {figures['worked']:,} loaded and computed finite numbers, "
        f"{figures['deaths_contained']} of families without full checks ended a process of their own",
        worst_s=figures["slowest_s"],
    )
    report(
        "A refusal says what is wrong",
        figures["refused"],
        f"a stable code in {figures['share_with_code']:.0%}, key, tensor or offset in "
        f"{figures['share_with_where']:.1%}",
    )


@pytest.mark.timeout(3600)
def test_no_random_edit_kills_hangs_or_fools() -> None:
    tally = fuzz(Run(seed=7, count=1500))
    assert tally.findings == []
    assert tally.figures()["share_with_where"] >= SHARE_WITH_WHERE


def find_case(bases: list[Base], mutation: str, base: str, label: str) -> Case:
    chosen = [one for one in bases if one.name == base]
    return next(case for case in list_cases(chosen, [mutation]) if case.label == label)


def test_what_the_check_refuses_kills_llama_cpp_without_it(bases: list[Base], tmp_path: Path) -> None:
    """The same files, once with the check and once without: were all harmless, nothing would be shown."""
    with Judge(bypass=True) as unguarded:
        for index, (mutation, base, label) in enumerate(KILLERS):
            folder = tmp_path / str(index)
            folder.mkdir()
            path = find_case(bases, mutation, base, label).write(folder)
            assert ask_preflight(path, 20.0).outcome == "refused", label
            assert unguarded.judge(path).outcome == "death", label


@pytest.mark.parametrize("name", ["llama-bpe-q8_0", "gemma2-spm-f32"])
def test_a_file_cut_anywhere_in_its_metadata_is_refused(
    bases: list[Base], tmp_path: Path, name: str
) -> None:
    raw = next(base.raw for base in bases if base.name == name)
    path = tmp_path / "model.gguf"
    path.write_bytes(raw.to_bytes())
    for length in range(len(raw.header()), -1, -rounds(quick=3, thorough=1)):
        os.truncate(path, length)
        answer = ask_preflight(path, 20.0)
        assert answer.outcome == "refused", f"cut at {length}: {answer}"
        assert answer.code in {"truncated", "magic", "empty"}, f"cut at {length}: {answer}"
    cuts = len(range(len(raw.header()), -1, -rounds(quick=3, thorough=1)))
    report("A file cut anywhere in its metadata is refused", cuts, "all refused, with a code")


def test_a_case_of_the_fuzzer_can_be_made_again_and_differs_from_the_next(bases: list[Base]) -> None:
    assert make_case(bases, 3, 17) == make_case(bases, 3, 17)
    assert len({make_case(bases, 3, number)[0] for number in range(50)}) == 50


def test_the_judge_sees_a_hang_in_the_child_and_goes_on(tmp_path: Path, bases: list[Base]) -> None:
    os.mkfifo(tmp_path / "fifo")
    good = tmp_path / "good.gguf"
    good.write_bytes(bases[0].raw.to_bytes())
    with Judge(limit_s=1.0, bypass=True) as impatient:
        assert impatient.judge(tmp_path / "fifo").outcome == "hang"
    with Judge(bypass=True) as unguarded:
        assert unguarded.judge(good).outcome == "good"


@pytest.mark.parametrize(
    ("fault", "outcome"), [(ValueError("oops"), "untyped"), (RecursionError(), "untyped"), (None, "hang")]
)
def test_the_judge_sees_an_untyped_error_and_a_hang_of_the_check(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, fault: Exception | None, outcome: str
) -> None:
    def broken(path: Path) -> None:
        while fault is None:
            pass
        raise fault

    monkeypatch.setattr("gguf_judge.preflight", broken)
    assert ask_preflight(tmp_path, 0.1).outcome == outcome


def test_findings_are_what_is_unfair_or_a_good_file_refused() -> None:
    tally = Tally()
    assert not tally.add("a", Answer(outcome="refused", code="magic", where="byte 0"))
    assert not tally.add("b", Answer(outcome="good"), harmless=True)
    assert tally.add("c", Answer(outcome="refused", code="magic"), harmless=True)
    assert tally.add("d", Answer(outcome="death", code="signal 6"))
    assert (tally.n_files, tally.figures()["share_with_where"], tally.figures()["deaths"]) == (4, 0.5, 1)


def test_the_reader_harness_swallows_our_errors_alone(
    monkeypatch: pytest.MonkeyPatch, bases: list[Base]
) -> None:
    check_bytes(b"GGUF")
    check_bytes(bases[0].raw.to_bytes())
    monkeypatch.setattr("gguf_engine.loader.preflight.preflight", lambda path: 1 // 0)
    with pytest.raises(ZeroDivisionError):
        check_bytes(b"GGUF")
