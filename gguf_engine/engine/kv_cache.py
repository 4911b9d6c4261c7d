"""
Which ids each slot of the backend holds, and how many cells that takes.

Owns that knowledge and nothing else; whatever changes a slot goes through here, so that the backend
and this view of it cannot drift apart. A cell shared by `copy` is counted once.
"""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Iterable

from gguf_engine.backend.base import Backend

# Below this a shared prefix is an accident (a template's first words), not worth keeping cells for.
MIN_PREFIX = 16


class KVCache:
    """
    The slots of one backend.

    A slot is live (a request runs in it), idle (its request ended, its ids may serve as a prefix)
    or empty.
    """

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self._held = [array("i") for _ in range(backend.n_slots)]
        self._cells: list[list[int]] = [[] for _ in range(backend.n_slots)]
        self._n_users: Counter[int] = Counter()
        self._next_cell = 0
        # Dicts as ordered sets: the first idle slot is the one unused for longest.
        self._empty: dict[int, None] = dict.fromkeys(range(backend.n_slots))
        self._idle: dict[int, None] = {}

    def held(self, slot: int) -> array[int]:
        """Return the ids a slot holds, position by position; not to be changed."""
        return self._held[slot]

    def n_held(self, slot: int) -> int:
        """Return how many positions a slot holds."""
        return len(self._held[slot])

    @property
    def n_free_cells(self) -> int:
        """Cells no slot uses; idle slots' cells can be had with `make_room`."""
        return self._backend.n_cells - len(self._n_users)

    @property
    def has_room_for_request(self) -> bool:
        """Whether a slot is empty or idle."""
        return bool(self._empty or self._idle)

    def open(self, token_ids: array[int]) -> tuple[int, int]:
        """
        Take a slot for a request and fill it with the longest prefix that any slot holds.

        Args:
            token_ids: What the request will compute. Its last id is never taken from a prefix:
                somebody has to give the row that follows it.

        Returns:
            The slot, now live, and how many ids it already holds.
        """
        wanted = token_ids[:-1]
        n_shared, source = max(
            ((common_prefix(held, wanted), slot) for slot, held in enumerate(self._held)),
            key=lambda found: (found[0], found[1] in self._idle),
        )
        self._drop_unrelated(wanted)
        if n_shared < MIN_PREFIX:
            return self._take_empty(), 0
        if source in self._idle and self._truncate_or_drop(source, n_shared):
            del self._idle[source]
            return source, n_shared
        if not self.n_held(source):
            return self._take_empty(), 0
        target = self._take_empty()
        try:
            is_shared = self._backend.copy(source, target, n_shared)
        except BaseException:
            self.drop(target)
            raise
        if not is_shared:
            return target, 0
        self._held[target] = self._held[source][:n_shared]
        self._cells[target] = self._cells[source][:n_shared]
        self._n_users.update(self._cells[target])
        return target, n_shared

    def n_shared_with_live(self, token_ids: array[int]) -> int:
        """Return how many cells `open` would share with a running request instead of taking them."""
        live = (held for slot, held in enumerate(self._held) if held and slot not in self._idle)
        n_shared = max((common_prefix(held, token_ids[:-1]) for held in live), default=0)
        return n_shared if n_shared >= MIN_PREFIX else 0

    def _drop_unrelated(self, wanted: array[int]) -> None:
        """
        Empty the idle slots that share nothing with what is wanted now.

        Attention runs over every used cell of a unified cache, so cells kept for nobody cost time.
        """
        for slot in [s for s in self._idle if common_prefix(self._held[s], wanted) < MIN_PREFIX]:
            self.drop(slot)

    def _take_empty(self) -> int:
        if not self._empty:
            self.drop(next(iter(self._idle)))
        slot = next(iter(self._empty))
        del self._empty[slot]
        return slot

    def _truncate_or_drop(self, slot: int, length: int) -> bool:
        if self.truncate(slot, length):
            return True
        self.drop(slot)
        return False

    def append(self, slot: int, token_ids: Iterable[int]) -> None:
        """Record what a forward pass stored."""
        held, cells = self._held[slot], self._cells[slot]
        for token_id in token_ids:
            held.append(token_id)
            cells.append(self._next_cell)
            self._n_users[self._next_cell] = 1
            self._next_cell += 1

    def truncate(self, slot: int, length: int) -> bool:
        """Keep the first `length` positions. False, and nothing changed: the model cannot."""
        if length == len(self._held[slot]):
            return True
        if not self._backend.truncate(slot, length):
            return False
        del self._held[slot][length:]
        self._forget_cells(slot, length)
        return True

    def undo(self, slot: int) -> bool:
        """Drop what a failed forward pass may have stored beyond the recorded ids."""
        return self._backend.truncate(slot, len(self._held[slot]))

    def _forget_cells(self, slot: int, length: int) -> None:
        cells = self._cells[slot]
        for cell in cells[length:]:
            self._n_users[cell] -= 1
            if not self._n_users[cell]:
                del self._n_users[cell]
        del cells[length:]

    def release(self, slot: int) -> None:
        """End a request: its slot becomes idle, its ids stay for others to share."""
        if self._held[slot]:
            self._idle[slot] = None
        else:
            self._empty[slot] = None

    def drop(self, slot: int) -> None:
        """Empty a slot, live or idle."""
        # Dropping a whole sequence is the one removal that every kind of model can do.
        self._backend.truncate(slot, 0)
        del self._held[slot][:]
        self._forget_cells(slot, 0)
        self._idle.pop(slot, None)
        self._empty[slot] = None

    def save(self, slot: int) -> bytes:
        """Return the backend's state of a slot; it stands for the ids the slot holds."""
        return self._backend.save(slot)

    def load(self, token_ids: array[int], state: bytes) -> int | None:
        """
        Put what `save` returned into a slot, which is idle then: the next request may share its ids.

        Returns:
            The slot; None, and nothing changed, when running requests have all slots or cells.

        Raises:
            BackendError: The backend refused the state.
        """
        if not self.has_room_for_request or not self.can_make_room(len(token_ids)):
            return None
        self.make_room(len(token_ids))
        slot = self._take_empty()
        try:
            self._backend.load(slot, state)
        except BaseException:
            self.drop(slot)
            raise
        self.append(slot, token_ids)
        self.release(slot)
        return slot

    def make_room(self, n_cells: int) -> bool:
        """Empty idle slots, oldest first, until `n_cells` are free; False if that is not enough."""
        while self.n_free_cells < n_cells and self._idle:
            self.drop(next(iter(self._idle)))
        return self.n_free_cells >= n_cells

    def can_make_room(self, n_cells: int) -> bool:
        """Whether `make_room` would succeed."""
        if self.n_free_cells >= n_cells:
            return True
        n_idle_users = Counter(cell for slot in self._idle for cell in self._cells[slot])
        n_idle_cells = sum(n == self._n_users[cell] for cell, n in n_idle_users.items())
        return self.n_free_cells + n_idle_cells >= n_cells


def common_prefix(a: array[int], b: array[int]) -> int:
    """Return how many leading ids two arrays share."""
    low, high = 0, min(len(a), len(b))
    if not high or a[0] != b[0]:
        return 0
    # Halving over slices that are compared in C beats a loop over ids.
    while low < high:
        middle = (low + high + 1) // 2
        if a[low:middle] == b[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low
