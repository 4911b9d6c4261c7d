"""Which ids each slot holds, and how many cells that takes."""

from __future__ import annotations

from array import array

from hypothesis import given
from hypothesis import strategies as st

from gguf_engine.backend.base import Batch
from gguf_engine.backend.fake import FakeBackend
from gguf_engine.engine.kv_cache import MIN_PREFIX, KVCache, common_prefix

LONG = array("i", range(1, 41))


def cache(**sizes: int) -> tuple[KVCache, FakeBackend]:
    backend = FakeBackend(**{"n_slots": 3, "n_ctx": 128, **sizes})  # type: ignore[arg-type]
    return KVCache(backend), backend


def fill(kv: KVCache, backend: FakeBackend, ids: array[int]) -> int:
    """Compute `ids` in a slot of its own, as the engine would."""
    slot, n_held = kv.open(ids)
    batch = Batch()
    batch.add(slot, n_held, ids[n_held:], 1)
    backend.forward(batch)
    kv.append(slot, ids[n_held:])
    return slot


def test_a_new_cache_has_all_its_cells() -> None:
    kv, _ = cache(n_cells=200)
    assert kv.n_free_cells == 200


def test_a_finished_prompt_is_taken_over_by_the_request_that_continues_it() -> None:
    kv, backend = cache()
    kv.release(fill(kv, backend, LONG))
    slot, n_held = kv.open(LONG + array("i", [50, 51]))
    assert n_held == 40
    assert kv.held(slot) == LONG


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


def test_an_unrelated_request_empties_idle_slots() -> None:
    kv, backend = cache()
    kv.release(fill(kv, backend, LONG))
    kv.open(array("i", range(60, 90)))
    assert kv.n_free_cells == 128


def test_a_few_common_ids_are_no_prefix() -> None:
    kv, backend = cache()
    kv.release(fill(kv, backend, LONG))
    _, n_held = kv.open(LONG[: MIN_PREFIX - 1] + array("i", [90, 91, 92]))
    assert n_held == 0


def test_room_is_made_from_the_oldest_idle_slot_first() -> None:
    kv, backend = cache(n_cells=128)
    # Both share a prefix, so that the second does not empty the first.
    kv_a = fill(kv, backend, LONG)
    kv_b = fill(kv, backend, LONG + array("i", range(50, 60)))
    kv.release(kv_a)
    kv.release(kv_b)
    assert kv.can_make_room(128)
    assert not kv.can_make_room(129)
    assert kv.make_room(78)
    assert kv.n_held(kv_b) == 50
    assert kv.make_room(79)
    assert kv.n_held(kv_a) == kv.n_held(kv_b) == 0


def test_a_model_that_cannot_truncate_drops_the_idle_slot_and_starts_over() -> None:
    backend = FakeBackend(n_slots=1, n_ctx=128, can_truncate=False)
    kv = KVCache(backend)
    kv.release(fill(kv, backend, LONG))
    slot, n_held = kv.open(LONG[:30])
    assert n_held == 0
    assert backend.held(slot) == []


@given(st.lists(st.integers(0, 1), max_size=40), st.lists(st.integers(0, 1), max_size=40))
def test_the_common_prefix_is_what_a_loop_would_find(a: list[int], b: list[int]) -> None:
    expected = 0
    while expected < min(len(a), len(b)) and a[expected] == b[expected]:
        expected += 1
    assert common_prefix(array("i", a), array("i", b)) == expected
