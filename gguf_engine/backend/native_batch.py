"""NativeBatch: the arrays of llama.cpp's batch, allocated once. Imports no llama_cpp: it is handed it."""

from __future__ import annotations

import ctypes
from typing import Any

from gguf_engine.backend.base import Batch


class NativeBatch:
    """
    A `llama_batch` that is filled again for each pass.

    Args:
        library: llama_cpp's bindings.
        n_batch: Most tokens of a pass.
    """

    def __init__(self, library: Any, n_batch: int) -> None:
        n = self.n_batch = n_batch
        self._batch = batch = library.llama_batch()
        tokens, positions, slots = (ctypes.c_int32 * n)(), (ctypes.c_int32 * n)(), (ctypes.c_int32 * n)()
        outputs = (ctypes.c_int8 * n)()
        one_each = (ctypes.c_int32 * n)(*([1] * n))
        size = ctypes.sizeof(ctypes.c_int32)
        int_pointer = ctypes.POINTER(ctypes.c_int32)
        base = ctypes.addressof(slots)
        each = (int_pointer * n)(*(ctypes.cast(base + size * i, int_pointer) for i in range(n)))
        batch.token = ctypes.cast(tokens, int_pointer)
        batch.pos = ctypes.cast(positions, int_pointer)
        batch.n_seq_id = ctypes.cast(one_each, int_pointer)
        batch.seq_id = ctypes.cast(each, ctypes.POINTER(int_pointer))
        batch.logits = ctypes.cast(outputs, ctypes.POINTER(ctypes.c_int8))
        arrays = (tokens, positions, slots, outputs)
        self._targets = tuple(ctypes.addressof(array) for array in arrays)
        self._alive = (*arrays, one_each, each)  # C holds their addresses

    def fill(self, batch: Batch) -> Any:
        """Copy a batch of 1..n_batch tokens in; return what `llama_decode` takes."""
        n_tokens = len(batch)
        assert 0 < n_tokens <= self.n_batch, f"batch of {n_tokens}, n_batch is {self.n_batch}"
        move = ctypes.memmove
        tokens, positions, slots, outputs = self._targets
        move(tokens, batch.token_ids.buffer_info()[0], 4 * n_tokens)
        move(positions, batch.positions.buffer_info()[0], 4 * n_tokens)
        move(slots, batch.slots.buffer_info()[0], 4 * n_tokens)
        move(outputs, batch.outputs.buffer_info()[0], n_tokens)
        self._batch.n_tokens = n_tokens
        return self._batch
