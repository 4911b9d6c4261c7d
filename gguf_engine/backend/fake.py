"""
FakeBackend: a model without weights that notices mistakes.

It keeps, per slot, the ids it was given at the positions it was given, and derives each logits row
from a hash of what it holds. A token prefilled twice, a prefix reused one too far, a draft not rolled
back: each changes the text. Public, so that whoever builds on the engine can test without a model.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Iterable

import numpy as np

from gguf_engine.backend.base import (
    Batch,
    Bytes,
    ForwardAbortedError,
    OutOfCellsError,
    Placement,
    Pooling,
    Rows,
)
from gguf_engine.errors import BackendError, EmbeddingError, EngineClosedError, OptionError

_CELL = tuple[int, int, int]  # unique number (shared by copies), position, id


class FakeBackend:
    """
    A deterministic backend over hashes.

    Args:
        n_vocab: Length of a row.
        end_id: An id that ends generations; None for never.
        peak: Logit of the id that the hash prefers; the others lie in [0, 4).
        forward_s: Seconds to spend in each forward pass; `abort` cuts them short.
        can_truncate: False acts like a recurrent model: a slot is kept whole or dropped.
        fail_after: Forward passes that succeed before one raises BackendError; None for never.
        pooling: See Embedder; None for a model that makes no embeddings.
    """

    def __init__(
        self,
        *,
        n_vocab: int = 97,
        n_ctx: int = 256,
        n_slots: int = 8,
        n_cells: int | None = None,
        n_batch: int = 64,
        end_id: int | None = None,
        peak: float = 6.0,
        forward_s: float = 0.0,
        can_truncate: bool = True,
        fail_after: int | None = None,
        pooling: Pooling | None = "mean",
    ) -> None:
        self.n_vocab, self.n_ctx, self.n_ctx_train = n_vocab, n_ctx, n_ctx
        self.n_slots, self.n_batch = n_slots, n_batch
        self.n_cells = n_ctx if n_cells is None else n_cells
        if self.n_cells < n_ctx:
            raise OptionError("n_cells", n_cells, f"n_ctx ({n_ctx}) or more")
        self.placement: Placement | None = None
        self.n_forwards = 0
        self.n_tokens = 0
        self._end_id, self._peak, self._forward_s = end_id, peak, forward_s
        self._can_truncate, self._fail_after = can_truncate, fail_after
        self._pooling = pooling
        self._cells: list[list[_CELL]] = [[] for _ in range(n_slots)]
        self._next_cell = 0
        self._abort = threading.Event()
        self._closed = False

    def forward(self, batch: Batch) -> Rows:
        """Store the batch and return one hashed row per wanted position."""
        self._check_open()
        assert 0 < len(batch) <= self.n_batch, f"batch of {len(batch)}, n_batch is {self.n_batch}"
        if self._fail_after is not None and self.n_forwards >= self._fail_after:
            self._fail_after = None
            raise BackendError(-3, "fault asked for")
        if self._abort.wait(self._forward_s):
            self._abort.clear()
            self._store(batch, (len(batch) + 1) // 2)
            raise ForwardAbortedError
        used = len({cell[0] for slot in self._cells for cell in slot})
        if used + len(batch) > self.n_cells:
            raise OutOfCellsError
        self.n_forwards += 1
        self.n_tokens += len(batch)
        return self._store(batch, len(batch))

    def _store(self, batch: Batch, n_tokens: int) -> Rows:
        rows = np.empty((batch.n_outputs, self.n_vocab), np.float32)  # (n_outputs, n_vocab)
        n_rows = 0
        for i in range(n_tokens):
            slot, position, token_id = batch.slots[i], batch.positions[i], batch.token_ids[i]
            assert 0 <= slot < self.n_slots, f"slot {slot}"
            assert 0 <= position < self.n_ctx, f"position {position}"
            assert 0 <= token_id < self.n_vocab, f"token id {token_id}"
            self._cells[slot].append((self._next_cell, position, token_id))
            self._next_cell += 1
            if batch.outputs[i]:
                self._fill(rows[n_rows], slot)
                n_rows += 1
        return rows

    def _fill(self, row: Rows, slot: int) -> None:
        key = hash(tuple((position, token_id) for _, position, token_id in self._cells[slot]))
        random = np.random.Generator(np.random.PCG64(key & (2**63 - 1)))
        row[:] = random.random(self.n_vocab, dtype=np.float32) * 4
        row[int(random.integers(self.n_vocab))] = self._peak

    def truncate(self, slot: int, length: int) -> bool:
        """Drop everything a slot holds from the `length`-th entry on."""
        self._check_open()
        if not self._can_truncate and 0 < length < len(self._cells[slot]):
            return False
        del self._cells[slot][length:]
        return True

    def copy(self, source: int, target: int, length: int) -> bool:
        """Share the first `length` entries of `source` with the empty `target`."""
        self._check_open()
        assert not self._cells[target], "copy into a slot that is not empty"
        if not self._can_truncate and length != len(self._cells[source]):
            return False
        self._cells[target] = self._cells[source][:length]
        return True

    def save(self, slot: int) -> bytes:
        """Return what a slot holds, as JSON."""
        self._check_open()
        return json.dumps([cell[1:] for cell in self._cells[slot]]).encode()

    def load(self, slot: int, state: Bytes) -> None:
        """Restore what `save` returned."""
        self._check_open()
        assert not self._cells[slot], "load into a slot that is not empty"
        for position, token_id in json.loads(bytes(state)):
            self._cells[slot].append((self._next_cell, position, token_id))
            self._next_cell += 1

    def embedder(self, n_cells: int) -> FakeEmbedder:
        """Return one whose vectors are hashes, too."""
        self._check_open()
        if self._pooling is None:
            raise EmbeddingError("it is a fake that was told so")
        return FakeEmbedder(self, n_cells, self._pooling, forward_s=self._forward_s)

    def held(self, slot: int) -> list[int]:
        """Return the ids a slot holds, for tests."""
        return [token_id for _, _, token_id in self._cells[slot]]

    def abort(self) -> None:
        """Cut the forward pass short."""
        self._abort.set()

    def end_ids(self, candidates: Iterable[int]) -> frozenset[int]:
        """Return the end id of this fake, candidate or not."""
        del candidates
        self._check_open()
        return frozenset() if self._end_id is None else frozenset({self._end_id})

    def _check_open(self) -> None:
        if self._closed:
            raise EngineClosedError("this backend is closed")

    def close(self) -> None:
        """Refuse whatever comes."""
        self._closed = True


class FakeEmbedder:
    """
    Hashes as vectors: that of a token depends on what its slot holds up to it, and on nothing else.

    Args:
        backend: Whose ids and context it has.
        n_cells: See Embedder.
        pooling: See Embedder.
        forward_s: Seconds to spend in each forward pass; `abort` cuts them short.
    """

    n_embd = 16
    n_slots = 4

    def __init__(self, backend: FakeBackend, n_cells: int, pooling: Pooling, *, forward_s: float) -> None:
        self.pooling: Pooling = pooling
        self.n_cells, self.n_batch, self.is_whole = n_cells, backend.n_batch, False
        self._backend, self._forward_s = backend, forward_s
        self._held: list[list[int]] = [[] for _ in range(self.n_slots)]
        self._abort = threading.Event()
        self.is_closed = False

    def forward(self, batch: Batch) -> Rows:
        """Store the batch and return one hashed vector per token."""
        assert not self.is_closed
        assert 0 < len(batch) <= self.n_batch, f"batch of {len(batch)}, n_batch is {self.n_batch}"
        if self._abort.wait(self._forward_s):
            self._abort.clear()
            self._store(batch, (len(batch) + 1) // 2)
            raise ForwardAbortedError
        if sum(map(len, self._held)) + len(batch) > self.n_cells:
            raise OutOfCellsError
        return self._store(batch, len(batch))

    def _store(self, batch: Batch, n_tokens: int) -> Rows:
        rows = np.empty((n_tokens, self.n_embd), np.float32)  # (n_tokens, n_embd)
        for i, token_id in enumerate(batch.token_ids[:n_tokens]):
            held = self._held[batch.slots[i]]
            assert batch.positions[i] == len(held) < self._backend.n_ctx, f"position {batch.positions[i]}"
            assert 0 <= token_id < self._backend.n_vocab, f"token id {token_id}"
            held.append(token_id)
            random = np.random.Generator(np.random.PCG64(hash(tuple(held)) & (2**63 - 1)))
            rows[i] = random.standard_normal(self.n_embd, dtype=np.float32)
        return rows

    def clear(self, slot: int) -> None:
        """Forget what a slot holds."""
        self._held[slot].clear()

    def abort(self) -> None:
        """Cut the forward pass short."""
        self._abort.set()

    def close(self) -> None:
        """Refuse whatever comes."""
        self.is_closed = True
