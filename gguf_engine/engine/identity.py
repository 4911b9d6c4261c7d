"""Which model, adapters and settings a kept state belongs to, so that it is never restored elsewhere."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

from gguf_engine.engine.prefix_store import PrefixCache, make_folder
from gguf_engine.engine.state import StateOrigin
from gguf_engine.params import EngineParams, split_adapter


def prefix_cache_for(params: EngineParams, parts: Sequence[Path], *, blobs: bool) -> PrefixCache | None:
    """
    Return where and for which model prefixes are kept; None when they are not to be kept.

    Args:
        params: As the engine is loaded with.
        parts: The files with the weights.
        blobs: They were just verified in a hub cache.

    Raises:
        OptionError: The folder cannot be made, or nothing can be written there.
        OSError: A file cannot be read.
    """
    if params.prefix_cache is None:
        return None
    folder = Path(params.prefix_cache).absolute()
    make_folder(folder)  # a refusal should not come after a long load
    return PrefixCache(
        folder=folder,
        max_bytes=params.prefix_cache_mb * 10**6,
        model_sha256=_identify(params, parts, blobs=blobs),
        library=_library(),
        kv_cache_type=params.kv_cache_type,
        flash_attention=params.flash_attention,
    )


def state_origin(
    params: EngineParams, parts: Sequence[Path], n_vocab: int, n_ctx: int, *, blobs: bool
) -> StateOrigin:
    """
    Return what the states of an engine belong to; reads the weights unless their sha256 is known.

    Args:
        params, parts, blobs: As for `prefix_cache_for`.
        n_vocab, n_ctx: Of the engine.

    Raises:
        OSError: A file cannot be read.
    """
    return StateOrigin(
        model_sha256=_identify(params, parts, blobs=blobs),
        library=_library(),
        n_vocab=n_vocab,
        n_ctx=n_ctx,
        kv_cache_type=params.kv_cache_type,
        flash_attention=params.flash_attention,
    )


def _library() -> str:
    from gguf_engine.backend.llama import library_versions

    versions = library_versions()
    return f"llama_cpp {versions['llama_cpp']} (llama_cpp_python {versions['llama_cpp_python']})"


def _identify(params: EngineParams, parts: Sequence[Path], *, blobs: bool) -> str:
    """Return the sha256 of the weights; with adapters, of theirs and their scales too."""
    sha256 = _sha256(parts, blobs=blobs)
    if not params.lora:
        return sha256
    adapters = [split_adapter(text) for text in params.lora]
    texts = [f"{_sha256([Path(path)], blobs=False)}={scale!r}" for path, scale in adapters]
    return hashlib.sha256("\n".join([sha256, *texts]).encode()).hexdigest()


def _sha256(paths: Sequence[Path], *, blobs: bool) -> str:
    from gguf_engine.loader.digest import digest_of
    from gguf_engine.loader.hub import state_folder
    from gguf_engine.loader.verdicts import Verdicts, combined

    verdicts = Verdicts.open(state_folder())
    known = verdicts.identify(paths, blobs=blobs)
    if known is not None:
        return known
    sha256s = [digest_of(path).sha256 for path in paths]
    for path, sha256 in zip(paths, sha256s, strict=True):
        verdicts.remember(path, sha256)
    return combined(sha256s)
