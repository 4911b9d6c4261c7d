"""`gguf-engine lock`: names → the exact files behind them, in a lock file."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from gguf_engine.cli.files import check_writable
from gguf_engine.cli.options import HubOptions, Without
from gguf_engine.errors import OptionError


def lock(
    models: Annotated[
        list[str], typer.Argument(metavar="NAME", help="Catalog names or org/repo:file@revision.")
    ],
    *,
    hub: Annotated[HubOptions, Without(("lock",))],
    output: Annotated[
        str | None,
        typer.Option("--output", "-o", metavar="PATH", help="Write this file instead of stdout."),
    ] = None,
) -> None:
    """
    Print a lock file: repository, commit, file, size and sha256 of weights and tokenizer.

    Models are downloaded first. Other verbs take the file with --lock and refuse whatever differs.
    """
    from gguf_engine.cli.progress import progress_bars
    from gguf_engine.loader.disk import write_whole
    from gguf_engine.loader.lockfile import format_lock
    from gguf_engine.loader.resolve import lock_model

    if output is not None:
        check_writable("--output", output)
    options = asdict(hub)
    del options["lock"]
    with progress_bars() as bars:
        show = None if bars is None else lambda *done: bars("download", *done)
        text = format_lock([lock_model(model, **options, progress=show) for model in models])
    if output is None:
        print(text, end="")
        return
    try:
        write_whole(Path(output), text)
    except OSError as error:
        raise OptionError("output", output, "a file that can be written", error.strerror or "") from error
