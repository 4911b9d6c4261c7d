"""`gguf-engine pull`: a name → verified files in the hub cache."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

import typer

from gguf_engine.cli.options import HubOptions

Preflight = Annotated[
    bool,
    typer.Option(
        "--preflight/--no-preflight",
        help="Refuse files that would crash llama.cpp. Without it a bad file shows when it is loaded.",
    ),
]


def pull(
    model: Annotated[
        str,
        typer.Argument(metavar="NAME", help="A catalog name (haiku, phi3-mini) or org/repo:file@revision."),
    ],
    *,
    preflight: Preflight = True,
    hub: HubOptions,
) -> None:
    """Download a model once. Its bytes are checked; prints the path of the weights, and nothing else."""
    from gguf_engine.cli.progress import progress_bars
    from gguf_engine.loader.preflight import preflight as check
    from gguf_engine.loader.resolve import resolve_model

    with progress_bars() as bars:
        show = None if bars is None else lambda *done: bars("download", *done)
        files = resolve_model(model, **asdict(hub), progress=show)
    if preflight:
        check(files.weights)
    print(files.weights)
