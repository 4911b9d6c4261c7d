"""What every backend keeps: FakeBackend, and LlamaBackend on a generated model."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from gguf_engine.backend.base import Backend, Batch, ForwardAbortedError, OutOfCellsError
from gguf_engine.backend.fake import FakeBackend
from gguf_engine.errors import EngineClosedError
from gguf_engine.params import EngineParams

Make = Callable[..., Backend]


@pytest.fixture(params=["fake", "llama"])
def make_backend(request: pytest.FixtureRequest, tiny_model: Path) -> Iterator[Make]:
    made: list[Backend] = []

    def make(n_ctx: int = 64, n_slots: int = 3, n_cells: int | None = None) -> Backend:
        backend: Backend
        if request.param == "fake":
            backend = FakeBackend(n_ctx=n_ctx, n_slots=n_slots, n_cells=n_cells, n_batch=32)
        else:
            from gguf_engine.backend.llama import LlamaBackend

            params = EngineParams(n_ctx=n_ctx, n_slots=n_slots, n_cells=n_cells, n_batch=32, n_threads=1)
            backend = LlamaBackend(tiny_model, params)
        made.append(backend)
        return backend

    yield make
    for backend in made:
        backend.close()


def forward(backend: Backend, *runs: tuple[int, int, list[int]]) -> np.ndarray:
    """Compute runs of (slot, start, ids) and return a copy of the row after each."""
    batch = Batch()
    for slot, start, ids in runs:
        batch.add(slot, start, ids, 1)
    rows: np.ndarray = backend.forward(batch)[: len(runs)].copy()
    return rows


def same(a: np.ndarray, b: np.ndarray) -> bool:
    return bool(np.allclose(a, b, rtol=1e-3, atol=1e-3))


def test_a_row_has_one_finite_logit_an_id(make_backend: Make) -> None:
    backend = make_backend()
    (row,) = forward(backend, (0, 0, [1, 2, 3]))
    assert row.shape == (backend.n_vocab,)
    assert row.dtype == np.float32
    assert np.isfinite(row).all()


def test_rows_come_in_batch_order(make_backend: Make) -> None:
    backend = make_backend()
    together = forward(backend, (0, 0, [5, 6]), (1, 0, [7, 8, 9]))
    other = make_backend()
    assert same(together[1], forward(other, (0, 0, [7, 8, 9]))[0])
    assert same(together[0], forward(other, (1, 0, [5, 6]))[0])


def test_a_prompt_may_be_computed_in_parts(make_backend: Make) -> None:
    whole = forward(make_backend(), (0, 0, [4, 5, 6, 7]))
    backend = make_backend()
    forward(backend, (0, 0, [4, 5]))
    assert same(forward(backend, (0, 2, [6, 7])), whole)


def test_truncating_forgets_what_came_after(make_backend: Make) -> None:
    backend = make_backend()
    forward(backend, (0, 0, [4, 5, 6]))
    assert backend.truncate(0, 1)
    again = forward(backend, (0, 1, [8]))
    assert same(again, forward(make_backend(), (0, 0, [4, 8])))


def test_a_copy_goes_its_own_way(make_backend: Make) -> None:
    backend = make_backend()
    forward(backend, (0, 0, [4, 5, 6]))
    assert backend.copy(0, 1, 2)
    copied = forward(backend, (1, 2, [9]))
    original = forward(backend, (0, 3, [7]))
    fresh = make_backend()
    assert same(copied, forward(fresh, (0, 0, [4, 5, 9])))
    assert same(original, forward(fresh, (1, 0, [4, 5, 6, 7])))


def test_copies_share_their_cells(make_backend: Make) -> None:
    backend = make_backend(n_ctx=256, n_slots=8, n_cells=256)
    for start in range(0, 240, 30):
        forward(backend, (0, start, [3] * 30))
    for slot in range(1, 8):
        assert backend.copy(0, slot, 240)
    forward(backend, *[(slot, 240, [slot]) for slot in range(8)])


def test_a_saved_slot_can_be_restored(make_backend: Make) -> None:
    backend = make_backend()
    forward(backend, (0, 0, [4, 5, 6]))
    backend.load(2, backend.save(0))
    assert same(forward(backend, (2, 3, [7])), forward(make_backend(), (0, 0, [4, 5, 6, 7])))


def test_a_full_cache_is_said_before_anything_is_stored(make_backend: Make) -> None:
    backend = make_backend(n_ctx=256, n_slots=2, n_cells=256)
    for start in range(0, 240, 30):
        forward(backend, (0, start, [3] * 30))
    with pytest.raises(OutOfCellsError):
        forward(backend, (1, 0, [3] * 30))
    assert backend.truncate(0, 0)
    assert same(forward(backend, (1, 0, [4])), forward(make_backend(), (0, 0, [4])))


def test_an_abort_ends_the_next_pass_and_only_that(make_backend: Make) -> None:
    backend = make_backend()
    forward(backend, (0, 0, [4, 5]))
    backend.abort()
    with pytest.raises(ForwardAbortedError):
        forward(backend, (0, 2, [6] * 20))
    assert backend.truncate(0, 2)
    assert same(forward(backend, (0, 2, [6])), forward(make_backend(), (0, 0, [4, 5, 6])))


def test_closing_twice_is_fine(make_backend: Make) -> None:
    backend = make_backend()
    backend.close()
    backend.close()


@pytest.mark.parametrize(
    "use",
    [
        lambda backend: forward(backend, (0, 0, [1])),
        lambda backend: backend.truncate(0, 0),
        lambda backend: backend.copy(0, 1, 1),
        lambda backend: backend.save(0),
        lambda backend: backend.load(0, b""),
        lambda backend: backend.end_ids([1]),
    ],
)
def test_use_after_closing_is_an_error_of_ours(
    make_backend: Make, use: Callable[[Backend], object]
) -> None:
    backend = make_backend()
    backend.close()
    with pytest.raises(EngineClosedError):
        use(backend)


def test_end_ids_are_a_set_of_ids(make_backend: Make) -> None:
    assert isinstance(make_backend().end_ids(range(10)), frozenset)
