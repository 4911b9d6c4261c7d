"""
PromptLookup: guesses that a request goes on as its prompt or its answer did before.

Owns, for each request that is decoding, an index of its ids. Guessing takes no forward pass, so it goes
on all the time and learns from every id that is drawn, whether the guess was verified or not.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence as SequenceABC
from typing import TYPE_CHECKING

from gguf_engine.engine.draft_length import MIN_CHANCE, Rate

if TYPE_CHECKING:
    from gguf_engine.backend.base import Placement
    from gguf_engine.engine.sequence import Sequence

# A prompt is indexed in pieces, so that a long one does not hold up the others' next pass.
MAX_INDEXED = 2048
_LONG = 4
_TABLE_SIZE = 2**15
# Chances to begin with, by length of agreement: 1, 2 and 3, 4 to 7, ... 64 and more.
_STARTS = (0.3, 0.4, 0.6, 0.8, 0.9, 0.95, 0.97)


class PromptLookup:
    """
    The guesses for all requests of an engine; see `Source`.

    A guess follows the newest place where the last ids occurred before, and stays with it while the
    request agrees. How likely it is to be right depends on how long it has agreed: ten ids are a copy,
    two an accident. So chances are kept for each power of two of that length, for each request,
    beginning with what the engine's other requests have shown.
    """

    def __init__(self) -> None:
        self._of_all = [Rate(memory=1024, start=start) for start in _STARTS]
        self._indexes: dict[Sequence, _Index] = {}
        self.n_faults = 0
        self.placement: Placement | None = None  # it needs no model

    def chances(self, sequence: Sequence, n_most: int) -> list[float]:
        """See Source.chances."""
        index = self._indexes.get(sequence)
        if index is None:
            index = self._indexes[sequence] = _Index(self._of_all)
        index.read(sequence)
        return index.chances(n_most) if index.at else []

    def seconds(self, n_rounds: int, n_sequences: int) -> float:
        """See Source.seconds: far less than a pass."""
        del n_rounds, n_sequences
        return 0.0

    def propose(self, wanted: SequenceABC[tuple[Sequence, int]]) -> list[list[int]]:
        """See Source.propose."""
        return [self._indexes[sequence].ahead(k) for sequence, k in wanted]

    def learn(self, sequence: Sequence, n_drafted: int, n_accepted: int) -> None:
        """See Source.learn: the ids themselves tell as much."""

    def forget(self, sequence: Sequence) -> None:
        """See Source.forget."""
        self._indexes.pop(sequence, None)

    def close(self) -> None:
        """See Source.close."""
        self._indexes.clear()


class _Index:
    """
    Which id followed each run of a few ids the last time.

    Two tables of fixed size hold, for runs of 4 ids and for single ones, the position after the newest
    with that hash. The single ones find the way back into a copy soon after a change.
    """

    __slots__ = ("_ids", "_long", "_n_agreeing", "_rates", "_short", "at")

    def __init__(self, of_all: list[Rate]) -> None:
        self._ids = array("i")
        self._long = array("i", bytes(4 * _TABLE_SIZE))
        self._short = array("i", bytes(4 * _TABLE_SIZE))
        # Half of what others have shown: requests that copy say little of those that do not.
        self._rates = [
            Rate(memory=64, prior=rate, start=(rate.value + start) / 2)
            for rate, start in zip(of_all, _STARTS, strict=False)
        ]
        self.at = 0  # position of the id that is guessed to come next; 0 for no guess
        self._n_agreeing = 0  # ids before `at` that equal those at the end

    def read(self, sequence: Sequence) -> None:
        """Take in the ids that are new, at most MAX_INDEXED; no guess while some are left."""
        n_read, n_ids = len(self._ids), sequence.n_ids
        if n_ids - n_read == 1 and n_read:  # without guesses the usual case, and the one to be quick in
            self._add_drawn(sequence.token_ids[-1] if sequence.token_ids else sequence.prompt_ids[-1])
        elif n_read >= len(sequence.prompt_ids):
            for token_id in sequence.ids(n_read, n_ids):
                self._add_drawn(token_id)
        elif n_ids - n_read > MAX_INDEXED:
            self._add(sequence.ids(n_read, n_read + MAX_INDEXED))
        else:
            ids = sequence.ids(n_read, n_ids)
            self._add(ids[:-1])
            self._add_drawn(ids[-1])

    def _add(self, new_ids: array[int]) -> None:
        ids, long, short = self._ids, self._long, self._short
        for token_id in new_ids:
            ids.append(token_id)
            n = len(ids)
            if n >= _LONG:
                long[_place(ids[n - 4], ids[n - 3], ids[n - 2], token_id)] = n
            short[token_id % _TABLE_SIZE] = n

    def _add_drawn(self, token_id: int) -> None:
        """Take in one id, learn from whether it was guessed, and guess the next."""
        ids, at = self._ids, self.at
        if at:
            is_right = ids[at] == token_id
            self._rates[_class_of(self._n_agreeing)].add(is_right)
            self.at = at + 1 if is_right else 0
            self._n_agreeing += 1
        ids.append(token_id)
        n = len(ids)
        if n >= _LONG:
            place = _place(ids[n - 4], ids[n - 3], ids[n - 2], token_id)
            if not self.at:
                self._find(self._long[place], _LONG)
            self._long[place] = n
        place = token_id % _TABLE_SIZE
        if not self.at:
            self._find(self._short[place], 1)
        self._short[place] = n

    def _find(self, at: int, n_agreeing: int) -> None:
        """Guess the id at `at` if what stands before it is what stands at the end: hashes collide."""
        ids = self._ids
        if at >= n_agreeing and ids[at - n_agreeing : at] == ids[-n_agreeing:]:
            self.at, self._n_agreeing = at, n_agreeing

    def chances(self, n_most: int) -> list[float]:
        """See Source.chances."""
        chances = []
        chance = 1.0
        for n_agreeing in range(self._n_agreeing, self._n_agreeing + n_most):
            chance *= self._rates[_class_of(n_agreeing)].value
            if chance < MIN_CHANCE:
                break
            chances.append(chance)
        return chances

    def ahead(self, k: int) -> list[int]:
        """Return the `k` ids from `at` on; what has been repeated since is repeated again."""
        ahead = self._ids[self.at : self.at + k].tolist()
        n_known = len(ahead)
        while len(ahead) < k:
            ahead += ahead[: min(n_known, k - len(ahead))]
        return ahead


def _place(*ids: int) -> int:
    return hash(ids) & (_TABLE_SIZE - 1)


def _class_of(n_agreeing: int) -> int:
    return min(n_agreeing.bit_length(), len(_STARTS)) - 1
