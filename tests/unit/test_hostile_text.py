"""Hostile chat templates and tokenizer.json files: each answered in a sentence, none kills or hangs."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hostile_templates import ESCAPES, EXHAUSTING
from hostile_tokenizers import WORKS
from hostile_tokenizers import cases as tokenizer_cases
from promises import report
from thoroughness import IS_THOROUGH

TESTS = Path(__file__).resolve().parents[1]
HANG_S = 300


def _judge(corpus: str) -> dict[str, dict[str, Any]]:
    """Run a corpus in a child that may use little memory; return what became of each case."""
    pace = "thorough" if IS_THOROUGH else "quick"
    done = subprocess.run(
        [sys.executable, str(TESTS / "hostile_judge.py"), corpus, pace],
        capture_output=True,
        text=True,
        timeout=HANG_S,
        check=False,
    )
    outcomes = [json.loads(line) for line in done.stdout.splitlines()]
    last = outcomes[-1]["name"] if outcomes else "the start"
    assert done.returncode == 0, f"died of {last!r} ({done.returncode}): {done.stderr[-2000:]}"
    return {each["name"]: each for each in outcomes if each["outcome"] != "begun"}


def test_every_hostile_template_is_refused_in_a_sentence() -> None:
    outcomes = _judge("templates")
    assert outcomes.pop("warm-up")["outcome"] == "works"
    assert outcomes.keys() == (EXHAUSTING | ESCAPES).keys()
    wrong = {name: each for name, each in outcomes.items() if each["outcome"] != "refused"}
    assert wrong == {}
    assert all("chat template" in each["says"] for each in outcomes.values())
    # What was repeated a million times is not repeated in the error.
    assert max(len(each["says"]) for each in outcomes.values()) < 1000
    report(
        "Hostile chat templates neither kill, hang nor escape",
        len(outcomes),
        f"all refused: {len(EXHAUSTING)} that exhaust, {len(ESCAPES)} that reach out",
        worst_s=max(each["cpu_s"] for each in outcomes.values()),
    )


def test_every_hostile_tokenizer_json_is_refused_in_a_sentence_or_works() -> None:
    outcomes = _judge("tokenizers")
    assert outcomes.pop("warm-up")["outcome"] == "works"
    assert outcomes.keys() == {name for name, _ in tokenizer_cases()}
    assert {
        name: each for name, each in outcomes.items() if each["outcome"] not in ("refused", "works")
    } == {}
    assert {name for name, each in outcomes.items() if each["outcome"] == "works"} == WORKS
    assert max(len(each["says"]) for each in outcomes.values()) < 1000
    report(
        "Hostile tokenizer.json files neither kill nor hang",
        len(outcomes),
        f"{len(outcomes) - len(WORKS)} refused in a sentence, {len(WORKS)} work",
        worst_s=max(each["cpu_s"] for each in outcomes.values()),
    )


@pytest.mark.parametrize("corpus", [EXHAUSTING, ESCAPES, dict(tokenizer_cases())])
def test_a_corpus_holds_at_least_forty_cases(corpus: dict[str, str]) -> None:
    assert len(corpus) >= 40
