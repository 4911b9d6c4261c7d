"""The sampler through its Python face, on rows small enough to know the answer."""

from __future__ import annotations

import math
from array import array
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from gguf_engine.errors import OptionError, SamplingError
from gguf_engine.outputs import TokenLogprob
from gguf_engine.params import SamplingParams
from gguf_engine.sampling import reference
from gguf_engine.sampling._native import lib
from gguf_engine.sampling.sampler import Sample, Sampler, SampleRequest


def run(
    logits: Sequence[float],
    *,
    seed: int = 0,
    token_ids: Sequence[int] = (),
    prompt_ids: Sequence[int] = (),
    mask: bytes | None = None,
    **options: Any,
) -> Sample | SamplingError:
    sampler = Sampler(len(logits), 1)
    prepared = sampler.prepare(SamplingParams(**{"repeat_penalty": 1.0, **options}), seed)
    rows = np.array([logits], dtype=np.float32)
    request = SampleRequest(prepared, array("i", prompt_ids), array("i", token_ids), mask)
    (result,) = sampler.sample(rows, [request])
    sampler.close()
    return result


def sampled(logits: Sequence[float], **options: Any) -> int:
    result = run(logits, **options)
    assert isinstance(result, Sample), result
    return result.token_id


def drawn(logits: Sequence[float], n_draws: int = 300, **options: Any) -> set[int]:
    """Return the ids that some seeds draw; one of probability 0.05 is missed with 2e-7."""
    return {sampled(logits, seed=seed, **options) for seed in range(n_draws)}


def test_greedy_takes_the_lowest_id_of_a_tie() -> None:
    assert sampled([1, 3, 3, 2], temperature=0.0) == 1


def test_a_bias_moves_and_forbids() -> None:
    assert sampled([1, 3, 2, 0], temperature=0.0, logit_bias={3: 4.0}) == 3
    assert sampled([1, 3, 2, 0], temperature=0.0, logit_bias={1: -math.inf}) == 2


def test_a_mask_allows_the_ids_whose_bits_are_set() -> None:
    assert drawn([1, 3, 2, 0], mask=bytes([0b1001, 0, 0, 0])) == {0, 3}


def test_a_mask_reaches_past_its_first_word() -> None:
    logits = [0.0] * 70
    mask = bytearray(12)
    mask[4], mask[8] = 0b10, 0b100000
    assert drawn(logits, mask=bytes(mask)) == {33, 69}


@pytest.mark.parametrize(
    ("last_n", "with_prompt", "expected"), [(64, False, 1), (0, False, 0), (1, True, 1), (-1, True, 2)]
)
def test_the_repeat_penalty_looks_at_its_window(last_n: int, with_prompt: bool, expected: int) -> None:
    """Logits 4, 3, 2: id 0 was generated, id 1 stands in the prompt; a penalty of 3 drops both below 2."""
    options = {"repeat_penalty": 3.0, "repeat_last_n": last_n, "penalize_prompt": with_prompt}
    assert sampled([4, 3, 2], temperature=0.0, token_ids=[0], prompt_ids=[1], **options) == expected


def test_frequency_counts_every_occurrence_and_presence_one() -> None:
    """4 - 3 * 0.5 = 2.5 and 4 - 2 = 2, against 2.4."""
    assert sampled([4, 2.4], temperature=0.0, token_ids=[0, 0, 0], frequency_penalty=0.5) == 0
    assert sampled([4, 2.4], temperature=0.0, token_ids=[0, 0, 0], presence_penalty=2.0) == 1


@pytest.mark.parametrize(("order", "ids"), [("standard", {0}), ("llama.cpp", {0, 1})])
def test_temperature_before_the_filters_keeps_one_and_after_them_two(order: str, ids: set[int]) -> None:
    """At T = 0.5 id 0 has 0.867 of the mass, at T = 1 0.665; p is 0.8."""
    assert drawn([3, 2, 1], temperature=0.5, top_p=0.8, order=order) == ids


def test_top_k_keeps_exactly_k_of_equals() -> None:
    assert drawn([0, 1, 1, 1, 1], top_k=2) == {1, 2}


def test_top_k_beyond_the_vocabulary_is_off() -> None:
    assert drawn([0, 0, 0], top_k=1000) == {0, 1, 2}


def test_top_p_keeps_the_id_that_reaches_it_exactly() -> None:
    assert drawn([1, 1, 1, 1], top_p=0.5) == {0, 1}


def test_min_p_compares_with_the_best() -> None:
    """exp(-0.5) = 0.61 and exp(-0.8) = 0.45 of the best."""
    assert drawn([1.0, 0.5, 0.2, -3.0], min_p=0.5) == {0, 1}


def test_min_p_is_measured_after_the_temperature_in_the_standard_order() -> None:
    """At T = 2 the third, exp(-0.4) = 0.67, is in; at T = 1 it is not."""
    assert drawn([1.0, 0.5, 0.2, -3.0], min_p=0.5, temperature=2.0) == {0, 1, 2}
    assert drawn([1.0, 0.5, 0.2, -3.0], min_p=0.5, temperature=2.0, order="llama.cpp") == {0, 1}


@pytest.mark.parametrize("n_vocab", [1, 2, 511, 512, 513, 1025])
def test_the_last_id_of_any_vocabulary_can_be_drawn(n_vocab: int) -> None:
    logits = [-20.0] * (n_vocab - 1) + [20.0]
    assert sampled(logits) == n_vocab - 1
    assert sampled(logits, temperature=0.0) == n_vocab - 1
    assert sampled(logits, top_k=1) == n_vocab - 1


def test_a_draw_depends_on_seed_and_index_and_nothing_else() -> None:
    logits = [0.0] * 1000
    first = [sampled(logits, seed=7, token_ids=[0] * t) for t in range(20)]
    again = [sampled(logits, seed=7, token_ids=[5] * t) for t in range(20)]
    other = [sampled(logits, seed=8, token_ids=[0] * t) for t in range(20)]
    assert first == again
    assert len(set(first)) > 10
    assert first != other


def test_the_uniforms_are_those_of_the_reference() -> None:
    for seed, index, round_ in [(0, 0, 0), (2**63 - 1, 5, 0), (42, 10**6, 3)]:
        assert lib.ge_uniform(seed, index, round_) == reference.uniform(seed, index, round_)


def test_rows_of_a_batch_do_not_touch_each_other_and_stay_as_they_were() -> None:
    sampler = Sampler(4, 3)
    prepared = sampler.prepare(SamplingParams(temperature=0.0, repeat_penalty=5.0), 0)
    rows = np.array([[1, 2, 3, 4], [1, math.nan, 3, 4], [9, 2, 3, 4], [0, 0, 0, 0]], dtype=np.float32)
    before = rows.copy()
    requests = [SampleRequest(prepared, array("i"), array("i", [3])) for _ in range(3)]
    first, second, third = sampler.sample(rows, requests)
    assert first == Sample(2, None, ())
    assert isinstance(second, SamplingError)
    assert third == Sample(0, None, ())
    np.testing.assert_array_equal(rows, before)


def test_another_array_is_sampled_after_the_first() -> None:
    sampler = Sampler(2, 1)
    request = SampleRequest(sampler.prepare(SamplingParams(temperature=0.0), 0), array("i"), array("i"))
    for logits, token_id in [([1, 2], 1), ([2, 1], 0), ([0, 5], 1)]:
        (result,) = sampler.sample(np.array([logits], dtype=np.float32), [request])
        assert result == Sample(token_id, None, ())


def test_no_rows_give_no_samples() -> None:
    assert Sampler(4, 1).sample(np.zeros((0, 4), dtype=np.float32), []) == []


@pytest.mark.parametrize(
    ("logits", "options", "words"),
    [
        ([1, math.nan], {}, "the model gave nan as the logit of id 1"),
        ([math.inf, 1], {}, "the model gave inf as the logit of id 0"),
        ([-math.inf, -math.inf], {}, "no id is left"),
        ([1, 2], {"mask": bytes(4)}, "no id is left"),
        ([1, 2], {"logit_bias": {0: -math.inf, 1: -math.inf}}, "no id is left"),
        ([1, 2], {"token_ids": [0, 2], "repeat_penalty": 1.2}, "token id 2 is outside"),
        ([1, 2], {"token_ids": [-3], "presence_penalty": 1.0}, "token id -3 is outside"),
        (
            [1, 2],
            {"prompt_ids": [9], "repeat_penalty": 1.2, "penalize_prompt": True},
            "token id 9 is outside",
        ),
    ],
)
def test_a_row_that_cannot_be_sampled_says_why(logits: list[float], options: Any, words: str) -> None:
    result = run(logits, **options)
    assert isinstance(result, SamplingError)
    assert words in str(result)


def test_a_bias_on_an_id_outside_the_vocabulary_is_refused_when_prepared() -> None:
    with pytest.raises(OptionError, match="logit_bias is 4; allowed: token ids below 4") as raised:
        Sampler(4, 1).prepare(SamplingParams(logit_bias={4: 1.0}), 0)
    assert raised.value.option == "logit_bias"


def test_log_probabilities_come_best_first_and_leave_out_what_is_impossible() -> None:
    """Weights 4:2:2 of 8, and a forbidden id."""
    result = run([*np.log([2, 4, 2]).tolist(), -math.inf], logprobs=10, top_k=1)
    assert isinstance(result, Sample)
    assert result.token_id == 1
    assert result.logprob == pytest.approx(math.log(0.5), abs=1e-6)
    assert [top.token_id for top in result.top_logprobs] == [1, 0, 2]
    assert [top.logprob for top in result.top_logprobs] == pytest.approx(
        np.log([0.5, 0.25, 0.25]), abs=1e-6
    )
    assert isinstance(result.top_logprobs[0], TokenLogprob)


def test_log_probabilities_are_penalised_and_tempered_unless_raw() -> None:
    """Logits ln 9 and 0; the bias makes them 0 and 0, raw they are 0.9 and 0.1."""
    bias = {0: -math.log(9)}
    adjusted = run([math.log(9), 0], logprobs=0, temperature=0.5, logit_bias=bias)
    raw = run([math.log(9), 0], logprobs=0, temperature=0.5, logit_bias=bias, raw_logprobs=True)
    assert isinstance(adjusted, Sample)
    assert isinstance(raw, Sample)
    assert adjusted.logprob == pytest.approx(math.log(0.5), abs=1e-6)
    assert raw.logprob == pytest.approx(math.log([0.9, 0.1][raw.token_id]), abs=1e-6)
    assert raw.top_logprobs == ()


def test_greedy_log_probabilities_are_at_temperature_one() -> None:
    result = run([math.log(3), 0], logprobs=1, temperature=0.0)
    assert isinstance(result, Sample)
    assert result.logprob == pytest.approx(math.log(0.75), abs=1e-6)


def test_close_is_fine_twice() -> None:
    sampler = Sampler(4, 1)
    sampler.close()
    sampler.close()
