"""One loop: what a request gives, how it ends, and what a failure costs."""

from __future__ import annotations

import math
from array import array

import pytest
from engine_samples import Request, alone, finish, run

from gguf_engine.backend.base import Batch, Rows
from gguf_engine.backend.fake import FakeBackend
from gguf_engine.engine.engine import Engine
from gguf_engine.errors import BackendError, OptionError, SamplingError


def test_an_answer_has_as_many_tokens_as_asked_for() -> None:
    completion = alone([1, 2, 3], max_tokens=5)
    assert len(completion.token_ids) == 5
    assert completion.finish_reason == "length"
    assert (completion.usage.n_prompt, completion.usage.n_completion) == (3, 5)


def test_the_text_is_the_ids_in_order() -> None:
    completion = alone([1, 2, 3], max_tokens=5)
    assert completion.text == "".join(f"[{token_id}]" for token_id in completion.token_ids)


def test_no_tokens_asked_for_gives_an_empty_answer_without_a_forward_pass() -> None:
    engine = Engine(FakeBackend())
    request = Request(engine, [1, 2, 3], max_tokens=0)
    run(engine, request)
    assert request.completion.text == ""
    assert request.completion.finish_reason == "length"
    assert engine.backend.n_forwards == 0  # type: ignore[attr-defined]


def test_the_end_token_ends_the_text_and_is_not_part_of_it() -> None:
    free = alone([5], temperature=0.0, max_tokens=20)
    end_id = free.token_ids[7]
    first = free.token_ids.index(end_id)
    completion = alone([5], {"end_id": end_id}, temperature=0.0, max_tokens=20)
    assert completion.finish_reason == "stop"
    assert completion.token_ids == free.token_ids[: first + 1]
    assert completion.text == "".join(f"[{i}]" for i in free.token_ids[:first])


def test_ignore_eos_goes_on_past_the_end_token() -> None:
    free = alone([5], temperature=0.0, max_tokens=20)
    completion = alone([5], {"end_id": free.token_ids[3]}, temperature=0.0, max_tokens=20, ignore_eos=True)
    assert completion.token_ids == free.token_ids


def test_a_stop_string_ends_the_text_before_it() -> None:
    free = alone([5], temperature=0.0, max_tokens=20)
    stop = f"[{free.token_ids[4]}][{free.token_ids[5]}]"
    completion = alone([5], temperature=0.0, max_tokens=20, stop=(stop,))
    assert completion.finish_reason == "stop"
    assert completion.text == free.text[: free.text.index(stop)]


def test_a_full_context_ends_the_answer_with_length() -> None:
    completion = alone(range(1, 11), {"n_ctx": 16}, max_tokens=None)
    assert completion.finish_reason == "length"
    assert len(completion.token_ids) == 16 - 10


def test_a_prompt_longer_than_a_batch_is_computed_in_parts() -> None:
    whole = alone(range(1, 91), {"n_batch": 128}, max_tokens=10)
    parts = alone(range(1, 91), {"n_batch": 32}, max_tokens=10)
    assert parts.token_ids == whole.token_ids


def test_a_cancelled_request_ends_with_cancelled_and_frees_its_slot() -> None:
    engine = Engine(FakeBackend(n_slots=1))
    request, other = Request(engine, [1], max_tokens=None), Request(engine, [2], max_tokens=3)
    engine.submit(request.sequence)
    for _ in range(5):
        engine.step()
    engine.cancel(request.sequence)
    assert request.completion.finish_reason == "cancelled"
    run(engine, other)
    assert other.completion.token_ids == alone([2], max_tokens=3).token_ids


def test_a_waiting_request_can_be_cancelled() -> None:
    engine = Engine(FakeBackend(n_slots=1))
    running, waiting = Request(engine, [1], max_tokens=5), Request(engine, [2])
    engine.submit(running.sequence)
    engine.submit(waiting.sequence)
    engine.step()
    engine.cancel(waiting.sequence)
    finish(engine)
    assert waiting.completion.finish_reason == "cancelled"
    assert running.completion.finish_reason == "length"


def test_cancelling_twice_or_after_the_end_changes_nothing() -> None:
    engine = Engine(FakeBackend())
    request = Request(engine, [1], max_tokens=2)
    run(engine, request)
    n_delivered = len(request.delivered)
    engine.cancel(request.sequence)
    assert len(request.delivered) == n_delivered


def test_an_aborted_pass_is_computed_again_with_the_same_text() -> None:
    engine = Engine(FakeBackend())
    request = Request(engine, range(1, 40), max_tokens=10)
    engine.submit(request.sequence)
    while engine.has_work:
        engine.backend.abort()
        engine.step()  # stores half of its batch, then gives up
        engine.step()
    assert request.completion.token_ids == alone(range(1, 40), max_tokens=10).token_ids


def test_an_aborted_pass_of_a_model_that_cannot_truncate_starts_over_with_the_same_text() -> None:
    engine = Engine(FakeBackend(can_truncate=False))
    request = Request(engine, range(1, 40), max_tokens=10)
    engine.submit(request.sequence)
    for _ in range(4):
        engine.step()
    engine.backend.abort()
    finish(engine)
    assert request.completion.token_ids == alone(range(1, 40), max_tokens=10).token_ids


def test_a_failed_pass_ends_its_requests_and_the_next_one_works() -> None:
    engine = Engine(FakeBackend(fail_after=3))
    failing, later = Request(engine, [1], max_tokens=10), Request(engine, [2], max_tokens=4)
    run(engine, failing)
    assert isinstance(failing.error, BackendError)
    run(engine, later)
    assert later.completion.token_ids == alone([2], max_tokens=4).token_ids


def test_a_row_that_cannot_be_sampled_ends_its_request_alone() -> None:
    engine = Engine(FakeBackend())
    everything = dict.fromkeys(range(97), -math.inf)
    masked, fine = Request(engine, [1], logit_bias=everything), Request(engine, [2], max_tokens=4)
    run(engine, masked, fine)
    assert isinstance(masked.error, SamplingError)
    assert fine.completion.token_ids == alone([2], max_tokens=4).token_ids


def test_log_probabilities_come_with_their_tokens() -> None:
    completion = alone([1, 2], max_tokens=4, temperature=0.0, logprobs=3, repeat_penalty=1.0)
    assert len(completion.logprobs) == len(completion.top_logprobs) == 4
    for token_id, logprob, top in zip(
        completion.token_ids, completion.logprobs, completion.top_logprobs, strict=True
    ):
        assert len(top) == 3
        assert top[0].token_id == token_id  # greedy takes the most probable
        assert top[0].logprob == pytest.approx(logprob)


def test_more_requests_than_slots_wait_their_turn() -> None:
    engine = Engine(FakeBackend(n_slots=2))
    requests = [Request(engine, [n], max_tokens=6) for n in range(1, 8)]
    run(engine, *requests)
    for n, request in enumerate(requests, 1):
        assert request.completion.token_ids == alone([n], max_tokens=6).token_ids


def test_a_preempted_request_gives_its_cells_back_and_is_resumed_before_later_ones() -> None:
    engine = Engine(FakeBackend(n_slots=2, n_ctx=128))
    prompts = (range(1, 20), range(30, 59), range(60, 84))
    old, young, later = (Request(engine, prompt, max_tokens=8) for prompt in prompts)
    for request in (old, young, later):
        engine.submit(request.sequence)
    engine.step()
    free = engine.kv_cache.n_free_cells
    engine.scheduler.preempt_youngest()
    assert engine.kv_cache.n_free_cells == free + 29
    assert list(engine.scheduler.waiting) == [young.sequence, later.sequence]


def test_a_preempted_request_has_handed_over_what_it_made() -> None:
    engine = Engine(FakeBackend())
    request = Request(engine, [1], max_tokens=20)
    engine.submit(request.sequence)
    for _ in range(6):
        engine.step()
    engine.scheduler.preempt_youngest()
    assert len(request.delivered) == 6


def test_a_request_hands_over_what_it_made_before_a_pass_with_prompts() -> None:
    engine = Engine(FakeBackend())
    early = Request(engine, [1, 2], max_tokens=100, ignore_eos=True)
    engine.submit(early.sequence)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("gguf_engine.engine.sequence.HAND_OVER_S", math.inf)
        for _ in range(5):
            engine.step()
        assert len(early.delivered) == 1  # the first at once
        engine.submit(Request(engine, range(20), max_tokens=5).sequence)
        engine.step()
    assert len(early.delivered) == 5  # not the one that this pass gave


def test_a_request_that_nobody_reads_before_its_end_hands_over_in_few_parts() -> None:
    engine = Engine(FakeBackend())
    request = Request(engine, [1, 2], max_tokens=100, ignore_eos=True, whole=True)
    engine.submit(request.sequence)
    for _ in range(5):
        engine.step()
    engine.submit(Request(engine, range(20), max_tokens=5).sequence)
    engine.step()  # before a pass with a prompt, too
    assert request.delivered == []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("gguf_engine.engine.sequence.HAND_OVER_UNREAD_S", 1e-9)
        engine.step()
    assert len(request.delivered) == 7
    finish(engine)
    streamed = Request(engine, [1, 2], max_tokens=100, ignore_eos=True)
    run(engine, streamed)
    assert request.completion.token_ids == streamed.completion.token_ids


def test_a_request_that_nobody_reads_before_its_end_hands_over_what_there_is_when_it_fails() -> None:
    engine = Engine(FakeBackend())
    request = Request(engine, [1, 2], max_tokens=100, ignore_eos=True, whole=True)
    engine.submit(request.sequence)
    for _ in range(3):
        engine.step()
    engine.fail_all(BackendError(1, "no more"))
    assert len(request.delivered) == 4
    assert isinstance(request.error, BackendError)


def test_a_prompt_that_does_not_fit_beside_the_others_waits_instead_of_pushing_them_out() -> None:
    backend = FakeBackend(n_slots=2, n_ctx=40, n_cells=40)
    engine = Engine(backend)
    first, second = (
        Request(engine, range(1, 26), max_tokens=5),
        Request(engine, range(40, 65), max_tokens=5),
    )
    run(engine, first, second)
    # Each id was computed once: 25 of the prompt and 4 of the answer, the last one being drawn only.
    assert backend.n_tokens == 2 * 29


def test_an_id_masked_by_a_constraint_is_never_drawn() -> None:
    class OnlyEven:
        def fill_mask(self, mask: bytearray) -> None:
            mask[:] = b"\x55" * len(mask)

        def accept(self, token_id: int) -> None:
            assert token_id % 2 == 0

        def clone(self) -> OnlyEven:
            return self

    engine = Engine(FakeBackend())
    request = Request(engine, [1], constraint=OnlyEven(), max_tokens=30)
    run(engine, request)
    assert all(token_id % 2 == 0 for token_id in request.completion.token_ids)


class AwkwardError(ZeroDivisionError):
    """An exception that cannot be copied: it is made of two things and remembers one."""

    def __init__(self, one: int, two: int) -> None:
        super().__init__(one + two)


class Faulty:
    """Stands for whatever belongs to a request, and fails."""

    n_max = 3

    def fail(self, *_: object) -> None:
        raise AwkwardError(1, 2)

    propose = fill_mask = accept = push = fail


class BadDraft:
    """A proposer of an id that no vocabulary has."""

    n_max = 3

    def propose(self, ids: array[int], k: int) -> list[int]:
        return [10**6]


def faulty_sequence(engine: Engine, part: str) -> Request:
    request = Request(engine, [1, 2], max_tokens=9)
    if part == "deliver":
        request.sequence.deliver = Faulty().fail
    elif part == "draft":
        request.sequence.proposer = BadDraft()
    else:
        setattr(request.sequence, part, Faulty())
    return request


@pytest.mark.parametrize("part", ["detokenizer", "constraint", "proposer", "draft", "deliver"])
def test_a_fault_of_one_request_costs_no_other(part: str) -> None:
    engine = Engine(FakeBackend())
    faulty, healthy = faulty_sequence(engine, part), Request(engine, [5], max_tokens=9)
    run(engine, healthy, faulty)
    assert healthy.completion.token_ids == alone([5], max_tokens=9).token_ids
    assert faulty.sequence.slot is None
    assert part == "deliver" or isinstance(faulty.error, (ZeroDivisionError, OptionError))


def test_cancelling_a_request_that_waits_does_not_abort_the_pass_of_another() -> None:
    engine = Engine(FakeBackend(n_slots=1))
    running, waiting = Request(engine, range(1, 40), max_tokens=4), Request(engine, [2])
    aborted: list[bool] = []

    class Watched(FakeBackend):
        def abort(self) -> None:
            aborted.append(True)

        def forward(self, batch: Batch) -> Rows:
            engine.abort_prompt(waiting.sequence)
            assert not aborted
            engine.abort_prompt(running.sequence)  # a prompt under way is what an abort is for
            assert aborted or len(batch) == 1
            return super().forward(batch)

    engine = Engine(Watched(n_slots=1))
    engine.submit(running.sequence)
    engine.submit(waiting.sequence)
    engine.step()
    assert aborted


def test_a_shared_prefix_lets_more_requests_in_at_once() -> None:
    engine = Engine(FakeBackend(n_slots=8, n_ctx=256, n_cells=256))
    first = Request(engine, [7] * 150, max_tokens=10)
    engine.submit(first.sequence)
    for _ in range(4):
        engine.step()
    others = [Request(engine, [7] * 149 + [n], max_tokens=5) for n in range(3)]
    for request in others:
        engine.submit(request.sequence)
    engine.step()
    assert len(engine.scheduler.running) == 4


def test_a_prompt_cancelled_half_way_counts_what_was_computed() -> None:
    engine = Engine(FakeBackend(n_ctx=512, n_batch=64))
    request = Request(engine, range(1, 97), max_tokens=4)
    engine.submit(request.sequence)
    engine.step()
    engine.cancel(request.sequence)
    assert request.sequence.n_prefilled == 64


def test_readers_get_exceptions_of_their_own() -> None:
    engine = Engine(FakeBackend(fail_after=0))
    requests = [Request(engine, [n]) for n in range(3)]
    run(engine, *requests)
    errors = [request.error for request in requests]
    assert all(isinstance(error, BackendError) for error in errors)
    assert len(set(map(id, errors))) == 3


def test_timings_are_ordered() -> None:
    timings = alone(range(1, 20), max_tokens=10).timings
    assert 0 <= timings.queue_s <= timings.ttft_s <= timings.total_s
    assert timings.prefill_tokens_per_s > 0
    assert timings.decode_tokens_per_s > 0
