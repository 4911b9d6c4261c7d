"""
LlamaEmbedder: texts to vectors, in a context of its own on a loaded model's weights.

llama.cpp's own pooling wants a whole text in one pass; here it is left to whoever calls, so that a long
text can be cut, and ended in the middle. Imports no llama_cpp: it is handed the library.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import Any

import numpy as np

from gguf_engine.backend.base import Batch, ForwardAbortedError, OutOfCellsError, Pooling, Rows
from gguf_engine.backend.native_batch import NativeBatch
from gguf_engine.errors import BackendError, EmbeddingError

N_SLOTS = 32
# A pass computes the logits of all its tokens, too, which nobody reads: llama.cpp cannot leave them out.
# 256 rows of a vocabulary of 152 thousand are 156 MB.
N_BATCH = 256
_NONE, _RANK = 0, 4  # enum llama_pooling_type
_POOLINGS: dict[int, Pooling] = {_NONE: "mean", 1: "mean", 2: "cls", 3: "last"}


def pooling_of(library: Any, model: int) -> Pooling:
    """
    Return how the texts of a model are pooled: as its file says, by the mean if that says nothing.

    Raises:
        EmbeddingError: It makes scores of texts, or needs a second text, instead.
    """
    if library.llama_model_has_encoder(model):
        raise EmbeddingError("it has an encoder and a decoder, and gives text for text")
    value = _metadata(library, model, f"{_metadata(library, model, 'general.architecture')}.pooling_type")
    number = int(value) if value.isdigit() else _NONE
    if number == _RANK:
        raise EmbeddingError("it scores how well two texts go together (pooling_type rank)")
    if number not in _POOLINGS:
        raise EmbeddingError(f"its pooling_type is {number}; allowed: 0..3")
    return _POOLINGS[number]


def _metadata(library: Any, model: int, key: str) -> str:
    """Return a value of the model's metadata as text; "" where there is none."""
    buffer = ctypes.create_string_buffer(256)
    length = library.llama_model_meta_val_str(model, key.encode(), buffer, len(buffer))
    return buffer.value.decode("utf-8", "replace") if length > 0 else ""


class LlamaEmbedder:
    """
    A second context of a model; see Embedder.

    Args:
        library: llama_cpp's bindings.
        model: Whose weights it shares; freed after this.
        params: Of the model's first context, copied.
        is_set: Address of the C function that reads a flag.
        n_cells: Tokens of all texts under way.
        is_whole: See Embedder.
        n_threads: Returns the threads to use: of a pass over one token, and over several.
        on_made: Called with the context, to use the adapters of the first one.
        errors: Returns llama.cpp's last words.

    Raises:
        EmbeddingError: The model makes none, or there is no memory for so many cells.
    """

    def __init__(
        self,
        library: Any,
        model: int,
        params: Any,
        *,
        is_set: int,
        n_cells: int,
        is_whole: bool,
        n_threads: Callable[[], tuple[int, int]],
        on_made: Callable[[int], None],
        errors: Callable[[], str],
    ) -> None:
        self.pooling: Pooling = pooling_of(library, model)
        self._library, self._n_threads, self._errors = library, n_threads, errors
        self._threads: tuple[int, int] = n_threads()
        self._abort_flag = ctypes.c_int32(0)
        self._abort_callback = library.ggml_abort_callback(is_set)
        params = type(params).from_buffer_copy(params)
        params.n_ctx = n_cells
        params.n_batch = n_cells if is_whole else min(N_BATCH, params.n_batch)
        params.n_ubatch = n_cells if is_whole else min(params.n_batch, params.n_ubatch)
        params.n_seq_max = self.n_slots = N_SLOTS
        params.n_threads, params.n_threads_batch = self._threads
        params.embeddings, params.pooling_type = True, _NONE
        params.abort_callback = self._abort_callback
        params.abort_callback_data = ctypes.addressof(self._abort_flag)
        self._context: int | None = library.llama_init_from_model(model, params)
        if not self._context:
            raise EmbeddingError(f"llama.cpp could not make {n_cells} KV cells for them: {errors()}")
        self.n_cells, self.is_whole = n_cells, is_whole
        self.n_batch = int(library.llama_n_batch(self._context))
        self.n_embd = int(library.llama_model_n_embd_out(model))
        self._memory = library.llama_get_memory(self._context)
        self._batch = NativeBatch(library, self.n_batch)
        try:
            on_made(self._context)
        except BaseException:
            self.close()
            raise

    def forward(self, batch: Batch) -> Rows:
        """See Embedder.forward."""
        assert self._context is not None
        if self._threads != (threads := self._n_threads()):
            self._library.llama_set_n_threads(self._context, *threads)
            self._threads = threads
        status = self._library.llama_decode(self._context, self._batch.fill(batch))
        was_aborted, self._abort_flag.value = status == 2, 0
        if was_aborted:
            raise ForwardAbortedError
        if status == 1:
            raise OutOfCellsError
        if status:
            raise BackendError(
                status, f"llama.cpp failed on texts of {len(batch)} tokens: {self._errors()}"
            )
        rows = self._library.llama_get_embeddings(self._context)
        return np.ctypeslib.as_array(rows, (len(batch), self.n_embd))

    def clear(self, slot: int) -> None:
        """See Embedder.clear."""
        if self._memory:  # a model that looks ahead keeps nothing
            self._library.llama_memory_seq_rm(self._memory, slot, -1, -1)

    def abort(self) -> None:
        """See Embedder.abort."""
        self._abort_flag.value = 1

    def close(self) -> None:
        """See Embedder.close."""
        context, self._context = self._context, None
        if context:
            self._library.llama_free(context)
