"""`gguf-engine bundle` and `unbundle`: a model in one file, out of a hub cache and into another."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from gguf_engine.cli.files import check_writable
from gguf_engine.cli.options import HubOptions, Without
from gguf_engine.cli.pull import Preflight

if TYPE_CHECKING:
    from gguf_engine.loader.hub import Hub, Progress


def bundle(
    model: Annotated[
        str, typer.Argument(metavar="NAME", help="A catalog name or org/repo:file@revision; not haiku.")
    ],
    *,
    hub: HubOptions,
    output: Annotated[
        str, typer.Option("--output", "-o", metavar="PATH", help="The file to write: a tar file.")
    ],
) -> None:
    """Put a model and its lock file into one file, for a machine without a network. Prints nothing."""
    from gguf_engine.cli.progress import progress_bars
    from gguf_engine.loader.bundle import write_bundle

    check_writable("--output", output)
    with progress_bars() as bars:
        show = None if bars is None else lambda *done: bars("bundle", *done)
        write_bundle(model, output, _hub(hub, show), revision=hub.revision, lock=hub.lock)


def unbundle(
    file: Annotated[str, typer.Argument(metavar="FILE", help="What `gguf-engine bundle` wrote.")],
    *,
    preflight: Preflight = True,
    hub: Annotated[HubOptions, Without(("revision", "endpoint", "token", "offline"))],
) -> None:
    """
    Put the model of a bundle into the hub cache. Prints the path of the weights, and nothing else.

    All bytes are checked before the first one is written. Afterwards the model answers to its name with
    --offline.
    """
    from gguf_engine.cli.progress import progress_bars
    from gguf_engine.loader.bundle import unpack_bundle
    from gguf_engine.loader.preflight import preflight as check

    with progress_bars() as bars:
        show = None if bars is None else lambda *done: bars("unbundle", *done)
        weights = unpack_bundle(file, _hub(hub, show), lock=hub.lock)
    if preflight:
        check(weights)
    print(weights)


def _hub(options: HubOptions, progress: Progress | None) -> Hub:
    from gguf_engine.loader.hub import Hub

    return Hub.open(
        cache_dir=options.cache_dir,
        endpoint=options.endpoint,
        token=options.token,
        offline=options.offline,
        progress=progress,
    )
