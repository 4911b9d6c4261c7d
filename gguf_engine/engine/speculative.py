"""
Speculation: guesses at the next ids, verified together in one forward pass.

A guess is kept while the target's own seeded draw equals it, so the ids are those that plain decoding
would have given, at any temperature, whatever is guessed and however much of it. How much is a question
of speed alone, and decided here by what passes cost and how often guesses were right.
"""

from __future__ import annotations

import logging
import time
from array import array
from collections.abc import Callable
from collections.abc import Sequence as SequenceABC
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, NamedTuple, Protocol

from gguf_engine.engine.draft import DraftModel
from gguf_engine.engine.draft_length import PassCosts, choose_lengths
from gguf_engine.engine.lookup import PromptLookup
from gguf_engine.engine.sequence import RequestFaultError
from gguf_engine.errors import OptionError

if TYPE_CHECKING:
    from gguf_engine.backend.base import Backend, Placement
    from gguf_engine.engine.sequence import Sequence
    from gguf_engine.text.constraint import Constraint

# Guessing may lose this share of a pass's time, every pass, and save up for so many passes. It is what
# bounds the cost of finding out, on a text that is not to be guessed.
LOSS_SHARE = 0.02
MAX_CREDIT = 32.0
# Of passes without a guess, which are many and short where guessing does not pay, one in so many is timed.
PLAIN_EVERY = 4

_log = logging.getLogger(__name__)


class Proposer(Protocol):
    """Whatever can guess how one sequence goes on. It is asked for all it may give, every time."""

    n_max: int
    """Most ids to propose at once, >= 1."""

    def propose(self, ids: array[int], k: int) -> SequenceABC[int]:
        """Return at most `k` ids that may follow `ids` (prompt and answer); none is a fine answer."""


class Source(Protocol):
    """
    Where the guesses for all requests of an engine come from.

    Attributes:
        n_faults: Times that guessing failed and was turned off for some request.
        placement: Where its model landed; None without a model.
    """

    n_faults: int
    placement: Placement | None

    def chances(self, sequence: Sequence, n_most: int) -> SequenceABC[float]:
        """
        Return how likely the first 1, 2, ... guesses are all right; at most n_most, none for none.

        Called once before each pass that gives the sequence an id.
        """

    def seconds(self, n_rounds: int, n_sequences: int) -> float:
        """Return what making `n_rounds` guesses for each of so many sequences takes."""

    def propose(self, wanted: SequenceABC[tuple[Sequence, int]]) -> SequenceABC[SequenceABC[int]]:
        """Return guesses for each sequence, at most so many as wanted; fewer or none is fine."""

    def learn(self, sequence: Sequence, n_right: int, n_wrong: int) -> None:
        """Hear how many verified guesses were right, and whether one was wrong."""

    def forget(self, sequence: Sequence) -> None:
        """Free what is kept for a sequence, if anything: it has lost its slot."""

    def close(self) -> None:
        """Free everything; twice is fine."""


class Draft(NamedTuple):
    """
    What is guessed for one sequence in one pass.

    Attributes:
        token_ids: At least one.
        masks: What the constraint allows at each row of the pass, the one before the first guess included;
            empty without a constraint, None where no row counts.
    """

    token_ids: list[int]
    masks: list[bytes | None]


class Speculation:
    """
    Decides what to guess, and learns from what came of it. Lives in an engine's thread.

    Args:
        n_vocab: Of the target.
        source: Guesses for every request that has no proposer of its own; None for none.
        n_max: Most ids to guess for a sequence at once.
        clock: Seconds, monotonic.
    """

    def __init__(
        self,
        n_vocab: int,
        source: Source | None = None,
        n_max: int = 0,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._n_vocab, self._source, self._n_max, self._clock = n_vocab, source, n_max, clock
        self._costs = PassCosts()
        self._credit = MAX_CREDIT  # in plain passes
        self._began_at = 0.0
        self._guess_s = 0.0  # took this pass's guesses, by the clock
        self._n_plain = 0  # passes without guesses
        self._n_rounds = 0  # of guessing for this pass
        self._n_right = 0  # of this pass's guesses
        self._n_faults = 0

    @property
    def placement(self) -> Placement | None:
        """Where the draft model landed; None without one."""
        return None if self._source is None else self._source.placement

    @property
    def n_faults(self) -> int:
        """Times that guessing failed and was turned off, for some requests or for all."""
        return self._n_faults + (0 if self._source is None else self._source.n_faults)

    def plan(
        self, sequences: SequenceABC[Sequence], n_ctx: int, n_spare: Callable[[], int]
    ) -> dict[Sequence, Draft]:
        """
        Return what to guess in the next pass, for those sequences that have anything.

        To be called at the beginning of each pass, also when nobody decodes: its time runs from here.

        Args:
            sequences: All that decode in that pass.
            n_ctx: Positions a sequence may use.
            n_spare: Returns the ids and cells left for guesses; asked when there are some.

        Raises:
            RequestFaultError: A sequence's own proposer or constraint failed, or proposed what is no id.
        """
        self._began_at = self._clock()
        self._guess_s, self._n_rounds, self._n_right = 0.0, 0, 0
        guesses: dict[Sequence, SequenceABC[int]] = {}
        if self._source is not None:
            guesses = self._guess(self._source, sequences, n_ctx, n_spare)
        own = [(each, each.proposer) for each in sequences if each.proposer is not None]
        if own:
            n_left = n_spare() - sum(map(len, guesses.values()))
            for n_before, (sequence, proposer) in enumerate(own):
                k = min(_room(sequence, n_ctx), n_left // (len(own) - n_before))
                guesses[sequence] = _own_guesses(proposer, sequence, k)
                n_left -= len(guesses[sequence])
        drafts = {}
        for sequence, ids in guesses.items():
            draft = self._checked(sequence, ids)
            if draft.token_ids:
                drafts[sequence] = draft
        return drafts

    def _guess(
        self,
        source: Source,
        sequences: SequenceABC[Sequence],
        n_ctx: int,
        n_spare: Callable[[], int],
    ) -> dict[Sequence, SequenceABC[int]]:
        try:
            n_max = self._n_max
            chances = [source.chances(each, n_max) if each.proposer is None else () for each in sequences]
            if not any(chances) or self._credit < 0:
                return {}
            chances = [
                each and each[: max(0, _room(sequence, n_ctx))]
                for sequence, each in zip(sequences, chances, strict=True)
            ]
            n_guessing = sum(map(bool, chances))
            lengths = choose_lengths(
                chances, self._costs, n_spare, lambda n_rounds: source.seconds(n_rounds, n_guessing)
            )
            wanted = [(each, n) for each, n in zip(sequences, lengths, strict=True) if n]
            if not wanted:
                return {}
            began_at = self._clock()
            proposed = source.propose(wanted)
            self._guess_s = self._clock() - began_at
            self._n_rounds = max(map(len, proposed))
            pairs = zip(wanted, proposed, strict=True)
            return {each: ids[:n] for (each, n), ids in pairs if ids}
        except Exception as error:  # noqa: BLE001 - our bug: it costs the guesses, not the answers
            self.stop(f"guessing failed: {error!r}")
            return {}

    def _checked(self, sequence: Sequence, guesses: SequenceABC[int]) -> Draft:
        """Cut guesses behind one that ends the answer and before one that the constraint forbids."""
        ids: list[int] = []
        masks: list[bytes | None] = []
        try:
            constraint = None if sequence.constraint is None else sequence.constraint.clone()
            for token_id in guesses:
                if not 0 <= token_id < self._n_vocab:
                    raise OptionError("draft", token_id, f"token ids in 0..{self._n_vocab - 1}")
                if constraint is not None:
                    mask = make_mask(constraint, self._n_vocab)
                    masks.append(mask)
                    if not mask[token_id >> 3] >> (token_id & 7) & 1:
                        return Draft(ids, masks)
                ids.append(token_id)
                if token_id in sequence.end_ids:
                    masks.append(None)
                    break
                if constraint is not None:
                    constraint.accept(token_id)
            else:
                masks.append(None if constraint is None else make_mask(constraint, self._n_vocab))
        except Exception as error:
            raise RequestFaultError(sequence, error) from error
        return Draft(ids, [] if constraint is None else masks)

    def note(self, sequence: Sequence, n_right: int, n_wrong: int) -> None:
        """Hear how many of a sequence's guesses were right, and whether one was wrong."""
        self._n_right += n_right
        if self._source is not None and sequence.proposer is None:
            self._source.learn(sequence, n_right, n_wrong)

    def learn(self, n_sequences: int, n_drafted: int) -> None:
        """
        Learn from the pass that `plan` began and that is over now.

        Args:
            n_sequences: Of which it computed one known id each; passes with more are not to be told.
            n_drafted: How many guesses it verified.
        """
        if self._source is None:
            return
        self._credit = min(MAX_CREDIT, self._credit + LOSS_SHARE)
        if not n_drafted:
            self._n_plain += 1
            if self._n_plain % PLAIN_EVERY and self._costs.seconds(n_sequences) is not None:
                return
        seconds = self._clock() - self._began_at - self._guess_s
        self._costs.record(n_sequences + n_drafted, seconds)
        plain = self._costs.seconds(n_sequences)
        took = self._costs.seconds(n_sequences + n_drafted)
        if n_drafted and plain and took:
            # By what such a pass takes as a rule, and no more than its rows one by one: a neighbour that
            # woke up is not the guesses' fault.
            took = min(took, plain * (1 + n_drafted / n_sequences))
            took += self._source.seconds(self._n_rounds, n_sequences)
            self._credit += 1 + self._n_right / n_sequences - took / plain
        self._credit = max(-MAX_CREDIT, min(MAX_CREDIT, self._credit))

    def forget(self, sequence: Sequence) -> None:
        """Free what is kept for a sequence that has lost its slot."""
        if self._source is not None:
            self._source.forget(sequence)

    def stop(self, reason: str) -> None:
        """Guess no more, for any request of this engine."""
        if self._source is not None:
            self._n_faults = self.n_faults + 1
            source, self._source = self._source, None
            _log.warning("no more guesses at the next ids (draft): %s", reason)
            source.close()

    def close(self) -> None:
        """Free the source; twice is fine."""
        if self._source is not None:
            self._source.close()


@dataclass(frozen=True, slots=True, kw_only=True)
class DraftMaker:
    """
    How to make what guesses, where the engine will run; can cross to another process if what it holds can.

    Attributes:
        n_max: Most ids to guess for a request at once, >= 1.
        make_backend: Makes the draft model; called with the progress callback when there is one. None
            looks guesses up in what each request holds already.
    """

    n_max: int
    make_backend: Callable[..., Backend] | None = None

    def __call__(self, n_vocab: int, *on_load: Callable[[float], bool]) -> Speculation:
        """
        Make it, for a target of `n_vocab` ids that is loaded.

        `on_load` is called with 1: the target is what takes long.
        """
        source: Source
        if self.make_backend is None:
            source = PromptLookup()
        else:
            backend = self.make_backend(*(partial(_report_whole, report) for report in on_load))
            source = DraftModel(backend, n_vocab)
        return Speculation(n_vocab, source, self.n_max)


def _report_whole(report: Callable[[float], bool], _: float) -> bool:
    return report(1.0)


def make_mask(constraint: Constraint, n_vocab: int) -> bytes:
    """Return which ids a constraint allows next, as `SampleRequest` takes it."""
    bits = bytearray((n_vocab + 31) // 32 * 4)
    constraint.fill_mask(bits)
    return bytes(bits)


def _room(sequence: Sequence, n_ctx: int) -> int:
    """Return how many guesses could be of use: the last id of an answer needs none."""
    room = n_ctx - sequence.n_ids - 1
    if sequence.params.max_tokens is None:
        return room
    return min(room, sequence.params.max_tokens - len(sequence.token_ids) - 1)


def _own_guesses(proposer: Proposer, sequence: Sequence, k: int) -> list[int]:
    k = min(k, proposer.n_max)
    if k <= 0:
        return []
    try:
        return list(proposer.propose(sequence.ids(0, sequence.n_ids), k))[:k]
    except Exception as error:
        raise RequestFaultError(sequence, error) from error
