"""
DraftModel: guesses by a second, smaller model with the same vocabulary.

Owns that model's backend, and which ids its slots hold. A guess is drawn from the small model's row as
the answer is drawn from the large one's: same options, same seed, same token index. So two models that
agree on a distribution agree on the draw, at any temperature. (Of the haiku model's rows with noise of
0.3 logits at temperature 1, 78 % of such draws agreed, and 65 % of the most probable ids.)
"""

from __future__ import annotations

import logging
import time
from array import array
from collections.abc import Callable
from collections.abc import Sequence as SequenceABC
from typing import TYPE_CHECKING

from gguf_engine.backend.base import Backend, Batch, ForwardAbortedError, OutOfCellsError
from gguf_engine.engine.draft_length import MIN_CHANCE, PassCosts, Rate
from gguf_engine.errors import BackendError, SamplingError
from gguf_engine.sampling.sampler import Sampler, SampleRequest

if TYPE_CHECKING:
    from gguf_engine.engine.sequence import Sequence

# What a request has and the draft model does not is computed in pieces of this size, one a pass of the
# target: no longer a wait for others than a piece of somebody's prompt.
CATCH_UP = 128
# Where guessing does not pay, it is tried again after this many passes, then after twice as many.
FIRST_RETRY, LAST_RETRY = 32, 1024
_HOPE = 0.8  # the chance that such a trial assumes

_log = logging.getLogger(__name__)


class _State:
    """What the draft model knows of one sequence."""

    __slots__ = ("guesses", "is_off", "n_sure", "rate", "slot")

    def __init__(self, slot: int, rate: Rate) -> None:
        self.slot, self.rate = slot, rate
        self.n_sure = 0  # the slot holds so many ids of the sequence,
        self.guesses: list[int] = []  # then these, which the target may or may not have drawn
        self.is_off = False


class DraftModel:
    """
    The guesses for all requests of an engine; see `Source`.

    Args:
        backend: The draft model, which is this object's to close.
        n_vocab: Of the target: ids from there on are not guessed.
        clock: Seconds, monotonic.
    """

    def __init__(
        self, backend: Backend, n_vocab: int, clock: Callable[[], float] = time.perf_counter
    ) -> None:
        self._backend, self._n_vocab, self._clock = backend, n_vocab, clock
        self.placement = backend.placement
        self._free = list(range(backend.n_slots))
        self._states: dict[Sequence, _State] = {}
        self._costs = PassCosts()
        self._of_all = Rate(memory=1024)
        self._n_since_tried, self._patience = 0, FIRST_RETRY
        self.n_faults = 0
        try:
            self._sampler = Sampler(backend.n_vocab, backend.n_slots)
        except BaseException:
            backend.close()
            raise

    def chances(self, sequence: Sequence, n_most: int) -> list[float]:
        """See Source.chances."""
        state = self._states.get(sequence)
        if state is None:
            if not self._free:
                return []
            rate = Rate(memory=64, prior=self._of_all)
            state = self._states[sequence] = _State(self._free.pop(), rate)
        if state.is_off:
            return []
        chance = state.rate.value
        self._n_since_tried += 1
        if self._n_since_tried > self._patience and sequence.n_ids - state.n_sure <= CATCH_UP:
            chance = max(chance, _HOPE)
        # The last guess is never computed, so it needs no position.
        n_most = min(n_most, self._backend.n_ctx - sequence.n_ids + 1)
        chances: list[float] = []
        total = chance
        while len(chances) < n_most and total >= MIN_CHANCE:
            chances.append(total)
            total *= chance
        return chances

    def seconds(self, n_rounds: int, n_sequences: int) -> float:
        """See Source.seconds."""
        return n_rounds * (self._costs.seconds(n_sequences) or 0.0)

    def learn(self, sequence: Sequence, n_right: int, n_wrong: int) -> None:
        """See Source.learn."""
        state = self._states.get(sequence)
        if state is None or not n_right + n_wrong:
            return
        for _ in range(n_right):
            state.rate.add(True)
        if n_wrong:
            state.rate.add(False)
        if n_right > n_wrong:
            self._patience = FIRST_RETRY
        elif self._n_since_tried > self._patience:
            self._patience = min(LAST_RETRY, 2 * self._patience)
        self._n_since_tried = 0

    def propose(self, wanted: SequenceABC[tuple[Sequence, int]]) -> list[list[int]]:
        """See Source.propose. A fault turns guessing off for those it concerns."""
        states = [self._states[sequence] for sequence, _ in wanted]
        try:
            for (sequence, _), state in zip(wanted, states, strict=True):
                self._roll_back(sequence, state)
            self._propose(wanted)
        except OutOfCellsError:
            self._turn_off(states[-1:], "no KV cells are left for it")
            return [[] for _ in wanted]
        except (BackendError, ForwardAbortedError) as error:
            self._turn_off(states, str(error) or "its forward pass was ended")
            return [[] for _ in wanted]
        return [list(state.guesses) for state in states]

    def _roll_back(self, sequence: Sequence, state: _State) -> None:
        """Keep those of the last guesses that the target has drawn too."""
        # The last guess was never computed.
        guesses, state.guesses = state.guesses[:-1], []
        drawn = sequence.ids(state.n_sure, state.n_sure + len(guesses)).tolist()
        n_right = 0
        while n_right < len(drawn) and drawn[n_right] == guesses[n_right]:
            n_right += 1
        state.n_sure += n_right
        if n_right < len(guesses) and not self._backend.truncate(state.slot, state.n_sure):
            raise BackendError(0, "the draft model cannot forget a part of what it holds")

    def _propose(self, wanted: SequenceABC[tuple[Sequence, int]]) -> None:
        """Fill each state's guesses: first what the target has and we have not, then guess by guess."""
        guessing = self._catch_up(wanted)
        while guessing:
            batch = Batch()
            for sequence, _ in guessing:
                state = self._states[sequence]
                n_held = state.n_sure + len(state.guesses) - 1
                batch.add(state.slot, n_held, state.guesses[-1:], 1)
            guessing = self._draw(guessing, batch)

    def _catch_up(self, wanted: SequenceABC[tuple[Sequence, int]]) -> list[tuple[Sequence, int]]:
        """Compute ids that are missing, make the first guesses, and return who wants more of them."""
        batch, guessing, fed = Batch(), [], []
        budget = min(max(CATCH_UP, len(wanted)), self._backend.n_batch)
        for sequence, k in wanted:
            state = self._states[sequence]
            ids = sequence.ids(state.n_sure, min(sequence.n_ids, state.n_sure + budget))
            if not ids:
                continue
            if max(ids) >= self._backend.n_vocab:
                self._turn_off([state], f"it has no token id {max(ids)}")
                continue
            budget -= len(ids)
            is_last = state.n_sure + len(ids) == sequence.n_ids
            batch.add(state.slot, state.n_sure, ids, int(is_last))
            fed.append((state, len(ids)))
            if is_last:
                guessing.append((sequence, k))
        if not fed:
            return []
        still_guessing = self._draw(guessing, batch)
        for state, n_new in fed:
            if not state.is_off:
                state.n_sure += n_new
        return still_guessing

    def _draw(self, guessing: list[tuple[Sequence, int]], batch: Batch) -> list[tuple[Sequence, int]]:
        """Compute a batch with a row for each who guesses, add a guess each, return who wants more."""
        began_at = self._clock()
        rows = self._backend.forward(batch)
        requests = [
            SampleRequest(
                sequence.options,
                sequence.prompt_ids,
                sequence.token_ids + array("i", self._states[sequence].guesses),
                None,
            )
            for sequence, _ in guessing
        ]
        samples = self._sampler.sample(rows, requests) if requests else []
        if len(batch) <= 2 * len(guessing):  # not the pass that computes a prompt
            self._costs.record(len(guessing), self._clock() - began_at)
        more = []
        for (sequence, k), sample in zip(guessing, samples, strict=True):
            state = self._states[sequence]
            if isinstance(sample, SamplingError):
                self._turn_off([state], str(sample))
            elif sample.token_id < self._n_vocab:
                state.guesses.append(sample.token_id)
                if len(state.guesses) < k and sample.token_id not in sequence.end_ids:
                    more.append((sequence, k))
        return more

    def _turn_off(self, states: SequenceABC[_State], reason: str) -> None:
        self.n_faults += 1
        # Once is news; every request's own would fill a log.
        level = logging.WARNING if self.n_faults == 1 else logging.DEBUG
        _log.log(level, "the draft model guesses no more for %d request(s): %s", len(states), reason)
        for state in states:
            state.is_off = True
            state.n_sure, state.guesses = 0, []
            self._backend.truncate(state.slot, 0)

    def forget(self, sequence: Sequence) -> None:
        """See Source.forget."""
        state = self._states.pop(sequence, None)
        if state is not None:
            self._backend.truncate(state.slot, 0)
            self._free.append(state.slot)

    def close(self) -> None:
        """See Source.close."""
        self._sampler.close()
        self._backend.close()
