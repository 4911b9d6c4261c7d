"""Prompts: what a loaded model knows of text and of its own limits, and the requests made with it."""

from __future__ import annotations

from array import array
from collections.abc import Mapping
from collections.abc import Sequence as SequenceABC
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from gguf_engine.engine.forced import Forced
from gguf_engine.engine.request import Request
from gguf_engine.engine.system_prefix import SystemPrefixes
from gguf_engine.errors import OptionError, PromptTooLongError, TokenizerError
from gguf_engine.params import SamplingParams, build_params, check_priority
from gguf_engine.sampling.sampler import check_bias
from gguf_engine.text.chat import ChatTemplate, Message
from gguf_engine.text.tokenizer import Tokenizer

if TYPE_CHECKING:
    from gguf_engine.embeddings import Text
    from gguf_engine.engine.engine import EngineFacts
    from gguf_engine.engine.speculative import Proposer
    from gguf_engine.text.constraint import Constraint

Prompt = str | SequenceABC[int | Message]
"""Raw text, token ids, or messages. A string is raw text unless a method says it is a user's turn."""

_BESIDE = ("chat", "priority", "whole")  # what requests take beside their options


class Prompts:
    """
    The half of an `LLM` that needs no engine: everything is checked here before one sees it.

    Args:
        tokenizer: The model's tokenizer.
        template: Its chat template; None for the one in the metadata, read when it is first wanted.
        metadata: The model file's metadata.
        keeps_prefixes: Whether what system messages begin a prompt with is kept on disk.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        template: ChatTemplate | None,
        metadata: Mapping[str, Any],
        *,
        keeps_prefixes: bool,
    ) -> None:
        self.tokenizer, self.metadata, self._template = tokenizer, metadata, template
        self._prefixes = SystemPrefixes(self.encode) if keeps_prefixes else None

    def _learn(self, facts: EngineFacts) -> None:
        """Keep what every request needs to know of the engine."""
        if self.tokenizer.n_vocab > facts.n_vocab:
            raise TokenizerError(
                f"the tokenizer has {self.tokenizer.n_vocab} ids, the model {facts.n_vocab}; "
                "pass the tokenizer.json that belongs to this model, or none"
            )
        self.n_ctx, self.n_ctx_train, self.n_vocab = facts.n_ctx, facts.n_ctx_train, facts.n_vocab
        self.end_ids = facts.end_ids | self.tokenizer.end_ids
        self.placement, self.draft_placement = facts.placement, facts.draft_placement

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

    def encode_texts(self, texts: str | SequenceABC[Text], *, name: str = "texts") -> list[array[int]]:
        """
        Return the token ids of texts as `embed` computes them: with the first and last the model wants.

        Args:
            texts: As in `embed`.
            name: What errors call them; the errors are those of `embed`.
        """
        from gguf_engine.embeddings import encode_texts

        eos_id = self.metadata.get("tokenizer.ggml.eos_token_id", self.tokenizer.eos_id)
        wants_eos = self.metadata.get("tokenizer.ggml.add_eos_token") is True and eos_id is not None
        end = [int(eos_id)] if wants_eos else []
        ids = encode_texts(texts, self.tokenizer, end, self.n_vocab, name)
        for i, each in enumerate(ids):
            if len(each) > self.n_ctx:
                raise PromptTooLongError(len(each), self.n_ctx, self.n_ctx_train, f"{name}[{i}]")
        return ids

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
        whole: bool = False,
    ) -> Request:
        """Check everything that can be checked before the engine sees the request."""
        chosen = build_params(SamplingParams, options, params, _BESIDE)
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
            whole=whole,
        )

    def _target_request(self, prompt: Prompt, target_ids: SequenceABC[int]) -> Request:
        """Return a request whose answer is given; errors as in `LLM.stream_target`."""
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
        return replace(request, end_ids=frozenset())
