"""
What the next forward pass computes: running requests first, then prompts in chunks, then new requests.

Owns who waits and who runs. A request's next ids to compute are those it has and its slot does not
hold; decoding is the case of one such id, so a prompt, an answer and a resumed request are one case.

One order, `Sequence.rank`, says who comes first everywhere: a request of priority p stands where one of
priority 0 would that came p * AGING passes earlier. So nobody waits for ever: only those can come before
a request that arrive within that many passes after it.
"""

from __future__ import annotations

import time
from array import array
from bisect import insort
from collections.abc import Sequence as SequenceABC
from dataclasses import dataclass
from operator import attrgetter

from gguf_engine.engine.kv_cache import KVCache, common_prefix
from gguf_engine.engine.prefix_tree import BLOCK
from gguf_engine.engine.presets import PrefillPace
from gguf_engine.engine.sequence import Sequence
from gguf_engine.engine.speculative import Draft, Speculation

# Passes that one step of priority is worth.
AGING = 64

_by_rank = attrgetter("rank")


@dataclass(slots=True)
class Chunk:
    """
    One sequence's part of a forward pass.

    Attributes:
        slot, start: Where the ids go.
        token_ids: Ids to compute, drafts last.
        n_drafts: How many of them are guesses.
        n_outputs: Rows wanted: one for the last known id, if it is here, and one a draft.
        masks: What a constraint allows at each of them; empty when that is not known yet.
    """

    sequence: Sequence
    slot: int
    start: int
    token_ids: array[int]
    n_drafts: int
    n_outputs: int
    masks: SequenceABC[bytes | None] = ()


class Scheduler:
    """
    Continuous batching with chunked prefill over the slots and cells of one KVCache.

    Args:
        kv_cache: Where sequences live.
        n_batch: Most tokens of one pass; no fewer than there are slots.
        n_ctx: Positions a sequence may use.
        speculation: What guesses at the next ids.
        pace: How much of prompts goes beside running answers.
    """

    def __init__(
        self, kv_cache: KVCache, n_batch: int, n_ctx: int, speculation: Speculation, pace: PrefillPace
    ) -> None:
        self._kv = kv_cache
        self._n_batch, self._n_ctx = n_batch, n_ctx
        self._speculation, self.pace = speculation, pace
        self._n_passes = self._n_added = 0
        self.waiting: list[Sequence] = []  # both by rank, the first comes first
        self.running: list[Sequence] = []

    def add(self, sequence: Sequence) -> None:
        """Let a sequence wait for its turn."""
        self._n_added += 1
        sequence.rank = (self._n_passes - AGING * sequence.priority, self._n_added)
        insort(self.waiting, sequence, key=_by_rank)

    @property
    def is_busy(self) -> bool:
        """Whether there is anything to compute that does not wait for a disk."""
        return bool(self.running) or any(not sequence.is_restoring for sequence in self.waiting)

    def schedule(self) -> list[Chunk]:
        """
        Return the parts of the next pass; empty when nothing is to be done, or all wait for a disk.

        Raises:
            RequestFaultError: A proposer failed; nothing is planned, the others can be planned again.
        """
        self._n_passes += 1
        decoding, prefilling = self._split()
        chunks = self._decode(decoding)
        n_planned = sum(len(chunk.token_ids) for chunk in chunks)
        budget = self._n_batch - n_planned
        if chunks:
            budget = min(budget, self.pace.n_ids)
        if budget > 0 and (prefilling or self.waiting):
            prefilling += self._admit(n_planned - len(decoding))
            prefilling.sort(key=lambda found: found[0].rank)
            self._prefill(prefilling, chunks, budget, n_planned)
        # Else the loop would spin: admission leaves room for every prompt it has let in.
        assert chunks or not self.running
        return chunks

    def _split(self) -> tuple[list[tuple[Sequence, int]], list[tuple[Sequence, int]]]:
        """
        Return who has one id to compute and who has more, with their slots.

        Each of the former needs a cell now; when they are not to be had, the last in rank loses its own.
        """
        while True:
            decoding: list[tuple[Sequence, int]] = []
            prefilling: list[tuple[Sequence, int]] = []
            for sequence in self.running:
                slot = sequence.slot
                assert slot is not None
                if sequence.leader is not None and self._follows(sequence, slot):
                    continue
                pending = sequence.n_ids - self._kv.n_held(slot)
                (decoding if pending == 1 else prefilling).append((sequence, slot))
            if self._kv.make_room(len(decoding)) or len(self.running) == 1:
                return decoding, prefilling
            self.preempt_youngest(keep=True)

    def _decode(self, decoding: list[tuple[Sequence, int]]) -> list[Chunk]:
        """Plan one id for each, and guesses."""
        drafts = self._drafts(decoding)
        chunks: list[Chunk] = []
        for sequence, slot in decoding:
            start = self._kv.n_held(slot)
            token_ids = sequence.ids(start, sequence.n_ids)
            draft = drafts.get(sequence)
            if draft is None:
                chunks.append(Chunk(sequence, slot, start, token_ids, 0, 1))
            else:
                token_ids.extend(draft.token_ids)
                n_drafts = len(draft.token_ids)
                chunks.append(Chunk(sequence, slot, start, token_ids, n_drafts, 1 + n_drafts, draft.masks))
        return chunks

    def _drafts(self, decoding: list[tuple[Sequence, int]]) -> dict[Sequence, Draft]:
        """
        Return guesses for which there are tokens in the pass, and cells.

        Prompts come first: theirs is half of what the pass has left, and all the cells they need.
        """

        def n_spare() -> int:
            n_pending = sum(self._n_pending(sequence) for sequence in self.running)
            n_left = self._n_batch - len(decoding)
            if self.waiting or n_pending > len(decoding):
                n_left //= 2
            return min(n_left, self._kv.n_free_cells + self._kv.n_idle_cells - n_pending)

        drafts = self._speculation.plan([sequence for sequence, _ in decoding], self._n_ctx, n_spare)
        if not drafts:
            return {}
        n_drafts = sum(len(draft.token_ids) for draft in drafts.values())
        return drafts if self._kv.make_room(len(decoding) + n_drafts) else {}

    def _prefill(
        self, prefilling: list[tuple[Sequence, int]], chunks: list[Chunk], budget: int, reserved: int
    ) -> None:
        """
        Add parts of prompts while tokens and cells last.

        The first in rank gets half, so that it is never held up for long; the rest goes to those that
        have the least left, so that a short prompt does not wait for long ones.
        """
        left = [sequence.n_ids - self._kv.n_held(slot) for sequence, slot in prefilling]
        for (sequence, slot), share in zip(prefilling, share_out(left, budget), strict=True):
            start, n_tokens = self._kv.n_held(slot), share
            if start < sequence.n_keep:  # what is kept on disk is what the slot holds right then
                n_tokens = min(n_tokens, sequence.n_keep - start)
            if not self._kv.make_room(reserved + n_tokens):
                n_tokens = min(n_tokens, self._kv.n_free_cells - reserved)
            if n_tokens <= 0:
                continue
            is_last = start + n_tokens == sequence.n_ids
            ids = sequence.ids(start, start + n_tokens)
            chunks.append(Chunk(sequence, slot, start, ids, 0, int(is_last)))
            reserved += n_tokens

    def _admit(self, n_drafts: int) -> list[tuple[Sequence, int]]:
        """
        Give slots to those waiting, in order, while their ids and one more can be held.

        Those whose kept prefix is being read from disk are passed over; the first other one that does not
        fit is not. Returns those that can compute now, with their slots.
        """
        admitted: list[tuple[Sequence, int]] = []
        # Hundreds may wait: they are not looked at where all slots are taken.
        waiting = self.waiting if self._kv.has_room_for_request else []
        pending = n_drafts + sum(self._n_pending(sequence) for sequence in self.running)
        for sequence in [each for each in waiting if not each.is_restoring]:
            if not self._kv.has_room_for_request or not self._kv.can_make_room(pending + 1):
                break
            ids = sequence.ids(0, sequence.n_ids)
            self._find_leader(sequence, ids)
            n_cells = self._kv.n_cells_for(ids) if sequence.leader is None else len(ids) - sequence.n_common
            if self.running and not self._kv.can_make_room(pending + n_cells + 1):
                sequence.leader = None
                break
            self.waiting.remove(sequence)
            insort(self.running, sequence, key=_by_rank)
            if sequence.leader is None:
                sequence.slot, n_cached = self._kv.open(ids)
                self._start(sequence, n_cached)
                admitted.append((sequence, sequence.slot))
            else:
                sequence.slot = self._kv.take()
            pending += self._n_pending(sequence)
        return admitted

    def _n_pending(self, sequence: Sequence) -> int:
        """Return how many cells a running sequence will need for the ids it has."""
        assert sequence.slot is not None
        return sequence.n_ids - max(
            self._kv.n_held(sequence.slot), sequence.n_common if sequence.leader else 0
        )

    def _start(self, sequence: Sequence, n_cached: int) -> None:
        if not sequence.started_at:
            sequence.n_cached = min(n_cached, len(sequence.prompt_ids))
            sequence.started_at = time.perf_counter()

    def _find_leader(self, sequence: Sequence, ids: array[int]) -> None:
        """
        Let a sequence follow one that is computing a prefix of its ids now, and that comes before it.

        It then waits and shares that prefix, which costs it nothing, instead of computing it too.
        """
        sequence.leader, sequence.n_common = None, 0
        if not self._kv.can_share:
            return
        least = self._kv.find(ids)[0] + BLOCK
        for other in self.running:
            if other.leader is not None or other.slot is None or other.rank >= sequence.rank:
                continue
            if other.n_ids - self._kv.n_held(other.slot) > 1:
                n_common = common_prefix(other.ids(0, other.n_ids), ids[:-1])
                if n_common >= least:
                    sequence.leader, sequence.n_common, least = other, n_common, n_common + 1

    def _follows(self, sequence: Sequence, slot: int) -> bool:
        """Whether the leader has still to compute what is shared; if not, share it."""
        leader = sequence.leader
        assert leader is not None
        if leader.slot is not None and self._kv.n_held(leader.slot) < sequence.n_common:
            return True
        ids = sequence.ids(0, sequence.n_ids)
        sequence.leader = None
        if leader.slot is None:  # ended or preempted: the next of its followers may lead the others
            self._find_leader(sequence, ids)
        if sequence.leader is None:
            self._start(sequence, self._kv.fill(slot, ids))
        return sequence.leader is not None

    def preempt_youngest(self, *, keep: bool = False) -> None:
        """Take the slot of the sequence that is last in rank; see `requeue`."""
        self.requeue(self.running[-1], keep=keep)

    def requeue(self, sequence: Sequence, *, keep: bool = False) -> None:
        """
        Take a running sequence's slot; it goes on, with the same text, when it fits again.

        Args:
            keep: Leave its ids in an idle slot: what others do not need is not lost.
        """
        self.remove(sequence, keep=keep)
        sequence.hand_over_rest()
        insort(self.waiting, sequence, key=_by_rank)

    def remove(self, sequence: Sequence, *, keep: bool) -> None:
        """Forget a sequence, waiting or running; `keep` leaves its ids for others to share."""
        if sequence in self.waiting:
            self.waiting.remove(sequence)
        elif sequence in self.running:
            self.running.remove(sequence)
            slot, sequence.slot, sequence.leader = sequence.slot, None, None
            self._speculation.forget(sequence)
            if slot is None:
                return
            if keep:
                self._kv.release(slot)
            else:
                self._kv.drop(slot)


def share_out(left: list[int], budget: int) -> list[int]:
    """
    Return how many tokens each of some prompts gets of a pass, none more than it has left.

    The first gets half of the budget at least; what it does not need and the other half goes to the one
    with the least left, then the next.
    """
    shares = [0] * len(left)
    if left:
        shares[0] = min(left[0], (budget + 1) // 2)
        budget -= shares[0]
    for index in sorted(range(len(left)), key=left.__getitem__):
        more = min(left[index] - shares[index], budget)
        shares[index] += more
        budget -= more
    return shares
