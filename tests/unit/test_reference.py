"""The oracle itself, against answers computed by hand and by other programs."""

from __future__ import annotations

import math
from functools import partial

import numpy as np
import pytest

from gguf_engine.errors import SamplingError
from gguf_engine.params import SamplingParams
from gguf_engine.sampling import reference

NEUTRAL = SamplingParams(repeat_penalty=1.0)
LOG2 = math.log(2)


def row(*logits: float) -> reference.LogitRow:
    return np.array(logits, dtype=np.float32)


def test_splitmix64_gives_the_published_sequence() -> None:
    """As printed by the C program of its author for the seed 1234567."""
    states = [(1234567 + k * 0x9E3779B97F4A7C15) % 2**64 for k in range(3)]
    assert [reference.splitmix64(x) for x in states] == [
        6457827717110365317,
        3203168211198807973,
        9817491932198370423,
    ]


def test_uniforms_are_53_bit_fractions_that_differ_by_seed_index_and_round() -> None:
    values = {
        reference.uniform(seed, index, round_)
        for seed in (0, 1, 2**63 - 1)
        for index in range(5)
        for round_ in range(3)
    }
    assert len(values) == 45
    assert all(0 <= u < 1 and float(u * 2**53).is_integer() for u in values)


def test_the_repeat_penalty_divides_positive_and_multiplies_negative_logits_once() -> None:
    adjusted = reference.apply_repeat_penalty(np.array([3.0, -3.0, 0.0, 1.0]), [0, 0, 1, 2], 2.0)
    assert adjusted.tolist() == [1.5, -6.0, 0.0, 1.0]


def test_presence_counts_once_and_frequency_each_time() -> None:
    adjusted = reference.apply_counts(np.array([5.0, 5.0, 5.0, 5.0]), [1, 2, 2, 2], 0.5, 0.25)
    assert adjusted.tolist() == [5.0, 4.25, 3.75, 5.0]


@pytest.mark.parametrize(
    ("last_n", "with_prompt", "ids"),
    [
        (64, False, [3, 4, 5]),
        (2, False, [4, 5]),
        (0, False, []),
        (0, True, []),
        (-1, True, [1, 2, 3, 4, 5]),
        (4, True, [2, 3, 4, 5]),
        (2, True, [4, 5]),
    ],
)
def test_the_window_is_the_end_of_what_was_generated(
    last_n: int, with_prompt: bool, ids: list[int]
) -> None:
    params = SamplingParams(repeat_last_n=last_n, penalize_prompt=with_prompt)
    assert reference.window([1, 2], [3, 4, 5], params) == ids


def test_bias_comes_before_the_penalties() -> None:
    """1 + 2 = 3, positive, so / 1.5; the other way round it would be 1 / 1.5 + 2."""
    params = SamplingParams(logit_bias={0: 2.0}, repeat_penalty=1.5)
    assert reference.adjust(row(1, 0), params, token_ids=[0]).tolist() == [2.0, 0.0]


def test_finite_logits_stay_finite_under_any_penalty() -> None:
    params = SamplingParams(repeat_penalty=1e30)
    adjusted = reference.adjust(row(-1e30, 1), params, token_ids=[0])
    assert adjusted[0] == -np.finfo(np.float32).max


def test_top_k_keeps_exactly_k_and_the_lower_id_of_equals() -> None:
    params = SamplingParams(top_k=2, repeat_penalty=1.0)
    assert reference.kept_ids(row(1, 2, 2, 2), params).tolist() == [1, 2]


def test_top_p_keeps_the_id_that_reaches_it_exactly_as_the_last() -> None:
    assert reference.keep_top_p(np.array([1.0, 1.0, 1.0, 1.0]), 0.5).tolist() == [1.0, 1.0]
    assert reference.keep_top_p(np.array([4.0, 3.0, 2.0, 1.0]), 0.71).tolist() == [4.0, 3.0, 2.0]
    assert reference.keep_top_p(np.array([4.0, 3.0, 2.0, 1.0]), 1e-9).tolist() == [4.0]


def test_top_p_counts_the_mass_that_top_k_left() -> None:
    """4:3:2:1 cut to 4:3:2 gives 0.44, 0.78, 1: 0.75 keeps two, where all four would keep three."""
    logits = np.log(row(4, 3, 2, 1))
    both = SamplingParams(top_k=3, top_p=0.75, repeat_penalty=1.0)
    alone = SamplingParams(top_p=0.75, repeat_penalty=1.0)
    assert reference.kept_ids(logits, both).tolist() == [0, 1]
    assert reference.kept_ids(logits, alone).tolist() == [0, 1, 2]


def test_min_p_compares_with_the_best() -> None:
    assert reference.keep_min_p(np.array([4.0, 2.0, 1.9, 0.1]), 0.5).tolist() == [4.0, 2.0]


@pytest.mark.parametrize(("order", "kept"), [("standard", [0]), ("llama.cpp", [0, 1])])
def test_temperature_before_the_filters_keeps_one_and_after_them_two(order: str, kept: list[int]) -> None:
    """
    Logits 3, 2, 1 and p = 0.8. At T = 0.5 the first has 0.867 of the mass and reaches p alone;
    at T = 1 it has 0.665 and needs the second.
    """
    params = SamplingParams(temperature=0.5, top_p=0.8, repeat_penalty=1.0, order=order)  # type: ignore[arg-type]
    assert reference.kept_ids(row(3, 2, 1), params).tolist() == kept


def test_probabilities_are_of_what_the_filters_left() -> None:
    """Weights 4:2:1:1, top-k 2, so 2/3 and 1/3."""
    logits = row(2 * LOG2, LOG2, 0, 0)
    params = SamplingParams(top_k=2, repeat_penalty=1.0)
    assert reference.probabilities(logits, params) == pytest.approx([2 / 3, 1 / 3, 0, 0], abs=1e-7)


def test_the_llama_cpp_order_tempers_what_it_kept() -> None:
    """4:1 at T = 2 is 2:1."""
    logits = row(2 * LOG2, 0, -50)
    params = SamplingParams(temperature=2.0, top_k=2, repeat_penalty=1.0, order="llama.cpp")
    assert reference.probabilities(logits, params) == pytest.approx([2 / 3, 1 / 3, 0], abs=1e-7)


def test_log_probabilities_are_of_the_whole_row() -> None:
    """Weights 2:1:1, and at T = 0.5 4:1:1."""
    logits = row(LOG2, 0, 0)
    assert reference.log_probabilities(logits) == pytest.approx(np.log([0.5, 0.25, 0.25]), abs=1e-7)
    assert reference.log_probabilities(logits, 0.5) == pytest.approx(
        np.log([4 / 6, 1 / 6, 1 / 6]), abs=1e-6
    )


@pytest.mark.parametrize(
    ("u", "token_id"), [(0.0, 0), (0.2, 0), (0.25, 1), (0.74, 2), (0.75, 3), (0.99, 3)]
)
def test_a_draw_walks_the_ids_in_order(u: float, token_id: int) -> None:
    """Four equal weights: edges at quarters, and an edge belongs to the id behind it."""
    assert reference.draw(row(0, 0, 0, 0), NEUTRAL, lambda _: u) == token_id


def test_a_refused_pick_is_drawn_again_from_what_ranks_before_it() -> None:
    """Weights 1:4:3:2, p = 0.6 keeps ids 1 and 2. Id 3 is refused, then 4:3 with an edge at 4/7."""
    params = SamplingParams(top_p=0.6, repeat_penalty=1.0)
    uniforms = [0.95, 0.58]
    assert reference.draw(np.log(row(1, 4, 3, 2)), params, uniforms.__getitem__) == 2


def test_greedy_takes_the_lowest_id_of_a_tie_and_draws_nothing() -> None:
    params = SamplingParams(temperature=0.0)
    assert reference.draw(row(1, 3, 3), params, partial(pytest.fail, "drew")) == 1


@pytest.mark.parametrize("logits", [(1, math.nan), (1, math.inf), (-math.inf, -math.inf)])
def test_a_row_that_cannot_be_sampled_is_an_error(logits: tuple[float, ...]) -> None:
    with pytest.raises(SamplingError):
        reference.adjust(row(*logits), NEUTRAL)
