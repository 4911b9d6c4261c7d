"""
Which ids each slot of the backend holds, and how many cells that takes.

Owns that knowledge and nothing else; whatever changes a slot goes through here, so that the backend
and this view of it cannot drift apart. A cell shared by `copy` is counted once.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable

from gguf_engine.backend.base import Backend, Bytes
from gguf_engine.engine.prefix_tree import BLOCK, PrefixTree

# What is evicted at once: each eviction costs llama.cpp a walk over all cells.
EVICT_CELLS = 256
# Idle cells that hardly cost a request anything: llama.cpp attends to cells by 256.
FREE_CELLS = 128


class KVCache:
    """
    The slots of one backend.

    A slot is live (a request runs in it), idle (its request ended, its ids may serve as a prefix)
    or empty.

    Args:
        backend: Whose slots they are.
        max_idle_cells: Most cells that idle slots alone may use, but for the one used last; None for as
            many as there are. Those unused for longest are freed, from the end: beginnings are what
            requests share.
        max_idle_passes: Passes after which an idle slot that nobody has used makes way for a request that
            is small beside it; None for never.
    """

    def __init__(
        self, backend: Backend, max_idle_cells: int | None = None, max_idle_passes: int | None = None
    ) -> None:
        self._backend = backend
        self._max_idle_passes = max_idle_passes
        self._n_passes = 0
        self._max_idle_cells = backend.n_cells if max_idle_cells is None else max_idle_cells
        self._held = [array("i") for _ in range(backend.n_slots)]
        self._cells: list[list[int]] = [[] for _ in range(backend.n_slots)]
        self._tree = PrefixTree(range(backend.n_slots))
        # cell -> slots that use it, and live slots that use it; a cell without any is not there
        self._n_users: dict[int, int] = {}
        self._n_live_users: dict[int, int] = {}
        self._next_cell = 0
        self._empty: dict[int, None] = dict.fromkeys(range(backend.n_slots))  # an ordered set
        # slot -> passes before it was used last; the first one is unused for longest
        self._idle: dict[int, int] = {}
        self.can_share = True
        """False once the backend has refused to copy a part of a slot, as recurrent models do."""

    def held(self, slot: int) -> array[int]:
        """Return the ids a slot holds, position by position; not to be changed."""
        return self._held[slot]

    def n_held(self, slot: int) -> int:
        """Return how many positions a slot holds."""
        return len(self._held[slot])

    @property
    def n_free_cells(self) -> int:
        """Cells no slot uses."""
        return self._backend.n_cells - len(self._n_users)

    @property
    def n_idle_cells(self) -> int:
        """Cells that idle slots alone use; `make_room` can have them."""
        return len(self._n_users) - len(self._n_live_users)

    @property
    def has_room_for_request(self) -> bool:
        """Whether a slot is empty or idle."""
        return bool(self._empty or self._idle)

    def find(self, token_ids: array[int]) -> tuple[int, int | None]:
        """
        Return how many leading ids some slot holds, the last one not counted, and that slot.

        Less than a block counts as nothing. Somebody has to give the row that follows the last id.
        """
        wanted = token_ids[:-1]
        n_blocks, slots = self._tree.longest(wanted)
        if not n_blocks:
            return 0, None
        rest = wanted[n_blocks : n_blocks + BLOCK]

        def worth(slot: int) -> tuple[int, bool, int]:
            held = self._held[slot]
            n_more = common_prefix(held[n_blocks : n_blocks + BLOCK], rest)
            return n_more, slot in self._idle, -len(held)  # an idle one with little else can be taken over

        source = max(slots, key=worth)
        return n_blocks + worth(source)[0], source

    def n_cells_for(self, token_ids: array[int]) -> int:
        """Return how many cells a request for these ids would take from those no running one uses."""
        n_shared, source = self.find(token_ids)
        if source is None or not self.can_share:
            return len(token_ids)
        # Live slots share beginnings, so the live cells of a slot come before its other ones.
        cells, low, high = self._cells[source], 0, n_shared
        while low < high:
            middle = (low + high + 1) // 2
            if cells[middle - 1] in self._n_live_users:
                low = middle
            else:
                high = middle - 1
        return len(token_ids) - low

    def open(self, token_ids: array[int]) -> tuple[int, int]:
        """
        Take a slot for a request and fill it with the longest prefix that any slot holds.

        Args:
            token_ids: What the request will compute.

        Returns:
            The slot, now live, and how many ids it already holds.
        """
        n_shared, source = self.find(token_ids)
        # Now, for llama.cpp attends to all cells up to the last one in use: freed earlier, under a request
        # that runs, they would gain nothing.
        self._let_go(len(token_ids), keep=source)
        if source in self._idle and self._is_spare(source, n_shared):
            if self.truncate(source, n_shared):
                del self._idle[source]
                self._enliven(self._cells[source])
                return source, n_shared
            if not self._others(source):
                self.drop(source)
        slot = self.take(keep=source)
        return slot, self.fill(slot, token_ids)

    def _is_spare(self, slot: int, n_shared: int) -> bool:
        """Whether an idle slot is of little use but for its first ids, or there is no other to be had."""
        return len(self._held[slot]) - n_shared < BLOCK or not self._others(slot)

    def _others(self, slot: int) -> bool:
        return bool(self._empty) or len(self._idle) > 1 or slot not in self._idle

    def take(self, keep: int | None = None) -> int:
        """Return a slot, live and empty; where no slot is empty the idle one unused for longest is."""
        if not self._empty:
            self.drop(next(slot for slot in self._idle if slot != keep))
        slot = next(iter(self._empty))
        del self._empty[slot]
        return slot

    def fill(self, slot: int, token_ids: array[int]) -> int:
        """Share the longest prefix that any slot holds with a live, empty one; return its length."""
        n_shared, source = self.find(token_ids)
        if source is None:
            return 0
        try:
            is_shared = self._backend.copy(source, slot, n_shared)
        except BaseException:
            self.drop(slot)
            raise
        if not is_shared:
            self.can_share = False
            return 0
        if source in self._idle:  # used just now
            del self._idle[source]
            self._idle[source] = self._n_passes
        self._held[slot] = self._held[source][:n_shared]
        self._cells[slot] = cells = self._cells[source][:n_shared]
        self._tree.extend(slot, self._held[slot])
        for cell in cells:
            self._n_users[cell] += 1
        self._enliven(cells)
        return n_shared

    def _enliven(self, cells: Iterable[int]) -> None:
        n_live_users = self._n_live_users
        for cell in cells:
            n_live_users[cell] = n_live_users.get(cell, 0) + 1

    def append(self, slot: int, token_ids: Iterable[int]) -> None:
        """Record what a forward pass stored in a live slot."""
        held, cells = self._held[slot], self._cells[slot]
        n_blocks = len(held) // BLOCK
        for token_id in token_ids:
            held.append(token_id)
            cells.append(self._next_cell)
            self._n_users[self._next_cell] = self._n_live_users[self._next_cell] = 1
            self._next_cell += 1
        if len(held) // BLOCK > n_blocks:
            self._tree.extend(slot, held)

    def truncate(self, slot: int, length: int) -> bool:
        """Keep the first `length` positions. False, and nothing changed: the model cannot."""
        if length == len(self._held[slot]):
            return True
        if not self._backend.truncate(slot, length):
            return False
        self._forget(slot, length)
        return True

    def undo(self, slot: int) -> bool:
        """Drop what a failed forward pass may have stored beyond the recorded ids."""
        return self._backend.truncate(slot, len(self._held[slot]))

    def _forget(self, slot: int, length: int) -> None:
        cells = self._cells[slot][length:]
        if slot not in self._idle:
            _decrease(self._n_live_users, cells)
        _decrease(self._n_users, cells)
        del self._held[slot][length:]
        del self._cells[slot][length:]
        self._tree.cut(slot, length)

    def release(self, slot: int) -> None:
        """End a request: its slot becomes idle, its ids stay for others to share."""
        if self._held[slot]:
            _decrease(self._n_live_users, self._cells[slot])
            self._idle[slot] = self._n_passes
        else:
            self._empty[slot] = None
        self._shrink()

    def age(self) -> None:
        """Note that a pass was computed."""
        self._n_passes += 1

    def _let_go(self, n_ids: int, keep: int | None) -> None:
        """Empty old idle slots, but `keep`, until the others hold little beside a request of `n_ids`."""
        if self._max_idle_passes is None:
            return
        n_allowed = max(FREE_CELLS, 2 * n_ids)
        oldest = self._n_passes - self._max_idle_passes
        for slot, used_at in list(self._idle.items()):
            if used_at >= oldest or self.n_idle_cells <= n_allowed:
                return
            if slot != keep:
                self._clear(slot)

    def drop(self, slot: int) -> None:
        """Empty a slot, live or idle."""
        self._clear(slot)
        self._shrink()

    def _clear(self, slot: int) -> None:
        # Dropping a whole sequence is the one removal that every kind of model can do.
        self._backend.truncate(slot, 0)
        self._forget(slot, 0)
        self._idle.pop(slot, None)
        self._empty[slot] = None

    def _shrink(self) -> None:
        """Keep idle slots within their cells; what was used last stays whole."""
        while self.n_idle_cells > self._max_idle_cells and len(self._idle) > 1:
            self._evict(self.n_idle_cells - self._max_idle_cells)

    def _evict(self, n_cells: int) -> None:
        """Free cells of the idle slot unused for longest: its last ones, or all."""
        slot = next(iter(self._idle))
        n_kept = len(self._held[slot]) - max(n_cells, EVICT_CELLS)
        if n_kept < BLOCK or not self.truncate(slot, n_kept):
            self._clear(slot)

    def make_room(self, n_cells: int) -> bool:
        """Evict from idle slots, oldest first, until `n_cells` are free; False if that is not enough."""
        while self.n_free_cells < n_cells and self._idle:
            self._evict(n_cells - self.n_free_cells)
        return self.n_free_cells >= n_cells

    def can_make_room(self, n_cells: int) -> bool:
        """Whether `make_room` would succeed."""
        return self._backend.n_cells - len(self._n_live_users) >= n_cells

    def save(self, slot: int) -> Bytes:
        """Return the backend's state of a slot; it stands for the ids the slot holds."""
        return self._backend.save(slot)

    def load(self, token_ids: array[int], state: Bytes) -> int | None:
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
        slot = self.take()
        try:
            self._backend.load(slot, state)
        except BaseException:
            self.drop(slot)
            raise
        self.append(slot, token_ids)
        self.release(slot)
        return slot


def _decrease(counts: dict[int, int], cells: Iterable[int]) -> None:
    for cell in cells:
        left = counts[cell] - 1
        if left:
            counts[cell] = left
        else:
            del counts[cell]


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
