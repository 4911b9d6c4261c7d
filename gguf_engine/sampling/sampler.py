"""
Logits rows to token ids, all rows of a batch in one native call; owns the scratch of that call.

What the filters mean stands in csrc/sampler.h; the same in NumPy, for reading, in reference.py.
"""

from __future__ import annotations

import struct
from array import array
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from gguf_engine.errors import NotBuiltError, OptionError, SamplingError
from gguf_engine.outputs import TokenLogprob
from gguf_engine.params import SamplingParams

try:
    from gguf_engine.sampling._native import ffi, lib
except ModuleNotFoundError:
    raise NotBuiltError from None

# ge_row and ge_sample are read and written through buffers: 0.2 us a row, against 0.05 us a field.
_ROW = struct.Struct("PPNPNP")
_SAMPLE_SIZE: int = ffi.sizeof("ge_sample")
_STATUS, _TOKEN_ID, _N_TOP, _TOP_IDS = (
    ffi.offsetof("ge_sample", name) // 4 for name in ("status", "token_id", "n_top", "top_ids")
)
_LOGPROB, _TOP_LOGPROBS = (ffi.offsetof("ge_sample", name) // 8 for name in ("logprob", "top_logprobs"))

assert ffi.sizeof("ge_row") == _ROW.size


class RowOptions:
    """The native form of a request's sampling options. Made by `prepare`; opaque."""

    __slots__ = ("_arrays", "_struct", "address", "reads_prompt", "wants_logprobs")

    def __init__(self, params: SamplingParams, seed: int) -> None:
        bias_ids = ffi.new("int32_t[]", list(params.logit_bias))
        bias = ffi.new("double[]", [float(value) for value in params.logit_bias.values()])
        self._arrays = (bias_ids, bias)
        self._struct = ffi.new(
            "ge_options *",
            {
                "temperature": params.temperature,
                "top_p": params.top_p,
                "min_p": params.min_p,
                "repeat_penalty": params.repeat_penalty,
                "presence_penalty": params.presence_penalty,
                "frequency_penalty": params.frequency_penalty,
                "seed": seed,
                "top_k": params.top_k,
                "repeat_last_n": params.repeat_last_n,
                "penalize_prompt": params.penalize_prompt,
                "temperature_last": params.order == "llama.cpp",
                "n_top": -1 if params.logprobs is None else params.logprobs,
                "raw_logprobs": params.raw_logprobs,
                "n_bias": len(bias),
                "bias_ids": bias_ids,
                "bias": bias,
            },
        )
        self.address = int(ffi.cast("uintptr_t", self._struct))
        self.reads_prompt = params.penalize_prompt
        self.wants_logprobs = params.logprobs is not None


class SampleRequest(NamedTuple):
    """
    What one row is sampled with.

    Attributes:
        prompt_ids: array("i"), only read when the options penalize the prompt.
        token_ids: array("i"), generated so far; its length is the index of the draw.
        mask: Constraint, (n_vocab + 31) // 32 little-endian uint32 words, bit set = allowed; None
            allows everything.
    """

    options: RowOptions
    prompt_ids: array[int]
    token_ids: array[int]
    mask: bytes | None = None


class Sample(NamedTuple):
    """A sampled id; `logprob` is None and `top_logprobs` empty when they were not asked for."""

    token_id: int
    logprob: float | None
    top_logprobs: tuple[TokenLogprob, ...]


def check_bias(params: SamplingParams, n_vocab: int) -> None:
    """
    Refuse a bias on an id that a vocabulary of `n_vocab` does not have.

    Raises:
        OptionError: logit_bias names one.
    """
    for token_id in params.logit_bias:
        if token_id >= n_vocab:
            allowed = f"token ids below {n_vocab}, the size of this model's vocabulary"
            raise OptionError("logit_bias", token_id, allowed)


def prepare(params: SamplingParams, seed: int, n_vocab: int) -> RowOptions:
    """
    Return the native form of `params`, made once a request, by any thread.

    Raises:
        OptionError: As `check_bias`.
    """
    check_bias(params, n_vocab)
    return RowOptions(params, seed)


class Sampler:
    """
    Samples up to `max_rows` rows of `n_vocab` logits at once; for one thread at a time.

    It remembers nothing from call to call: rows of one request may come in any number and order.
    """

    def __init__(self, n_vocab: int, max_rows: int) -> None:
        state = lib.ge_state_new(n_vocab)
        if state == ffi.NULL:
            raise MemoryError(f"no memory to sample {n_vocab} logits")
        self._state: Any = ffi.gc(state, lib.ge_state_free)
        self._n_vocab, self._max_rows = n_vocab, max_rows
        self._mask_size = (n_vocab + 31) // 32 * 4
        self._row_structs = ffi.new("ge_row[]", max_rows)
        self._row_buffer = ffi.buffer(self._row_structs)
        self._samples = ffi.new("ge_sample[]", max_rows)
        buffer = memoryview(ffi.buffer(self._samples))
        self._ints, self._doubles = buffer.cast("i"), buffer.cast("d")
        self._rows: NDArray[np.float32] | None = None  # the array that _logits points into
        self._logits: Any = None

    def prepare(self, params: SamplingParams, seed: int) -> RowOptions:
        """Return `prepare` for this vocabulary."""
        return prepare(params, seed, self._n_vocab)

    def sample(
        self, rows: NDArray[np.float32], requests: Sequence[SampleRequest]
    ) -> list[Sample | SamplingError]:
        """
        Sample row i for request i.

        Args:
            rows: (at least len(requests), n_vocab) float32, C-contiguous, writable. Rows are as they
                were when this returns. Nothing else may use them, or the requests' ids, meanwhile:
                the interpreter's lock is released.
            requests: At most max_rows.

        Returns:
            A sample a request, or in its place the error of its row, which leaves other rows alone.
        """
        n_rows = len(requests)
        if rows is not self._rows:
            self._point_at(rows)
        assert n_rows <= self._max_rows
        assert n_rows <= len(rows)
        offset = 0
        for options, prompt_ids, token_ids, mask in requests:
            tokens, n_tokens = token_ids.buffer_info()
            prompt, n_prompt = prompt_ids.buffer_info() if options.reads_prompt else (0, 0)
            allowed = 0 if mask is None else self._mask_address(mask)
            _ROW.pack_into(
                self._row_buffer, offset, options.address, prompt, n_prompt, tokens, n_tokens, allowed
            )
            offset += _ROW.size
        lib.ge_sample_rows(self._state, self._logits, self._row_structs, n_rows, self._samples)
        return [self._result(i, request) for i, request in enumerate(requests)]

    def close(self) -> None:
        """Free the scratch; a second call does nothing. The sampler cannot be used after it."""
        if self._state is not None:
            ffi.release(self._state)
        self._state = self._rows = self._logits = None

    def _point_at(self, rows: NDArray[np.float32]) -> None:
        assert rows.dtype == np.float32
        assert rows.ndim == 2
        assert rows.shape[1] == self._n_vocab
        # Kept until the next array: an object that is alive cannot be mistaken for a later one.
        self._logits = ffi.from_buffer("float[]", rows, require_writable=True)
        self._rows = rows

    def _mask_address(self, mask: bytes) -> int:
        assert len(mask) == self._mask_size
        return int(ffi.cast("uintptr_t", ffi.from_buffer(mask)))

    def _result(self, i: int, request: SampleRequest) -> Sample | SamplingError:
        at = i * (_SAMPLE_SIZE // 4)
        if self._ints[at + _STATUS]:
            return self._error(self._ints[at + _STATUS], self._ints[at + _TOKEN_ID], i)
        if not request.options.wants_logprobs:
            return Sample(self._ints[at + _TOKEN_ID], None, ())
        ids_at, values_at = at + _TOP_IDS, at // 2 + _TOP_LOGPROBS
        top = tuple(
            TokenLogprob(self._ints[ids_at + j], self._doubles[values_at + j])
            for j in range(self._ints[at + _N_TOP])
        )
        return Sample(self._ints[at + _TOKEN_ID], self._doubles[at // 2 + _LOGPROB], top)

    def _error(self, status: int, token_id: int, i: int) -> SamplingError:
        assert status != lib.GE_BAD_OPTION  # SamplingParams has checked them
        if status == lib.GE_NOT_FINITE:
            assert self._rows is not None
            value = float(self._rows[i, token_id])
            return SamplingError(
                f"the model gave {value} as the logit of id {token_id}; "
                "its weights are damaged or overflow in this precision: check the file or try another one"
            )
        if status == lib.GE_ALL_MASKED:
            return SamplingError(
                "no id is left to sample: every logit is -inf after logit_bias and the constraint; "
                "relax one of them"
            )
        return SamplingError(
            f"token id {token_id} is outside the vocabulary; allowed: 0..{self._n_vocab - 1}"
        )
