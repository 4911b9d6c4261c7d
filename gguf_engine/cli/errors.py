"""The one table of the command line: an error → a sentence on stderr and an exit code."""

from __future__ import annotations

import difflib
import os
import sys
import traceback
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from gguf_engine.errors import (
    DeviceError,
    GGUFEngineError,
    HubError,
    ModelError,
    OptionError,
    PromptTooLongError,
    TemplateError,
    TokenizerError,
)

# Slips of one letter or two are closer; typer's own 0.6 takes --chat-template for --temperature.
_CLOSE = 0.8
FAILED, USAGE, SOME_FAILED, INTERRUPTED, BROKEN_PIPE = 1, 2, 7, 130, 141


class LinesFailedError(GGUFEngineError):
    """Some lines of a batch failed; the others were answered."""

    def __init__(self, n_failed: int, n_lines: int) -> None:
        self.n_failed, self.n_lines = n_failed, n_lines
        super().__init__(f"{n_failed} of {n_lines} lines failed; their errors stand in the output")


# The first class that fits decides.
EXIT_CODES: tuple[tuple[type[BaseException], int], ...] = (
    (PromptTooLongError, 6),
    (OptionError, USAGE),
    (ModelError, 3),
    (TokenizerError, 3),
    (TemplateError, 3),
    (HubError, 4),
    (DeviceError, 5),
    (LinesFailedError, SOME_FAILED),
    (KeyboardInterrupt, INTERRUPTED),
    (BrokenPipeError, BROKEN_PIPE),
    (Exception, FAILED),
)

MEANINGS: Mapping[int, str] = MappingProxyType(
    {
        0: "done",
        FAILED: "the engine failed",
        USAGE: "wrong usage, or an option out of range",
        3: "the model: not found, not usable, or its tokenizer or chat template is not",
        4: "the hub or the network",
        5: "the device",
        6: "the prompt does not fit into the context",
        SOME_FAILED: "some lines of a batch failed; their errors stand in its output",
        INTERRUPTED: "interrupted by Ctrl-C; the text so far stands on stdout",
        BROKEN_PIPE: "whoever read stdout closed it",
    }
)


def report(error: BaseException) -> int:
    """
    Say what happened, in one sentence on stderr, and return the exit code.

    GGUF_ENGINE_DEBUG=1 in the environment adds the traceback.
    """
    if os.environ.get("GGUF_ENGINE_DEBUG") == "1":
        traceback.print_exception(error)
    code = getattr(error, "exit_code", None)  # typer's own: Exit, and errors of usage
    if isinstance(code, int):
        if hasattr(error, "format_message"):
            complain(_usage(error))
        return code
    code = next(code for kind, code in EXIT_CODES if isinstance(error, kind))
    if code not in (INTERRUPTED, BROKEN_PIPE):
        complain(sentence(error))
    return code


def complain(text: str) -> None:
    """Print an error as this program does."""
    print(f"gguf-engine: {text}", file=sys.stderr, flush=True)


def sentence(error: BaseException) -> str:
    """Return what an error says, with values named as they are typed."""
    if isinstance(error, OptionError):
        return str(error).replace("or None", "or none")
    if isinstance(error, PromptTooLongError):
        return str(error).replace("n_ctx=", "--n-ctx ")
    if isinstance(error, GGUFEngineError):
        return str(error)
    if isinstance(error, OSError):
        place = f"{error.filename}: " if error.filename else ""
        return f"{place}{error.strerror or error}"
    return (
        f"internal error: {type(error).__name__}: {error}; "
        "GGUF_ENGINE_DEBUG=1 shows where, please report it"
    )


def _usage(error: Any) -> str:
    """Return one sentence for an error of typer's parser, ending with the command that helps."""
    name = getattr(error, "option_name", None)
    path = error.ctx.command_path if error.ctx is not None else "gguf-engine"
    if name is not None and hasattr(error, "possibilities"):
        close = difflib.get_close_matches(name, error.possibilities or (), n=1, cutoff=_CLOSE)
        what = f"unknown option {name}" + (f"; did you mean {close[0]}?" if close else "")
        if path.endswith(" run"):
            what += "; put -- before a prompt that begins with a dash"
    else:
        what = error.format_message().rstrip(".")
        what = what[:1].lower() + what[1:]
    return f"{what}; `{path} --help` lists what there is"
