"""Who computes what in the next pass: shared prompts, chunks, order, preemption."""

from __future__ import annotations

from typing import Any

import pytest
from engine_samples import Request, alone, finish, run
from hypothesis import given
from hypothesis import strategies as st

from gguf_engine.backend.base import Batch, Rows
from gguf_engine.backend.fake import FakeBackend
from gguf_engine.engine.engine import Engine
from gguf_engine.engine.presets import FIRST_CHUNK, MIN_CHUNK, PrefillPace
from gguf_engine.engine.scheduler import AGING, share_out

PROMPT = [n % 89 + 1 for n in range(200)]


class Watched(FakeBackend):
    """Keeps the size of each pass."""

    def __init__(self, **sizes: Any) -> None:
        super().__init__(**{"n_ctx": 512, "n_cells": 2048, "n_batch": 64, **sizes})
        self.passes: list[int] = []

    def forward(self, batch: Batch) -> Rows:
        rows = super().forward(batch)
        self.passes.append(len(batch))
        return rows


def engine_of(**sizes: Any) -> tuple[Engine, Watched]:
    backend = Watched(**sizes)
    return Engine(backend), backend


def test_requests_with_one_prompt_submitted_together_compute_it_once() -> None:
    engine, backend = engine_of()
    requests = [Request(engine, [*PROMPT, n], max_tokens=1) for n in range(8)]
    run(engine, *requests)
    assert backend.n_tokens == 200 + 8
    assert [request.completion.usage.n_cached for request in requests] == [0, *[200] * 7]


def test_a_prompt_shared_in_part_is_computed_from_where_it_differs() -> None:
    engine, backend = engine_of()
    first, second = (
        Request(engine, PROMPT, max_tokens=1),
        Request(engine, [*PROMPT[:150], *range(50)], max_tokens=1),
    )
    run(engine, first, second)
    assert backend.n_tokens == 200 + 50
    assert second.completion.usage.n_cached == 150


def test_who_waits_for_a_prefix_waits_for_that_alone() -> None:
    engine, backend = engine_of(n_batch=32)
    long, short = Request(engine, PROMPT, max_tokens=1), Request(engine, [*PROMPT[:40], 7], max_tokens=1)
    engine.submit(long.sequence)
    engine.submit(short.sequence)
    while not short.delivered:
        engine.step()
    assert not long.delivered
    assert (
        backend.n_forwards == 3
    )  # 40 ids are held after two passes, the rest of the short prompt comes next


def test_when_the_one_that_computes_a_shared_prompt_is_cancelled_the_next_goes_on() -> None:
    engine, backend = engine_of()
    requests = [Request(engine, [*PROMPT, n], max_tokens=3) for n in range(4)]
    for request in requests:
        engine.submit(request.sequence)
    engine.step()
    engine.step()
    engine.cancel(requests[0].sequence)
    finish(engine)
    assert backend.n_tokens == 200 + 3 + 3 * 2
    for n, request in enumerate(requests[1:], 1):
        assert request.completion.token_ids == alone([*PROMPT, n], {"n_ctx": 512}, max_tokens=3).token_ids


def test_where_nothing_can_be_shared_in_part_each_computes_its_own() -> None:
    engine, backend = engine_of(can_truncate=False)
    requests = [Request(engine, [*PROMPT, n], max_tokens=1) for n in range(3)]
    run(engine, *requests)
    assert backend.n_tokens <= 3 * 201
    assert not engine.kv_cache.can_share
    later = [Request(engine, [*PROMPT[:100], n], max_tokens=1) for n in range(2)]
    before = backend.n_forwards
    run(engine, *later)  # side by side: nobody waits in vain a second time
    assert backend.n_forwards - before == 4


def test_nobody_waits_for_a_prompt_of_lower_rank() -> None:
    engine, _ = engine_of(n_batch=32)
    low, high = Request(engine, PROMPT, max_tokens=1), Request(engine, [*PROMPT, 5], max_tokens=1)
    low.sequence.priority, high.sequence.priority = -10, 10
    engine.submit(low.sequence)
    engine.step()
    engine.submit(high.sequence)
    engine.step()
    assert high.sequence.leader is None
    finish(engine)
    assert high.sequence.first_token_at < low.sequence.first_token_at


def test_a_long_prompt_holds_up_a_running_stream_by_one_chunk_at_most() -> None:
    engine, backend = engine_of(n_ctx=5000, n_cells=8000, n_batch=512)
    engine.scheduler.pace = PrefillPace(None, 48)
    running = Request(engine, [1, 2, 3], max_tokens=None)
    engine.submit(running.sequence)
    engine.step()
    long = Request(engine, [n % 90 for n in range(4000)], max_tokens=1)
    engine.submit(long.sequence)
    n_before = len(backend.passes)
    while not long.delivered:
        n_tokens = len(running.sequence.token_ids)
        engine.step()
        assert len(running.sequence.token_ids) == n_tokens + 1  # every pass gives the stream its token
    passes = backend.passes[n_before:]
    assert max(passes) == 48 + 1
    assert len(passes) == -(-4000 // 48)


def test_several_long_prompts_share_that_chunk() -> None:
    engine, backend = engine_of(n_batch=256)
    engine.scheduler.pace = PrefillPace(None, 32)
    running = Request(engine, [1], max_tokens=None)
    engine.submit(running.sequence)
    engine.step()
    for n in range(3):
        engine.submit(Request(engine, [n, *PROMPT], max_tokens=1).sequence)
    for _ in range(4):
        engine.step()
    assert backend.passes[1:] == [32 + 1] * 4


@pytest.mark.parametrize(
    ("left", "budget", "shares"),
    [
        ([], 10, []),
        ([100], 32, [32]),
        ([100, 100], 32, [32, 0]),  # equal ones: one after the other, not both at the end
        ([100, 5, 90], 32, [16, 5, 11]),
        ([4, 100, 6], 32, [4, 22, 6]),
        ([100, 20, 20], 31, [16, 15, 0]),
    ],
)
def test_the_first_prompt_gets_half_and_the_shortest_the_rest(
    left: list[int], budget: int, shares: list[int]
) -> None:
    assert share_out(left, budget) == shares


@given(st.lists(st.integers(1, 500), min_size=1, max_size=9), st.integers(1, 600))
def test_no_token_of_a_pass_is_wasted_and_the_first_is_never_held_up(left: list[int], budget: int) -> None:
    shares = share_out(left, budget)
    assert sum(shares) == min(budget, sum(left))
    assert all(0 <= share <= most for share, most in zip(shares, left, strict=True))
    assert shares[0] >= min(left[0], budget / 2)


def test_a_short_prompt_does_not_wait_for_a_long_one() -> None:
    engine, backend = engine_of(n_batch=64)
    long, short = (
        Request(engine, [5, *PROMPT * 2], max_tokens=1),
        Request(engine, range(20, 40), max_tokens=1),
    )
    engine.submit(long.sequence)
    engine.submit(short.sequence)
    engine.step()
    assert short.delivered
    assert backend.passes == [64]


def test_a_long_prompt_is_done_in_time_whatever_comes_after_it() -> None:
    engine, _ = engine_of(n_slots=6, n_batch=64)
    long = Request(engine, [5, *PROMPT * 2], max_tokens=1)
    engine.submit(long.sequence)
    n_passes = 0
    while not long.delivered:
        engine.submit(Request(engine, [n_passes % 80 + 6, *range(60)], max_tokens=1).sequence)
        engine.step()
        n_passes += 1
    assert n_passes <= -(-401 // 32)


def test_a_higher_priority_is_served_first() -> None:
    engine, _ = engine_of(n_slots=1)
    busy = Request(engine, [1], max_tokens=4)
    engine.submit(busy.sequence)
    engine.step()
    order: list[int] = []
    waiting = [Request(engine, [n + 2], max_tokens=2) for n in range(4)]
    for request, priority in zip(waiting, (0, -1, 5, 5), strict=True):
        request.sequence.priority = priority
        engine.submit(request.sequence)
    while engine.has_work:
        engine.step()
        order += [n for n, request in enumerate(waiting) if request.delivered and n not in order]
    assert order == [2, 3, 0, 1]


def test_a_low_priority_is_served_after_a_bounded_number_of_passes() -> None:
    engine, _ = engine_of(n_slots=1)
    low = Request(engine, [1], max_tokens=1)
    low.sequence.priority = -2
    engine.submit(low.sequence)
    n_passes = 0
    while not low.delivered:
        high = Request(engine, [2], max_tokens=2)  # one more of priority 1, every pass
        high.sequence.priority = 1
        engine.submit(high.sequence)
        engine.step()
        n_passes += 1
        assert n_passes < 4 * 3 * AGING
    # Those that come within 3 * AGING passes come before it; each takes two.
    assert n_passes >= 3 * AGING


def test_the_lowest_priority_loses_its_slot_first_and_then_the_youngest() -> None:
    engine, _ = engine_of()
    requests = [Request(engine, [n, *range(30)], max_tokens=9) for n in range(3)]
    for request, priority in zip(requests, (0, -1, 0), strict=True):
        request.sequence.priority = priority
        engine.submit(request.sequence)
    engine.step()
    engine.scheduler.preempt_youngest()
    assert engine.scheduler.waiting == [requests[1].sequence]
    engine.scheduler.preempt_youngest()
    assert engine.scheduler.waiting == [requests[2].sequence, requests[1].sequence]


def test_when_cells_run_out_little_of_the_youngest_is_computed_twice(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("gguf_engine.engine.kv_cache.EVICT_CELLS", 16)
    backend = Watched(n_ctx=256, n_cells=256, n_slots=2)
    engine = Engine(backend)
    old, young = (
        Request(engine, range(1, 81), max_tokens=100),
        Request(engine, range(90, 10, -1), max_tokens=60),
    )
    run(engine, old, young)
    # Alone they take 80 + 99 and 80 + 59. The young one loses its last ids as their cells are needed.
    assert 318 < backend.n_tokens < 318 + 80
    for request, prompt, n in ((old, range(1, 81), 100), (young, range(90, 10, -1), 60)):
        assert request.completion.token_ids == alone(prompt, {"n_ctx": 256}, max_tokens=n).token_ids


def test_a_preempted_prompt_counts_as_cached_what_it_had_at_first() -> None:
    engine, _ = engine_of()
    request = Request(engine, PROMPT, max_tokens=2)
    engine.submit(request.sequence)
    engine.step()
    engine.scheduler.preempt_youngest(keep=True)
    finish(engine)
    assert request.completion.usage.n_cached == 0


def test_the_pace_follows_what_passes_take() -> None:
    pace = PrefillPace(0.1, 512)
    assert pace.n_ids == FIRST_CHUNK
    for _ in range(5):
        pace.record(64, 0.032)
    assert pace.n_ids == 192  # of 200 that fit, whole tiles of 64
    pace.record(100, 0.4)  # a machine that has become slow counts at once
    assert pace.n_ids == 25
    pace.record(25, 0.0125)
    assert pace.n_ids == 192
    for _ in range(5):
        pace.record(100, 1.0)
    assert pace.n_ids == MIN_CHUNK
    pace.record(MIN_CHUNK, 1e-5)  # one that has become fast does not
    assert pace.n_ids == MIN_CHUNK
    for _ in range(5):
        pace.record(MIN_CHUNK, 1e-5)
    assert pace.n_ids == 512


def test_small_passes_and_no_limit_teach_the_pace_nothing() -> None:
    pace, free = PrefillPace(0.1, 512), PrefillPace(None, 512)
    pace.record(MIN_CHUNK - 1, 9.0)
    free.record(64, 9.0)
    assert pace.n_ids == FIRST_CHUNK
    assert free.n_ids == 512
