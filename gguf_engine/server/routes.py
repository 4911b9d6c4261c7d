"""What each route does: read, check, ask the engine, answer."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from pathlib import PurePath
from typing import TYPE_CHECKING, Any, TypeVar

from pydantic_core import to_json
from starlette.requests import Request
from starlette.responses import Response

from gguf_engine.engine.engine import EngineStats
from gguf_engine.errors import GGUFEngineError, OptionError
from gguf_engine.params import SamplingParams, build_params
from gguf_engine.server import schema
from gguf_engine.server.body import read
from gguf_engine.server.embedding import Embedded
from gguf_engine.server.errors import RefusedError, sentence
from gguf_engine.server.generation import Engine, Generated, Job
from gguf_engine.server.metrics import CONTENT_TYPE
from gguf_engine.server.replies import ChatReply, CompletionReply, Reply, TokenTexts

if TYPE_CHECKING:
    from gguf_engine.prompts import Prompt
    from gguf_engine.server.settings import ServerParams
    from gguf_engine.text.chat import Message

N_BESIDE = 2
"""Long texts that are encoded, decoded or rendered at once: each takes a thread and its memory."""

_B = TypeVar("_B", bound=schema.Strict)
_T = TypeVar("_T")
Handler = Callable[[Request], Awaitable[Response]]
TableRow = tuple[str, str, Handler, type[schema.Strict] | None]
"""Method, path, handler and body of a route."""


class Routes:
    """The handlers of one server."""

    def __init__(self, engine: Engine, settings: ServerParams) -> None:
        self._engine, self._llm, self._settings = engine, engine.llm, settings
        self.model = settings.served_name or PurePath(engine.llm.model).name or "model"
        if settings.served_name is None and not engine.llm.model.endswith(".gguf"):
            self.model = engine.llm.model or "model"
        self._created = int(time.time())
        self._texts = TokenTexts(engine.llm.tokenizer)
        # No token stands for more characters, so a longer text cannot fit: found without encoding it, which
        # takes seconds for the largest body.
        longest = max(map(len, engine.llm.tokenizer.pieces()), default=1)
        self._max_chars = max(1, longest) * engine.llm.n_ctx
        self._beat: asyncio.Future[EngineStats] | None = None
        self._beside = asyncio.Semaphore(N_BESIDE)

    def table(self) -> list[TableRow]:
        """Return the routes."""
        return [
            ("GET", "/v1/models", self.models, None),
            ("GET", "/v1/models/{model:path}", self.one_model, None),
            ("POST", "/v1/chat/completions", self.chat, schema.ChatRequest),
            ("POST", "/v1/completions", self.complete, schema.CompletionRequest),
            ("POST", "/v1/embeddings", self.embed, schema.EmbeddingRequest),
            ("POST", "/tokenize", self.tokenize, schema.TokenizeRequest),
            ("POST", "/detokenize", self.detokenize, schema.DetokenizeRequest),
            ("POST", "/apply-template", self.apply_template, schema.TemplateRequest),
            ("POST", "/prompt", self.prompt, schema.PromptRequest),
            ("GET", "/health", self.health, None),
            ("GET", "/metrics", self.metrics, None),
        ]

    async def _read(self, request: Request, kind: type[_B]) -> _B:
        return await read(request, kind, self._settings.max_body_bytes)

    async def models(self, request: Request) -> Response:
        """List the one model there is."""
        del request
        return _json({"object": "list", "data": [self._card()]})

    async def one_model(self, request: Request) -> Response:
        """Describe the model."""
        self._check_model(request.path_params["model"])
        return _json(self._card())

    def _card(self) -> dict[str, Any]:
        llm = self._llm
        sizes = {"n_ctx": llm.n_ctx, "n_ctx_train": llm.n_ctx_train, "n_vocab": llm.n_vocab}
        card = {"id": self.model, "object": "model", "created": self._created, "owned_by": "gguf-engine"}
        return {**card, "meta": sizes}

    def _check_model(self, name: str | None) -> None:
        if name not in (None, self.model):
            message = f"the model {name[:80]!r} is not served here; this server has {self.model!r}"
            raise RefusedError(404, "model_not_found", message, param="model")

    def _check_length(self, param: str, n_chars: int) -> None:
        if n_chars > self._max_chars:
            raise RefusedError(
                400,
                "context_length_exceeded",
                f"{param} holds {n_chars} characters; the context of {self._llm.n_ctx} tokens holds "
                f"{self._max_chars} at most; shorten it",
                param=param,
            )

    async def chat(self, request: Request) -> Response:
        """Answer a conversation."""
        body = await self._read(request, schema.ChatRequest)
        messages = self._messages(body.messages)
        return self._generate(body, [messages], ChatReply, chat=True)

    def _messages(self, given: Sequence[schema.ChatMessage]) -> list[Message]:
        self._check_length("messages", sum(len(message.content) for message in given))
        return [{"role": message.role, "content": message.content} for message in given]

    async def complete(self, request: Request) -> Response:
        """Continue texts, or lists of token ids."""
        body = await self._read(request, schema.CompletionRequest)
        n = len(body.prompt) * (body.n or 1)
        if n > schema.MAX_CHOICES:
            message = f"{n} answers are asked for at once; allowed: {schema.MAX_CHOICES}"
            raise RefusedError(400, "invalid_value", message, param="n")
        for prompt in body.prompt:
            self._check_length("prompt", len(prompt) if isinstance(prompt, str) else 0)
        return self._generate(body, body.prompt, CompletionReply, chat=False)

    def _generate(
        self, body: schema.Generation, prompts: Sequence[Prompt], kind: type[Reply], *, chat: bool
    ) -> Response:
        self._check_model(body.model)
        if body.stream_options is not None and not body.stream:
            raise RefusedError(
                400, "invalid_value", "stream_options needs stream: true beside it", param="stream_options"
            )
        params = self._params(body)
        reply = kind(
            self.model,
            self._texts,
            wants_usage=body.wants_usage,
            with_logprobs=params.logprobs is not None,
        )
        return Generated(
            self._engine,
            Job(
                prompts=prompts,
                params=params,
                n=body.n or 1,
                chat=chat,
                stream=bool(body.stream),
                reply=reply,
            ),
        )

    def _params(self, body: schema.Sampling) -> SamplingParams:
        return build_params(SamplingParams, body.given(), schema.DEFAULTS)

    async def prompt(self, request: Request) -> Response:
        """Answer one message of a user, as plain text."""
        body = await self._read(request, schema.PromptRequest)
        self._check_length("prompt", len(body.prompt))
        return Generated(self._engine, Job(prompts=[body.prompt], params=self._params(body), chat=True))

    async def embed(self, request: Request) -> Response:
        """Return the embeddings of texts, or of lists of token ids."""
        body = await self._read(request, schema.EmbeddingRequest)
        self._check_model(body.model)
        for i, text in enumerate(body.input):
            self._check_length(f"input[{i}]", len(text) if isinstance(text, str) else 0)
        if body.dimensions is not None:
            message = f"dimensions is {body.dimensions}: this server's vectors come whole; leave it out"
            raise RefusedError(400, "invalid_value", message, param="dimensions")
        as_base64 = body.encoding_format == "base64"
        return Embedded(self._engine, body.input, self.model, as_base64=as_base64)

    async def tokenize(self, request: Request) -> Response:
        """Return the ids of a text; control tokens in it are text."""
        body = await self._read(request, schema.TokenizeRequest)
        add_bos = None if body.add_special else False
        ids = await self._run(self._llm.tokenizer.encode, body.content, add_bos=add_bos)
        return _json({"tokens": ids})

    async def detokenize(self, request: Request) -> Response:
        """Return the text of ids, control tokens included."""
        tokens = (await self._read(request, schema.DetokenizeRequest)).tokens
        n_vocab = self._llm.tokenizer.n_vocab
        wrong = next((token_id for token_id in tokens if token_id >= n_vocab), None)
        if wrong is not None:
            raise OptionError("tokens", wrong, f"token ids in 0..{n_vocab - 1}")
        text = await self._run(self._llm.tokenizer.decode, tokens, skip_special_tokens=False)
        return _json({"content": text})

    async def apply_template(self, request: Request) -> Response:
        """Return a conversation as the text that the model's template makes of it, to look at."""
        body = await self._read(request, schema.TemplateRequest)
        messages = self._messages(body.messages)
        render = self._llm.template.render
        text = await self._run(render, messages, add_generation_prompt=body.add_generation_prompt)
        return _json({"prompt": text})

    async def _run(self, function: Callable[..., _T], *args: Any, **options: Any) -> _T:
        """Call a function that may take long in a thread; some are left for `health` whoever calls."""
        async with self._beside:
            return await asyncio.to_thread(function, *args, **options)

    async def health(self, request: Request) -> Response:
        """Ask the engine for a beat; 503 with the reason when there is none."""
        del request
        try:
            await self.stats()
        except GGUFEngineError as error:
            return _json({"status": "unavailable", "reason": sentence(error)}, 503)
        return _json({"status": "ok", "model": self.model})

    async def metrics(self, request: Request) -> Response:
        """Return the metrics as Prometheus reads them."""
        del request
        try:
            stats: EngineStats | None = await self.stats()
        except GGUFEngineError:
            stats = None
        return Response(self._engine.metrics.render(stats), media_type=CONTENT_TYPE)

    async def stats(self) -> EngineStats:
        """Ask the engine what it does; all who ask at once share one question, and one thread."""
        if self._beat is None or self._beat.done():
            self._beat = asyncio.ensure_future(asyncio.to_thread(self._llm.stats, self._settings.beat_s))
            self._beat.add_done_callback(lambda beat: beat.cancelled() or beat.exception())
        return await asyncio.shield(self._beat)


def _json(value: object, status: int = 200) -> Response:
    return Response(to_json(value), status, media_type="application/json")
