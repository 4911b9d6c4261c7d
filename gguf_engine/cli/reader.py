"""Reader: what a person types, one entry at a time; an entry may have several lines."""

from __future__ import annotations

import contextlib
import sys

from gguf_engine.cli.loading import decode, note
from gguf_engine.errors import OptionError

_BLOCK = '"""'


class Reader:
    """
    Reads entries from a terminal, with line editing and history, or from a pipe, without prompts.

    A line that ends with a backslash goes on in the next one. Three double quotes open a block, three
    at the end of a line close it.
    """

    def __init__(self) -> None:
        self.is_terminal = sys.stdin.isatty()
        # `input` writes its prompt to stdout: fine on a terminal, and nowhere else.
        self._has_editing = self.is_terminal and sys.stdout.isatty()
        if self._has_editing:
            with contextlib.suppress(ImportError):
                import readline  # noqa: F401 - importing it is what gives `input` editing and history

    def read(self) -> str | None:
        """
        Return the next entry, None at the end.

        Raises:
            OptionError: An open block at the end, or bytes that are not UTF-8.
            KeyboardInterrupt: Ctrl-C while typing.
        """
        line = self._line(">>> ")
        if line is None:
            return None
        if line.lstrip().startswith(_BLOCK):
            return self._block(line.lstrip().removeprefix(_BLOCK))
        lines = [line]
        while lines[-1].endswith("\\"):
            lines[-1] = lines[-1][:-1]
            more = self._line("... ")
            if more is None:
                break
            lines.append(more)
        return "\n".join(lines)

    def _block(self, first: str) -> str:
        lines = [first]
        while not lines[-1].rstrip().endswith(_BLOCK):
            more = self._line("... ")
            if more is None:
                raise OptionError("block", "\n".join(lines)[:40], f"a block that ends with {_BLOCK}")
            lines.append(more)
        lines[-1] = lines[-1].rstrip().removesuffix(_BLOCK)
        return "\n".join(lines).strip("\n")

    def _line(self, prompt: str) -> str | None:
        if self._has_editing:
            try:
                return input(prompt)
            except EOFError:
                note("")
                return None
        if self.is_terminal:
            print(prompt, end="", file=sys.stderr, flush=True)
        data = sys.stdin.buffer.readline()
        return decode("line", data).rstrip("\r\n") if data else None
