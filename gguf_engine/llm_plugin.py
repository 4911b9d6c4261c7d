"""
A plugin of the `llm` command-line tool: `llm -m gguf-engine/haiku "..."` answers from this engine.

A model is loaded when it is first asked, once in a process, and closed when that ends. What it may be
called: what is bundled, what is in the hub cache, and any path or repository behind `gguf-engine/`.
"""

from __future__ import annotations

import asyncio
import json
import sys
import threading
from collections.abc import AsyncGenerator, Callable, Iterator
from dataclasses import asdict, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_type_hints

import llm
from llm.parts import TextPart
from pydantic import Field, create_model, field_validator

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
_WITHOUT = ("logit_bias", "logprobs", "raw_logprobs")  # `llm` has no place to show or to write these
_ROLES = ("system", "user", "assistant")

_loaded: dict[str, LLM] = {}
_lock = threading.Lock()


@llm.hookimpl
def register_models(register: Callable[..., None]) -> None:
    """Register the models there are by name; opens no connection and loads nothing."""
    places = {**dict.fromkeys([*CATALOG, *_cached()]), **_remembered(), **dict.fromkeys(_typed())}
    for name, place in places.items():
        register(GGUFModel(name, place), AsyncGGUFModel(name, place))


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


def _checked(value: Any, info: Any) -> Any:
    """Refuse a value as the engine would, in its own words."""
    value = None if value is None else parse_typed(SamplingParams, info.field_name, value)
    if value is not None:
        SamplingParams(**{info.field_name: value})
    return value


def _make_options() -> type[llm.Options]:
    hints, texts = get_type_hints(SamplingParams), help_texts(SamplingParams)
    made: dict[str, Any] = {
        each.name: (hints[each.name] | None, Field(None, description=texts[each.name]))
        for each in fields(SamplingParams)
        if each.name not in _WITHOUT
    }
    validators: dict[str, Any] = {"checked": field_validator("*", mode="before")(_checked)}
    return create_model("Options", __base__=llm.Options, __validators__=validators, **made)


def _messages(prompt: llm.Prompt) -> list[Message]:
    """
    Return the whole conversation, this turn last.

    Raises:
        OptionError: There is something in it that is no text of system, user or assistant.
    """
    messages: list[Message] = []
    for message in prompt.messages:
        parts = [part for part in message.parts if isinstance(part, TextPart)]
        if message.role not in _ROLES or len(parts) < len(message.parts):
            kinds = ", ".join(type(part).__name__ for part in message.parts)
            raise OptionError("message", f"{message.role}: {kinds}", "text of system, user or assistant")
        messages.append({"role": message.role, "content": "".join(part.text for part in parts)})
    return messages


class _Named:
    """What both kinds of model share: a name, and what is made of a prompt and of an answer."""

    can_stream = True

    def __init__(self, name: str, place: str | None) -> None:
        self.model_id = PREFIX + name
        self._name, self._place = name, place

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
