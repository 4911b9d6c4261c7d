"""What a request gives back: pieces while it runs, a completion at its end. Plain data, no behaviour."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, NamedTuple

FinishReason = Literal["stop", "length", "cancelled"]


class TokenLogprob(NamedTuple):
    """The log-probability of one id, natural logarithm, <= 0."""

    token_id: int
    logprob: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """Token counts of one request."""

    n_prompt: int
    n_completion: int
    n_cached: int = 0
    """Prompt tokens taken from a kept prefix instead of being computed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Timings:
    """Times of one request, measured with a monotonic clock from the moment it was submitted."""

    queue_s: float
    """Waiting for a slot."""
    ttft_s: float
    """Until the first token was sampled; total_s when there was none."""
    total_s: float
    prefill_tokens_per_s: float
    """Prompt tokens computed per second; 0 when none was computed."""
    decode_tokens_per_s: float
    """Tokens per second after the first; 0 when there are fewer than two."""
    n_drafted: int = 0
    """Ids that a proposer guessed; 0 without one."""
    n_accepted: int = 0
    """How many of them were drawn."""


class Piece(NamedTuple):
    """
    What became known with one token. A tuple, because it is made for every one.

    Attributes:
        text: Text that is complete; often "" (a character or a stop string may be unfinished).
        token_id: The token; None when the piece only brings the end.
        logprob: Of the token, when log-probabilities were asked for.
        top_logprobs: The most probable ids at this position, when asked for.
        finish_reason, usage, timings: Set on the last piece of a stream, None before it.
    """

    text: str
    token_id: int | None = None
    logprob: float | None = None
    top_logprobs: tuple[TokenLogprob, ...] = ()
    finish_reason: FinishReason | None = None
    usage: Usage | None = None
    timings: Timings | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Completion:
    """
    A finished answer.

    Attributes:
        text: The answer, without the end token and without a matched stop string.
        token_ids: Every sampled id, the ending one included.
        seed: What the draws were made with: the same request alone gives the same answer with it.
    """

    text: str
    token_ids: tuple[int, ...]
    finish_reason: FinishReason
    usage: Usage
    timings: Timings
    seed: int
    logprobs: tuple[float, ...] = ()
    top_logprobs: tuple[tuple[TokenLogprob, ...], ...] = field(default=())
