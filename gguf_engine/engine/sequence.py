"""Sequence: one request inside the engine, its ids, counters and times. Written by the engine's thread."""

from __future__ import annotations

import contextlib
import time
from array import array
from collections.abc import Callable
from typing import TYPE_CHECKING

from gguf_engine.outputs import FinishReason, Piece, Timings, Usage

if TYPE_CHECKING:
    from gguf_engine.engine.speculative import Proposer
    from gguf_engine.params import SamplingParams
    from gguf_engine.sampling.sampler import RowOptions, Sample
    from gguf_engine.text.constraint import Constraint
    from gguf_engine.text.detokenizer import Detokenizer
    from gguf_engine.text.stops import StopMatcher

Deliver = Callable[["list[Piece] | BaseException"], None]
"""Where the pieces of a request go, from the engine's thread; an error ends the request."""

# Waking a reading thread costs as much as a fifth of a small model's token, and it then wants the
# interpreter while the engine does. Nobody sees the difference between 200 pieces a second and more. The
# clock says when, for all alike: what several requests hand over in one pass can go out together.
HAND_OVER_S = 0.005
# For readers who wait for the end: they are not woken, and still no delivery grows without bounds.
HAND_OVER_UNREAD_S = 0.5


class RequestFaultError(Exception):
    """What belongs to one request failed, and is to cost that request alone. Never leaves the engine."""

    def __init__(self, sequence: Sequence, error: Exception) -> None:
        super().__init__(str(error))
        self.sequence, self.error = sequence, error


class Sequence:
    """
    One request.

    Args:
        prompt_ids: At least one id.
        params: Its options; `seed` is the one to use, whatever `params.seed` says.
        options: `params`, prepared by the sampler.
        end_ids: Ids that end it.
        deliver: Takes its pieces, some at a time.
        constraint: Which ids may come next; None allows all.
        proposer: Guesses at the next ids, verified against the model; None for one id a pass.
        priority: Requests of a higher one come first; see Scheduler.
        n_keep: The state of so many first ids is to be kept on disk once they are computed.
        whole: Nobody reads before the end, so pieces are handed over in few parts.
    """

    __slots__ = (
        "_handed_over_in",
        "_pieces",
        "_whole",
        "constraint",
        "deliver",
        "detokenizer",
        "end_ids",
        "finished_at",
        "first_token_at",
        "is_restoring",
        "is_unwanted",
        "leader",
        "n_accepted",
        "n_cached",
        "n_common",
        "n_drafted",
        "n_keep",
        "n_prefilled",
        "options",
        "params",
        "priority",
        "prompt_ids",
        "proposer",
        "rank",
        "seed",
        "slot",
        "started_at",
        "stops",
        "submitted_at",
        "token_ids",
    )

    def __init__(
        self,
        *,
        prompt_ids: array[int],
        params: SamplingParams,
        seed: int,
        options: RowOptions,
        detokenizer: Detokenizer,
        stops: StopMatcher | None,
        end_ids: frozenset[int],
        deliver: Deliver,
        constraint: Constraint | None = None,
        proposer: Proposer | None = None,
        priority: int = 0,
        n_keep: int = 0,
        whole: bool = False,
    ) -> None:
        self.prompt_ids = prompt_ids
        self.token_ids = array("i")
        self.params, self.seed, self.options = params, seed, options
        self.detokenizer, self.stops = detokenizer, stops
        self.end_ids = frozenset() if params.ignore_eos else end_ids
        self.deliver = deliver
        self.constraint, self.proposer = constraint, proposer
        self.priority = priority
        self.rank = (0, 0)
        self.slot: int | None = None
        self.leader: Sequence | None = None
        self.n_common = 0  # ids that the leader computes for both
        self.n_keep = n_keep
        self.is_restoring = False  # its kept prefix is being read
        self.is_unwanted = False  # somebody has asked for its end, from any thread
        self.n_cached = self.n_prefilled = self.n_drafted = self.n_accepted = 0
        self._pieces: list[Piece] = []  # made, not handed over yet
        self.submitted_at = time.perf_counter()
        self._whole = whole
        # The period of the clock; what a reader waits for begins at once.
        self._handed_over_in = self._period(self.submitted_at) if whole else -1.0
        self.started_at = self.first_token_at = self.finished_at = 0.0

    @property
    def n_ids(self) -> int:
        """Ids so far, prompt and answer."""
        return len(self.prompt_ids) + len(self.token_ids)

    def ids(self, start: int, stop: int) -> array[int]:
        """Return ids start..stop-1 of prompt and answer together."""
        n_prompt = len(self.prompt_ids)
        if start >= n_prompt:
            return self.token_ids[start - n_prompt : stop - n_prompt]
        return self.prompt_ids[start:stop] + self.token_ids[: max(0, stop - n_prompt)]

    def add(self, sample: Sample, n_ctx: int) -> bool:
        """
        Take the next id, deliver what it makes known, and tell whether the request has ended.

        Args:
            sample: The id drawn.
            n_ctx: Positions that a sequence may use.
        """
        token_id = sample.token_id
        if not self.token_ids:
            self.first_token_at = time.perf_counter()
        self.token_ids.append(token_id)
        if token_id in self.end_ids:
            return self.finish("stop", "", sample)
        if self.constraint is not None:
            self.constraint.accept(token_id)
        text = self.detokenizer.push(token_id)
        if self.stops is not None:
            text = self.stops.push(text)
            if self.stops.matched is not None:
                return self.finish("stop", text, sample)
        if len(self.token_ids) == self.params.max_tokens or self.n_ids >= n_ctx:
            return self.finish("length", text, sample)
        self._pieces.append(Piece(text, token_id, sample.logprob, sample.top_logprobs))
        period = self._period(time.perf_counter())
        if period != self._handed_over_in:
            self._handed_over_in = period
            self._hand_over()
        return False

    def _period(self, now: float) -> float:
        return now // (HAND_OVER_UNREAD_S if self._whole else HAND_OVER_S)

    def _hand_over(self) -> None:
        pieces, self._pieces = self._pieces, []
        self.deliver(pieces)

    def hand_over_rest(self) -> None:
        """Hand over what a reader waits for: the next id may be long in coming."""
        if self._pieces and not self._whole:
            # A reader that fails is noticed with the next id.
            with contextlib.suppress(Exception):
                self._hand_over()

    def finish(self, reason: FinishReason, text: str = "", sample: Sample | None = None) -> bool:
        """Deliver the last piece: `text`, then whatever was held back."""
        self.finished_at = time.perf_counter()
        matched = self.stops is not None and self.stops.matched is not None
        if not matched:
            tail = self.detokenizer.flush()
            if self.stops is not None:
                tail = self.stops.push(tail)
                if self.stops.matched is None:
                    tail += self.stops.flush()
                elif reason != "cancelled":
                    reason = "stop"
            text += tail
        self._pieces.append(
            Piece(
                text=text,
                token_id=None if sample is None else sample.token_id,
                logprob=None if sample is None else sample.logprob,
                top_logprobs=() if sample is None else sample.top_logprobs,
                finish_reason=reason,
                usage=Usage(
                    n_prompt=len(self.prompt_ids),
                    n_completion=len(self.token_ids),
                    n_cached=self.n_cached,
                ),
                timings=self._timings(),
            )
        )
        self._hand_over()
        return True

    def fail(self, error: BaseException) -> None:
        """End with an error instead of a last piece."""
        self.finished_at = time.perf_counter()
        self._whole = False  # who waited for the end gets what there is
        self.hand_over_rest()
        # A reader that cannot even be told has gone; the engine has others.
        with contextlib.suppress(Exception):
            self.deliver(error)

    def _timings(self) -> Timings:
        started = self.started_at or self.finished_at
        first = self.first_token_at or self.finished_at
        n_decoded = len(self.token_ids) - 1
        return Timings(
            queue_s=started - self.submitted_at,
            ttft_s=first - self.submitted_at,
            total_s=self.finished_at - self.submitted_at,
            prefill_tokens_per_s=_rate(self.n_prefilled, first - started),
            decode_tokens_per_s=_rate(n_decoded, self.finished_at - first) if n_decoded > 0 else 0.0,
            n_drafted=self.n_drafted,
            n_accepted=self.n_accepted,
        )


def _rate(count: int, seconds: float) -> float:
    return count / seconds if count and seconds > 0 else 0.0
