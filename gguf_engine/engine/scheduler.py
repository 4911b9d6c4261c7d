"""
What the next forward pass computes: running requests first, then prompts in chunks, then new requests.

Owns who waits and who runs. A request's next ids to compute are those it has and its slot does not
hold; decoding is the case of one such id, so a prompt, an answer and a resumed request are one case.
"""

from __future__ import annotations

import time
from array import array
from collections import deque
from dataclasses import dataclass

from gguf_engine.engine.kv_cache import KVCache
from gguf_engine.engine.sequence import RequestFaultError, Sequence

# While others decode, a prompt is computed in pieces of this size, so that their next token does not
# wait for the whole of it.
PREFILL_CHUNK = 128


@dataclass(slots=True)
class Chunk:
    """
    One sequence's part of a forward pass.

    Attributes:
        slot, start: Where the ids go.
        token_ids: Ids to compute, drafts last.
        n_drafts: How many of them are guesses.
        n_outputs: Rows wanted: one for the last known id, if it is here, and one a draft.
    """

    sequence: Sequence
    slot: int
    start: int
    token_ids: array[int]
    n_drafts: int
    n_outputs: int


class Scheduler:
    """
    Continuous batching with chunked prefill over the slots and cells of one KVCache.

    Args:
        kv_cache: Where sequences live.
        n_batch: Most tokens of one pass; no fewer than there are slots.
        n_ctx: Positions a sequence may use.
    """

    def __init__(self, kv_cache: KVCache, n_batch: int, n_ctx: int) -> None:
        self._kv = kv_cache
        self._n_batch, self._n_ctx = n_batch, n_ctx
        self.waiting: deque[Sequence] = deque()
        self.running: list[Sequence] = []  # oldest first

    def schedule(self) -> list[Chunk]:
        """
        Return the parts of the next pass; empty when nothing is to be done.

        Raises:
            RequestFaultError: A proposer failed; nothing is planned, the others can be planned again.
        """
        decoding, prefilling = self._split()
        chunks = self._decode(decoding)
        n_planned = sum(len(chunk.token_ids) for chunk in chunks)
        budget = self._n_batch - n_planned
        if chunks:
            budget = min(budget, PREFILL_CHUNK)
        self._prefill(prefilling, chunks, budget, n_planned)
        # Else the loop would spin: admission leaves room for every prompt it has let in.
        assert chunks or not (self.running or self.waiting)
        return chunks

    def _split(self) -> tuple[list[tuple[Sequence, int]], list[tuple[Sequence, int]]]:
        """
        Return who has one id to compute and who has more, with their slots.

        Each of the former needs a cell now; when they are not to be had, the youngest lose theirs.
        """
        while True:
            decoding: list[tuple[Sequence, int]] = []
            prefilling: list[tuple[Sequence, int]] = []
            for sequence in self.running:
                slot = sequence.slot
                assert slot is not None
                pending = sequence.n_ids - self._kv.n_held(slot)
                (decoding if pending == 1 else prefilling).append((sequence, slot))
            if self._kv.make_room(len(decoding)) or len(self.running) == 1:
                return decoding, prefilling
            self.preempt_youngest()

    def _decode(self, decoding: list[tuple[Sequence, int]]) -> list[Chunk]:
        """Plan one id for each, and drafts from what is left, shared out evenly."""
        chunks: list[Chunk] = []
        spare = min(self._n_batch, self._kv.n_free_cells) - len(decoding)
        for n_before, (sequence, slot) in enumerate(decoding):
            start = self._kv.n_held(slot)
            token_ids = sequence.ids(start, sequence.n_ids)
            drafts: list[int] = []
            if sequence.proposer is not None:
                drafts = self._drafts(sequence, spare // (len(decoding) - n_before))
                token_ids.extend(drafts)
                spare -= len(drafts)
            chunks.append(Chunk(sequence, slot, start, token_ids, len(drafts), 1 + len(drafts)))
        return chunks

    def _drafts(self, sequence: Sequence, spare: int) -> list[int]:
        proposer = sequence.proposer
        # A constraint's mask depends on the ids before it, drafts too: no guessing there.
        if proposer is None or sequence.constraint is not None:
            return []
        room = self._n_ctx - sequence.n_ids - 1
        if sequence.params.max_tokens is not None:
            room = min(room, sequence.params.max_tokens - len(sequence.token_ids) - 1)
        k = min(proposer.n_max, spare, room)
        if k <= 0:
            return []
        try:
            return list(proposer.propose(sequence.ids(0, sequence.n_ids), k))[:k]
        except Exception as error:
            raise RequestFaultError(sequence, error) from error

    def _prefill(
        self, prefilling: list[tuple[Sequence, int]], chunks: list[Chunk], budget: int, reserved: int
    ) -> None:
        """Add parts of prompts, the oldest first, then of new requests, while tokens and cells last."""
        queue = deque(prefilling)
        while budget > 0:
            found = queue.popleft() if queue else self._admit(reserved)
            if found is None:
                return
            sequence, slot = found
            start = self._kv.n_held(slot)
            n_tokens = min(budget, sequence.n_ids - start)
            if not self._kv.make_room(reserved + n_tokens):
                n_tokens = min(n_tokens, self._kv.n_free_cells - reserved)
            if n_tokens <= 0:
                return
            is_last = start + n_tokens == sequence.n_ids
            ids = sequence.ids(start, start + n_tokens)
            chunks.append(Chunk(sequence, slot, start, ids, 0, int(is_last)))
            budget -= n_tokens
            reserved += n_tokens

    def _admit(self, reserved: int) -> tuple[Sequence, int] | None:
        """Give the first waiting sequence a slot, if its ids and one more can be held."""
        if not self.waiting or not self._kv.has_room_for_request:
            return None
        sequence = self.waiting[0]
        ids = sequence.ids(0, sequence.n_ids)
        if self.running:
            pending = sum(s.n_ids - self._kv.n_held(s.slot) for s in self.running if s.slot is not None)
            wanted = len(ids) + 1 - self._kv.n_shared_with_live(ids)
            if not self._kv.can_make_room(max(reserved, pending) + wanted):
                return None
        slot, n_cached = self._kv.open(ids)
        self.waiting.popleft()
        sequence.slot = slot
        sequence.n_cached = min(n_cached, len(sequence.prompt_ids))
        sequence.started_at = sequence.started_at or time.perf_counter()
        self.running.append(sequence)
        return sequence, slot

    def preempt_youngest(self) -> None:
        """Take the slot of the sequence that started last; see `requeue`."""
        self.requeue(self.running[-1])

    def requeue(self, sequence: Sequence) -> None:
        """Take a running sequence's slot; it is computed again, with the same text, when it fits."""
        self.remove(sequence, keep=False)
        sequence.pause()
        self.waiting.appendleft(sequence)

    def remove(self, sequence: Sequence, *, keep: bool) -> None:
        """Forget a sequence, waiting or running; `keep` leaves its ids for others to share."""
        if sequence in self.waiting:
            self.waiting.remove(sequence)
        elif sequence in self.running:
            self.running.remove(sequence)
            slot, sequence.slot = sequence.slot, None
            if slot is None:
                return
            if keep:
                self._kv.release(slot)
            else:
                self._kv.drop(slot)
