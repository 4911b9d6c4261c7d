"""DraftModel: which ids its slots hold, what it draws, and that its faults cost guesses alone."""

from __future__ import annotations

from typing import Any

import pytest
from engine_samples import Request, alone, finish, run
from speculation_samples import TWO_CORES, Clock, Habitual, cost_of

from gguf_engine.backend.base import Batch, OutOfCellsError, Rows
from gguf_engine.backend.fake import FakeBackend
from gguf_engine.engine import draft
from gguf_engine.engine.draft import DraftModel
from gguf_engine.engine.engine import Engine
from gguf_engine.engine.speculative import Speculation
from gguf_engine.errors import BackendError

SIZES: dict[str, Any] = {"n_vocab": 37, "n_ctx": 128, "n_cells": 512, "n_batch": 64}


class Ticking(FakeBackend):
    """A FakeBackend whose passes take a second each, however many rows they have."""

    def __init__(self, clock: Clock, **sizes: Any) -> None:
        super().__init__(**{**SIZES, **sizes})
        self.clock = clock

    def forward(self, batch: Batch) -> Rows:
        """See Backend."""
        self.clock.now += 1
        return super().forward(batch)


def engine_with(guesser: FakeBackend, n_max: int = 4, **sizes: Any) -> tuple[Engine, DraftModel]:
    """Return an engine with a draft model whose own passes take no time."""
    clock = Clock()
    source = DraftModel(guesser, SIZES["n_vocab"], clock)
    speculation = Speculation(SIZES["n_vocab"], source, n_max, clock)
    return Engine(Ticking(clock, **sizes), speculation), source


@pytest.mark.parametrize(
    "options",
    [
        {"temperature": 0.0},
        {"temperature": 1.0},
        {"temperature": 1.5, "top_p": 0.9, "top_k": 20, "min_p": 0.01},
        {"temperature": 0.7, "presence_penalty": 1.0, "repeat_penalty": 1.3},
        {"temperature": 1.0, "logit_bias": {3: 4.0}, "logprobs": 2},
    ],
)
def test_a_model_that_guesses_for_itself_is_always_right(options: dict[str, Any]) -> None:
    """It draws as the target draws: same options, same seed, same token index."""
    engine, _ = engine_with(FakeBackend(**SIZES))
    request = Request(engine, [1, 2, 3], max_tokens=100, **options)
    run(engine, request)
    timings = request.completion.timings
    assert timings.n_accepted == timings.n_drafted > 70
    assert request.completion.token_ids == alone([1, 2, 3], SIZES, max_tokens=100, **options).token_ids


def test_it_computes_each_id_once_when_its_guesses_are_right() -> None:
    guesser = FakeBackend(**SIZES)
    engine, _ = engine_with(guesser)
    request = Request(engine, [1, 2, 3], max_tokens=100, temperature=0.0)
    run(engine, request)
    assert guesser.n_tokens <= 3 + 100


def test_wrong_guesses_are_taken_back() -> None:
    """A slot that kept one would guess wrongly from there on, though the models are the same."""
    clock, guesser = Clock(), Habitual(**SIZES)
    held: list[bool] = []

    class Watched(DraftModel):
        def propose(self, wanted: Any) -> Any:
            proposed = super().propose(wanted)
            for (sequence, _), guesses in zip(wanted, proposed, strict=True):
                state = self._states[sequence]
                known = sequence.ids(0, sequence.n_ids).tolist()
                held.append(guesser.held(state.slot) == known + guesses[:-1])
            return proposed

    watched = Watched(guesser, SIZES["n_vocab"], clock)
    engine = Engine(Ticking(clock), Speculation(SIZES["n_vocab"], watched, 5, clock))
    request = Request(engine, [1, 2, 3], max_tokens=100, temperature=0.0)
    run(engine, request)
    assert len(held) > 3
    assert all(held)
    assert request.completion.timings.n_accepted < request.completion.timings.n_drafted


def test_several_requests_share_its_passes() -> None:
    guesser = FakeBackend(**SIZES)
    engine, _ = engine_with(guesser)
    requests = [Request(engine, [n, 2, 3], max_tokens=60) for n in range(4)]
    run(engine, *requests)
    assert all(r.completion.timings.n_accepted > 30 for r in requests)
    assert guesser.n_forwards < guesser.n_tokens / 3


def test_a_long_prompt_is_caught_up_with_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(draft, "CATCH_UP", 10)
    sizes: list[int] = []

    class Watched(FakeBackend):
        def forward(self, batch: Batch) -> Rows:
            sizes.append(len(batch))
            return super().forward(batch)

    engine, _ = engine_with(Watched(**SIZES))
    request = Request(engine, [n % 37 for n in range(45)], max_tokens=40)
    run(engine, request)
    assert sizes[:4] == [10, 10, 10, 10]
    assert max(sizes) == 10
    assert request.completion.timings.n_accepted > 10


class Failing(FakeBackend):
    """Fails from some pass on."""

    def __init__(self, error: Exception, n_good: int) -> None:
        super().__init__(**SIZES)
        self.error, self.n_good = error, n_good

    def forward(self, batch: Batch) -> Rows:
        """See Backend."""
        self.n_good -= 1
        if self.n_good < 0:
            raise self.error
        return super().forward(batch)


@pytest.mark.parametrize("error", [BackendError(-3, "out of luck"), OutOfCellsError(), ZeroDivisionError()])
@pytest.mark.parametrize("n_good", [0, 1, 7])
def test_a_failing_draft_model_costs_no_answer_and_is_told(error: Exception, n_good: int) -> None:
    engine, _ = engine_with(Failing(error, n_good))
    requests = [Request(engine, [n, 2], max_tokens=30) for n in range(3)]
    run(engine, *requests)
    for n, request in enumerate(requests):
        assert request.completion.token_ids == alone([n, 2], SIZES, max_tokens=30).token_ids
    assert engine.stats().n_draft_faults > 0


def test_a_fault_is_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    engine, _ = engine_with(Failing(BackendError(-3, "out of luck"), 0))
    for n in range(3):
        run(engine, Request(engine, [n, 2], max_tokens=9))
    warnings = [record for record in caplog.records if record.levelname == "WARNING"]
    assert len(warnings) == 1
    assert "out of luck" in warnings[0].getMessage()


def test_a_fault_of_one_request_leaves_the_next_one_its_guesses() -> None:
    guesser = Failing(BackendError(-3, "once"), 2)
    engine, _ = engine_with(guesser)
    run(engine, Request(engine, [1], max_tokens=20))
    guesser.n_good = 10**9
    later = Request(engine, [2], max_tokens=40)
    run(engine, later)
    assert later.completion.timings.n_accepted > 20


def test_ids_that_it_does_not_know_turn_it_off_for_their_request() -> None:
    engine, source = engine_with(FakeBackend(**{**SIZES, "n_vocab": 30}))
    request = Request(engine, [35, 2], max_tokens=20)
    run(engine, request)
    assert request.completion.timings.n_drafted == 0
    assert request.completion.token_ids == alone([35, 2], SIZES, max_tokens=20).token_ids
    assert source.n_faults == 1


def test_ids_that_the_target_does_not_know_are_not_guessed() -> None:
    class Beyond(FakeBackend):
        def _fill(self, row: Rows, slot: int) -> None:
            row[:] = 0
            row[self.n_vocab - 1] = 50

    engine, source = engine_with(Beyond(**{**SIZES, "n_vocab": 40}))
    request = Request(engine, [1, 2], max_tokens=20)
    run(engine, request)
    assert request.completion.token_ids == alone([1, 2], SIZES, max_tokens=20).token_ids
    assert request.completion.timings.n_drafted == 0
    assert source.n_faults == 0


def test_a_draft_model_with_a_shorter_context_guesses_as_far_as_that_goes() -> None:
    engine, source = engine_with(FakeBackend(**{**SIZES, "n_ctx": 50, "n_cells": 400}))
    request = Request(engine, [1, 2], max_tokens=None, temperature=0.0)
    run(engine, request)
    assert request.sequence.n_ids == 128
    assert 30 < request.completion.timings.n_accepted < 50
    assert source.n_faults == 0


def test_a_useless_draft_model_is_left_alone_and_tried_again_now_and_then() -> None:
    guesser = FakeBackend(**{**SIZES, "n_ctx": 2048, "n_cells": 2048})
    clock = Clock()
    source = DraftModel(guesser, SIZES["n_vocab"], clock)

    class Other(FakeBackend):
        def forward(self, batch: Batch) -> Rows:
            clock.now += cost_of(TWO_CORES, len(batch))
            return super().forward(batch)

        def _fill(self, row: Rows, slot: int) -> None:
            row[:] = 0
            row[len(self.held(slot)) * 7 % 37] = 50

    sizes = {**SIZES, "n_ctx": 2048, "n_cells": 2048}
    engine = Engine(Other(**sizes), Speculation(SIZES["n_vocab"], source, 4, clock))
    request = Request(engine, [1], max_tokens=1500)
    engine.submit(request.sequence)
    for _ in range(200):
        engine.step()
    n_early = request.sequence.n_drafted
    finish(engine)
    n_late = request.sequence.n_drafted - n_early
    assert 0 < n_early < 60
    assert 0 < n_late < 60


def test_closing_the_engine_closes_it() -> None:
    guesser = FakeBackend(**SIZES)
    engine, _ = engine_with(guesser)
    engine.close()
    engine.close()
    assert guesser._closed
