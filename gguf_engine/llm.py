"""LLM: a loaded model that many threads may ask at once. Text goes in, text comes out."""

from __future__ import annotations

import threading
import weakref
from array import array
from collections.abc import Callable, Mapping
from collections.abc import Sequence as SequenceABC
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from gguf_engine.engine.engine import EngineFacts, EngineMaker, EngineStats
from gguf_engine.engine.forced import Forced
from gguf_engine.engine.request import Request
from gguf_engine.engine.system_prefix import SystemPrefixes
from gguf_engine.engine.worker import EngineWorker, Worker
from gguf_engine.errors import OptionError, PromptTooLongError, TokenizerError
from gguf_engine.outputs import Completion
from gguf_engine.params import EngineParams, Isolation, SamplingParams, build_params, check_priority
from gguf_engine.sampling.sampler import check_bias
from gguf_engine.sessionfile import OnFull, PrefixFiles
from gguf_engine.streams import AsyncStream, Stream
from gguf_engine.text.chat import ChatTemplate, Message
from gguf_engine.text.tokenizer import Tokenizer

if TYPE_CHECKING:
    from gguf_engine.backend.base import Backend
    from gguf_engine.engine.prefix_store import PrefixCache
    from gguf_engine.engine.process import ProcessWorker
    from gguf_engine.engine.speculative import DraftMaker, Proposer
    from gguf_engine.engine.state import StateOrigin
    from gguf_engine.opening import Progress
    from gguf_engine.params import PresetName
    from gguf_engine.session import Session
    from gguf_engine.text.constraint import Constraint

Prompt = str | SequenceABC[int | Message]
"""Raw text, token ids, or messages. A string is raw text unless a method says it is a user's turn."""


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
        preset: As in EngineParams.
        prefix_cache: Where system prompts are kept on disk; None for nowhere.
        draft: How to make what guesses at the next ids; None for none.
        state_origin: Takes n_vocab and n_ctx and returns what saved states belong to; None when nothing
            identifies the model: sessions are then saved without what they have computed.
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
        preset: PresetName | None = None,
        prefix_cache: PrefixCache | None = None,
        draft: DraftMaker | None = None,
        state_origin: Callable[[int, int], StateOrigin] | None = None,
    ) -> None:
        self.tokenizer = tokenizer
        self.metadata = {} if metadata is None else metadata
        self.model = model
        self._template = template
        self.isolation = isolation
        self._prefixes = None if prefix_cache is None else SystemPrefixes(self.encode)
        make_engine = EngineMaker(make_backend, draft, preset, prefix_cache)
        if isolation not in ("thread", "process"):
            raise OptionError("isolation", isolation, "'thread' or 'process'")
        self._worker: Worker
        try:
            if isolation == "process":
                self._worker = _make_process(make_engine, tokenizer, on_load, on_killed)
            else:
                self._worker = _make_thread(make_engine, tokenizer, on_load)
            # Also at interpreter exit, while the thread can still be joined.
            self._finalizer = weakref.finalize(self, self._worker.close)
            self._learn(self._worker.wait_until_ready())
            self.prefix_files = PrefixFiles(
                self._worker, state_origin and partial(state_origin, self.n_vocab, self.n_ctx)
            )
        except BaseException:
            if hasattr(self, "_worker"):
                self._worker.close()
            raise

    def _learn(self, facts: EngineFacts) -> None:
        """Keep what every request needs to know of the engine."""
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
        lock: str | Path | None = None,
        preflight: bool = True,
        isolation: Isolation | None = None,
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
            lock: A lock file: files that differ from what it names are refused.
            preflight: Refuse files that would crash llama.cpp or answer nonsense; the first time, a model
                is read whole for it. Without, a bad file may end this process.
            isolation: "process" runs llama.cpp in a process of its own: what kills it costs the requests
                that run, which raise EngineCrashed, and the next request starts it again. None is
                "thread" for the families whose files are checked tensor by tensor, "process" for others.
            progress: See `gguf_engine.opening.Progress`; called in this thread while downloading and
                checking, in another while loading.
            options: The fields of EngineParams: n_ctx, n_slots, n_threads, ...

        Raises:
            OptionError: An option out of range or unknown.
            ModelError: No such model, or a file that cannot be used.
            HubError: The download failed.
            TokenizerError: The tokenizer is broken or not this model's.
            TemplateError: The template passed is broken.
            DeviceError: No such device.
        """
        from gguf_engine.opening import open_model

        if device is not None:
            options["device"] = device
        opened = open_model(
            model,
            build_params(EngineParams, options, params),
            revision=revision,
            tokenizer=tokenizer,
            chat_template=chat_template,
            cache_dir=cache_dir,
            endpoint=endpoint,
            token=token,
            offline=offline,
            lock=lock,
            preflight=preflight,
            progress=progress,
        )
        return cls(
            opened.make_backend,
            opened.tokenizer,
            template=opened.template,
            metadata=opened.metadata,
            model=str(model),
            isolation=isolation or ("thread" if opened.is_known_family else "process"),
            on_load=opened.on_load,
            on_killed=opened.on_killed,
            preset=opened.preset,
            prefix_cache=opened.prefix_cache,
            draft=opened.draft,
            state_origin=opened.state_origin,
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
        priority: int = 0,
        **options: Any,
    ) -> Stream:
        """
        Start a request and return its pieces as they are made.

        Args:
            prompt: As in `generate`; with `chat` a string is a message of the user.
            params: Sampling options; `options` are its fields, and win.
            priority: -100..100. Requests of a higher one come first, but none waits for ever.
        """
        request = self._request(prompt, params, chat=chat, options=options, priority=priority)
        return Stream(self._worker, request, self)

    def stream_target(self, prompt: Prompt, target_ids: SequenceABC[int]) -> Stream:
        """
        Start a request whose answer is given: its pieces carry the model's own log-probabilities of it.

        Nothing is drawn. The answer is computed many ids a pass, as a prompt is.

        Args:
            prompt: As in `generate`.
            target_ids: The answer, at least one id.

        Raises:
            OptionError: No ids, or one that is none.
            PromptTooLongError: Prompt and answer together do not fit into the context.
        """
        prompt_ids = self.encode(prompt)
        forced = tuple(map(self._checked, target_ids))
        if not forced:
            raise OptionError("target", target_ids, "at least one token")
        if len(prompt_ids) + len(forced) > self.n_ctx:
            raise PromptTooLongError(len(prompt_ids) + len(forced), self.n_ctx, self.n_ctx_train)
        params = SamplingParams(
            temperature=0.0,
            repeat_penalty=1.0,
            seed=0,
            max_tokens=len(forced),
            logprobs=0,
            raw_logprobs=True,
        )
        answer = Forced(len(prompt_ids), forced)
        request = self._request(
            prompt_ids, params, chat=False, options={}, constraint=answer, proposer=answer
        )
        return Stream(self._worker, replace(request, end_ids=frozenset()), self)

    def streams(
        self,
        prompt: Prompt,
        n: int,
        params: SamplingParams | None = None,
        *,
        chat: bool = False,
        priority: int = 0,
        **options: Any,
    ) -> list[Stream]:
        """
        Start `n` answers to one prompt, which is computed once; see `stream`.

        Args:
            n: 1..256. The seeds are the one asked for and those that follow it.
        """
        first = self._request(prompt, params, chat=chat, options=options, priority=priority)
        return [Stream(self._worker, request, self) for request in first.repeated(n)]

    def astream(
        self,
        prompt: Prompt,
        params: SamplingParams | None = None,
        *,
        chat: bool = False,
        priority: int = 0,
        **options: Any,
    ) -> AsyncStream:
        """Start a request inside a running event loop: `async for piece in llm.astream(...)`."""
        request = self._request(prompt, params, chat=chat, options=options, priority=priority)
        return AsyncStream(self._worker, request, self)

    def astreams(
        self,
        prompt: Prompt,
        n: int,
        params: SamplingParams | None = None,
        *,
        chat: bool = False,
        priority: int = 0,
        **options: Any,
    ) -> list[AsyncStream]:
        """Start `n` answers to one prompt inside a running event loop; see `streams`."""
        first = self._request(prompt, params, chat=chat, options=options, priority=priority)
        return [AsyncStream(self._worker, request, self) for request in first.repeated(n)]

    def session(
        self,
        *,
        system: str | None = None,
        on_full: OnFull = "raise",
        params: SamplingParams | None = None,
        **options: Any,
    ) -> Session:
        """Start a conversation; see `gguf_engine.Session`."""
        from gguf_engine.session import Session  # it lies above: this is another way to write Session(llm)

        return Session(self, system=system, on_full=on_full, params=params, **options)

    def _request(
        self,
        prompt: Prompt,
        params: SamplingParams | None,
        *,
        chat: bool,
        options: dict[str, Any],
        constraint: Constraint | None = None,
        proposer: Proposer | None = None,
        priority: int = 0,
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
            priority=check_priority(priority),
            n_keep=0 if self._prefixes is None else self._prefixes.length(prompt, prompt_ids),
        )

    def stats(self, timeout_s: float = 5.0) -> EngineStats:
        """
        Return what the engine is doing now, asked of the engine itself.

        Raises:
            EngineSilentError: No answer within `timeout_s`.
            EngineCrashed: Its process died too often to be started again.
            EngineClosedError: After `close`.
        """
        return self._worker.stats(timeout_s)

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


def _make_process(
    make_engine: EngineMaker,
    tokenizer: Tokenizer,
    on_load: Callable[[float], object] | None,
    on_killed: Callable[[str], object],
) -> ProcessWorker:
    from gguf_engine.engine.process import ProcessWorker

    return ProcessWorker(
        make_engine, tokenizer, end_candidates=tokenizer.special_ids, on_load=on_load, on_killed=on_killed
    )


def _make_thread(
    make_engine: EngineMaker,
    tokenizer: Tokenizer,
    on_load: Callable[[float], object] | None,
) -> EngineWorker:
    stop = threading.Event()

    def report(done: float) -> bool:
        assert on_load is not None
        on_load(done)
        return not stop.is_set()

    return EngineWorker(
        lambda: make_engine() if on_load is None else make_engine(report),
        tokenizer,
        end_candidates=tokenizer.special_ids,
        abort_making=stop.set,
    )
