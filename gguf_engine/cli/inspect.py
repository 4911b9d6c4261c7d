"""`gguf-engine inspect`: what the header of a GGUF file says."""

from __future__ import annotations

import json
import math
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gguf_engine.cli.options import HubOptions
from gguf_engine.errors import HubError

if TYPE_CHECKING:
    from rich.table import Table

    from gguf_engine.loader.gguf import GGUFFile

_SHOWN_ELEMENTS = 8
_SHOWN_CHARS = 100
_WIDE = 4096


def inspect(
    model: Annotated[
        str,
        typer.Argument(metavar="FILE", help="A .gguf file, a folder with one, or a name that is cached."),
    ],
    tokenizer_json: Annotated[
        str | None,
        typer.Argument(
            metavar="TOKENIZER",
            help="With --tokenizer: the tokenizer.json; otherwise the one found with the model.",
        ),
    ] = None,
    *,
    hub: HubOptions,
    tokenizer: Annotated[
        bool,
        typer.Option(
            "--tokenizer", help="Compare a tokenizer.json with the vocabulary in the GGUF instead."
        ),
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
    full: Annotated[bool, typer.Option("--full", help="Print long arrays and texts whole.")] = False,
) -> None:
    """Show what a GGUF file holds, then what is wrong with it. Nothing is loaded, nothing downloaded."""
    from gguf_engine.loader.gguf import read_gguf
    from gguf_engine.loader.preflight import preflight
    from gguf_engine.loader.resolve import resolve_model

    if tokenizer_json is not None and not tokenizer:
        raise typer.BadParameter(f"{tokenizer_json} is a second file; it goes with --tokenizer")
    try:
        files = resolve_model(model, **{**asdict(hub), "offline": True})
    except HubError as error:
        if error.code != "offline":
            raise
        way_out = f"run `gguf-engine pull {model}` first"
        raise HubError(
            "offline", f"{model} is not in the cache, and inspect downloads nothing", way_out
        ) from None
    gguf = read_gguf(files.weights)
    if tokenizer:
        from gguf_engine.cli.audit import print_audit

        found = files.tokenizer if tokenizer_json is None else Path(tokenizer_json)
        print_audit(gguf.metadata, found, as_json=as_json)
        return
    if as_json:
        print(json.dumps(describe(gguf, full=full)))
    else:
        _print_tables(gguf, full=full)
    preflight(gguf)


def _print_tables(gguf: GGUFFile, *, full: bool) -> None:
    from rich.console import Console

    # A pipe has no width: rows stay whole, one a line.
    console = Console(width=None if sys.stdout.isatty() else _WIDE, markup=False, highlight=False)
    console.print(
        f"{visible(str(gguf.path))}: GGUF version {gguf.version}, {gguf.size} bytes, "
        f"{len(gguf.metadata)} keys, {len(gguf.tensors)} tensors, "
        f"{sum(math.prod(tensor.shape) for tensor in gguf.tensors)} parameters"
    )
    if full:  # a table would pad every row to the longest
        for key, value in gguf.metadata.items():
            print(key, gguf.value_types[key], _shown(value, full=True), sep="  ")
    else:
        console.print(_metadata_table(gguf))
    console.print(_tensor_table(gguf))


def describe(gguf: GGUFFile, *, full: bool) -> dict[str, Any]:
    """Return everything a header says; unless `full`, only the first elements of long arrays."""
    return {
        "path": str(gguf.path),
        "size": gguf.size,
        "version": gguf.version,
        "alignment": gguf.alignment,
        "data_offset": gguf.data_offset,
        "metadata": {
            key: {"type": gguf.value_types[key], **_value(value, full=full)}
            for key, value in gguf.metadata.items()
        },
        "tensors": [
            {
                "name": tensor.name,
                "shape": tensor.shape,
                "type": tensor.type,
                "offset": tensor.offset,
                "n_bytes": tensor.n_bytes,
            }
            for tensor in gguf.tensors
        ],
    }


def _value(value: Any, *, full: bool) -> dict[str, Any]:
    if not isinstance(value, tuple):
        return {"value": _finite(value)}
    if full or len(value) <= _SHOWN_ELEMENTS:
        return {"value": [_finite(element) for element in value]}
    return {"length": len(value), "first": [_finite(element) for element in value[:_SHOWN_ELEMENTS]]}


def _finite(value: Any) -> Any:
    """Return a number that JSON can hold; NaN and infinities become text."""
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def visible(text: str) -> str:
    """Return text from a stranger's file without characters that steer a terminal."""
    return "".join(char if char.isprintable() else repr(char)[1:-1] for char in text)


def _shown(value: Any, *, full: bool) -> str:
    if isinstance(value, tuple):
        elements = value if full else value[:_SHOWN_ELEMENTS]
        rest = len(value) - len(elements)
        return f"[{', '.join(map(repr, elements))}" + (f", ... {rest} more]" if rest else "]")
    text = str(value)
    if not full and len(text) > _SHOWN_CHARS:
        text = f"{text[:_SHOWN_CHARS]}... ({len(text)} characters)"
    return visible(text)


def _metadata_table(gguf: GGUFFile) -> Table:
    from rich.table import Table
    from rich.text import Text

    table = Table("key", "type", "value", box=None, pad_edge=False)
    for key, value in gguf.metadata.items():
        table.add_row(Text(key), gguf.value_types[key], Text(_shown(value, full=False)))
    return table


def _tensor_table(gguf: GGUFFile) -> Table:
    from rich.table import Table
    from rich.text import Text

    table = Table("tensor", "shape", "type", box=None, pad_edge=False)
    table.add_column("bytes", justify="right")
    for tensor in gguf.tensors:
        shape = " x ".join(map(str, tensor.shape))
        table.add_row(Text(tensor.name), shape, tensor.type, str(tensor.n_bytes))
    return table
