"""What every verb that answers does: load the model, make the request, read what was typed."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gguf_engine.cli.options import HubOptions, ModelOptions
from gguf_engine.errors import OptionError
from gguf_engine.params import EngineParams

if TYPE_CHECKING:
    from gguf_engine.llm import LLM
    from gguf_engine.text.chat import Message

Raw = Annotated[
    bool, typer.Option("--raw", help="Continue the text as it stands, without the model's chat template.")
]
System = Annotated[
    str | None, typer.Option("--system", metavar="TEXT", help="A system message before the conversation.")
]
Timings = Annotated[
    bool, typer.Option("--timings", help="Print seed, token counts, speeds and device to stderr.")
]


@contextlib.contextmanager
def loaded(model: ModelOptions, hub: HubOptions, engine: EngineParams) -> Iterator[LLM]:
    """Load the model these options name, with a progress bar on a terminal, and close it in the end."""
    from gguf_engine.cli.progress import progress_bars
    from gguf_engine.llm import LLM

    with progress_bars() as progress:
        llm = LLM.load(**asdict(model), **asdict(hub), **asdict(engine), progress=progress)
    with llm:
        yield llm


def make_prompt(text: str, system: str | None, *, raw: bool) -> str | list[Message]:
    """Return what a verb asks the model: the raw text, or messages."""
    check_text("prompt", text)
    if raw:
        if system is not None:
            raise OptionError("--system", system, "with a chat turn only", "drop --raw or --system")
        return text
    messages: list[Message] = [] if system is None else [{"role": "system", "content": system}]
    return [*messages, {"role": "user", "content": check_text("prompt", text)}]


def check_text(name: str, text: str) -> str:
    """Return `text`, or refuse what the shell passed on that is not UTF-8."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise OptionError(name, text[:40], "UTF-8 text", f"character {error.start} is not") from None
    return text


def decode(name: str, data: bytes) -> str:
    """
    Return bytes of a pipe as text.

    Raises:
        OptionError: They are not UTF-8; says where.
    """
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        wrong = data[error.start : error.start + 8]
        raise OptionError(name, wrong, f"UTF-8 text; byte {error.start} is not") from None


def note(*lines: str) -> None:
    """Print lines for people, to stderr."""
    print(*lines, sep="\n", file=sys.stderr, flush=True)


def as_json(value: Any) -> Any:
    """Return options, outputs and what is inside them as plain lists, dicts and numbers, for `json`."""
    if hasattr(value, "__dataclass_fields__"):
        return {name: as_json(getattr(value, name)) for name in value.__dataclass_fields__}
    if hasattr(value, "_asdict"):
        return as_json(value._asdict())
    if hasattr(value, "items"):
        return {str(key): as_json(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [as_json(item) for item in value]
    return value
