"""
Every error this package raises on purpose.

    GGUFEngineError
    ├── OptionError            an option out of range, of the wrong type or unknown (also a ValueError)
    ├── NotBuiltError          the sources that were imported were never built (also an ImportError)
    ├── ModelError             a model that cannot be used
    │   ├── ModelNotFoundError     no such name, file, repository or revision
    │   ├── ModelFileError         bytes that are not a model llama.cpp can load safely
    │   └── ModelLoadError         llama.cpp itself refused the file
    ├── HubError               a download that failed; has a stable code
    ├── TokenizerError         a tokenizer that is broken, missing or not the model's
    ├── TemplateError          a chat template that is missing or fails
    ├── DeviceError            a device that this machine or this build does not have
    ├── PromptTooLongError     more prompt than context
    ├── SamplingError          a logits row that cannot be sampled
    ├── BackendError           llama.cpp failed during a forward pass
    ├── EmbeddingError         a model that makes no embeddings
    ├── StateError             a saved state or session that is damaged or belongs elsewhere
    ├── SessionBusyError       a second turn of a session while one runs
    ├── EngineCrashed          the process of an isolated engine died
    ├── EngineSilentError      the engine did not answer in time (also a TimeoutError)
    └── EngineClosedError      use after close, or in another process than the one that loaded

Attributes hold the facts; the message is one sentence made of them: what happened, the value, what
is allowed, what to do. Errors survive pickling, so they can cross a process boundary.
"""

from __future__ import annotations

from typing import Any


class GGUFEngineError(Exception):
    """The root: `except GGUFEngineError` catches everything this package raises on purpose."""

    def __reduce__(self) -> tuple[Any, ...]:
        """Rebuild from class, message and attributes: `__init__` takes facts, not the message."""
        return (_rebuild, (type(self), self.args, dict(self.__dict__)))


def _rebuild(kind: type[GGUFEngineError], args: tuple[Any, ...], facts: dict[str, Any]) -> GGUFEngineError:
    error = kind.__new__(kind, *args)
    error.args = args
    error.__dict__.update(facts)
    return error


def _sentence(what: str, help_: str) -> str:
    return f"{what}; {help_}" if help_ else what


class OptionError(GGUFEngineError, ValueError):
    """An option holds a value outside its range."""

    def __init__(self, option: str, value: object, allowed: str, help: str = "") -> None:  # noqa: A002
        self.option, self.value, self.allowed, self.help = option, value, allowed, help
        shown = repr(value)
        shown = shown if len(shown) <= 200 else f"{shown[:200]}..."
        super().__init__(_sentence(f"{option} is {shown}; allowed: {allowed}", help))


class NotBuiltError(GGUFEngineError, ImportError):
    """The package was imported from a source folder whose native code was never built."""

    def __init__(self) -> None:
        from pathlib import Path

        folder = Path(__file__).resolve().parent.parent
        super().__init__(
            f"gguf_engine is imported from {folder}, whose native code is not built; "
            "to use the installed package start Python in another folder, or build this one: "
            "`pip install -e .` there"
        )


class ModelError(GGUFEngineError):
    """A model that cannot be used."""


class ModelNotFoundError(ModelError):
    """No model of this name, or no such file, repository or revision."""

    def __init__(self, model: str, what: str, help: str = "") -> None:  # noqa: A002
        self.model, self.what, self.help = model, what, help
        super().__init__(_sentence(f"model {model!r}: {what}", help))


class ModelFileError(ModelError):
    """
    A file that is not a usable GGUF.

    Attributes:
        path: The file, as it was named.
        code: A stable identifier such as "magic", "truncated", "tensor_type".
        where: The key, tensor or byte offset concerned; "" for the file as a whole.
        what: What was found there, with the value.
    """

    def __init__(self, path: str, code: str, where: str, what: str, help: str = "") -> None:  # noqa: A002
        self.path, self.code, self.where, self.what, self.help = path, code, where, what, help
        place = f"{path}: {where}" if where else path
        super().__init__(_sentence(f"{place}: {what}", help) + f" [{code}]")


class ModelLoadError(ModelError):
    """llama.cpp refused a file that the checks of this package had let pass."""

    def __init__(self, path: str, what: str, log_tail: str = "") -> None:
        self.path, self.what, self.log_tail = path, what, log_tail
        super().__init__(_sentence(f"llama.cpp could not load {path}: {what}", log_tail))


class HubError(GGUFEngineError):
    """
    A download that failed.

    Attributes:
        code: One of not_found, gated, auth, revision, offline, network, timeout, disk_full,
            integrity, busy, cache (the cache folder cannot be written).
    """

    def __init__(self, code: str, what: str, help: str = "") -> None:  # noqa: A002
        self.code, self.what, self.help = code, what, help
        super().__init__(_sentence(what, help) + f" [{code}]")


class TokenizerError(GGUFEngineError):
    """A tokenizer that is broken, missing, or does not belong to the model."""


class TemplateError(GGUFEngineError):
    """A chat template that is missing, too large, or fails on these messages."""


class DeviceError(GGUFEngineError):
    """A device that this machine, or this build of llama.cpp, does not have."""

    def __init__(self, device: str, what: str, help: str = "") -> None:  # noqa: A002
        self.device, self.what, self.help = device, what, help
        super().__init__(_sentence(f"device {device!r}: {what}", help))


class PromptTooLongError(GGUFEngineError, ValueError):
    """A prompt that leaves no room for an answer, or a text that is longer than the context."""

    def __init__(self, n_prompt: int, n_ctx: int, n_ctx_train: int, what: str = "prompt") -> None:
        self.n_prompt, self.n_ctx, self.n_ctx_train = n_prompt, n_ctx, n_ctx_train
        wanted = n_ctx
        while wanted <= n_prompt:
            wanted *= 2
        way_out = (
            f"shorten it or load with n_ctx={min(wanted, n_ctx_train)}"
            if n_ctx_train > n_prompt
            else f"shorten it: the model itself was trained for {n_ctx_train}"
        )
        super().__init__(f"{what} is {n_prompt} tokens, the context holds {n_ctx}; {way_out}")


class SamplingError(GGUFEngineError):
    """A logits row that cannot be sampled: NaN or +inf in it, or every id masked."""


class BackendError(GGUFEngineError):
    """
    A forward pass that failed.

    Attributes:
        status: The return code of `llama_decode`.
    """

    def __init__(self, status: int, what: str) -> None:
        self.status, self.what = status, what
        super().__init__(f"{what} (llama_decode returned {status})")


class EmbeddingError(GGUFEngineError):
    """Embeddings of a model that cannot make any."""

    def __init__(self, what: str) -> None:
        self.what = what
        super().__init__(f"this model makes no embeddings: {what}; use one made for them")


class StateError(GGUFEngineError):
    """
    A saved state that must not be restored.

    Attributes:
        code: One of not_a_state, version, truncated, corrupt, other_model, other_settings, file (it
            cannot be read or written).
        name: The file, or what else it is called.
        what: What was found, with both values where two differ.
    """

    def __init__(self, code: str, name: str, what: str, help: str = "") -> None:  # noqa: A002
        self.code, self.name, self.what, self.help = code, name, what, help
        super().__init__(_sentence(f"{name}: {what}", help) + f" [{code}]")


class SessionBusyError(GGUFEngineError):
    """A session is asked to do something while one of its answers is being made."""


class EngineCrashed(GGUFEngineError):  # noqa: N818 - what happened, as in a log
    """
    The process of an engine loaded with isolation="process" died; the next request starts another.

    Attributes:
        pid: Of the process.
        what: How it ended, such as "ended with SIGSEGV".
        last_words: The end of what it wrote to stderr, llama.cpp's own message among it; may be "".
    """

    def __init__(self, pid: int | None, what: str, last_words: str) -> None:
        self.pid, self.what, self.last_words = pid, what, last_words
        which = "" if pid is None else f" {pid}"
        said = f"its last words: {last_words}" if last_words else "it said nothing"
        super().__init__(f"the engine's process{which} {what}; {said}")


class EngineSilentError(GGUFEngineError, TimeoutError):
    """The engine did not say in time what it is doing: a very long pass, a stopped process, a reload."""

    def __init__(self, timeout_s: float) -> None:
        self.timeout_s = timeout_s
        super().__init__(f"the engine gave no sign of life within {timeout_s:g} s")


class EngineClosedError(GGUFEngineError):
    """The engine was closed, or is used in a process that did not load it."""
