"""
A plugin of the `llm` command-line tool: `llm -m gguf-engine/haiku "..."` answers from this engine.

A model is loaded when it is first asked, once in a process, and closed when that ends. What it may be
called: what is bundled, what is in the hub cache, and any path or repository behind `gguf-engine/`.
"""

from __future__ import annotations

import asyncio
import difflib
import json
import math
import sys
import threading
from collections.abc import AsyncGenerator, Callable, Iterator, Mapping
from dataclasses import asdict, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_type_hints

import llm
from llm.parts import TextPart
from pydantic import Field, ValidationError, create_model, field_validator, model_validator

from gguf_engine.cli.options import help_texts, parse_typed
from gguf_engine.errors import GGUFEngineError, OptionError
from gguf_engine.loader.catalog import CATALOG
from gguf_engine.loader.disk import write_whole
from gguf_engine.params import SamplingParams, build_params

if TYPE_CHECKING:
    from gguf_engine.llm import LLM
    from gguf_engine.outputs import Piece
    from gguf_engine.text.chat import Message

PREFIX = "gguf-engine/"
_DEFAULTS = SamplingParams(max_tokens=None)  # an answer is as long as the model makes it
_WITHOUT = ("logprobs", "raw_logprobs")  # `llm` has no place to show these
_ROLES = ("system", "user", "assistant")

_loaded: dict[str, LLM] = {}
_lock = threading.Lock()


@llm.hookimpl
def register_models(register: Callable[..., None]) -> None:
    """Register the models there are by name; opens no connection and loads nothing."""
    cached = _cached()
    places = {**dict.fromkeys([*CATALOG, *cached]), **_remembered(), **dict.fromkeys(_typed())}
    for name, place in places.items():
        spec = CATALOG.get(name)
        is_here = spec is None or spec.bundled or f"{spec.repo}:{spec.file}" in cached
        note = "" if is_here else " (not downloaded yet)"
        register(GGUFModel(name, place, note), AsyncGGUFModel(name, place, note))


def _cached() -> list[str]:
    from gguf_engine.loader.hub import Hub
    from gguf_engine.loader.hubcache import cached_models

    try:
        return cached_models(Hub.open(offline=True).cache)
    except GGUFEngineError:  # a setting of the hub's: said when one of its models is asked
        return []


def _typed() -> list[str]:
    """Return the names on this process's command line: `llm` looks models up in a fixed list."""
    return [
        name
        for before, prefix, name in (arg.partition(PREFIX) for arg in sys.argv[1:])
        if prefix and name and before in ("", "-m", "--model=")
    ]


def _memory() -> Path:
    return Path(llm.user_dir()) / "gguf-engine.json"  # type: ignore[no-untyped-call]


def _remembered() -> dict[str, str]:
    """Return the names that were typed before, and where they led, so that `llm -c` finds them again."""
    try:
        places = json.loads(_memory().read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        places = error
    if isinstance(places, dict) and all(isinstance(place, str) for place in places.values()):
        return places
    print(f"{_memory()} is no list of models: {places!r:.200}; remove it", file=sys.stderr)  # noqa: T201
    return {}


def _remember(name: str) -> str:
    """Write down where a name leads now; return that."""
    path = Path(name).expanduser()
    place = str(path.resolve()) if path.exists() else name
    if name not in CATALOG and name not in _cached():
        write_whole(_memory(), json.dumps({**_remembered(), name: place}, indent=1))
    return place


def _load(name: str, place: str | None) -> LLM:
    """
    Return a loaded model.

    Raises:
        GGUFEngineError: It cannot be loaded; see `LLM.load`.
    """
    from gguf_engine.cli.progress import progress_bars
    from gguf_engine.llm import LLM

    with _lock:
        if name not in _loaded:
            with progress_bars() as progress:
                _loaded[name] = LLM.load(place or name, progress=progress)
            if place is None:
                _remember(name)
        return _loaded[name]


def _read_stop(value: Any) -> Any:
    """Return a text that is a JSON list of strings as that list; anything else as it is."""
    try:
        parsed = json.loads(value) if isinstance(value, str) else value
    except (ValueError, RecursionError):
        return value
    is_list = isinstance(parsed, list) and all(isinstance(each, str) for each in parsed)
    return parsed if is_list else value


def _read_bias(value: Any) -> Any:
    """Return a JSON object of token ids, or a mapping whose ids may be texts, with ids that are numbers."""
    try:  # pairs, since a dict would drop an id that is there twice
        pairs = json.loads(value, object_pairs_hook=tuple) if isinstance(value, str) else value
    except (ValueError, RecursionError):
        pairs = None
    pairs = tuple(pairs.items()) if isinstance(pairs, Mapping) else pairs
    if not isinstance(pairs, tuple):
        raise OptionError("logit_bias", value, 'a JSON object of token ids and numbers: {"5": -1.5}')
    bias = {_token_id(key): -math.inf if number == "-inf" else number for key, number in pairs}
    if len(bias) < len(pairs):
        raise OptionError("logit_bias", value, "each token id once")
    return bias


def _token_id(key: Any) -> Any:
    is_number = isinstance(key, str) and key.isascii() and key.isdigit() and len(key) <= 10
    return int(key) if is_number else key


_READERS: Mapping[str, Callable[[Any], Any]] = {"stop": _read_stop, "logit_bias": _read_bias}
_HINTS = {"stop": str | tuple[str, ...], "logit_bias": str | dict[int, float]}
_MORE = {
    "stop": " One string, or a JSON list of strings.",
    "logit_bias": ' A JSON object, such as {"5": -1.5, "7": "-inf"}.',
}


def _checked(value: Any, info: Any) -> Any:
    """Refuse a value as the engine would, in its own words."""
    if value is None:
        return None
    name = info.field_name
    value = _READERS[name](value) if name in _READERS else parse_typed(SamplingParams, name, value)
    made = None if value is None else getattr(SamplingParams(**{name: value}), name)
    return dict(made) if isinstance(made, Mapping) else made


def _known(options: type[llm.Options], given: Any) -> Any:
    """Refuse names that are no options, each with the one it is close to."""
    unknown = [name for name in given if name not in options.model_fields]
    if unknown:  # a ValueError alone would have no name for `llm` to show
        raise ValidationError.from_exception_data(
            "Options",
            [
                {
                    "type": "value_error",
                    "loc": (name,),
                    "input": given[name],
                    "ctx": {"error": ValueError(_unknown(name, options))},
                }
                for name in unknown
            ],
        )
    return given


def _unknown(name: str, options: type[llm.Options]) -> str:
    if name in _WITHOUT:
        return f"{name!r} is no option here: llm shows text alone; remove it"
    close = difflib.get_close_matches(name, options.model_fields, n=1, cutoff=0.75)
    if close:
        return f"{name!r} is no option; did you mean {close[0]!r}?"
    return f"{name!r} is no option; allowed: {', '.join(options.model_fields)}"


def _make_options() -> type[llm.Options]:
    hints, texts = {**get_type_hints(SamplingParams), **_HINTS}, help_texts(SamplingParams)
    made: dict[str, Any] = {
        name: (hints[name] | None, Field(None, description=texts[name] + _MORE.get(name, "")))
        for name in (each.name for each in fields(SamplingParams))
        if name not in _WITHOUT
    }
    known: Any = classmethod(_known)
    validators: dict[str, Any] = {
        "checked": field_validator("*", mode="before")(_checked),
        "known": model_validator(mode="before")(known),
    }
    return create_model("Options", __base__=llm.Options, __validators__=validators, **made)


def _messages(prompt: llm.Prompt) -> list[Message]:
    """
    Return the whole conversation, this turn last.

    Raises:
        OptionError: There is nothing in it, or something that is no text of system, user or assistant.
    """
    messages: list[Message] = []
    for message in prompt.messages:
        parts = [part for part in message.parts if isinstance(part, TextPart)]
        if message.role not in _ROLES or len(parts) < len(message.parts):
            kinds = ", ".join(type(part).__name__ for part in message.parts)
            raise OptionError("message", f"{message.role}: {kinds}", "text of system, user or assistant")
        messages.append({"role": message.role, "content": "".join(part.text for part in parts)})
    # `llm` leaves an empty prompt out; as in `gguf-engine run ""` it is a turn like any other.
    if prompt._prompt == "" and (not messages or messages[-1]["role"] != "user"):
        messages.append({"role": "user", "content": ""})
    if not messages:
        raise OptionError("prompt", None, "a text", "write it behind the options, or pass it on stdin")
    return messages


class _Named:
    """What both kinds of model share: a name, and what is made of a prompt and of an answer."""

    can_stream = True

    def __init__(self, name: str, place: str | None, note: str = "") -> None:
        self.model_id = PREFIX + name
        self._name, self._place, self._listed_with = name, place, note

    def __str__(self) -> str:
        return super().__str__() + self._listed_with

    def _params(self, prompt: llm.Prompt) -> SamplingParams:
        given = {name: value for name, value in prompt.options if value is not None}
        return build_params(SamplingParams, given, _DEFAULTS)

    def _note(self, response: llm.Response | llm.AsyncResponse, last: Piece, seed: int) -> None:
        assert last.usage is not None
        assert last.timings is not None
        usage = last.usage
        details = {"cached": usage.n_cached} if usage.n_cached else None
        response.set_usage(input=usage.n_prompt, output=usage.n_completion, details=details)
        timings = asdict(last.timings)
        response.response_json = {"finish_reason": last.finish_reason, "seed": seed, "timings": timings}


class GGUFModel(_Named, llm.Model):
    """A model of this engine for `llm`."""

    Options = _make_options()  # type: ignore[assignment]

    def execute(
        self,
        prompt: llm.Prompt,
        stream: bool,
        response: llm.Response,
        conversation: llm.Conversation | None,
    ) -> Iterator[str]:
        """Yield the answer's pieces; leaving early ends the request."""
        del stream, conversation
        messages, params = _messages(prompt), self._params(prompt)
        with _load(self._name, self._place).stream(messages, params, chat=True) as pieces:
            for piece in pieces:
                yield piece.text
                if piece.finish_reason is not None:
                    self._note(response, piece, pieces.seed)


class AsyncGGUFModel(_Named, llm.AsyncModel):
    """The same for asyncio."""

    Options = GGUFModel.Options  # type: ignore[assignment]

    async def execute(
        self,
        prompt: llm.Prompt,
        stream: bool,
        response: llm.AsyncResponse,
        conversation: llm.AsyncConversation | None,
    ) -> AsyncGenerator[str, None]:
        """Yield the answer's pieces; leaving early ends the request."""
        del stream, conversation
        messages, params = _messages(prompt), self._params(prompt)
        model = await asyncio.to_thread(_load, self._name, self._place)
        pieces = model.astream(messages, params, chat=True)
        try:
            async for piece in pieces:
                yield piece.text
                if piece.finish_reason is not None:
                    self._note(response, piece, pieces.seed)
        finally:
            await pieces.aclose()
