"""`gguf-engine lines`: a prompt a line in, an answer a line out, for programs that talk over pipes."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Protocol

import typer

from gguf_engine.cli.answer import check_logprobs, record, write_out
from gguf_engine.cli.errors import complain, sentence
from gguf_engine.cli.loading import Raw, System, decode, loaded, make_prompt
from gguf_engine.cli.options import HubOptions, ModelOptions, params_from_json
from gguf_engine.errors import EngineClosedError, GGUFEngineError, OptionError
from gguf_engine.params import EngineParams, SamplingParams

if TYPE_CHECKING:
    from gguf_engine.llm import LLM, Prompt

_ESCAPES = {"\\": "\\\\", "\n": "\\n", "\r": "\\r"}
_UNESCAPES = {escaped: char for char, escaped in _ESCAPES.items()}


def lines(
    *,
    model: ModelOptions,
    hub: HubOptions,
    engine: EngineParams,
    sampling: SamplingParams,
    system: System = None,
    raw: Raw = False,
    as_objects: Annotated[
        bool,
        typer.Option(
            "--json",
            help='JSON objects. In: {"prompt": TEXT} or {"messages": [...]} (taken as they are), with any '
            'sampling option by its name and an "id" to be echoed. Out: the answer, or {"error": ...}.',
        ),
    ] = False,
) -> None:
    r"""
    Answer stdin line by line.

    A prompt a line in, an answer a line out, in order, flushed; the model is loaded once.

    In both directions \n, \r and \\ stand for newline, carriage return and backslash. A line that
    fails is told on stderr and answered by an empty line; the next one is served all the same.
    """
    check_logprobs(sampling, json=as_objects)
    defaults = Defaults(sampling, system, raw)
    form: Form = JSONForm() if as_objects else PlainForm()
    with loaded(model, hub, engine) as llm:
        for number, data in enumerate(sys.stdin.buffer, 1):
            write_out(answer_line(llm, form, defaults, number, data) + "\n")


@dataclass(frozen=True, slots=True)
class Defaults:
    """What the command line says about every line."""

    sampling: SamplingParams
    system: str | None = None
    raw: bool = False


def answer_line(llm: LLM, form: Form, defaults: Defaults, number: int, data: bytes) -> str:
    """Return the line that answers a line; what went wrong is one, too."""
    line_id = None
    try:
        line_id, values = form.parse(decode("line", data.removesuffix(b"\n").removesuffix(b"\r")))
        prompt, sampling = read_request(values, defaults)
        completion = llm.stream(prompt, sampling).completion()
    except EngineClosedError:
        raise
    except GGUFEngineError as error:
        complain(f"line {number}: {sentence(error)}")
        return form.error(error, line_id)
    return form.answer(record(completion, llm), line_id)


def read_request(values: Mapping[str, Any], defaults: Defaults) -> tuple[Prompt, SamplingParams]:
    """
    Return the prompt and the options of one line.

    Raises:
        OptionError: A name that is no option, or a value out of range.
    """
    options = dict(values)
    if ("prompt" in options) == ("messages" in options):
        raise OptionError("line", sorted(options), 'an object with either "prompt" or "messages"')
    messages, text = options.pop("messages", None), options.pop("prompt", "")
    sampling = params_from_json(options, defaults.sampling)
    if messages is not None:
        if not isinstance(messages, list) or not messages or not isinstance(messages[0], dict):
            raise OptionError("messages", messages, 'a list of {"role": ..., "content": ...}')
        return messages, sampling
    if not isinstance(text, str):
        raise OptionError("prompt", text, "a text")
    return make_prompt(text, defaults.system, raw=defaults.raw), sampling


class Form(Protocol):
    """How lines are written."""

    def parse(self, line: str) -> tuple[Any, dict[str, Any]]:
        """Return the id of a line, and its prompt or messages with its options."""

    def answer(self, answer: dict[str, Any], line_id: Any) -> str:
        """Return the line for an answer."""

    def error(self, error: GGUFEngineError, line_id: Any) -> str:
        """Return the line for an error."""


class PlainForm:
    """Text in and out, with escapes for what would end a line."""

    def parse(self, line: str) -> tuple[Any, dict[str, Any]]:
        """Take the line as the prompt."""
        return None, {"prompt": unescape(line)}

    def answer(self, answer: dict[str, Any], line_id: Any) -> str:
        """Return the text."""
        del line_id
        return escape(answer["text"])

    def error(self, error: GGUFEngineError, line_id: Any) -> str:
        """Return an empty line, so that whoever waits for one goes on."""
        del error, line_id
        return ""


class JSONForm:
    """JSON objects in and out."""

    def parse(self, line: str) -> tuple[Any, dict[str, Any]]:
        """Read the object."""
        try:
            values = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise OptionError("line", line[:80], "a JSON object", str(error)) from None
        if not isinstance(values, dict):
            raise OptionError("line", line[:80], "a JSON object")
        return values.pop("id", None), values

    def answer(self, answer: dict[str, Any], line_id: Any) -> str:
        """Return the whole completion."""
        return json.dumps({"id": line_id, **answer}, ensure_ascii=False)

    def error(self, error: GGUFEngineError, line_id: Any) -> str:
        """Return the class and the sentence."""
        what = {"type": type(error).__name__, "message": str(error)}
        return json.dumps({"id": line_id, "error": what}, ensure_ascii=False)


def escape(text: str) -> str:
    """Return text without characters that end a line."""
    return re.sub(r"[\\\n\r]", lambda found: _ESCAPES[found[0]], text)


def unescape(line: str) -> str:
    """
    Return what `escape` had been given.

    Raises:
        OptionError: A backslash before anything else than n, r or a backslash.
    """

    def one(found: re.Match[str]) -> str:
        if found[0] not in _UNESCAPES:
            raise OptionError("escape", found[0], r"\n, \r and \\", "double the backslash, or use --json")
        return _UNESCAPES[found[0]]

    return re.sub(r"\\.?", one, line)
