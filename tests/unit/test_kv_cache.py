"""Which ids each slot holds, how many cells that takes, and what is kept for later."""

from __future__ import annotations

from array import array
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gguf_engine.backend.base import Batch
from gguf_engine.backend.fake import FakeBackend
from gguf_engine.engine import kv_cache as module
from gguf_engine.engine.kv_cache import KVCache, common_prefix
from gguf_engine.engine.prefix_tree import BLOCK, PrefixTree

LONG = array("i", range(1, 41))


def cache(max_idle_cells: int | None = None, **sizes: Any) -> tuple[KVCache, FakeBackend]:
    backend = FakeBackend(**{"n_slots": 3, "n_ctx": 128, "n_batch": 128, **sizes})
    return KVCache(backend, max_idle_cells), backend


def fill(kv: KVCache, backend: FakeBackend, ids: array[int]) -> int:
    """Compute `ids` in a slot of its own, as the engine would."""
    slot, n_held = kv.open(ids)
    batch = Batch()
    batch.add(slot, n_held, ids[n_held:], 1)
    backend.forward(batch)
    kv.append(slot, ids[n_held:])
    return slot


def ids_from(start: int, n: int) -> array[int]:
    return array("i", range(start, start + n))


def test_a_new_cache_has_all_its_cells() -> None:
    kv, _ = cache(n_cells=200)
    assert kv.n_free_cells == 200


def test_a_finished_prompt_is_taken_over_by_the_request_that_continues_it() -> None:
    kv, backend = cache()
    kv.release(fill(kv, backend, LONG))
    slot, n_held = kv.open(LONG + array("i", [50, 51]))
    assert n_held == 40
    assert kv.held(slot) == LONG
    assert kv.n_idle_cells == 0


def test_a_finished_conversation_is_not_cut_for_one_that_shares_its_beginning() -> None:
    kv, backend = cache()
    first = fill(kv, backend, LONG + ids_from(50, 30))
    kv.release(first)
    second, n_held = kv.open(LONG + array("i", [90]))
    assert n_held == 40
    assert kv.n_held(first) == 70
    assert kv.held(second) == LONG
    assert kv.n_free_cells == 128 - 70


def test_the_last_id_is_always_left_to_compute() -> None:
    kv, backend = cache()
    kv.release(fill(kv, backend, LONG))
    _, n_held = kv.open(LONG)
    assert n_held == 39


def test_a_running_prompt_is_shared_without_taking_cells() -> None:
    kv, backend = cache()
    first = fill(kv, backend, LONG)
    free = kv.n_free_cells
    second, n_held = kv.open(LONG + array("i", [50]))
    assert second != first
    assert n_held == 40
    assert kv.n_free_cells == free
    assert backend.held(second) == list(LONG)


def test_shared_cells_are_free_when_their_last_user_is_gone() -> None:
    kv, backend = cache()
    first = fill(kv, backend, LONG)
    second, _ = kv.open(LONG + array("i", [50]))
    everything = kv.n_free_cells + 40
    kv.drop(first)
    assert kv.n_free_cells == everything - 40
    kv.drop(second)
    assert kv.n_free_cells == everything


def test_two_alternating_conversations_both_stay() -> None:
    kv, backend = cache(n_slots=3)
    a, b = ids_from(1, 40), ids_from(50, 30)
    kv.release(fill(kv, backend, a))
    kv.release(fill(kv, backend, b))
    slot, n_held = kv.open(a + array("i", [7]))
    assert n_held == 40
    kv.release(slot)
    assert kv.open(b + array("i", [7]))[1] == 30


def test_fewer_ids_than_a_block_are_no_prefix() -> None:
    kv, backend = cache()
    kv.release(fill(kv, backend, LONG))
    _, n_held = kv.open(LONG[: BLOCK - 1] + array("i", [90, 91, 92]))
    assert n_held == 0


def test_cells_kept_for_later_stay_within_their_share_and_go_from_the_end(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "EVICT_CELLS", 1)
    kv, backend = cache(max_idle_cells=50, n_slots=3)
    old, new = fill(kv, backend, LONG), fill(kv, backend, ids_from(50, 30))
    kv.release(old)
    kv.release(new)
    assert kv.n_idle_cells == 50
    assert backend.held(old) == list(LONG[:20])
    assert kv.n_held(new) == 30


def test_what_was_used_last_stays_whole_whatever_its_size() -> None:
    kv, backend = cache(max_idle_cells=10)
    slot = fill(kv, backend, LONG)
    kv.release(slot)
    assert kv.n_held(slot) == 40


def test_cells_of_a_running_request_do_not_count_as_kept() -> None:
    kv, backend = cache(max_idle_cells=10, n_slots=3)
    first = fill(kv, backend, LONG)
    second, _ = kv.open(LONG + array("i", [50]))
    third = fill(kv, backend, ids_from(60, 5))
    kv.release(first)
    kv.release(third)
    assert kv.n_idle_cells == 5
    kv.release(second)  # nobody runs on the 40 cells now, and there is something newer than the first slot
    assert kv.n_held(first) == kv.n_held(third) == 0
    assert kv.n_held(second) == 40


def test_room_is_made_from_the_slot_unused_for_longest_first() -> None:
    kv, backend = cache()
    a, b = fill(kv, backend, LONG), fill(kv, backend, ids_from(50, 30))
    kv.release(a)
    kv.release(b)
    kv.release(kv.open(LONG + array("i", [99]))[0])  # a was used again
    assert kv.can_make_room(128)
    assert not kv.can_make_room(129)
    assert kv.make_room(60)
    assert kv.n_held(b) == 0
    assert kv.n_held(a) == 40
    assert not kv.make_room(129)


def test_a_slot_that_was_shared_from_counts_as_used() -> None:
    kv, backend = cache()
    a, b = fill(kv, backend, LONG + ids_from(60, 20)), fill(kv, backend, ids_from(50, 30))
    kv.release(a)
    kv.release(b)
    kv.drop(kv.open(LONG + array("i", [90]))[0])
    assert kv.make_room(50)
    assert (kv.n_held(a), kv.n_held(b)) == (60, 0)


def test_a_model_that_cannot_truncate_drops_the_only_slot_and_starts_over() -> None:
    kv, backend = cache(n_slots=1, can_truncate=False)
    kv.release(fill(kv, backend, LONG))
    slot, n_held = kv.open(LONG[:30])
    assert n_held == 0
    assert backend.held(slot) == []


def test_a_model_that_cannot_copy_a_part_is_asked_once() -> None:
    kv, backend = cache(can_truncate=False)
    fill(kv, backend, LONG)
    assert kv.n_cells_for(LONG[:30]) == 30 - 29
    assert kv.open(LONG[:30])[1] == 0
    assert not kv.can_share
    assert kv.n_cells_for(LONG[:30]) == 30


def test_a_request_takes_only_the_cells_that_no_running_one_shares_with_it() -> None:
    kv, backend = cache(n_slots=3)
    kv.release(fill(kv, backend, LONG + ids_from(50, 30)))
    fill(kv, backend, LONG + array("i", [90]))
    assert kv.n_cells_for(LONG + ids_from(50, 31)) == 71 - 40  # 30 that are idle, one to compute


ids = st.lists(st.integers(0, 2), max_size=70).map(lambda values: array("i", values))


@given(st.lists(st.integers(0, 1), max_size=40), st.lists(st.integers(0, 1), max_size=40))
def test_the_common_prefix_is_what_a_loop_would_find(a: list[int], b: list[int]) -> None:
    expected = 0
    while expected < min(len(a), len(b)) and a[expected] == b[expected]:
        expected += 1
    assert common_prefix(array("i", a), array("i", b)) == expected


@given(
    stem=ids,
    parts=st.lists(st.tuples(st.integers(0, 70), ids, st.integers(0, 140)), min_size=1, max_size=5),
    wanted=st.tuples(st.integers(0, 70), ids),
)
def test_the_tree_finds_the_longest_prefix_in_whole_blocks(
    stem: array[int], parts: list[tuple[int, array[int], int]], wanted: tuple[int, array[int]]
) -> None:
    tree = PrefixTree(range(len(parts)))
    held = []
    for slot, (n_stem, rest, n_kept) in enumerate(parts):
        tree.extend(slot, stem[:n_stem] + rest)
        tree.cut(slot, n_kept)
        held.append((stem[:n_stem] + rest)[:n_kept])
    ids = stem[: wanted[0]] + wanted[1]
    in_blocks = [common_prefix(ids, each[: len(each) // BLOCK * BLOCK]) // BLOCK * BLOCK for each in held]
    length, slots = tree.longest(ids)
    assert length == max(in_blocks)
    assert not length or slots == {slot for slot, n in enumerate(in_blocks) if n == length}
    for slot in range(len(parts)):
        tree.cut(slot, 0)
    assert tree.n_nodes == 0
    assert not tree._root.children


class Model:
    """A KVCache under random operations, beside a backend that knows its own cells."""

    def __init__(self, n_slots: int, max_idle_cells: int, can_truncate: bool) -> None:
        self.backend = FakeBackend(n_slots=n_slots, n_ctx=64, n_cells=160, can_truncate=can_truncate)
        self.kv = KVCache(self.backend, max_idle_cells)
        self.live: list[int] = []

    def do(self, what: str, ids: array[int], n: int) -> None:
        kv = self.kv
        if what == "open" and ids and kv.has_room_for_request and kv.can_make_room(kv.n_cells_for(ids)):
            slot, _ = kv.open(ids)
            self.live.append(slot)
            self.compute(slot, ids)
        elif what == "cut" and self.live:
            kv.truncate(self.live[n % len(self.live)], min(n, kv.n_held(self.live[n % len(self.live)])))
        elif what in ("release", "drop") and self.live:
            getattr(kv, what)(self.live.pop(n % len(self.live)))
        elif what == "room":
            assert kv.can_make_room(n) == kv.make_room(n)

    def compute(self, slot: int, ids: array[int]) -> None:
        rest = ids[self.kv.n_held(slot) :]
        if self.kv.make_room(len(rest)) and rest:
            batch = Batch()
            batch.add(slot, self.kv.n_held(slot), rest, 0)
            self.backend.forward(batch)
            self.kv.append(slot, rest)

    def check(self) -> None:
        kv, cells = self.kv, self.backend._cells
        used = {cell[0] for slot in cells for cell in slot}
        live = {cell[0] for slot in self.live for cell in cells[slot]}
        assert kv.n_free_cells == 160 - len(used)
        assert kv.n_idle_cells == len(used - live)
        assert all(self.backend.held(slot) == list(kv.held(slot)) for slot in range(self.backend.n_slots))
        assert sorted([*self.live, *kv._idle, *kv._empty]) == list(range(self.backend.n_slots))
        assert kv.n_idle_cells <= kv._max_idle_cells or len(kv._idle) == 1


operations = st.lists(
    st.tuples(
        st.sampled_from(["open", "open", "open", "cut", "release", "release", "drop", "room"]),
        st.lists(st.integers(0, 1), min_size=2, max_size=3),
        st.integers(0, 160),
    ),
    max_size=30,
)


@settings(max_examples=300)
@given(operations, st.integers(1, 4), st.integers(0, 160), st.booleans(), st.integers(1, 40))
def test_the_account_of_cells_is_the_backends_after_any_operations(
    operations: list[tuple[str, list[int], int]],
    n_slots: int,
    max_idle_cells: int,
    can_truncate: bool,
    evict: int,
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "EVICT_CELLS", evict)
        model = Model(n_slots, max_idle_cells, can_truncate)
        for what, parts, n in operations:
            # Ids made of few different runs, so that they share beginnings.
            ids = array("i", [part for part in parts for _ in range(20)])[: max(1, n % 64)]
            model.do(what, ids, n)
            model.check()
