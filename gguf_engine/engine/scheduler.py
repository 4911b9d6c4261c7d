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
from gguf_engine.engine.sequence import Sequence

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
        n_batch: Most tokens of one pass.
        n_ctx: Positions a sequence may use.
    """

    def __init__(self, kv_cache: KVCache, n_batch: int, n_ctx: int) -> None:
        self._kv = kv_cache
        self._n_batch, self._n_ctx = n_batch, n_ctx
        self.waiting: deque[Sequence] = deque()
        self.running: list[Sequence] = []  # oldest first

    def schedule(self) -> list[Chunk]:
        """Return the parts of the next pass; empty when nothing is to be done."""
        chunks: list[Chunk] = []
        budget = self._n_batch
        prefilling: list[Sequence] = []
        for sequence in list(self.running):
            if sequence.slot is None:
                continue  # preempted to make room for an older one
            if sequence.n_ids - self._kv.n_held(sequence.slot) > 1:
                prefilling.append(sequence)
            elif budget and self._make_room(1, sequence):
                chunk = self._decode_chunk(sequence, sequence.slot, budget)
                chunks.append(chunk)
                budget -= len(chunk.token_ids)
        if chunks:
            budget = min(budget, PREFILL_CHUNK)
        self._prefill(prefilling, chunks, budget)
        # Else the loop would spin: admission leaves room for every prompt it has let in.
        assert chunks or not (self.running or self.waiting)
        return chunks

    def _prefill(self, prefilling: list[Sequence], chunks: list[Chunk], budget: int) -> None:
        reserved = sum(len(chunk.token_ids) for chunk in chunks)
        queue = deque(s for s in prefilling if s.slot is not None)
        while budget > 0:
            sequence = queue.popleft() if queue else self._admit(reserved)
            if sequence is None or sequence.slot is None:
                return
            start = self._kv.n_held(sequence.slot)
            n_tokens = min(budget, sequence.n_ids - start)
            if not self._kv.make_room(reserved + n_tokens):
                n_tokens = min(n_tokens, self._kv.n_free_cells - reserved)
            if n_tokens <= 0:
                return
            is_last = start + n_tokens == sequence.n_ids
            ids = sequence.ids(start, start + n_tokens)
            chunks.append(Chunk(sequence, sequence.slot, start, ids, 0, int(is_last)))
            budget -= n_tokens
            reserved += n_tokens

    def _admit(self, reserved: int) -> Sequence | None:
        """Give the first waiting sequence a slot, if its ids and one more can be held."""
        if not self.waiting or not self._kv.has_room_for_request:
            return None
        sequence = self.waiting[0]
        held_elsewhere = sum(s.n_ids - self._kv.n_held(s.slot) for s in self.running if s.slot is not None)
        if self.running and not self._kv.can_make_room(max(reserved, held_elsewhere) + sequence.n_ids + 1):
            return None
        self.waiting.popleft()
        sequence.slot, n_cached = self._kv.open(sequence.ids(0, sequence.n_ids))
        if not sequence.started_at:
            sequence.started_at = time.perf_counter()
            sequence.n_cached = min(n_cached, len(sequence.prompt_ids))
            sequence.n_prefilled = len(sequence.prompt_ids) - sequence.n_cached
        self.running.append(sequence)
        return sequence

    def _decode_chunk(self, sequence: Sequence, slot: int, budget: int) -> Chunk:
        start = self._kv.n_held(slot)
        token_ids = sequence.ids(start, sequence.n_ids)
        drafts = self._drafts(sequence, budget - 1)
        token_ids.extend(drafts)
        return Chunk(sequence, slot, start, token_ids, len(drafts), 1 + len(drafts))

    def _drafts(self, sequence: Sequence, budget: int) -> list[int]:
        proposer = sequence.proposer
        # A constraint's mask depends on the ids before it, drafts too: no guessing there.
        if proposer is None or sequence.constraint is not None:
            return []
        room = self._n_ctx - sequence.n_ids - 1
        if sequence.params.max_tokens is not None:
            room = min(room, sequence.params.max_tokens - len(sequence.token_ids) - 1)
        k = min(proposer.n_max, budget, room, self._kv.n_free_cells - len(self.running))
        return list(proposer.propose(sequence.ids(0, sequence.n_ids), k))[:k] if k > 0 else []

    def _make_room(self, n_cells: int, sequence: Sequence) -> bool:
        """Free cells for a running sequence, at the cost of the youngest; False if it was that one."""
        # Every running sequence may take a cell in this pass.
        wanted = n_cells + len(self.running) - 1
        while not self._kv.make_room(wanted) and len(self.running) > 1:
            self.preempt_youngest()
            wanted = n_cells + len(self.running) - 1
        return sequence.slot is not None

    def preempt_youngest(self) -> None:
        """Take the slot of the sequence that started last; it goes on, with the same text, later."""
        sequence = self.running.pop()
        self.free(sequence, keep=False)
        self.waiting.appendleft(sequence)

    def remove(self, sequence: Sequence, *, keep: bool) -> None:
        """Forget a sequence, waiting or running; `keep` leaves its ids for others to share."""
        if sequence in self.running:
            self.running.remove(sequence)
            self.free(sequence, keep=keep)
        elif sequence in self.waiting:
            self.waiting.remove(sequence)

    def restart(self, sequence: Sequence) -> None:
        """Compute a running sequence from its first id again: its slot is no longer what it was."""
        self.running.remove(sequence)
        self.free(sequence, keep=False)
        self.waiting.appendleft(sequence)

    def free(self, sequence: Sequence, *, keep: bool) -> None:
        """Take a sequence's slot."""
        slot, sequence.slot = sequence.slot, None
        if slot is None:
            return
        if keep:
            self._kv.release(slot)
        else:
            self._kv.drop(slot)
