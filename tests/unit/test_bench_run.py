"""What makes a run doubtful, and what cannot be asked of one."""

from __future__ import annotations

import pytest

from gguf_engine.bench.plan import BenchOptions
from gguf_engine.bench.record import Anchor
from gguf_engine.bench.run import find_marks
from gguf_engine.errors import OptionError

STEADY = Anchor(decode_tokens_per_s=(100.0, 104.0, 96.0), limit=0.05)
DRIFTED = Anchor(decode_tokens_per_s=(100.0, 106.0, 98.0), limit=0.05)


def test_a_good_run_has_no_mark() -> None:
    assert find_marks(STEADY, 0.2, 5) == find_marks(STEADY, None, 5) == ()


def test_a_machine_that_does_not_keep_its_speed_marks_the_run() -> None:
    (mark,) = find_marks(DRIFTED, 0.2, 5)
    assert mark.endswith("the anchor's samples differ by up to 6% from their median, more than 5%")


def test_a_busy_machine_and_few_trials_mark_the_run() -> None:
    busy, few = find_marks(STEADY, 1.5, 4)
    assert busy == "the machine was busy before the run began: others had 1.50 processors, more than 0.3"
    assert few == "only 4 trials, fewer than 5"


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"threads": (1, 600)}, "--threads is 600"),
        ({"depths": (-1,)}, "--depth is -1"),
        ({"n_prompt": 3}, "--prompt-tokens is 3"),
        ({"n_tokens": 1}, "--tokens is 1"),
    ],
)
def test_options_have_ranges(options: dict[str, object], sentence: str) -> None:
    with pytest.raises(OptionError, match=sentence):
        BenchOptions(**options)  # type: ignore[arg-type]
