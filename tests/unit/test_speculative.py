"""How much is guessed, by times that a clock of our own tells; what stops it; what it may cost."""

from __future__ import annotations

import pickle
import random
from array import array
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import pytest
from engine_samples import Request, alone, finish, run
from speculation_samples import TWO_CORES, Clock, Habitual, Scripted, Steps

from gguf_engine.backend.base import Placement
from gguf_engine.backend.fake import FakeBackend
from gguf_engine.engine import speculative
from gguf_engine.engine.draft import DraftModel
from gguf_engine.engine.engine import Engine, EngineMaker
from gguf_engine.engine.lookup import PromptLookup
from gguf_engine.engine.speculative import LOSS_SHARE, MAX_CREDIT, DraftMaker, Speculation
from gguf_engine.errors import ModelLoadError

FREE_ROWS = {1: 1.0, 32: 1.1, 512: 2.0}
GREEDY: dict[str, Any] = {"temperature": 0.0, "repeat_penalty": 1.0}


def words(n: int, seed: int) -> list[int]:
    """Return ids as unevenly frequent as words are, from 2 on."""
    return [2 + int(300 ** random.Random(f"{seed} {i}").random()) for i in range(n)]


def seconds(
    prompt: Sequence[int],
    answer: Sequence[int],
    source: Any,
    costs: Mapping[int, float] = TWO_CORES,
    before: tuple[Sequence[int], Sequence[int]] | None = None,
) -> float:
    """Return what an answer takes after its prompt, and check it; `before` is an earlier request."""
    clock = Clock()
    speculation = Speculation(400, source, 31, clock)
    took = 0.0
    for each in ([before] if before else []) + [(prompt, answer)]:
        script = [*each[0], *each[1]]
        engine = Engine(Scripted([script], clock, costs, n_batch=512, n_vocab=400), speculation)
        request = Request(engine, each[0], max_tokens=len(each[1]), **GREEDY)
        engine.submit(request.sequence)
        engine.step()
        began_at = clock.now
        finish(engine)
        took = clock.now - began_at
        assert list(request.completion.token_ids) == list(each[1])
    return took


def speedup(prompt: Sequence[int], answer: Sequence[int], costs: Mapping[int, float] = TWO_CORES) -> float:
    return seconds(prompt, answer, None, costs) / seconds(prompt, answer, PromptLookup(), costs)


def test_a_copy_with_one_word_changed_is_made_faster() -> None:
    text = words(400, 1)
    changed = [*text[:200], 399, *text[201:]]
    assert speedup([1, *text], changed) > 1.9


def test_where_rows_cost_nothing_a_copy_takes_a_tenth() -> None:
    text = words(400, 1)
    assert speedup([1, *text], text, FREE_ROWS) > 10


@pytest.mark.parametrize("seed", range(5))
def test_a_text_with_nothing_to_copy_is_not_made_slower(seed: int) -> None:
    assert speedup([1, *words(400, seed)], words(400, seed + 100)) > 0.97


def test_a_copy_does_not_make_the_next_request_credulous() -> None:
    """Some ids in a row that the prompt has are a copy's beginning in one text, an accident in another."""
    text = words(400, 1)
    accidents = [i for n in range(0, 300, 20) for i in [*words(20, n + 500), *text[n : n + 6]]]
    plain = seconds([1, *text], accidents, None)
    assert seconds([1, *text], accidents, PromptLookup(), before=([1, *text], text)) < 1.04 * plain


class Liar:
    """A source that is sure of itself and always wrong."""

    n_faults = 0
    placement: Placement | None = None

    def chances(self, sequence: Any, n_most: int) -> list[float]:
        del sequence
        return [0.99] * n_most

    def seconds(self, n_rounds: int, n_sequences: int) -> float:
        del n_rounds, n_sequences
        return 0.0

    def propose(self, wanted: Any) -> list[list[int]]:
        return [[399] * k for _, k in wanted]

    def learn(self, *_: Any) -> None:
        pass

    forget = learn

    def close(self) -> None:
        pass


@pytest.mark.parametrize("costs", [TWO_CORES, {1: 1.0, 512: 512.0}])
def test_what_guessing_may_lose_is_bounded(costs: Mapping[int, float]) -> None:
    answer = words(1500, 3)
    plain = seconds([1, 2], answer, None, costs)
    worst_pass = max(costs[1], 32.0)
    assert seconds([1, 2], answer, Liar(), costs) <= plain * (1 + LOSS_SHARE) + MAX_CREDIT + worst_pass


def test_prompts_get_their_share_of_a_pass_beside_guesses() -> None:
    """The copy could fill every pass, 32 ids a time, until it ends."""
    text = words(900, 1)
    clock = Clock()
    scripts = [[1, *text, *text], [390, *words(100, 2), 5, 5]]
    backend = Scripted(scripts, clock, FREE_ROWS, n_batch=32, n_vocab=400, n_slots=2)
    engine = Engine(backend, Speculation(400, PromptLookup(), 31, clock))
    copying = Request(engine, scripts[0][:901], max_tokens=900, **GREEDY)
    engine.submit(copying.sequence)
    while backend.n_rows[-3:] != [32, 32, 32] or len(copying.sequence.token_ids) < 200:
        engine.step()
    late = Request(engine, scripts[1][:101], max_tokens=1, **GREEDY)
    engine.submit(late.sequence)
    while not late.sequence.finished_at:
        engine.step()
    assert len(copying.sequence.token_ids) < 600
    finish(engine)
    assert list(copying.completion.token_ids) == text


def test_a_wait_between_requests_is_not_taken_for_the_time_of_a_pass(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The second request's prompt is kept but for one id: a pass of one row that nobody planned."""
    monkeypatch.setattr(speculative, "PLAIN_EVERY", 1)
    text = words(100, 1)
    clock = Clock()
    script = [1, *text, *words(100, 2)]
    backend = Scripted([script], clock, n_batch=512, n_vocab=400)
    speculation = Speculation(400, PromptLookup(), 31, clock)
    engine = Engine(backend, speculation)
    for _ in range(2):
        request = Request(engine, script[:101], max_tokens=4, **GREEDY)
        run(engine, request)
        clock.now += 1000
    assert request.completion.usage.n_cached == 100
    assert speculation._costs._samples[1] == [1.0] * 5


class Digits:
    """A grammar of ids below 10, and 0 to end."""

    def fill_mask(self, mask: bytearray) -> None:
        mask[:] = (0x3FF).to_bytes(len(mask), "little")

    def accept(self, token_id: int) -> None:
        assert token_id < 10

    def clone(self) -> Digits:
        return self


class Always:
    """A proposer of the same ids."""

    n_max = 6

    def __init__(self, *ids: int) -> None:
        self.ids = ids

    def propose(self, ids: array[int], k: int) -> list[int]:
        del ids
        return list(self.ids[:k])


def test_guesses_that_a_constraint_forbids_are_not_verified() -> None:
    engine = Engine(FakeBackend(end_id=0))
    request = Request(engine, [1, 2], max_tokens=20, proposer=Always(3, 50, 4), constraint=Digits())
    run(engine, request)
    expected = alone([1, 2], {"end_id": 0}, max_tokens=20, constraint=Digits())
    assert request.completion.token_ids == expected.token_ids
    n_passes = len(request.completion.token_ids) - request.completion.timings.n_accepted - 1
    assert 0 < request.completion.timings.n_drafted <= n_passes + request.completion.timings.n_accepted


def test_nothing_is_guessed_behind_an_end() -> None:
    backend = FakeBackend(end_id=5)
    engine = Engine(backend)
    request = Request(engine, [1, 2], max_tokens=20, proposer=Always(5, 7, 7, 7))
    run(engine, request)
    n_ids = len(request.completion.token_ids)
    assert request.completion.timings.n_drafted <= n_ids
    assert backend.n_tokens <= 2 + 2 * n_ids


def test_a_model_that_cannot_take_back_a_guess_is_guessed_for_once() -> None:
    steps = Steps(random.Random(0))
    backend = Habitual(steps, n_vocab=23, can_truncate=False)
    engine = Engine(backend, Speculation(23, PromptLookup(), 31, steps))
    request = Request(engine, [1, 2, 3], max_tokens=100, **GREEDY)
    run(engine, request)
    plain = Engine(Habitual(n_vocab=23))
    expected = Request(plain, [1, 2, 3], max_tokens=100, **GREEDY)
    run(plain, expected)
    assert request.completion.token_ids == expected.completion.token_ids
    assert engine.stats().n_draft_faults == 1
    assert backend.n_tokens < 3 * 103  # computed anew once, not after each guess


class Broken(Liar):
    """A source with a bug."""

    def propose(self, wanted: Any) -> list[list[int]]:
        raise ZeroDivisionError


def test_a_source_with_a_bug_costs_the_guesses_and_not_the_answer(caplog: pytest.LogCaptureFixture) -> None:
    assert seconds([1, 2], [5, 6, 7, 8, 9], Broken()) == 4.0
    assert "ZeroDivisionError" in caplog.text


def test_a_requests_own_proposer_goes_before_the_engines_source() -> None:
    plain = alone([1, 2], max_tokens=12)

    class Own:
        n_max = 3

        def propose(self, ids: array[int], k: int) -> Sequence[int]:
            return plain.token_ids[len(ids) - 2 :][:k]

    engine = Engine(FakeBackend(), Speculation(97, Broken(), 31))
    request = Request(engine, [1, 2], max_tokens=12, proposer=Own())
    run(engine, request)
    assert request.completion.token_ids == plain.token_ids
    assert request.completion.timings.n_accepted == request.completion.timings.n_drafted > 0
    assert engine.stats().n_draft_faults == 0


def test_a_recipe_crosses_to_another_process() -> None:
    for make_backend in (None, partial(FakeBackend, n_vocab=97)):
        maker = EngineMaker(
            partial(FakeBackend, n_vocab=97), DraftMaker(n_max=7, make_backend=make_backend)
        )
        engine = pickle.loads(pickle.dumps(maker))()  # noqa: S301 - our own
        request = Request(engine, [1, 2, 1, 2, 1, 2], max_tokens=9)
        run(engine, request)
        assert request.completion.token_ids == alone([1, 2, 1, 2, 1, 2], max_tokens=9).token_ids
        engine.close()


def test_the_load_of_a_draft_model_can_be_ended_and_reports_a_whole() -> None:
    reported: list[float] = []

    def report(done: float) -> bool:
        reported.append(done)
        return True

    def load(progress: Any) -> FakeBackend:
        assert progress(0.1)
        return FakeBackend()

    speculation = DraftMaker(n_max=3, make_backend=load)(97, report)
    assert isinstance(speculation._source, DraftModel)
    assert reported == [1.0]


def test_a_draft_model_that_does_not_load_frees_the_target() -> None:
    made: list[FakeBackend] = []

    def make() -> FakeBackend:
        made.append(FakeBackend())
        return made[0]

    def fail() -> FakeBackend:
        raise ModelLoadError("draft.gguf", "it refused the file")

    with pytest.raises(ModelLoadError):
        EngineMaker(make, DraftMaker(n_max=3, make_backend=fail))()
    assert made[0]._closed
