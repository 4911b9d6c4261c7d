"""LLM: a loaded model that many threads may ask at once. Text goes in, text comes out."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Mapping
from collections.abc import Sequence as SequenceABC
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from gguf_engine.engine.engine import EngineMaker, EngineStats
from gguf_engine.engine.worker import EngineWorker, Worker
from gguf_engine.errors import OptionError
from gguf_engine.outputs import Completion
from gguf_engine.params import EngineParams, Isolation, SamplingParams, build_params, keywords
from gguf_engine.prompts import Prompt, Prompts
from gguf_engine.sessionfile import OnFull, PrefixFiles
from gguf_engine.streams import AsyncStream, Stream
from gguf_engine.text.chat import ChatTemplate, Message
from gguf_engine.text.tokenizer import Tokenizer

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from gguf_engine.backend.base import Backend
    from gguf_engine.embeddings import Text
    from gguf_engine.engine.prefix_store import PrefixCache
    from gguf_engine.engine.process import ProcessWorker
    from gguf_engine.engine.speculative import DraftMaker
    from gguf_engine.engine.state import StateOrigin
    from gguf_engine.opening import Progress
    from gguf_engine.params import PresetName
    from gguf_engine.session import Session


class LLM(Prompts):
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
        super().__init__(tokenizer, template, metadata or {}, keeps_prefixes=prefix_cache is not None)
        self.model, self.isolation = model, isolation
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
            build_params(EngineParams, options, params, keywords(cls.load)),
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
        return self.stream(prompt, params, whole=True, **options).completion()

    def chat(
        self, messages: str | SequenceABC[Message], params: SamplingParams | None = None, **options: Any
    ) -> Completion:
        """
        Answer a conversation; a string is a single message of the user.

        Raises:
            TemplateError: The model has no chat template, or it refuses these messages.
        """
        return self.stream(messages, params, chat=True, whole=True, **options).completion()

    def stream(
        self,
        prompt: Prompt,
        params: SamplingParams | None = None,
        *,
        chat: bool = False,
        priority: int = 0,
        whole: bool = False,
        **options: Any,
    ) -> Stream:
        """
        Start a request and return its pieces as they are made.

        Args:
            prompt: As in `generate`; with `chat` a string is a message of the user.
            params: Sampling options; `options` are its fields, and win.
            priority: -100..100. Requests of a higher one come first, but none waits for ever.
            whole: Nobody reads before the end: the pieces come in few parts, and nothing is woken for each.
        """
        request = self._request(prompt, params, chat=chat, options=options, priority=priority, whole=whole)
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
        return Stream(self._worker, self._target_request(prompt, target_ids), self)

    def streams(
        self,
        prompt: Prompt,
        n: int,
        params: SamplingParams | None = None,
        *,
        chat: bool = False,
        priority: int = 0,
        whole: bool = False,
        **options: Any,
    ) -> list[Stream]:
        """
        Start `n` answers to one prompt, which is computed once; see `stream`.

        Args:
            n: 1..256. The seeds are the one asked for and those that follow it.
        """
        first = self._request(prompt, params, chat=chat, options=options, priority=priority, whole=whole)
        return [Stream(self._worker, request, self) for request in first.repeated(n)]

    def astream(
        self,
        prompt: Prompt,
        params: SamplingParams | None = None,
        *,
        chat: bool = False,
        priority: int = 0,
        whole: bool = False,
        **options: Any,
    ) -> AsyncStream:
        """Start a request inside a running event loop: `async for piece in llm.astream(...)`."""
        request = self._request(prompt, params, chat=chat, options=options, priority=priority, whole=whole)
        return AsyncStream(self._worker, request, self)

    def astreams(
        self,
        prompt: Prompt,
        n: int,
        params: SamplingParams | None = None,
        *,
        chat: bool = False,
        priority: int = 0,
        whole: bool = False,
        **options: Any,
    ) -> list[AsyncStream]:
        """Start `n` answers to one prompt inside a running event loop; see `streams`."""
        first = self._request(prompt, params, chat=chat, options=options, priority=priority, whole=whole)
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

    def embed(self, texts: str | SequenceABC[Text], *, normalize: bool = True) -> NDArray[np.float32]:
        """
        Return the embedding of each text.

        A text's vector is made of those of its tokens as the model's file says: their mean, the first one's
        or the last one's. Where it says nothing it is their mean, which of a model made to write is a rough
        likeness of meaning and no more. Texts share forward passes, also with those of other callers; among
        them a vector differs by rounding from what it is alone (their cosine is over 0.999).

        Embeddings have KV cells of their own, made at the first use: as many as the longest text so far has
        tokens, rounded up to a power of two, and 512 at least.

        Args:
            texts: One text, or several; each a string, or token ids, which are taken as they are.
            normalize: Scale each vector to length 1, so that a product of two is their cosine.

        Returns:
            (n_texts, n_embd) float32, in the order of the texts.

        Raises:
            OptionError: No text, an empty one, or something that is none.
            PromptTooLongError: A text is longer than the context; says which.
            EmbeddingError: The model makes no embeddings.
            BackendError: The model failed.
            EngineClosedError: After `close`.
        """
        from gguf_engine.embeddings import embed

        return embed(self._worker, self.encode_texts(texts), normalize=normalize)

    async def aembed(
        self, texts: str | SequenceABC[Text], *, normalize: bool = True
    ) -> NDArray[np.float32]:
        """Return the embedding of each text, inside a running event loop; see `embed`."""
        from gguf_engine.embeddings import aembed

        return await aembed(self._worker, self.encode_texts(texts), normalize=normalize)

    def stats(self, timeout_s: float = 5.0) -> EngineStats:
        """
        Return what the engine is doing now; in a long pass, what it did when that began.

        Raises:
            EngineSilentError: No answer within `timeout_s`: it is loading, or hangs.
            EngineCrashed: Its process died too often to be started again.
            EngineClosedError: After `close`.
        """
        return self._worker.stats(timeout_s)

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
