"""The governor on machines that are made up: a pass takes what a table says, and no clock is asked."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from typing import Any

import pytest

from gguf_engine.backend.threads import (
    FIRST_REST_S,
    MAX_PATIENCE,
    SMALL_BYTES,
    ThreadGovernor,
    choose_threads,
    ladder,
    make_governor,
)
from gguf_engine.params import EngineParams

Costs = Mapping[int, float]  # seconds of a pass over one token, by the number of threads

# Two cores, Phi-3-mini's shape; a haiku that two threads do not make faster. Beside a busy neighbour two
# threads wait for each other at every operation, and one shares nothing. SPINNING: without a bound.
LARGE = {1: 0.093, 2: 0.066}
LARGE_CROWDED = {1: 0.094, 2: 0.118}
SPINNING = {1: 0.094, 2: 1.1}
SMALL = {1: 0.00025, 2: 0.0004}
SMALL_CROWDED = {1: 0.00025, 2: 0.004}


def work(
    governor: ThreadGovernor, costs: Costs, seconds: float, n_tokens: int = 1, share: float = 1.0
) -> tuple[float, list[int]]:
    """Run passes for so long; return tokens/s and the threads of each pass."""
    spent, used = 0.0, []
    while spent < seconds:
        used.append(governor.n_threads(n_tokens))
        cost = costs[used[-1]] * n_tokens * share
        governor.record(n_tokens, cost)
        spent += cost
    return len(used) * n_tokens / spent, used


def test_an_idle_machine_loses_less_than_two_percent_to_trials() -> None:
    rate, _ = work(ThreadGovernor(2, 2), LARGE, 600)
    assert rate > 0.98 / LARGE[2]


def test_a_neighbour_is_noticed_within_a_few_passes() -> None:
    governor = ThreadGovernor(2, 2)
    work(governor, LARGE, 20)
    _, used = work(governor, LARGE_CROWDED, 10)
    assert used.index(1) <= 4
    assert used[20:].count(2) <= 4


def test_trials_that_go_very_wrong_are_rare_and_short() -> None:
    governor = ThreadGovernor(2, 2)
    work(governor, LARGE, 20)
    rate, _ = work(governor, SPINNING, 300)
    assert rate > 0.97 / SPINNING[1]


@pytest.mark.parametrize("crowded", [LARGE_CROWDED, SPINNING, SMALL_CROWDED])
def test_beside_a_neighbour_at_least_nine_tenths_of_what_can_be_had_remains(crowded: Costs) -> None:
    rate, _ = work(ThreadGovernor(2, 2), crowded, 120)
    assert rate > 0.9 / crowded[1]


def test_a_hopeless_trial_ends_with_its_first_long_pass() -> None:
    _, used = work(ThreadGovernor(2, 2, (1, 1)), {1: 0.00025, 2: 0.05}, 60)
    assert used.count(2) > 1
    assert all((used[i], used[i + 1]) != (2, 2) for i in range(len(used) - 1))


def test_the_threads_come_back_when_the_neighbour_has_gone() -> None:
    governor = ThreadGovernor(2, 2)
    work(governor, LARGE, 20)
    work(governor, LARGE_CROWDED, 120)
    work(governor, LARGE, 25)
    rate, used = work(governor, LARGE, 60)
    assert used[0] == 2
    assert rate > 0.98 / LARGE[2]


def test_a_neighbour_that_comes_and_goes_costs_little_more_than_one_that_stays() -> None:
    governor = ThreadGovernor(2, 2)
    rates = [work(governor, LARGE_CROWDED if i % 2 else LARGE, 5)[0] for i in range(40)]
    assert sum(rates) / len(rates) > 0.8 / LARGE[1]


def test_a_model_too_small_for_two_threads_gets_one_within_a_second() -> None:
    governor = ThreadGovernor(2, 2)
    work(governor, SMALL, 1.0)
    rate, _ = work(governor, SMALL, 60)
    assert rate > 0.98 / SMALL[1]


def test_one_core_is_left_to_a_neighbour_of_sixteen() -> None:
    idle = {n: 1.0 / n for n in range(1, 17)}
    crowded = {**idle, 16: 0.4}
    governor = ThreadGovernor(16, 16)
    work(governor, idle, 30)
    work(governor, crowded, 5)
    _, used = work(governor, crowded, 30)
    assert used.count(15) > 0.95 * len(used)


def test_many_neighbours_are_left_as_many_cores() -> None:
    crowded = {n: 1.0 / min(n, 4) + (0.5 if n > 4 else 0.0) for n in range(1, 17)}
    governor = ThreadGovernor(16, 16)
    work(governor, crowded, 30)
    _, used = work(governor, crowded, 30)
    assert used.count(4) > 0.9 * len(used)


def test_rests_between_vain_trials_grow_and_end() -> None:
    _, used = work(ThreadGovernor(2, 2), {1: 0.1, 2: 0.099}, 3000)
    begins = [i for i in range(1, len(used)) if used[i] == 1 and used[i - 1] == 2]
    gaps = [after - before for before, after in pairwise(begins)]
    assert gaps[-1] == max(gaps) == gaps[-2]
    assert gaps[-1] * 0.099 < 2 * MAX_PATIENCE * FIRST_REST_S


def test_passes_over_several_tokens_learn_for_themselves() -> None:
    governor = ThreadGovernor(2, 2)
    work(governor, LARGE_CROWDED, 20)
    assert governor.n_threads(1) == 1
    assert governor.n_threads(512) == 2
    work(governor, LARGE, 30, n_tokens=512, share=0.1)
    assert governor.n_threads(512) == 2


def test_prefill_may_have_more_threads_than_decode() -> None:
    governor = ThreadGovernor(2, 6)
    assert (governor.n_threads(1), governor.n_threads(64)) == (2, 6)


def test_one_thread_is_left_alone() -> None:
    _, used = work(ThreadGovernor(1, 1), {1: 0.01}, 30)
    assert set(used) == {1}


def test_an_answer_that_grows_is_no_neighbour() -> None:
    governor = ThreadGovernor(2, 2)
    used: list[int] = []
    for position in range(8000):  # attention takes as long as everything else at position 4,000
        factor = 1 + position / 4000
        used.append(governor.n_threads(1))
        governor.record(1, LARGE[used[-1]] * factor)
    assert used.count(1) < 0.02 * len(used)


@pytest.mark.parametrize(
    ("n_max", "rungs"),
    [(1, (1,)), (2, (1, 2)), (3, (1, 2, 3)), (8, (1, 2, 4, 6, 7, 8)), (64, (1, 16, 32, 48, 63, 64))],
)
def test_a_ladder_has_all_threads_one_less_and_ever_fewer(n_max: int, rungs: tuple[int, ...]) -> None:
    assert ladder(n_max) == rungs


@pytest.mark.parametrize(
    ("options", "n_bytes", "threads"),
    [
        ({}, SMALL_BYTES, (4, 4)),
        ({}, SMALL_BYTES - 1, (1, 4)),
        ({"n_threads": 2}, SMALL_BYTES - 1, (2, 2)),
        ({"n_threads": 2, "n_threads_batch": 3}, SMALL_BYTES, (2, 3)),
        ({"n_threads_batch": 3}, SMALL_BYTES, (4, 3)),
    ],
)
def test_a_small_model_decodes_with_one_thread_unless_told_otherwise(
    options: dict[str, Any], n_bytes: int, threads: tuple[int, int]
) -> None:
    assert choose_threads(EngineParams(**options), 4, n_bytes) == threads


def test_where_one_token_must_not_adapt_it_keeps_its_threads() -> None:
    governor = make_governor(EngineParams(), (2, 2), None, 512)
    assert governor is not None
    work(governor, SPINNING, 30)
    work(governor, SPINNING, 30, n_tokens=2)
    assert (governor.n_threads(1), governor.n_threads(2)) == (2, 1)


def test_threads_stay_where_the_user_says_so() -> None:
    assert make_governor(EngineParams(adapt_threads="never"), (2, 2), None, 64) is None
