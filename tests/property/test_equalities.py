"""
What must not change a text: company, preemption, speculation, a reused prefix.

Equalities 3 to 5 of the architecture, bit for bit on FakeBackend, whose rows depend on everything a
slot holds. Hypothesis chooses the requests, the machine's size and the interleaving.
"""

from __future__ import annotations

import random
from array import array
from typing import Any

from engine_samples import Request, alone, finish, run
from hypothesis import given, settings
from hypothesis import strategies as st

from gguf_engine.backend.base import Batch, OutOfCellsError, Rows
from gguf_engine.backend.fake import FakeBackend
from gguf_engine.engine.engine import Engine

N_VOCAB = 23  # small, so that drafts and prefixes hit by chance
CTX = 96

ids = st.integers(0, N_VOCAB - 1)
prompts = st.lists(ids, min_size=1, max_size=60)
requests = st.fixed_dictionaries(
    {
        "prompt_ids": prompts,
        "seed": st.integers(0, 2**63 - 1),
        "temperature": st.sampled_from([0.0, 0.7, 1.0, 1.5]),
        "top_p": st.sampled_from([0.5, 0.95, 1.0]),
        "max_tokens": st.integers(1, 40),
        "repeat_penalty": st.sampled_from([1.0, 1.2]),
    }
)


def machine(**sizes: Any) -> dict[str, Any]:
    return {"n_vocab": N_VOCAB, "n_ctx": CTX, "n_batch": 32, "end_id": 0, **sizes}


class Guesses:
    """A proposer that is right as often as `p_right` says, and knows the answer."""

    n_max = 6

    def __init__(self, answer: tuple[int, ...], n_prompt: int, p_right: float, seed: int) -> None:
        self.answer, self.n_prompt, self.p_right = answer, n_prompt, p_right
        self.random = random.Random(seed)

    def propose(self, ids: array[int], k: int) -> list[int]:
        ahead = self.answer[len(ids) - self.n_prompt :][:k]
        return [i if self.random.random() < self.p_right else self.random.randrange(N_VOCAB) for i in ahead]


@settings(max_examples=150)
@given(
    wanted=st.lists(requests, min_size=2, max_size=6),
    n_slots=st.integers(1, 5),
    n_cells=st.integers(CTX, 3 * CTX),
    can_truncate=st.booleans(),
    gaps=st.lists(st.integers(0, 4), min_size=6, max_size=6),
)
def test_a_request_in_any_company_gives_what_it_gives_alone(
    wanted: list[dict[str, Any]], n_slots: int, n_cells: int, can_truncate: bool, gaps: list[int]
) -> None:
    engine = Engine(FakeBackend(**machine(n_slots=n_slots, n_cells=n_cells, can_truncate=can_truncate)))
    together = []
    for options, gap in zip(wanted, gaps, strict=False):
        request = Request(engine, **options)
        engine.submit(request.sequence)
        together.append(request)
        for _ in range(gap):
            engine.step()
    finish(engine)
    for options, request in zip(wanted, together, strict=True):
        assert request.completion.token_ids == alone(backend=machine(), **options).token_ids


@settings(max_examples=100)
@given(wanted=st.lists(requests, min_size=2, max_size=4), cuts=st.lists(st.integers(0, 12), max_size=8))
def test_a_preempted_request_goes_on_with_the_same_text(
    wanted: list[dict[str, Any]], cuts: list[int]
) -> None:
    engine = Engine(FakeBackend(**machine(n_slots=4, n_cells=4 * CTX)))
    together = [Request(engine, **options) for options in wanted]
    for request in together:
        engine.submit(request.sequence)
    for cut in cuts:
        for _ in range(cut):
            engine.step()
        if engine.scheduler.running:
            engine.scheduler.preempt_youngest()
    finish(engine)
    for options, request in zip(wanted, together, strict=True):
        assert request.completion.token_ids == alone(backend=machine(), **options).token_ids


@settings(max_examples=150)
@given(
    options=requests,
    p_right=st.sampled_from([0.0, 0.5, 0.9, 1.0]),
    seed=st.integers(0, 1000),
    can_truncate=st.booleans(),
)
def test_speculation_gives_the_text_of_plain_decoding(
    options: dict[str, Any], p_right: float, seed: int, can_truncate: bool
) -> None:
    plain = alone(backend=machine(), **options)
    engine = Engine(FakeBackend(**machine(can_truncate=can_truncate)))
    guesses = Guesses(plain.token_ids, len(options["prompt_ids"]), p_right, seed)
    request = Request(engine, proposer=guesses, **options)
    run(engine, request)
    assert request.completion.token_ids == plain.token_ids
    assert request.completion.text == plain.text


@settings(max_examples=100)
@given(
    wanted=st.lists(requests, min_size=2, max_size=5),
    p_right=st.sampled_from([0.0, 0.6, 1.0]),
    n_cells=st.integers(CTX, 2 * CTX),
    gaps=st.lists(st.integers(0, 4), min_size=5, max_size=5),
)
def test_speculation_in_company_gives_the_same_texts_and_never_asks_for_too_much(
    wanted: list[dict[str, Any]], p_right: float, n_cells: int, gaps: list[int]
) -> None:
    class Strict(FakeBackend):
        def forward(self, batch: Batch) -> Rows:
            try:
                return super().forward(batch)
            except OutOfCellsError:
                raise AssertionError("the scheduler planned more than there is room for") from None

    engine = Engine(Strict(**machine(n_slots=4, n_cells=n_cells)))
    together, plain = [], [alone(backend=machine(), **options) for options in wanted]
    for options, gap, expected in zip(wanted, gaps, plain, strict=False):
        guesses = Guesses(expected.token_ids, len(options["prompt_ids"]), p_right, gap)
        request = Request(engine, proposer=guesses, **options)
        engine.submit(request.sequence)
        together.append(request)
        for _ in range(gap):
            engine.step()
    finish(engine)
    assert [r.completion.token_ids for r in together] == [p.token_ids for p in plain]


def test_right_guesses_save_forward_passes() -> None:
    options: dict[str, Any] = {"prompt_ids": [1, 2], "max_tokens": 30, "temperature": 1.0}
    plain = alone(backend=machine(end_id=None), **options)
    backend = FakeBackend(**machine(end_id=None))
    engine = Engine(backend)
    request = Request(engine, proposer=Guesses(plain.token_ids, 2, 1.0, 0), **options)
    run(engine, request)
    # One pass for the prompt and its first id, then 29 ids in passes of at most 1 + 6.
    assert backend.n_forwards == 1 + 5
    assert request.completion.timings.n_accepted == request.completion.timings.n_drafted == 24


def test_the_guesses_of_the_last_pass_are_counted() -> None:
    plain = alone([1, 2], machine(end_id=None), max_tokens=5)
    engine = Engine(FakeBackend(**machine(end_id=plain.token_ids[4])))
    request = Request(engine, [1, 2], proposer=Guesses(plain.token_ids, 2, 1.0, 0), max_tokens=9)
    run(engine, request)  # one id after the prompt, then four drafts, the last of which ends the answer
    assert request.completion.finish_reason == "stop"
    assert request.completion.timings.n_accepted == request.completion.timings.n_drafted == 4


class Eager:
    """A proposer that always proposes all it may."""

    n_max = 6

    def propose(self, ids: array[int], k: int) -> list[int]:
        return [1] * (k + 3)


def test_drafts_never_reach_past_the_context_the_batch_or_the_answer() -> None:
    engine = Engine(FakeBackend(**machine(n_slots=2, n_ctx=24, n_cells=64, n_batch=4, end_id=None)))
    request = Request(engine, [1, 2, 3], proposer=Eager(), max_tokens=None)
    run(engine, request)  # the backend refuses positions from 24 on, and batches of more than 4
    assert request.sequence.n_ids == 24
    short = Request(engine, [1, 2, 3], proposer=Eager(), max_tokens=3)
    run(engine, short)
    assert len(short.completion.token_ids) == 3
    assert short.completion.timings.n_drafted <= 1  # the last id needs no guess


@settings(max_examples=150)
@given(
    first=requests,
    second=requests,
    n_shared=st.integers(0, 60),
    n_slots=st.integers(1, 3),
    overlap=st.booleans(),
)
def test_a_reused_prefix_gives_the_text_of_an_empty_cache(
    first: dict[str, Any], second: dict[str, Any], n_shared: int, n_slots: int, overlap: bool
) -> None:
    shared = first["prompt_ids"][:n_shared]
    second = {**second, "prompt_ids": (shared + second["prompt_ids"])[: CTX - 1]}
    engine = Engine(FakeBackend(**machine(n_slots=n_slots, n_cells=2 * CTX)))
    before, after = Request(engine, **first), Request(engine, **second)
    engine.submit(before.sequence)
    if overlap:
        engine.step()
    else:
        finish(engine)
    run(engine, after)
    assert after.completion.token_ids == alone(backend=machine(), **second).token_ids
    assert after.completion.usage.n_cached <= len(second["prompt_ids"]) - 1


def test_a_second_turn_computes_only_what_is_new() -> None:
    backend = FakeBackend(**machine(end_id=None))
    engine = Engine(backend)
    first = Request(engine, range(1, 21), max_tokens=10)
    run(engine, first)
    history = [*range(1, 21), *first.completion.token_ids]
    before = backend.n_tokens
    second = Request(engine, [*history, 3, 4, 5], max_tokens=1)
    run(engine, second)
    # The last id of the first answer was drawn, never computed.
    assert second.completion.usage.n_cached == 29
    assert backend.n_tokens - before == 4


class Exact(FakeBackend):
    """Refuses nothing that was planned rightly, and compares the engine's account with its own cells."""

    engine: Engine

    def forward(self, batch: Batch) -> Rows:
        kv = self.engine.kv_cache
        cells = self._cells
        used = {cell[0] for slot in cells for cell in slot}
        live = {c[0] for s in self.engine.scheduler.running if s.slot is not None for c in cells[s.slot]}
        assert kv.n_free_cells == self.n_cells - len(used)
        assert kv.n_idle_cells == len(used - live)
        try:
            return super().forward(batch)
        except OutOfCellsError:
            raise AssertionError("the scheduler planned more than there is room for") from None


@st.composite
def related(draw: st.DrawFn) -> list[tuple[dict[str, Any], int]]:
    """Requests that share beginnings of one stem, with priorities."""
    stem = draw(st.lists(ids, min_size=16, max_size=50))
    wanted = []
    for _ in range(draw(st.integers(2, 7))):
        options: dict[str, Any] = draw(requests)
        n_stem = draw(st.integers(0, 50))
        prompt_ids = (stem[:n_stem] + options["prompt_ids"])[: CTX - 1]
        wanted.append(({**options, "prompt_ids": prompt_ids}, draw(st.integers(-3, 3))))
    return wanted


@settings(max_examples=150)
@given(
    wanted=related(),
    sizes=st.fixed_dictionaries(
        {
            "n_slots": st.integers(1, 5),
            "n_cells": st.integers(CTX, 3 * CTX),
            "n_batch": st.sampled_from([8, 32]),
        }
    ),
    preset=st.sampled_from([None, "latency", "throughput"]),
    events=st.lists(st.sampled_from(["step", "step", "submit", "preempt", "keep", "cancel"]), max_size=40),
)
def test_requests_that_share_prompts_give_what_they_give_alone_whatever_happens(
    wanted: list[tuple[dict[str, Any], int]], sizes: dict[str, int], preset: Any, events: list[str]
) -> None:
    backend = Exact(**machine(**sizes))
    backend.engine = engine = Engine(backend, preset=preset)
    together = [Request(engine, **options) for options, _ in wanted]
    coming, cancelled = together[:], set()
    for request, (_, priority) in zip(together, wanted, strict=True):
        request.sequence.priority = priority
    for event in [*events, *["submit"] * len(coming)]:
        running = engine.scheduler.running
        if event == "submit" and coming:
            engine.submit(coming.pop(0).sequence)
        elif event == "cancel" and len(running) > 1:
            cancelled.add(running[0])  # whom the others may wait for
            engine.cancel(running[0])
        elif event in ("preempt", "keep") and running:
            engine.scheduler.preempt_youngest(keep=event == "keep")
        else:
            engine.step()
    finish(engine)
    for (options, _), request in zip(wanted, together, strict=True):
        if request.sequence not in cancelled:
            assert request.completion.token_ids == alone(backend=machine(), **options).token_ids
            assert request.completion.usage.n_cached <= len(options["prompt_ids"]) - 1
    assert engine.kv_cache.n_idle_cells == backend.n_cells - engine.kv_cache.n_free_cells
