"""Pieces → the objects that OpenAI's API answers with: whole ones, and the chunks of a stream."""

from __future__ import annotations

import itertools
import secrets
import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from pydantic_core import to_json

from gguf_engine.outputs import Piece, Usage
from gguf_engine.text.tokenizer import Tokenizer

# What makes ids unique, without a system call for each.
_PROCESS, _NUMBERS = secrets.token_hex(8), itertools.count(1)

DONE = b"data: [DONE]\n\n"
KEEP_ALIVE = b":\n\n"
_LEAST_LOGPROB = -9999.0  # as OpenAI writes minus infinity, which JSON has not

Pieces = Sequence[Piece]


def event(value: object) -> bytes:
    """Return one server-sent event."""
    return b"data: " + to_json(value) + b"\n\n"


class TokenTexts:
    """What the ids of a vocabulary look like in log-probabilities."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self.end_ids = tokenizer.end_ids

    def data(self, token_id: int) -> bytes:
        """Return the bytes that an id adds to a text; a control token's name."""
        table = self._tokenizer.table()
        data = table.data[token_id] if table is not None and token_id < len(table.data) else b""
        if table is None:
            data = self._tokenizer.decode([token_id]).encode()
        return data or self._tokenizer.token_text(token_id).encode()


class Reply(ABC):
    """
    Makes the objects of one request.

    Args:
        model: The model's name for clients.
        texts: What ids look like.
        seed: Of the first choice; those of the others follow it.
        wants_usage: Whether a stream ends with its usage.
        with_logprobs: Whether choices have log-probabilities.
    """

    prefix, kind, chunk_kind = "", "", ""

    def __init__(self, model: str, texts: TokenTexts, *, wants_usage: bool, with_logprobs: bool) -> None:
        self._texts = texts
        self._wants_usage, self._with_logprobs = wants_usage, with_logprobs
        self._head = {
            "id": f"{self.prefix}{_PROCESS}{next(_NUMBERS):08x}",
            "created": int(time.time()),
            "model": model,
        }

    def first(self, n: int) -> bytes:
        """Return the events that a stream of `n` choices begins with."""
        del n
        return b""

    def events(self, batch: Sequence[tuple[int, Piece]]) -> bytes:
        """Return the events of some pieces: one for each choice, and one more for each that has ended."""
        by_choice: dict[int, list[Piece]] = {}
        for index, piece in batch:
            by_choice.setdefault(index, []).append(piece)
        events = b""
        for index, pieces in by_choice.items():
            text = "".join([piece.text for piece in pieces])
            if text or self._with_logprobs:
                events += event(self._chunk([self._delta(index, text, pieces)]))
            last = pieces[-1]
            if last.finish_reason is not None:
                chunk = self._chunk([self._delta(index, "", (), last.finish_reason)])
                assert last.timings is not None
                events += event({**chunk, "timings": asdict(last.timings)})
        return events

    def end(self, lasts: Pieces, seed: int, n_prompts: int) -> bytes:
        """Return the events that a stream ends with."""
        if not self._wants_usage:
            return DONE
        return event({**self._chunk([]), **self._sums(lasts, seed, n_prompts)}) + DONE

    def whole(self, choices: Sequence[Pieces], seed: int, n_prompts: int) -> bytes:
        """Return a whole answer."""
        made = [self._choice(index, pieces) for index, pieces in enumerate(choices)]
        lasts = [pieces[-1] for pieces in choices]
        sums = self._sums(lasts, seed, n_prompts)
        return to_json({**self._head, "object": self.kind, "choices": made, **sums})

    def _chunk(self, choices: list[dict[str, Any]]) -> dict[str, Any]:
        chunk = {**self._head, "object": self.chunk_kind, "choices": choices}
        return {**chunk, "usage": None} if self._wants_usage else chunk

    def _sums(self, lasts: Pieces, seed: int, n_prompts: int) -> dict[str, Any]:
        """Return usage, the timings of the choice that took longest, and the seed."""
        slowest = max((last.timings for last in lasts if last.timings), key=lambda each: each.total_s)
        usages = [last.usage for last in lasts if last.usage]
        return {"usage": _usage(usages, n_prompts), "timings": asdict(slowest), "seed": seed}

    def _sampled(self, pieces: Pieces) -> list[Piece]:
        """Return the pieces whose tokens have log-probabilities to show: not the one that ends a text."""
        end_ids = self._texts.end_ids
        return [p for p in pieces if p.logprob is not None and p.token_id not in end_ids]

    @abstractmethod
    def _delta(self, index: int, text: str, pieces: Pieces, reason: str | None = None) -> dict[str, Any]:
        """Return a choice of a chunk."""

    @abstractmethod
    def _choice(self, index: int, pieces: Pieces) -> dict[str, Any]:
        """Return a whole choice."""


class ChatReply(Reply):
    """Of /v1/chat/completions."""

    prefix, kind, chunk_kind = "chatcmpl-", "chat.completion", "chat.completion.chunk"

    def first(self, n: int) -> bytes:
        """See Reply: who speaks."""
        delta = {"role": "assistant", "content": ""}
        choices = [{"index": i, "delta": delta, "logprobs": None, "finish_reason": None} for i in range(n)]
        return b"".join(event(self._chunk([choice])) for choice in choices)

    def _delta(self, index: int, text: str, pieces: Pieces, reason: str | None = None) -> dict[str, Any]:
        delta = {} if reason else {"content": text}
        logprobs = None if reason else self._logprobs(pieces)
        return {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": reason}

    def _choice(self, index: int, pieces: Pieces) -> dict[str, Any]:
        text = "".join(piece.text for piece in pieces)
        return {
            "index": index,
            "message": {"role": "assistant", "content": text, "refusal": None},
            "logprobs": self._logprobs(pieces),
            "finish_reason": pieces[-1].finish_reason,
        }

    def _logprobs(self, pieces: Pieces) -> dict[str, Any] | None:
        if not self._with_logprobs:
            return None
        content = []
        for piece in self._sampled(pieces):
            assert piece.token_id is not None
            tops = [self._logprob(top.token_id, top.logprob) for top in piece.top_logprobs]
            content.append({**self._logprob(piece.token_id, piece.logprob), "top_logprobs": tops})
        return {"content": content, "refusal": None}

    def _logprob(self, token_id: int, logprob: float | None) -> dict[str, Any]:
        data = self._texts.data(token_id)
        return {"token": _text(data), "logprob": _finite(logprob), "bytes": list(data)}


class CompletionReply(Reply):
    """Of /v1/completions."""

    prefix, kind, chunk_kind = "cmpl-", "text_completion", "text_completion"

    def _delta(self, index: int, text: str, pieces: Pieces, reason: str | None = None) -> dict[str, Any]:
        logprobs = None if reason else self._logprobs(pieces)
        return {"index": index, "text": text, "logprobs": logprobs, "finish_reason": reason}

    def _choice(self, index: int, pieces: Pieces) -> dict[str, Any]:
        text = "".join(piece.text for piece in pieces)
        reason = pieces[-1].finish_reason
        return {"index": index, "text": text, "logprobs": self._logprobs(pieces), "finish_reason": reason}

    def _logprobs(self, pieces: Pieces) -> dict[str, Any] | None:
        if not self._with_logprobs:
            return None
        made: dict[str, list[Any]] = {
            "tokens": [],
            "token_logprobs": [],
            "top_logprobs": [],
            "text_offset": [],
        }
        offset = 0
        for piece in self._sampled(pieces):
            assert piece.token_id is not None
            token = _text(self._texts.data(piece.token_id))
            tops = {_text(self._texts.data(t.token_id)): _finite(t.logprob) for t in piece.top_logprobs}
            made["tokens"].append(token)
            made["token_logprobs"].append(_finite(piece.logprob))
            made["top_logprobs"].append(tops)
            made["text_offset"].append(offset)
            offset += len(token)
        return made


def _usage(usages: Sequence[Usage], n_prompts: int) -> dict[str, Any]:
    """Return the sum; choices of one prompt share its tokens."""
    of_prompts = usages[:: len(usages) // n_prompts]
    n_prompt = sum(usage.n_prompt for usage in of_prompts)
    n_completion = sum(usage.n_completion for usage in usages)
    return {
        "prompt_tokens": n_prompt,
        "completion_tokens": n_completion,
        "total_tokens": n_prompt + n_completion,
        "prompt_tokens_details": {"cached_tokens": sum(usage.n_cached for usage in of_prompts)},
    }


def _text(data: bytes) -> str:
    return data.decode("utf-8", "replace")


def _finite(logprob: float | None) -> float:
    return _LEAST_LOGPROB if logprob is None else max(logprob, _LEAST_LOGPROB)
