"""Figures that follow from raw samples; every expected value is computed by hand."""

from __future__ import annotations

import pytest
from bench_samples import STAGES, case, record, trial

from gguf_engine.bench import figures
from gguf_engine.bench.record import Anchor


def test_the_rates_of_one_stream() -> None:
    assert figures.prefill_tokens_per_s(trial(), 100) == 100.0  # the first token came after 1 s
    assert figures.decode_tokens_per_s(trial()) == pytest.approx(5.0)  # 3 tokens in 0.6 s
    assert figures.forward_tokens_per_s(trial()) == pytest.approx(5.0)  # 3 passes in 0.6 s
    assert figures.first_token_s(trial()) == 1.0


def test_several_streams_count_while_all_of_them_decode() -> None:
    both = trial(token_s=((1.0, 2.0, 3.0, 4.0), (2.0, 2.5, 3.0, 3.5)))
    # From 2.0 to 3.5: 3.0 of the first, 2.5, 3.0 and 3.5 of the second.
    assert figures.decode_tokens_per_s(both) == pytest.approx(4 / 1.5)
    assert figures.prefill_tokens_per_s(both, 100) == 100.0  # 200 tokens, the last first one after 2 s
    assert figures.first_token_s(both) == 1.5
    assert figures.forward_tokens_per_s(both) is None


def test_streams_one_after_another_count_over_the_whole_time() -> None:
    serial = trial(token_s=((1.0, 2.0), (3.0, 4.0)))
    assert figures.decode_tokens_per_s(serial) == pytest.approx(1.0)


def test_without_tokens_the_engine_says_it_itself() -> None:
    told = trial(token_s=(), stages={}, prefill_tokens_per_s=7.0, decode_tokens_per_s=3.0)
    assert (figures.prefill_tokens_per_s(told, 100), figures.decode_tokens_per_s(told)) == (7.0, 3.0)
    assert figures.first_token_s(told) is None


def test_stages_and_the_rest_sum_to_the_total() -> None:
    rest = figures.rest_s(trial())
    assert rest == pytest.approx(0.1)
    assert rest is not None
    assert sum(STAGES.values()) + rest == trial().total_s
    assert figures.rest_s(trial(stages={})) is None


def test_boot_is_import_and_load() -> None:
    assert figures.boot_s(trial()) == pytest.approx(0.5)
    assert figures.boot_s(trial(import_s=None)) is None


def test_memory_and_arithmetic() -> None:
    model = record().model
    assert figures.decode_bytes_per_s(trial(), model) == pytest.approx(5 * 2000)
    assert figures.prefill_flops_per_s(trial(), model, 100) == pytest.approx(2 * 400 * 100)
    assert figures.decode_bytes_per_s(trial(token_s=((1.0, 2.0),) * 2), model) is None


def test_gaps_and_percentiles() -> None:
    assert figures.token_gaps_s(case(trial())) == pytest.approx((0.2, 0.2, 0.2))
    values = list(range(1, 101))
    assert (figures.percentile(values, 0.5), figures.percentile(values, 0.99)) == (50, 99)
    assert figures.percentile([], 0.5) is None


def test_spread_of_samples() -> None:
    assert figures.spread([1.0, None, 2.0, 3.0, 4.0, 5.0]) == (3.0, 2.0, 4.0, 5)
    assert figures.spread([7.0]) == (7.0, 7.0, 7.0, 1)
    assert figures.spread([None]) is None


def test_drift_is_the_furthest_from_the_median() -> None:
    assert figures.drift(Anchor(decode_tokens_per_s=(100.0, 102.0, 90.0), limit=0.05)) == pytest.approx(0.1)
    assert figures.drift(Anchor(decode_tokens_per_s=(), limit=0.05)) is None


def test_a_case_is_named_by_what_is_not_plain() -> None:
    assert figures.name_of(case()) == "gguf_engine, cpu, 1 thread"
    odd = case(n_threads=2, depth=64, concurrency=8, neighbour=True)
    assert figures.name_of(odd) == "gguf_engine, cpu, 2 threads, depth 64, 8 at once, busy neighbour"
