"""What passes cost, how often guesses are right, and how many of them that makes worth a row."""

from __future__ import annotations

import math

import pytest

from gguf_engine.engine.draft_length import FRESH_PASSES, PassCosts, Rate, choose_lengths

ALMOST_SURE = [0.99**n for n in range(1, 32)]


def costs_of(seconds: dict[int, float]) -> PassCosts:
    costs = PassCosts()
    for n_rows, each in seconds.items():
        costs.record(n_rows, each)
    return costs


def free(_: int) -> float:
    return 0.0


def test_a_rate_moves_from_its_start_to_what_it_is_told() -> None:
    rate = Rate(memory=16, start=0.9)
    assert rate.value == pytest.approx(0.9)
    rate.add(False)
    assert rate.value == pytest.approx(3.6 / 5)  # a start counts as four guesses
    for _ in range(100):
        rate.add(False)
    assert rate.value < 0.01


def test_a_rate_begins_with_its_prior_and_teaches_it() -> None:
    prior = Rate(memory=64, start=0.2)
    rate = Rate(memory=64, prior=prior)
    assert rate.value == pytest.approx(0.2)
    rate.add(True)
    assert rate.value == prior.value == pytest.approx(1.8 / 5)


def test_a_rate_forgets() -> None:
    rate = Rate(memory=16)
    for _ in range(1000):
        rate.add(True)
    for _ in range(16):
        rate.add(False)
    assert rate.value < 0.5


def test_a_cost_is_the_median_of_the_last_passes() -> None:
    costs = PassCosts()
    assert costs.seconds(1) is None
    for seconds in (9.0, 1.0, 1.1, 1.2, 1.3, 5.0):
        costs.record(1, seconds)
    assert costs.seconds(1) == 1.2


def test_of_a_few_passes_the_shortest_counts() -> None:
    assert costs_of({4: 2.0}).seconds(4) == 2.0
    costs = PassCosts()
    for seconds in (30.0, 2.0, 2.2):
        costs.record(4, seconds)
    assert costs.seconds(4) == 2.0


def test_a_cost_grows_old_and_is_then_measured_anew() -> None:
    costs = costs_of({16: 9.0})
    for _ in range(FRESH_PASSES + 1):
        costs.record(1, 1.0)
    assert costs.seconds(16) is None
    costs.record(16, 4.0)
    assert costs.seconds(16) == 4.0


def test_numbers_of_rows_are_told_apart_up_to_16_and_to_an_eighth_beyond() -> None:
    costs = costs_of({16: 1.0, 32: 2.0})
    assert costs.seconds(15) is None
    assert costs.seconds(31) == 2.0
    assert costs.seconds(28) is None


@pytest.mark.parametrize(
    ("chances", "seconds", "best"),
    [
        ([0.9], {1: 1.0, 2: 1.8}, 1),  # 1.9 ids for 1.8 passes
        ([0.7], {1: 1.0, 2: 1.8}, 0),  # 1.7 ids for 1.8 passes
        ([], {1: 1.0, 2: 1.8}, 0),
        ([0.9], {2: 1.8}, 0),  # what a plain pass takes is not known yet
        (ALMOST_SURE[:15], {1: 1.0, 2: 1.8, 3: 2.5, 4: 2.9, 6: 4.0, 8: 4.9, 12: 5.6, 16: 6.1}, 15),
        ([0.5, 0.25, 0.125], {1: 1.0, 2: 1.05, 3: 1.5, 4: 1.9}, 1),  # 1.5/1.05 > 1.75/1.5 > 1.875/1.9
    ],
)
def test_the_number_of_guesses_with_the_most_ids_a_second_is_chosen(
    chances: list[float], seconds: dict[int, float], best: int
) -> None:
    assert choose_lengths([chances], costs_of(seconds), lambda: 100, free) == [best]


def test_an_unknown_cost_is_tried_one_step_of_the_ladder_at_a_time() -> None:
    assert choose_lengths([ALMOST_SURE], costs_of({1: 1.0}), lambda: 100, free) == [1]
    assert choose_lengths([ALMOST_SURE], costs_of({1: 1.0, 2: 1.8}), lambda: 100, free) == [2]
    assert choose_lengths([ALMOST_SURE], costs_of({1: 1.0, 2: 1.8, 3: 2.5}), lambda: 100, free) == [3]


def test_what_making_the_guesses_takes_counts() -> None:
    costs = costs_of({1: 1.0, 2: 1.05})
    assert choose_lengths([[0.9]], costs, lambda: 100, lambda n: 0.5 * n) == [1]
    assert choose_lengths([[0.9]], costs, lambda: 100, lambda n: 0.9 * n) == [0]


def test_guesses_never_exceed_what_the_pass_has_left() -> None:
    costs = costs_of(dict.fromkeys(range(1, 65), 1.0))
    assert choose_lengths([ALMOST_SURE], costs, lambda: 5, free) == [5]
    assert sum(choose_lengths([ALMOST_SURE, ALMOST_SURE], costs, lambda: 7, free)) == 7
    assert choose_lengths([ALMOST_SURE], costs, lambda: 0, free) == [0]
    assert choose_lengths([ALMOST_SURE], costs, lambda: -3, free) == [0]


def test_rows_go_where_they_gain_the_largest_factor() -> None:
    """The copy's guesses gain 2, 1.5, 1.33, 1.25; the other's first 1.3."""
    costs = costs_of(dict.fromkeys(range(1, 65), 1.0))
    lengths = choose_lengths([ALMOST_SURE[:8], [], [0.3, 0.1]], costs, lambda: 4, free)
    assert lengths == [3, 0, 1]


def test_one_who_copies_does_not_slow_down_many_who_do_not() -> None:
    """Alone 16 ids for 6 passes pay; beside seven others one gains a factor 16, all lose a factor."""
    seconds = {**dict.fromkeys(range(2, 17), 6.1), 1: 1.0}
    assert choose_lengths([ALMOST_SURE[:15]], costs_of(seconds), lambda: 100, free) == [15]
    beside: list[list[float]] = [ALMOST_SURE[:15], *([[]] * 7)]
    gain = math.log(1 + sum(ALMOST_SURE[:15]))
    for factor, n in ((math.exp(gain / 8) * 0.99, 15), (math.exp(gain / 8) * 1.01, 0)):
        seconds = {**dict.fromkeys(range(9, 24), 4.0 * factor), 8: 4.0, 9: 4.0 * factor}
        lengths = choose_lengths(beside, costs_of(seconds), lambda: 100, free)
        assert lengths == [n, *([0] * 7)]
    seconds[9] = 4.0  # a first guess for nothing, the others too dear
    assert choose_lengths(beside, costs_of(seconds), lambda: 100, free) == [1, *([0] * 7)]
