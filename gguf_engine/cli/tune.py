"""`gguf-engine tune`: how a model runs best on this machine."""

from __future__ import annotations

import json
import os
import sys
from dataclasses import asdict
from typing import Annotated, Any

import typer

from gguf_engine.cli.loading import as_json, note
from gguf_engine.cli.options import DEFAULT_MODEL, HubOptions, parse_number
from gguf_engine.params import EngineParams


def tune(
    model: Annotated[
        str, typer.Argument(metavar="NAME", help="As --model of run; what is not here is downloaded.")
    ] = DEFAULT_MODEL,
    *,
    hub: HubOptions,
    device: Annotated[str, typer.Option("--device", metavar="NAME", help="Where to load it.")] = "auto",
    seconds: Annotated[
        str | None,
        typer.Option(
            "--seconds", metavar="FLOAT", help="Begin nothing new after so long, 5..3600. [default: 45]"
        ),
    ] = None,
    keep: Annotated[bool, typer.Option("--keep/--no-keep", help="Keep the choice for later loads.")] = True,
    forget: Annotated[
        bool, typer.Option("--forget", help="Measure nothing; forget what was chosen before.")
    ] = False,
    as_object: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Measure how a model runs best here. Threads, batch size, load mode; later loads use the choice."""
    from gguf_engine.cli.progress import progress_bars
    from gguf_engine.tune import BUSY, forget_choice, tune_model

    budget_s = 45.0 if seconds is None else parse_number("--seconds", seconds, float, 5, 3600)
    params = EngineParams(device=device)
    busy = _load()
    with progress_bars() as progress:
        if forget:
            forget_choice(model, params, progress=progress, **asdict(hub))
            note(f"nothing is kept for {model} on this machine")
            return
        steps = (lambda step: note(f"measuring {step}")) if sys.stderr.isatty() else (lambda _: None)
        outcome = tune_model(
            model, params, budget_s=budget_s, keep=keep, progress=progress, on_step=steps, **asdict(hub)
        )
    if as_object:
        print(json.dumps({"model": model, "load_1m": busy, **as_json(outcome)}))
    else:
        _print(outcome)
    if busy is not None and busy > BUSY:
        note(
            f"The machine was busy before this began (load {busy:.1f}): the figures are those of a crowded "
            "machine. Run it again when it is idle."
        )


def _load() -> float | None:
    return os.getloadavg()[0] if hasattr(os, "getloadavg") else None


def _print(outcome: Any) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table("options", box=None, pad_edge=False)
    for title in ("decode, tokens/s", "prefill, tokens/s", "prompt", "load, s"):
        table.add_column(title, justify="right")
    for row in outcome.report.measurements:
        table.add_row(
            _options(row.options) or "as it is",
            _number(row.decode_tokens_per_s),
            _number(row.prefill_tokens_per_s),
            str(row.n_prefill),
            f"{row.load_s:.1f}" if row.load_s else "",
        )
    console = Console(width=None if sys.stdout.isatty() else 4096, markup=False, highlight=False)
    console.print(table)
    print(f"\nchoice: {_options(outcome.report.choice) or 'the defaults are as fast as anything'}")
    if outcome.report.left_out:
        print(f"not measured, for want of time: {', '.join(outcome.report.left_out)}")
    kept = "kept for later loads of this model on this machine" if outcome.kept else "not kept"
    print(f"{kept}; it took {outcome.report.seconds:.0f} s")


def _options(options: dict[str, Any]) -> str:
    return ", ".join(f"{name}={value}" for name, value in options.items())


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.1f}"
