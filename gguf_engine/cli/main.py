"""The program `gguf-engine`: its verbs, and how it ends."""

from __future__ import annotations

import _thread
import os
import sys
import threading
from collections.abc import Sequence


def main() -> None:
    """Run the command line and exit with a code of the table in `cli/errors.py`."""
    sys.unraisablehook = _send_again
    sys.exit(run_command(sys.argv[1:]))


def _send_again(lost: sys.UnraisableHookArgs) -> None:
    """Python drops a Ctrl-C that comes in a callback, as in those of its imports: let it come once more."""
    if not issubclass(lost.exc_type, KeyboardInterrupt):
        sys.__unraisablehook__(lost)
        return
    # In a moment, from another thread: now it would be raised in here, and dropped like the first one.
    timer = threading.Timer(0.001, _thread.interrupt_main)
    timer.daemon = True
    timer.start()


def run_command(args: Sequence[str]) -> int:
    """Run one command and return its exit code; every error ends here, as one sentence on stderr."""
    # Nothing is imported above: Ctrl-C while typer loads ends here as well.
    try:
        from gguf_engine.cli.app import make_command

        command = make_command()
        _use_utf8()
        with command.make_context("gguf-engine", list(args)) as context:
            command.invoke(context)
        sys.stdout.flush()
    except SystemExit as end:
        if not isinstance(end.__context__, BrokenPipeError):
            raise
        from gguf_engine.cli.errors import BROKEN_PIPE

        return BROKEN_PIPE  # rich ends the program itself then, with 1
    except BaseException as error:  # noqa: BLE001 - the table of errors decides
        from gguf_engine.cli.errors import report

        code = report(error)
        _drop_unread_output()
        return code
    return 0


def _use_utf8() -> None:
    """Let pipes carry UTF-8 whatever the locale, and a terminal whatever it can show."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(encoding=None if stream.isatty() else "utf-8", errors="replace")


def _drop_unread_output() -> None:
    """Keep the interpreter from complaining at its end that nobody reads stdout any more."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
