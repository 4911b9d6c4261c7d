"""
Quantized GGUF text generation on llama.cpp.

    from gguf_engine import LLM

    with LLM.load("haiku") as llm:
        print(llm.chat([{"role": "user", "content": "Write a haiku about ice hockey"}]).text)

Names are imported on first use: `import gguf_engine` alone loads no llama.cpp and changes nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gguf_engine.engine.engine import EngineStats
    from gguf_engine.errors import (
        BackendError,
        DeviceError,
        EmbeddingError,
        EngineClosedError,
        EngineCrashed,
        EngineSilentError,
        GGUFEngineError,
        HubError,
        ModelError,
        ModelFileError,
        ModelLoadError,
        ModelNotFoundError,
        NotBuiltError,
        OptionError,
        PromptTooLongError,
        SamplingError,
        SessionBusyError,
        StateError,
        TemplateError,
        TokenizerError,
    )
    from gguf_engine.llm import LLM
    from gguf_engine.loader.preflight import preflight
    from gguf_engine.outputs import Completion, FinishReason, Piece, Timings, TokenLogprob, Usage
    from gguf_engine.params import EngineParams, SamplingParams
    from gguf_engine.session import Session
    from gguf_engine.sessionstreams import AsyncSessionStream, SessionStream
    from gguf_engine.streams import AsyncStream, Stream
    from gguf_engine.text.chat import Message

__version__ = "0.1.0"

_HOMES = {
    "AsyncSessionStream": "sessionstreams",
    "AsyncStream": "streams",
    "BackendError": "errors",
    "Completion": "outputs",
    "DeviceError": "errors",
    "EmbeddingError": "errors",
    "EngineClosedError": "errors",
    "EngineCrashed": "errors",
    "EngineParams": "params",
    "EngineSilentError": "errors",
    "EngineStats": "engine.engine",
    "FinishReason": "outputs",
    "GGUFEngineError": "errors",
    "HubError": "errors",
    "LLM": "llm",
    "Message": "text.chat",
    "ModelError": "errors",
    "ModelFileError": "errors",
    "ModelLoadError": "errors",
    "ModelNotFoundError": "errors",
    "NotBuiltError": "errors",
    "OptionError": "errors",
    "Piece": "outputs",
    "PromptTooLongError": "errors",
    "SamplingError": "errors",
    "SamplingParams": "params",
    "Session": "session",
    "SessionBusyError": "errors",
    "SessionStream": "sessionstreams",
    "StateError": "errors",
    "Stream": "streams",
    "TemplateError": "errors",
    "Timings": "outputs",
    "TokenLogprob": "outputs",
    "TokenizerError": "errors",
    "Usage": "outputs",
    "preflight": "loader.preflight",
}

__all__ = [
    "LLM",
    "AsyncSessionStream",
    "AsyncStream",
    "BackendError",
    "Completion",
    "DeviceError",
    "EmbeddingError",
    "EngineClosedError",
    "EngineCrashed",
    "EngineParams",
    "EngineSilentError",
    "EngineStats",
    "FinishReason",
    "GGUFEngineError",
    "HubError",
    "Message",
    "ModelError",
    "ModelFileError",
    "ModelLoadError",
    "ModelNotFoundError",
    "NotBuiltError",
    "OptionError",
    "Piece",
    "PromptTooLongError",
    "SamplingError",
    "SamplingParams",
    "Session",
    "SessionBusyError",
    "SessionStream",
    "StateError",
    "Stream",
    "TemplateError",
    "Timings",
    "TokenLogprob",
    "TokenizerError",
    "Usage",
    "__version__",
    "preflight",
]


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module 'gguf_engine' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"gguf_engine.{home}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
