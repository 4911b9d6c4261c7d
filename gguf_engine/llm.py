"""LLM: a loaded model that many threads may ask at once. Text goes in, text comes out."""

from __future__ import annotations

import threading
import weakref
from array import array
from collections.abc import Callable, Mapping
from collections.abc import Sequence as SequenceABC
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal

from gguf_engine.engine.engine import Engine
from gguf_engine.engine.request import Request
from gguf_engine.engine.worker import EngineWorker, Worker
from gguf_engine.errors import OptionError, PromptTooLongError, TokenizerError
from gguf_engine.outputs import Completion
from gguf_engine.params import EngineParams, SamplingParams, build_params
from gguf_engine.sampling.sampler import check_bias
from gguf_engine.streams import AsyncStream, Stream
from gguf_engine.text.chat import ChatTemplate, Message
from gguf_engine.text.tokenizer import Tokenizer

if TYPE_CHECKING:
    from gguf_engine.backend.base import Backend
    from gguf_engine.engine.speculative import Proposer
    from gguf_engine.loader.gguf import GGUFFile
    from gguf_engine.text.constraint import Constraint

Prompt = str | SequenceABC[int | Message]
"""Raw text, token ids, or messages. A string is raw text unless a method says it is a user's turn."""

Isolation = Literal["thread", "process"]
"""Where an engine runs: in a thread of this process, or in a process of its own, which may crash."""

Stage = Literal["download", "load"]
Progress = Callable[[Stage, str, int, int | None], None]
"""Called with a stage, what is worked on, the bytes done and the bytes in all (None: not known)."""


class LLM:
    """
    A model and its tokenizer, ready to answer.

    Use `LLM.load`; the constructor is for a backend of your own, such as FakeBackend.

    Args:
        make_backend: Makes the backend, in the engine's thread or process; for a process it must be a
            class or function that can be imported, or a `functools.partial` of one.
        tokenizer: Its tokenizer.
        template: Its chat template; None when there is none, which `chat` then says.
        metadata: The model file's metadata.
        model: Its name, for people.
        isolation: "thread", or "process": a crash of the backend is then an EngineCrashed.
        on_load: Called with 0..1 while it loads; `make_backend` is then given a callback that takes the
            share done and returns whether to go on.
        on_killed: Told why when the model kills the process that loads it.
    """

    def __init__(
        self,
        make_backend: Callable[..., Backend],
        tokenizer: Tokenizer,
        *,
        template: ChatTemplate | None = None,
        metadata: Mapping[str, Any] | None = None,
        model: str = "",
        isolation: Isolation = "thread",
        on_load: Callable[[float], object] | None = None,
        on_killed: Callable[[str], object] = lambda _: None,
    ) -> None:
        self.tokenizer = tokenizer
        self.metadata = {} if metadata is None else metadata
        self.model = model
        self._template = template
        self.isolation = isolation
        self._worker: Worker
        if isolation == "process":
            from gguf_engine.engine.process import ProcessWorker

            self._worker = ProcessWorker(
                make_backend,
                tokenizer,
                end_candidates=tokenizer.special_ids,
                on_load=on_load,
                on_killed=on_killed,
            )
        elif isolation == "thread":
            self._worker = _make_thread(make_backend, tokenizer, on_load)
        else:
            raise OptionError("isolation", isolation, "'thread' or 'process'")
        # Also at interpreter exit, while the thread can still be joined.
        self._finalizer = weakref.finalize(self, self._worker.close)
        try:
            self._learn()
        except BaseException:
            self.close()
            raise

    def _learn(self) -> None:
        """Wait for the engine, and keep what every request needs to know of it."""
        facts = self._worker.wait_until_ready()
        if self.tokenizer.n_vocab > facts.n_vocab:
            raise TokenizerError(
                f"the tokenizer has {self.tokenizer.n_vocab} ids, the model {facts.n_vocab}; "
                "pass the tokenizer.json that belongs to this model, or none"
            )
        self.n_ctx, self.n_ctx_train, self.n_vocab = facts.n_ctx, facts.n_ctx_train, facts.n_vocab
        self.end_ids = facts.end_ids | self.tokenizer.end_ids
        self.placement = facts.placement

    @classmethod
    def load(
        cls,
        model: str | Path,
        *,
        revision: str | None = None,
        device: str | None = None,
        params: EngineParams | None = None,
        tokenizer: str | Path | None = None,
        chat_template: str | Path | None = None,
        cache_dir: str | Path | None = None,
        endpoint: str | None = None,
        token: str | None = None,
        offline: bool = False,
        check: bool = True,
        isolation: Isolation = "thread",
        progress: Progress | None = None,
        **options: Any,
    ) -> LLM:
        """
        Load a model.

        Args:
            model: A catalog name ("haiku", "phi3-mini"), "org/repo:file@revision" on the hub, a
                .gguf file, or a folder that holds one.
            revision: Branch, tag or commit on the hub; None means the catalog's, or "main".
            device: "auto" (the default), "cpu", "cuda", "cuda:N", "metal", "vulkan", ...
            params: Options of the engine; `device` and `options` win.
            tokenizer: A tokenizer.json, instead of the one found with the model or inside it.
            chat_template: A file with a Jinja template, or its text, instead of the model's own. A
                string without "{" cannot be a template: it is a file's name.
            cache_dir: The hub cache; None means HF_HOME's, or the hub's default.
            endpoint: The hub; None means HF_ENDPOINT, or the public one.
            token: For gated repositories; None means HF_TOKEN.
            offline: Use what is cached, open no socket.
            check: Refuse files that would crash llama.cpp. Without it a bad file ends the process.
            isolation: "process" runs llama.cpp in a process of its own: what kills it costs the requests
                that run, which raise EngineCrashed, and the next request starts it again.
            progress: See Progress; called in this thread while downloading, in another while loading.
            options: The fields of EngineParams: n_ctx, n_slots, n_threads, ...

        Raises:
            OptionError: An option out of range or unknown.
            ModelError: No such model, or a file that cannot be used.
            HubError: The download failed.
            TokenizerError: The tokenizer is broken or not this model's.
            TemplateError: The template passed is broken.
            DeviceError: No such device.
        """
        from gguf_engine.backend.devices import choose
        from gguf_engine.backend.llama import LlamaBackend, list_devices
        from gguf_engine.loader.gguf import read_gguf
        from gguf_engine.loader.preflight import preflight
        from gguf_engine.loader.resolve import resolve_model

        if not isinstance(model, (str, Path)):
            raise OptionError("model", model, "a name or a path")
        if device is not None:
            options["device"] = device
        params = build_params(EngineParams, options, params)
        choose(params.device, list_devices())  # a refusal should not come after a long download
        files = resolve_model(
            model,
            revision=revision,
            cache_dir=cache_dir,
            endpoint=endpoint,
            token=token,
            offline=offline,
            progress=None if progress is None else lambda *done: progress("download", *done),
        )
        gguf = read_gguf(files.weights)
        if check:
            preflight(gguf)
        text = _load_tokenizer(gguf, files.tokenizer if tokenizer is None else Path(tokenizer))
        template = None if chat_template is None else _read_template(chat_template, text)

        def on_load(done: float) -> None:
            if progress is not None:
                progress("load", files.weights.name, round(done * gguf.size), gguf.size)

        return cls(
            partial(LlamaBackend, files.weights, params),
            text,
            template=template,
            metadata=gguf.metadata,
            model=str(model),
            isolation=isolation,
            on_load=on_load,
        )

    def generate(self, prompt: Prompt, params: SamplingParams | None = None, **options: Any) -> Completion:
        """
        Continue a prompt and return the whole answer.

        Args:
            prompt: Raw text (continued as it stands, no template), token ids, or messages.
            params: Sampling options; `options` are its fields, and win.

        Raises:
            OptionError: An option out of range or unknown, or an empty prompt.
            PromptTooLongError: The prompt fills the context.
            TemplateError: Messages for a model without a chat template.
            SamplingError, BackendError: The model failed.
            EngineClosedError: After `close`.
        """
        return self.stream(prompt, params, **options).completion()

    def chat(
        self, messages: str | SequenceABC[Message], params: SamplingParams | None = None, **options: Any
    ) -> Completion:
        """
        Answer a conversation; a string is a single message of the user.

        Raises:
            TemplateError: The model has no chat template, or it refuses these messages.
        """
        return self.stream(messages, params, chat=True, **options).completion()

    def stream(
        self,
        prompt: Prompt,
        params: SamplingParams | None = None,
        *,
        chat: bool = False,
        **options: Any,
    ) -> Stream:
        """
        Start a request and return its pieces as they are made.

        Args:
            prompt: As in `generate`; with `chat` a string is a message of the user.
            params: Sampling options; `options` are its fields, and win.
        """
        return Stream(self._worker, self._request(prompt, params, chat=chat, options=options), self)

    def astream(
        self,
        prompt: Prompt,
        params: SamplingParams | None = None,
        *,
        chat: bool = False,
        **options: Any,
    ) -> AsyncStream:
        """Start a request inside a running event loop: `async for piece in llm.astream(...)`."""
        return AsyncStream(self._worker, self._request(prompt, params, chat=chat, options=options), self)

    def _request(
        self,
        prompt: Prompt,
        params: SamplingParams | None,
        *,
        chat: bool,
        options: dict[str, Any],
        constraint: Constraint | None = None,
        proposer: Proposer | None = None,
    ) -> Request:
        """Check everything that can be checked before the engine sees the request."""
        chosen = build_params(SamplingParams, options, params)
        check_bias(chosen, self.n_vocab)
        prompt_ids = array("i", self.encode(prompt, chat=chat))
        if len(prompt_ids) >= self.n_ctx:
            raise PromptTooLongError(len(prompt_ids), self.n_ctx, self.n_ctx_train)
        return Request(
            prompt_ids=prompt_ids,
            params=chosen,
            seed=chosen.chosen_seed(),
            end_ids=self.end_ids,
            n_vocab=self.n_vocab,
            continues=isinstance(prompt, str) and not chat,
            constraint=constraint,
            proposer=proposer,
        )

    def encode(self, prompt: Prompt, *, chat: bool = False) -> list[int]:
        """
        Return the token ids of a prompt, as a request would compute them.

        Args:
            prompt: As in `generate`.
            chat: Whether a string is a message of the user.
        """
        if isinstance(prompt, str):
            if chat:
                return self.encode([{"role": "user", "content": prompt}])
            ids = self.tokenizer.encode(prompt)
        elif isinstance(prompt, (bytes, bytearray, Mapping)) or not isinstance(prompt, SequenceABC):
            raise OptionError("prompt", prompt, "text, or a list of messages or of token ids")
        elif chat or (prompt and isinstance(prompt[0], Mapping)):
            ids = self.template.encode(prompt, self.tokenizer)  # type: ignore[arg-type]
        else:
            ids = [self._checked(token_id) for token_id in prompt]
        if not ids:
            raise OptionError("prompt", prompt, "at least one token, or one message")
        return ids

    def _checked(self, token_id: Any) -> int:
        if isinstance(token_id, bool) or not isinstance(token_id, int) or not 0 <= token_id < self.n_vocab:
            raise OptionError("prompt", token_id, f"text, messages, or token ids in 0..{self.n_vocab - 1}")
        return token_id

    @property
    def template(self) -> ChatTemplate:
        """
        The chat template in use.

        Raises:
            TemplateError: The model has none and none was passed.
        """
        if self._template is None:
            self._template = ChatTemplate.from_metadata(self.metadata, self.tokenizer)
        return self._template

    def close(self) -> None:
        """End every request and free the model; twice is fine."""
        self._worker.close()
        self._finalizer.detach()

    def __enter__(self) -> LLM:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


def _make_thread(
    make_backend: Callable[..., Backend],
    tokenizer: Tokenizer,
    on_load: Callable[[float], object] | None,
) -> EngineWorker:
    stop = threading.Event()

    def report(done: float) -> bool:
        assert on_load is not None
        on_load(done)
        return not stop.is_set()

    def make_engine() -> Engine:
        return Engine(make_backend() if on_load is None else make_backend(report))

    return EngineWorker(make_engine, tokenizer, end_candidates=tokenizer.special_ids, abort_making=stop.set)


def _load_tokenizer(gguf: GGUFFile, path: Path | None) -> Tokenizer:
    """Return the tokenizer.json's tokenizer, compared with the GGUF's own, or the latter alone."""
    if path is None:
        return Tokenizer.from_metadata(gguf.metadata)
    tokenizer = Tokenizer.from_file(path)
    return tokenizer.with_model(gguf.metadata) if "tokenizer.ggml.tokens" in gguf.metadata else tokenizer


def _read_template(chat_template: str | Path, tokenizer: Tokenizer) -> ChatTemplate:
    """Read a template from a file; a string with Jinja in it is the template itself."""
    if not isinstance(chat_template, (str, Path)):
        raise OptionError("chat_template", chat_template, "a file's path, or the template's text")
    text = str(chat_template)
    if isinstance(chat_template, Path) or "{" not in text:
        try:
            text = Path(chat_template).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise OptionError(
                "chat_template", text, "a readable Jinja file, or the template's text", str(error)
            ) from error
    return ChatTemplate.for_tokenizer(text, tokenizer)
