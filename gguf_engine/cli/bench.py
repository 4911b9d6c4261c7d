"""`gguf-engine bench`: what a model does on this machine, and records beside each other."""

from __future__ import annotations

import contextlib
import json
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from gguf_engine.cli.files import check_readable, check_writable
from gguf_engine.cli.loading import note
from gguf_engine.cli.options import HubOptions, parse_number
from gguf_engine.errors import OptionError

if TYPE_CHECKING:
    from gguf_engine.bench.plan import BenchOptions
    from gguf_engine.bench.record import Record

_Default = TypeVar("_Default", int, None)
_COMPARE = "compare"
_PEERS = "bare, llama-cpp-python, xllamacpp, mistralrs (NAME=PYTHON of its environment), llama-bench=PATH"


def bench(
    names: Annotated[
        list[str],
        typer.Argument(metavar="NAME", help='As --model of run; or "compare" and the files of --json.'),
    ],
    *,
    hub: HubOptions,
    device: Annotated[
        list[str] | None, typer.Option("--device", metavar="NAME", help="Where; may be repeated.")
    ] = None,
    threads: Annotated[
        str | None,
        typer.Option(
            metavar="N,N", help="Compute threads, each 1..512; otherwise what loading would take."
        ),
    ] = None,
    depth: Annotated[
        str | None,
        typer.Option(
            metavar="N,N", help="Tokens in the cache before the prompt, each 0..1048576. [default: 0]"
        ),
    ] = None,
    concurrency: Annotated[
        str | None, typer.Option(metavar="N,N", help="Requests at once, each 1..256. [default: 1]")
    ] = None,
    trials: Annotated[
        str | None, typer.Option(metavar="INT", help="Measured rounds, 2..1000. [default: 5]")
    ] = None,
    prompt_tokens: Annotated[
        str | None,
        typer.Option(metavar="INT", help="Of a prompt, 16..1048576; otherwise 128, of a small model 512."),
    ] = None,
    tokens: Annotated[
        str | None,
        typer.Option(metavar="INT", help="Of an answer, 8..1048576; otherwise 64, of a small model 256."),
    ] = None,
    seed: Annotated[
        str | None, typer.Option(metavar="INT", help="Of the draws, 0..2^63-1. [default: 1]")
    ] = None,
    peer: Annotated[
        list[str] | None, typer.Option("--peer", metavar="NAME", help=f"Measure it, too: {_PEERS}.")
    ] = None,
    neighbour: Annotated[
        bool, typer.Option("--neighbour", help="Every case beside a busy process, too.")
    ] = False,
    json_file: Annotated[
        str | None, typer.Option("--json", metavar="FILE", help="Write the record.")
    ] = None,
    html_file: Annotated[
        str | None, typer.Option("--html", metavar="FILE", help="Write a report with charts.")
    ] = None,
) -> None:
    """
    Measure a model: boot, prompt, decode, memory, answers. Then compare machines, builds and engines.

    gguf-engine bench haiku --json a.json; the same on another machine; gguf-engine bench compare a.json
    b.json --html report.html. Tables go to stderr; the last line of stdout is one JSON object.
    """
    given = {
        "--device": device, "--threads": threads, "--depth": depth, "--concurrency": concurrency,
        "--trials": trials, "--prompt-tokens": prompt_tokens, "--tokens": tokens, "--seed": seed,
        "--peer": peer, "--neighbour": neighbour or None, "--json": json_file,
    }  # fmt: skip
    if names[0] == _COMPARE:
        for name, value in given.items():
            if value is not None:
                raise OptionError(name, value, "with a model only", "records are compared as they are")
        _compare(names[1:], html_file)
        return
    if len(names) > 1:
        raise OptionError("NAME", names[1], "one model", "`bench compare A.json B.json` compares records")
    from gguf_engine.bench.plan import BenchOptions
    from gguf_engine.bench.process import parse_peer

    options = BenchOptions(
        devices=tuple(device or ("auto",)),
        threads=_numbers("--threads", threads, ()),
        depths=_numbers("--depth", depth, (0,)),
        concurrencies=_numbers("--concurrency", concurrency, (1,)),
        n_trials=_number("trials", trials, 5),
        n_prompt=_number("prompt-tokens", prompt_tokens, None),
        n_tokens=_number("tokens", tokens, None),
        seed=_number("seed", seed, 1),
        peers=tuple(map(parse_peer, peer or ())),
        neighbour=neighbour,
    )
    _measure(names[0], hub, options, json_file, html_file)


def _measure(
    name: str, hub: HubOptions, options: BenchOptions, json_file: str | None, html_file: str | None
) -> None:
    from gguf_engine.bench.run import run_bench
    from gguf_engine.cli.progress import progress_bars

    if json_file is not None:
        check_writable("--json", json_file)
    _check_report(html_file)
    with progress_bars() as progress, _steps() as on_step:
        record = run_bench(
            name, options, environment=dict(os.environ), on_step=on_step, progress=progress, **asdict(hub)
        )
    if json_file is not None:
        Path(json_file).write_text(record.to_json() + "\n", encoding="utf-8")
    _report([record], [record.model.name], html_file)


def _compare(files: Sequence[str], html_file: str | None) -> None:
    from gguf_engine.bench.compare import check_comparable, label_files
    from gguf_engine.bench.record import read_record

    if len(files) < 2:
        raise OptionError("compare", list(files), "two records or more", "bench NAME --json FILE makes one")
    for file in files:
        check_readable("compare", file, "records that `bench NAME --json FILE` wrote")
    _check_report(html_file)
    records, names = [read_record(file) for file in files], label_files(files)
    check_comparable(records, names)
    _report(records, names, html_file)


def _numbers(name: str, text: str | None, default: tuple[int, ...]) -> tuple[int, ...]:
    if text is None:
        return default
    try:
        return tuple(dict.fromkeys(int(part) for part in text.split(",")))
    except ValueError:
        raise OptionError(name, text, "integers with commas between them, such as 1,2") from None


def _number(name: str, text: str | None, default: _Default) -> int | _Default:
    from gguf_engine.bench.plan import RANGES

    return default if text is None else parse_number(f"--{name}", text, int, *RANGES[name])


def _check_report(html_file: str | None) -> None:
    """Refuse a report that cannot be made before minutes are spent for it."""
    if html_file is not None:
        from gguf_engine.bench.report_charts import check_charts

        check_writable("--html", html_file)
        check_charts()


@contextlib.contextmanager
def _steps() -> Iterator[Callable[[int, int, str], object]]:
    """Yield what is told of each step; on a terminal it moves a bar."""
    if not sys.stderr.isatty():
        yield lambda *_: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (BarColumn(), TimeRemainingColumn(), TextColumn("{task.description}", markup=False))
    with Progress(
        *columns, console=Console(stderr=True), transient=True, redirect_stdout=False, redirect_stderr=False
    ) as bars:
        bar = bars.add_task("")
        yield lambda done, total, what: bars.update(bar, completed=done, total=total, description=what)


def _report(records: list[Record], names: list[str], html_file: str | None) -> None:
    from gguf_engine.bench.compare import summarize

    summary = summarize(records, names)
    _print(summary)
    if html_file is not None:
        from gguf_engine.bench.report import render_report

        Path(html_file).write_text(render_report(records, names), encoding="utf-8")
        note(f"report: {html_file}")
    print(json.dumps({"benchmark": "bench", **summary}))


def _print(summary: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console(
        stderr=True, markup=False, highlight=False, width=None if sys.stderr.isatty() else 200
    )
    for title, columns in _TABLES.items():
        table = Table(title, box=None, pad_edge=False)
        for heading, _ in columns:
            table.add_column(heading, justify="right")
        for case in summary["cases"]:
            table.add_row(case["case"], *(cell(case) for _, cell in columns))
        console.print(table)
        console.print()
    if summary["answers"]:
        table = Table(
            "same answers?", "greedy", "same best id", "mean KL, at least", box=None, pad_edge=False
        )
        for row in summary["answers"]:
            table.add_row(row["pair"], row["greedy"], row["top_1"], row["mean_kl"])
        console.print(table)
        console.print()
    marks, notes = ([f"{kind}: {text}" for text in summary[f"{kind}s"]] for kind in ("mark", "note"))
    note(summary["verdict"], *marks, *notes)


_Cell = Callable[[dict[str, Any]], str]


def _of(name: str, factor: float = 1.0, *, spread: bool = False) -> _Cell:
    """Return what shows a figure's median, and its quartiles if they are wanted."""

    def cell(case: dict[str, Any]) -> str:
        value = case[name]
        if value is None:
            return "-"
        median, low, high = (_figure(factor * each) for each in value)
        return f"{median} ({low} to {high})" if spread else median

    return cell


def _figure(value: float) -> str:
    """Return about three digits of a number."""
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"


def _ratio(name: str) -> _Cell:
    return lambda case: "-" if case[name] is None else f"{case[name]:.2f}"


def _percentile(i: int) -> _Cell:
    return lambda case: "-" if case["token_s"][i] is None else _figure(1e3 * case["token_s"][i])


def _of_memory(case: dict[str, Any]) -> str:
    """Show GB/s, and their share of what copying reaches."""
    achieved, copy = case["decode_bytes_per_s"], case["memory_copy_bytes_per_s"]
    if achieved is None:
        return "-"
    share = "" if copy is None else f" ({achieved[0] / copy:.0%})"
    return f"{_figure(achieved[0] / 1e9)}{share}"


_TABLES: dict[str, tuple[tuple[str, _Cell], ...]] = {
    "speed": (
        ("decode, tokens/s", _of("decode_tokens_per_s", spread=True)),
        ("ratio", _ratio("decode_ratio")),
        ("prefill, tokens/s", _of("prefill_tokens_per_s", spread=True)),
        ("ratio", _ratio("prefill_ratio")),
        ("first token, ms", _of("first_token_s", 1e3)),
        ("token p50, ms", _percentile(0)),
        ("p99, ms", _percentile(1)),
    ),
    "time, ms": (
        ("import", _of("import_s", 1e3)),
        ("load", _of("load_s", 1e3)),
        ("encode", _of("stage_encode_s", 1e3)),
        ("prefill", _of("stage_prefill_s", 1e3)),
        ("decode", _of("stage_decode_s", 1e3)),
        ("sampling", _of("stage_sampling_s", 1e3)),
        ("detokenising", _of("stage_detokenising_s", 1e3)),
        ("hand-over", _of("stage_hand_over_s", 1e3)),
        ("rest", _of("rest_s", 1e3)),
        ("total", _of("total_s", 1e3)),
    ),
    "machine": (
        ("GB/s of weights (of copying)", _of_memory),
        ("GFLOP/s, prefill", _of("prefill_flops_per_s", 1e-9)),
        ("peak, MB", _of("peak_host_bytes", 1e-6)),
        ("on the GPU, MB", _of("peak_device_bytes", 1e-6)),
        ("joules", _of("energy_j")),
        ("load", _of("load_1m")),
    ),
}
