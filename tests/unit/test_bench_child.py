"""What a process does with the engine it has loaded, on an engine that is made up."""

from __future__ import annotations

import math
import time
from typing import Any

import numpy as np
import pytest

from gguf_engine.bench.child import Served, best_of

OPTIONS: dict[str, Any] = {"n_tokens": 2, "seed": 1, "sampling": {}}


class MadeUp:
    """Takes 1 s for the first token and 0.5 s for the second, on a clock of its own."""

    def __init__(self, **answers: Any) -> None:
        self.answers, self.asked = answers, []  # type: ignore[var-annotated]

    def encode(self, text: str) -> list[int]:
        return list(text.encode())

    def run(self, prompts: list[Any], **options: Any) -> dict[str, Any]:
        self.asked.append((prompts, options["n_tokens"]))
        now = time.perf_counter()
        made = {"end_s": now + 2.0, "token_s": [[now + 1.0, now + 1.5] for _ in prompts], "stages": {}}
        return {**made, **self.answers}


def served(engine: Any) -> Served:
    made = Served.__new__(Served)
    made.engine = engine
    return made


def test_times_count_from_the_moment_the_ids_are_handed_over() -> None:
    answer = served(MadeUp()).trial(["ab"], [[97, 98]], 0, **OPTIONS)
    assert answer["token_s"] == [pytest.approx([1.0, 1.5], abs=0.1)]
    assert answer["total_s"] == pytest.approx(2.0, abs=0.1)
    assert answer["same_ids"]
    assert not served(MadeUp()).trial(["ab"], [[1]], 0, **OPTIONS)["same_ids"]


def test_a_depth_is_computed_before_the_requests() -> None:
    engine = MadeUp()
    served(engine).trial(["abc", "xyz"], [[1, 2, 3], [4, 5, 6]], 2, **OPTIONS)
    assert engine.asked == [([[1, 2]], 1), ([[4, 5]], 1), ([[1, 2, 3], [4, 5, 6]], 2)]


def test_a_depth_that_was_not_kept_is_an_error() -> None:
    served(MadeUp(n_cached=[1])).trial(["abc"], [[1, 2, 3]], 2, **OPTIONS)
    with pytest.raises(RuntimeError, match=r"of the 2 ids before the prompt \[0\] were kept"):
        served(MadeUp(n_cached=[0])).trial(["abc"], [[1, 2, 3]], 2, **OPTIONS)


def test_too_few_tokens_are_an_error() -> None:
    with pytest.raises(RuntimeError, match=r"\[1\] tokens came back, 2 of each stream were wanted"):
        served(MadeUp(token_s=[[1.0]])).trial(["a"], [[97]], 0, **OPTIONS)


def test_encoding_is_a_stage_where_there_are_stages() -> None:
    answer = served(MadeUp(stages={"decode": 1.0})).trial(["a"], [[97]], 0, **OPTIONS)
    assert answer["stages"] == {"encode": answer["encode_s"], "decode": 1.0}


def test_an_engine_that_takes_text_is_given_text() -> None:
    engine = MadeUp(token_s=[], total_s=3.0, decode_tokens_per_s=7.0)
    engine.takes_text = True  # type: ignore[attr-defined]
    answer = served(engine).trial(["ab"], [[97, 98]], 0, **OPTIONS)
    assert engine.asked == [(["ab"], 2)]
    assert (answer["total_s"], answer["decode_tokens_per_s"]) == (3.0, 7.0)


def test_the_best_ids_of_a_row_and_their_log_probabilities() -> None:
    rows = np.log(np.array([[0.2, 0.5, 0.3]])) + 7.0  # logits are known up to a constant
    best = best_of(rows)
    assert best["ids"] == [[1, 2, 0]]
    assert best["logprobs"] == [pytest.approx([math.log(p) for p in (0.5, 0.3, 0.2)], abs=1e-5)]
