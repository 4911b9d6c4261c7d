"""
Token ids to logits rows: what an engine needs of a model, and nothing else.

Whoever implements `Backend` passes `tests/unit/test_backend_contract.py`. All calls come from one thread.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray

Rows = NDArray[np.float32]
"""
(n_outputs or more, n_vocab) float32, C-contiguous, writable, valid until the next `forward`. Rows past
n_outputs hold nothing: a backend may hand out the same array for every batch.
"""

Bytes = bytes | memoryview
"""A state of a slot may have gigabytes: each copy less is a second."""


class Batch:
    """
    The tokens of one forward pass as parallel arrays, in the order they were added.

    Attributes:
        token_ids, positions, slots: (n_tokens,) int32.
        outputs: (n_tokens,) int8; 1 where the row of logits is wanted.
        n_outputs: How many are wanted.
    """

    __slots__ = ("n_outputs", "outputs", "positions", "slots", "token_ids")

    def __init__(self) -> None:
        self.token_ids = array("i")
        self.positions = array("i")
        self.slots = array("i")
        self.outputs = array("b")
        self.n_outputs = 0

    def __len__(self) -> int:
        return len(self.token_ids)

    def add(self, slot: int, start: int, token_ids: Sequence[int], n_outputs: int) -> None:
        """
        Add a run of one slot's tokens at positions start, start + 1, ...

        Args:
            slot: The sequence they belong to.
            start: Position of the first; what the slot holds so far ends right before it.
            token_ids: At least one.
            n_outputs: How many of the last ones want their logits, 0..len(token_ids).
        """
        n_tokens = len(token_ids)
        self.token_ids.extend(token_ids)
        self.slots.extend([slot] * n_tokens)
        self.positions.extend(range(start, start + n_tokens))
        self.outputs.extend([0] * (n_tokens - n_outputs))
        self.outputs.extend([1] * n_outputs)
        self.n_outputs += n_outputs


@dataclass(frozen=True, slots=True, kw_only=True)
class Placement:
    """
    Where a loaded model landed.

    Attributes:
        device: The device chosen, e.g. "cpu" or "cuda:0"; several are joined by "+".
        reason: Why, in a sentence.
        n_layers: Layers of the model, the output layer not counted.
        n_layers_offloaded: How many of them are on a GPU.
        weight_bytes, kv_cache_bytes, compute_bytes: Buffer sizes by llama.cpp's device name.
        n_threads, n_threads_batch: Most CPU threads of a pass over one token, and over several.
        adapters: The scale of each LoRA adapter, by its path.
        kv_cache_type: As in EngineParams.
        flash_attention: Whether it is used, as "auto" came out. It passes over the cells of other slots;
            without it each used cell costs as much as a slot's own.
    """

    device: str
    reason: str
    n_layers: int
    n_layers_offloaded: int
    weight_bytes: dict[str, int]
    kv_cache_bytes: dict[str, int]
    compute_bytes: dict[str, int]
    n_threads: int
    n_threads_batch: int
    adapters: dict[str, float] = field(default_factory=dict)
    kv_cache_type: str = "f16"
    flash_attention: bool = True


Pooling = Literal["mean", "cls", "last"]
"""How a text's one vector comes of its tokens' vectors: their mean, that of the first, that of the last."""


class Embedder(Protocol):
    """
    Computes the tokens of texts to vectors, on a backend's weights and in KV cells of its own.

    Attributes:
        n_embd: Length of a vector.
        pooling: What the model's vectors are made for.
        n_slots: Texts that can be under way at once; slots are 0..n_slots-1.
        n_cells: Tokens of all texts that are under way.
        n_batch: Most tokens of one forward pass.
        is_whole: Each pass must hold whole texts: the model looks ahead in them.
    """

    n_embd: int
    pooling: Pooling
    n_slots: int
    n_cells: int
    n_batch: int
    is_whole: bool

    def forward(self, batch: Batch) -> Rows:
        """
        Compute `batch`; return its tokens' vectors, (n_tokens, n_embd) float32, valid until the next time.

        Raises:
            ForwardAbortedError: `abort` was called; part of the batch may have been stored.
            OutOfCellsError: No room for the batch; nothing was stored.
            BackendError: Anything else; part of the batch may have been stored.
        """

    def clear(self, slot: int) -> None:
        """Forget what a slot holds."""

    def abort(self) -> None:
        """Make the forward pass under way, or else the next, end early. From any thread."""

    def close(self) -> None:
        """Free everything but the weights; before the backend's own, twice is fine."""


class Backend(Protocol):
    """
    One loaded model with a KV cache of `n_slots` sequences. After `close` every other method raises
    EngineClosedError.

    Attributes:
        n_vocab: Length of a logits row.
        n_ctx: Positions a sequence may use.
        n_ctx_train: Positions the model was trained for.
        n_slots: Sequences that can live at once; slots are 0..n_slots-1.
        n_cells: KV cells all slots share; a cell copied from another slot is not counted twice.
        n_batch: Most tokens of one forward pass.
        placement: Where it landed; None for a backend without devices.
    """

    n_vocab: int
    n_ctx: int
    n_ctx_train: int
    n_slots: int
    n_cells: int
    n_batch: int
    placement: Placement | None

    def forward(self, batch: Batch) -> Rows:
        """
        Compute `batch`, store its keys and values, return the rows wanted, in batch order.

        Raises:
            ForwardAbortedError: `abort` was called; part of the batch may have been stored.
            OutOfCellsError: No room for the batch; nothing was stored.
            BackendError: Anything else; part of the batch may have been stored.
        """

    def truncate(self, slot: int, length: int) -> bool:
        """Keep the first `length` positions of a slot. False, and nothing changed: it cannot."""

    def copy(self, source: int, target: int, length: int) -> bool:
        """Give the empty `target` the first `length` positions of `source`. False: it cannot."""

    def save(self, slot: int) -> Bytes:
        """Return the state of a slot."""

    def load(self, slot: int, state: Bytes) -> None:
        """
        Restore what `save` returned into an empty slot.

        Raises:
            BackendError: The state does not fit this model.
        """

    def abort(self) -> None:
        """
        Make the forward pass under way, or else the next, end early. From any thread.

        A pass that ends all the same has used the abort up.
        """

    def embedder(self, n_cells: int) -> Embedder:
        """
        Return what embeds texts of up to `n_cells` tokens, which shares this backend's weights.

        Raises:
            EmbeddingError: This model cannot, or there is no memory for so many cells.
        """

    def end_ids(self, candidates: Iterable[int]) -> frozenset[int]:
        """Return those of `candidates` that end a generation."""

    def close(self) -> None:
        """Free everything; twice is fine."""


class ForwardAbortedError(Exception):
    """A forward pass ended early because `abort` was called. Never leaves the engine."""


class OutOfCellsError(Exception):
    """No room in the KV cache for a batch. Never leaves the engine."""
