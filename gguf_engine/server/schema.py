"""What clients may send: every field with its range, unknown ones refused by name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field
from pydantic.json_schema import WithJsonSchema

from gguf_engine.params import MAX_SEED, MAX_TOP_LOGPROBS, SamplingOrder, SamplingParams
from gguf_engine.server.errors import RefusedError

MAX_CHOICES = 128
MAX_INPUTS = 2048
MAX_MESSAGES = 4096
MAX_FIELDS = 1024
"""Of any object in a request; those of `logit_bias` are its ids."""
DEFAULTS = SamplingParams(max_tokens=None)
"""What a request gets where it says nothing: an answer is as long as the model makes it."""

# OpenAI's fields that change what an answer is, and that this server does not have. The values beside each
# are those that ask for nothing.
_LACKING: dict[str, tuple[object, ...]] = {
    "audio": (),
    "best_of": (1,),
    "echo": (False,),
    "function_call": ("none", "auto"),
    "functions": ([],),
    "modalities": (["text"],),
    "reasoning_effort": (),
    "response_format": ({"type": "text"},),
    "suffix": ("",),
    "tool_choice": ("none", "auto"),
    "tools": ([],),
    "web_search_options": (),
}
# OpenAI's fields that are about their service, or only hints: the answer is the same without.
_HARMLESS = frozenset(
    (
        *("metadata", "parallel_tool_calls", "prediction", "prompt_cache_key", "prompt_cache_retention"),
        *("safety_identifier", "service_tier", "store", "user", "verbosity"),
    )
)


def _listed(value: object) -> object:
    return [value] if isinstance(value, str) else value


def _content(value: object) -> object:
    """Join the parts that a message's content may be given in."""
    if not isinstance(value, list):
        return value
    texts = []
    for part in value:
        if not isinstance(part, dict) or part.get("type") != "text" or set(part) != {"type", "text"}:
            kind = part.get("type") if isinstance(part, dict) else part
            raise ValueError(
                f'has a part of type {str(kind)[:40]!r}; allowed: {{"type": "text", "text": ...}}'
            )
        texts.append(part["text"])
    for text in texts:
        if not isinstance(text, str):
            raise ValueError(f"has a part whose text is {repr(text)[:40]}; allowed: a text")
    return "".join(texts)


def _prompts(value: object) -> object:
    """Return a prompt as a list of prompts: one text, several, one list of ids, several."""
    if isinstance(value, list) and value and isinstance(value[0], int):
        return [value]
    return _listed(value)


_Flag = bool | None
_Text = Annotated[str, Field(min_length=1)]
# fail_fast: a body of a million wrong items would otherwise cost seconds, and gigabytes of error objects.
_Ids = Annotated[list[Annotated[int, Field(ge=0, lt=2**31)]], Field(fail_fast=True)]
_Stops = Annotated[
    list[Annotated[str, Field(min_length=1, max_length=4096)]],
    Field(max_length=64, fail_fast=True),
    BeforeValidator(_listed),
    WithJsonSchema(
        {
            "anyOf": [
                {"type": "string", "minLength": 1, "maxLength": 4096},
                {
                    "type": "array",
                    "items": {"type": "string", "minLength": 1, "maxLength": 4096},
                    "maxItems": 64,
                },
            ]
        }
    ),
]
_Content = Annotated[
    str,
    BeforeValidator(_content),
    WithJsonSchema(
        {
            "anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "object"}}],
            "description": 'a text, or a list of parts {"type": "text", "text": ...}',
        }
    ),
]
_PromptList = list[_Text | Annotated[_Ids, Field(min_length=1)]]


def _prompts_schema(max_items: int) -> WithJsonSchema:
    ids = {"type": "integer", "minimum": 0, "maximum": 2**31 - 1}
    one = [{"type": "string", "minLength": 1}, {"type": "array", "items": ids, "minItems": 1}]
    each = {"anyOf": one, "description": "a text or a list of token ids, not empty"}
    several = {"type": "array", "items": each, "minItems": 1, "maxItems": max_items}
    allowed = f"a text, a list of token ids, or a list of 1..{max_items} of these, none of them empty"
    return WithJsonSchema({"anyOf": [*one, several], "description": allowed})


_Prompts = Annotated[
    _PromptList,
    Field(min_length=1, max_length=MAX_CHOICES, fail_fast=True),
    BeforeValidator(_prompts),
    _prompts_schema(MAX_CHOICES),
]
_Inputs = Annotated[
    _PromptList,
    Field(min_length=1, max_length=MAX_INPUTS, fail_fast=True),
    BeforeValidator(_prompts),
    _prompts_schema(MAX_INPUTS),
]


class Strict(BaseModel):
    """The base: nothing is converted, nothing unknown is taken."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


class ChatMessage(Strict):
    """One message of a conversation."""

    role: Literal["system", "developer", "user", "assistant"]
    content: _Content


_Messages = Annotated[
    list[ChatMessage],
    Field(
        min_length=1,
        max_length=MAX_MESSAGES,
        fail_fast=True,
        description=f"a list of 1..{MAX_MESSAGES} objects of role and content",
    ),
]


class StreamOptions(Strict):
    """How a stream ends."""

    include_usage: _Flag = None
    include_obfuscation: _Flag = None


class Sampling(Strict):
    """How an answer is sampled, and when it ends; a field left out or null has the server's default."""

    temperature: float | None = Field(None, ge=0, le=100)
    top_k: int | None = Field(None, ge=0, lt=2**31)
    top_p: float | None = Field(None, gt=0, le=1)
    min_p: float | None = Field(None, ge=0, lt=1)
    repeat_penalty: float | None = Field(None, ge=0.01, le=100)
    repeat_last_n: int | None = Field(None, ge=-1, lt=2**31)
    penalize_prompt: _Flag = None
    presence_penalty: float | None = Field(None, ge=-100, le=100)
    frequency_penalty: float | None = Field(None, ge=-100, le=100)
    logit_bias: dict[str, Annotated[float, Field(ge=-100, le=100)]] | None = Field(
        None,
        max_length=MAX_FIELDS,
        description=f"an object of at most {MAX_FIELDS} token ids, each with a number in [-100, 100]",
    )
    seed: int | None = Field(None, ge=0, le=MAX_SEED)
    max_tokens: int | None = Field(None, ge=0, lt=2**31)
    stop: _Stops | None = Field(
        None, description="a text of 1..4096 characters, or a list of at most 64 of these"
    )
    ignore_eos: _Flag = None
    raw_logprobs: _Flag = None
    order: SamplingOrder | None = None

    def given(self) -> dict[str, Any]:
        """Return the fields that were given, as SamplingParams has them."""
        values = {name: getattr(self, name) for name in Sampling.model_fields}
        given = {name: value for name, value in values.items() if value is not None}
        if self.logit_bias is not None:
            given["logit_bias"] = {_token_id(key): bias for key, bias in self.logit_bias.items()}
        if self.stop is not None:
            given["stop"] = tuple(self.stop)
        return given


class Generation(Sampling):
    """What both kinds of OpenAI's completions share."""

    model: str | None = None
    n: int | None = Field(None, ge=1, le=MAX_CHOICES)
    stream: _Flag = None
    stream_options: StreamOptions | None = None

    @property
    def wants_usage(self) -> bool:
        """Whether a stream ends with its usage."""
        return self.stream_options is not None and bool(self.stream_options.include_usage)


class ChatRequest(Generation):
    """POST /v1/chat/completions."""

    messages: _Messages
    logprobs: _Flag = None
    top_logprobs: int | None = Field(None, ge=0, le=MAX_TOP_LOGPROBS)
    max_completion_tokens: int | None = Field(None, ge=0, lt=2**31)

    def given(self) -> dict[str, Any]:
        """See Sampling."""
        given = super().given()
        if self.max_completion_tokens is not None:
            if self.max_tokens not in (None, self.max_completion_tokens):
                raise _invalid("max_tokens", "differs from max_completion_tokens; send one of them")
            given["max_tokens"] = self.max_completion_tokens
        if self.logprobs:
            given["logprobs"] = self.top_logprobs or 0
        elif self.top_logprobs:
            raise _invalid("top_logprobs", "needs logprobs: true beside it")
        return given


class CompletionRequest(Generation):
    """POST /v1/completions."""

    prompt: _Prompts
    logprobs: int | None = Field(None, ge=0, le=MAX_TOP_LOGPROBS)

    def given(self) -> dict[str, Any]:
        """See Sampling."""
        given = super().given()
        return given if self.logprobs is None else {**given, "logprobs": self.logprobs}


class PromptRequest(Sampling):
    """POST /prompt: one turn of a user, answered as plain text."""

    prompt: _Text


class TokenizeRequest(Strict):
    """POST /tokenize."""

    content: str
    add_special: bool = Field(
        False, description="Begin with the token that the model wants at a text's start."
    )


class DetokenizeRequest(Strict):
    """POST /detokenize."""

    tokens: _Ids = Field(description="a list of token ids")


class TemplateRequest(Strict):
    """POST /apply-template."""

    messages: _Messages
    add_generation_prompt: bool = True


class EmbeddingRequest(Strict):
    """POST /v1/embeddings."""

    model: str | None = None
    input: _Inputs
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: int | None = Field(None, ge=1, lt=2**31)


def drop_what_asks_for_nothing(kind: type[BaseModel], values: Mapping[str, Any]) -> dict[str, Any]:
    """
    Return the fields that matter: without OpenAI's harmless ones, and those we lack where they say "none".

    Raises:
        RefusedError: A field that asks for what this server does not have.
    """
    kept = {}
    for name, value in values.items():
        if name in kind.model_fields:
            kept[name] = value
        elif not issubclass(kind, (Generation, EmbeddingRequest)):
            kept[name] = value  # and is refused: these routes are our own
        elif name in _LACKING:
            if value is not None and value not in _LACKING[name]:
                raise _invalid(
                    name, "is a part of OpenAI's API that this server does not have; leave it out"
                )
        elif name not in _HARMLESS:
            kept[name] = value
    return kept


def without_nothing(message: object) -> object:
    """Return a message without its null fields: OpenAI's own client sends answers back with them."""
    if not isinstance(message, dict):
        return message
    return {name: value for name, value in message.items() if value is not None}


def _token_id(key: str) -> int:
    if not (key.isascii() and key.isdigit() and len(key) <= 10):
        raise _invalid("logit_bias", f"has the key {key[:40]!r}; allowed: token ids")
    return int(key)


def _invalid(param: str, what: str) -> RefusedError:
    return RefusedError(400, "invalid_value", f"{param} {what}", param=param)
