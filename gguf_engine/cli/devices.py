"""`gguf-engine devices`: where a model can be loaded."""

from __future__ import annotations

import json
import sys
from typing import Annotated

import typer

from gguf_engine.cli.loading import as_json


def devices(
    as_object: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """List the devices there are. Says which one auto takes, and how to build for others."""
    from gguf_engine.backend.devices import choose, install_lines
    from gguf_engine.backend.llama import library_versions, list_devices
    from gguf_engine.backend.processors import usable_processors

    found = list_devices()
    choice = choose("auto", found)
    install = install_lines()
    if as_object:
        auto = {"device": choice.device.name, "reason": choice.reason}
        facts = {"devices": as_json(found), "auto": auto, "n_threads": usable_processors()}
        print(json.dumps({**facts, **library_versions(), "install": install}))
        return
    from rich.console import Console
    from rich.table import Table

    table = Table("name", "kind", "description", box=None, pad_edge=False)
    table.add_column("memory, MiB", justify="right")
    table.add_column("free, MiB", justify="right")
    for device in found:
        sizes = (device.memory_total_bytes, device.memory_free_bytes)
        table.add_row(device.name, device.kind, device.description, *(str(size >> 20) for size in sizes))
    console = Console(width=None if sys.stdout.isatty() else 4096, markup=False, highlight=False)
    console.print(table)
    print(f"\n{choice.reason}\nthreads: {usable_processors()}")
    print("\nTo build llama.cpp for a GPU:")
    for line in install.values():
        print(f"  {line}")
