"""The application: its verbs, its version, the table of exit codes in its help."""

from __future__ import annotations

from typing import Annotated, Any

import typer
from typer.main import get_command

from gguf_engine import __version__
from gguf_engine.cli import (
    batch,
    bench,
    bundle,
    chat,
    devices,
    doctor,
    inspect,
    lock,
    pull,
    run,
    serve,
    tune,
)
from gguf_engine.cli.errors import MEANINGS
from gguf_engine.cli.options import Command, expand

_CODES = "\n".join(f"  {code:<4} {meaning}" for code, meaning in MEANINGS.items())


def _show_version(asked: bool) -> None:
    if asked:
        print(f"gguf-engine {__version__}")
        raise typer.Exit


# Plain help: rich alone would take half of the start-up time.
app = typer.Typer(
    name="gguf-engine", rich_markup_mode=None, add_completion=False, pretty_exceptions_enable=False
)


@app.callback(epilog=f"\b\nExit codes:\n{_CODES}")
def program(
    *,
    version: Annotated[
        bool,
        typer.Option(
            "--version", help="Print the version and exit.", is_eager=True, callback=_show_version
        ),
    ] = False,
) -> None:
    """Quantized GGUF text generation on llama.cpp."""


_VERBS = (
    run.run, chat.chat, batch.batch, serve.serve,
    pull.pull, lock.lock, bundle.bundle, bundle.unbundle,
    inspect.inspect, devices.devices, doctor.doctor, tune.tune, bench.bench,
)  # fmt: skip
for _verb in _VERBS:
    app.command(cls=Command)(expand(_verb))


def make_command() -> Any:
    """Return the application as one command of typer's parser."""
    return get_command(app)
