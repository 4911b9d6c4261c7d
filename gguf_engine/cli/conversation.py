"""Conversation: the turns, the system message and the options of a chat; to a file and back."""

from __future__ import annotations

import difflib
import json
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from gguf_engine.cli.loading import as_json, check_text
from gguf_engine.cli.options import params_from_json, parse_typed
from gguf_engine.errors import OptionError
from gguf_engine.params import SamplingParams, build_params

if TYPE_CHECKING:
    from gguf_engine.text.chat import Message

_FORMAT = "gguf-engine chat 1"
_IS_SESSION = (
    "it is a session that `Session.save` wrote in Python, and chat reads its own JSON only: "
    "go on with it in Python, by `Session.load(path, llm)`"
)
HIDDEN = ("logprobs", "raw_logprobs")
OFFERED = tuple(field.name for field in fields(SamplingParams) if field.name not in HIDDEN)
_KEYS = ("format", "messages", "model", "sampling", "system")


class Conversation:
    """
    What a chat has reached.

    Attributes:
        turns: Questions and answers in turn; the last is an answer.
        system: The system message, None for none.
        sampling: How the next answer is sampled.
    """

    def __init__(self, sampling: SamplingParams, system: str | None = None) -> None:
        self.turns: list[Message] = []
        self.system = system
        self.sampling = sampling

    def asking(self, history: list[Message], question: str) -> list[Message]:
        """Return the messages that put a question after some turns."""
        system: list[Message] = [] if self.system is None else [{"role": "system", "content": self.system}]
        return [*system, *history, {"role": "user", "content": check_text("message", question)}]

    def set(self, name: str, text: str) -> None:
        """
        Change one sampling option; "default" is its default.

        Raises:
            OptionError: No such option, or a value out of range.
        """
        name = check_name(name)
        default = getattr(SamplingParams(), name)
        value = default if text == "default" else parse_typed(SamplingParams, name, text)
        self.sampling = build_params(SamplingParams, {name: value}, self.sampling)

    def save(self, path: Path, model: str) -> None:
        """
        Write everything to a file, as JSON.

        Raises:
            OptionError: It cannot be written.
        """
        values = {
            "format": _FORMAT,
            "model": model,
            "system": self.system,
            "messages": self.turns,
            "sampling": as_json(self.sampling),
        }
        try:
            path.write_text(json.dumps(values, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
        except OSError as error:
            raise OptionError("file", str(path), "a file that can be written", str(error)) from error

    def load(self, path: Path) -> str:
        """
        Replace everything by what `save` wrote, or nothing at all; return the model's name.

        Raises:
            OptionError: It cannot be read, or is not such a file.
        """
        from gguf_engine.sessionfile import MAGIC

        try:
            with path.open("rb") as file:
                first = file.read(len(MAGIC))
                if first == MAGIC:
                    _refuse(path, _IS_SESSION)
                values = json.loads((first + file.read()).decode("utf-8"))
        except OSError as error:
            _refuse(path, error.strerror or str(error))
        except UnicodeDecodeError as error:
            _refuse(path, f"it is no UTF-8 text: byte {error.start} is not")
        except (ValueError, RecursionError) as error:
            _refuse(path, f"it is no JSON: {error}")
        if not isinstance(values, dict) or values.get("format") != _FORMAT or sorted(values) != list(_KEYS):
            _refuse(path, f'it lacks "format": "{_FORMAT}" or one of {", ".join(_KEYS)}')
        system, model, sampling = values["system"], values["model"], values["sampling"]
        if not isinstance(sampling, Mapping) or not isinstance(model, str):
            _refuse(path, '"sampling" is no object, or "model" no text')
        if system is not None and not isinstance(system, str):
            _refuse(path, '"system" is neither a text nor null')
        turns = _turns(path, values["messages"])
        self.sampling = params_from_json(sampling, SamplingParams())
        self.turns, self.system = turns, system
        return model


def check_name(name: str) -> str:
    """
    Return the field of a sampling option that chat offers.

    Raises:
        OptionError: It offers none of this name.
    """
    name = name.replace("-", "_")
    if name in HIDDEN:
        why = "chat shows text only: `gguf-engine run --json` prints log-probabilities"
        raise OptionError("option", name, ", ".join(OFFERED), why)
    if name not in OFFERED:
        close = difflib.get_close_matches(name, OFFERED, n=1)
        raise OptionError("option", name, ", ".join(OFFERED), f"did you mean {close[0]}?" if close else "")
    return name


def _turns(path: Path, messages: Any) -> list[Message]:
    if not isinstance(messages, list) or len(messages) % 2:
        _refuse(path, '"messages" is not a list of questions and answers in turn')
    for n, message in enumerate(messages):
        role = ("user", "assistant")[n % 2]
        if not isinstance(message, dict) or set(message) != {"role", "content"}:
            _refuse(path, f"message {n} does not have exactly role and content")
        if message["role"] != role or not isinstance(message["content"], str):
            _refuse(path, f"message {n} is not a text of the role {role!r}")
    return messages


def _refuse(path: Path, why: str) -> NoReturn:
    raise OptionError("file", str(path), "a file that /save wrote", why)
