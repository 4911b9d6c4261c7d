"""Models without weights that have sessions."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from text_samples import PHI3_TEMPLATE, from_json, spm_json

from gguf_engine import (
    LLM,
)
from gguf_engine.backend.fake import FakeBackend
from gguf_engine.engine.state import StateOrigin
from gguf_engine.text.chat import ChatTemplate

TOKENIZER = from_json(spm_json())
SHORT: dict[str, Any] = {"seed": 5, "max_tokens": 12, "ignore_eos": True}
SYSTEM = "You are a poet of few words."

Make = Callable[..., LLM]


def origin(n_vocab: int, n_ctx: int, model: str = "ab") -> StateOrigin:
    return StateOrigin(
        model_sha256=model * 32,
        library="fake 1",
        n_vocab=n_vocab,
        n_ctx=n_ctx,
        kv_cache_type="f16",
        flash_attention="auto",
    )


def make_llm(
    backend: Callable[..., Any] = FakeBackend,
    *args: Any,
    template: str | None = PHI3_TEMPLATE,
    state_origin: Any = origin,
    isolation: Any = "thread",
    **sizes: Any,
) -> LLM:
    sizes = {"n_ctx": 1024, **sizes}
    return LLM(
        partial(backend, *args, n_vocab=TOKENIZER.n_vocab, **sizes),
        TOKENIZER,
        template=None if template is None else ChatTemplate.for_tokenizer(template, TOKENIZER),
        state_origin=state_origin,
        isolation=isolation,
    )
