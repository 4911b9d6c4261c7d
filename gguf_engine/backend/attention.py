"""
What `flash_attention="auto"` comes to, from the model's shape and the build.

It is decided before anything is loaded, because kept states belong to what was decided.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from gguf_engine.params import MAX_N_CTX_BY_DEFAULT, EngineParams

# Numbers of a head that ggml's f16 kernels take at once with AVX-512; the rest of a head goes one by one.
F16_STEP_AVX512 = 64
# Without flash attention a pass holds n_ubatch scores for each head and cell; beyond so many cells that is
# more memory than the speed is worth.
MAX_CELLS_WITHOUT_FLASH = MAX_N_CTX_BY_DEFAULT


def settle_attention(
    params: EngineParams, metadata: Mapping[str, Any], system_info: str, device_kind: str
) -> EngineParams:
    """
    Return the options with `flash_attention="auto"` turned to "on" or "off"; on a GPU it stays llama.cpp's.

    ggml's flash attention on a CPU computes fewer than 64 rows cell by cell, in vectors of 64 numbers where
    it is built for AVX-512. A head of 80 or 96 numbers, as Phi-2's and Phi-3's, leaves some over, and those
    cost more than all others: decode at 2,048 cells took 1.7 times as long with Phi-3-mini's shape, 1.9
    times with heads of 80. Heads of 64 and 128 lose nothing; those of 32 lose in prefill what they gain.

    Args:
        params: The user's options, with what was tuned.
        metadata: Of the GGUF.
        system_info: Processor features that llama.cpp uses, as it prints them.
        device_kind: Where the model will be loaded; "cpu" for a processor.
    """
    if params.flash_attention != "auto" or device_kind != "cpu":
        return params
    head_size = _head_size(metadata)
    # A model that looks ahead computes whole texts in one pass, and would hold scores for all of it.
    looks_ahead = metadata.get(f"{metadata.get('general.architecture')}.attention.causal") is False
    is_slow = (
        "AVX512 = 1" in system_info and head_size > F16_STEP_AVX512 and head_size % F16_STEP_AVX512 > 0
    )
    is_off = is_slow and not looks_ahead and may_be_off(params)
    return replace(params, flash_attention="off" if is_off else "on")


def may_be_off(params: EngineParams) -> bool:
    """Return whether flash attention can be left out: the scores have room, the cache is not quantized."""
    n_cells = params.n_cells or params.n_ctx or MAX_CELLS_WITHOUT_FLASH
    return params.kv_cache_type == "f16" and n_cells <= MAX_CELLS_WITHOUT_FLASH


def _head_size(metadata: Mapping[str, Any]) -> int:
    """Return how many numbers a head has, 0 if the file does not say, or not for all layers alike."""
    arch = metadata.get("general.architecture")
    named = metadata.get(f"{arch}.attention.key_length")
    if isinstance(named, int):
        return named
    n_embd, n_head = (metadata.get(f"{arch}.{key}") for key in ("embedding_length", "attention.head_count"))
    return n_embd // n_head if isinstance(n_embd, int) and isinstance(n_head, int) and n_head > 0 else 0
