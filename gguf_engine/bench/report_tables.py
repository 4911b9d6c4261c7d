"""Rows and records → the tables of a report, every cell a text."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

from gguf_engine.bench import figures
from gguf_engine.bench.figures import Spread
from gguf_engine.bench.record import Record
from gguf_engine.bench.report_answers import NOTHING
from gguf_engine.bench.report_charts import number
from gguf_engine.bench.report_rows import Row
from gguf_engine.bench.report_words import size

Cell = tuple[str, str]
"""A figure, and below it in small its range."""


class Table(NamedTuple):
    """What `Every figure` shows."""

    heads: Sequence[str]
    rows: Sequence[Sequence[Cell]]


class Card(NamedTuple):
    """One machine, its software, the model: (name, value)."""

    title: str
    facts: Sequence[tuple[str, str]]


def figures_table(rows: Sequence[Row]) -> Table:
    """Return all figures of all cases; a column that no case fills is left out."""
    columns: list[tuple[str, Callable[[Row], Cell]]] = [
        ("case", lambda row: (row.label, "")),
        ("decode, tokens/s", lambda row: _cell(row.decode)),
        ("prefill, tokens/s", lambda row: _cell(row.prefill)),
        ("first token, ms", lambda row: _cell(row.over(figures.first_token_s), 1e3)),
        ("per token p50, ms", lambda row: _gap(row, 0.5)),
        ("per token p99, ms", lambda row: _gap(row, 0.99)),
        ("total, s", lambda row: _cell(row.over(lambda trial: trial.total_s))),
        ("boot, s", lambda row: _cell(row.over(figures.boot_s))),
        ("memory, MiB", lambda row: _cell(row.over(lambda trial: trial.peak_host_bytes), 1 / 2**20)),
        ("on the GPU, MiB", lambda row: _cell(row.over(lambda trial: trial.peak_device_bytes), 1 / 2**20)),
        ("weights, GB/s", lambda row: _cell(row.achieved, 1e-9)),
        ("prefill, GFLOP/s", _flops),
        ("energy, J", lambda row: _cell(row.over(lambda trial: trial.energy_j))),
        ("load", lambda row: _cell(row.over(lambda trial: trial.load_1m))),
        ("trials", lambda row: (str(len(row.case.trials)), "")),
        ("version", lambda row: (row.case.version or NOTHING, "")),
    ]
    filled = [(head, [make(row) for row in rows]) for head, make in columns]
    kept = [(head, cells) for head, cells in filled if any(cell[0] != NOTHING for cell in cells)]
    return Table([head for head, _ in kept], list(zip(*(cells for _, cells in kept), strict=True)))


def _cell(spread: Spread | None, factor: float = 1.0) -> Cell:
    if spread is None:
        return NOTHING, ""
    low, high = (number(factor * value) for value in (spread.q1, spread.q3))
    return number(factor * spread.median), f"{low} to {high}" if low != high else ""


def _gap(row: Row, share: float) -> Cell:
    value = figures.percentile(figures.token_gaps_s(row.case), share)
    return (NOTHING, "") if value is None else (number(1e3 * value), "")


def _flops(row: Row) -> Cell:
    n_prompt = row.record.workload.n_prompt
    return _cell(
        row.over(lambda trial: figures.prefill_flops_per_s(trial, row.record.model, n_prompt)), 1e-9
    )


def cards(records: Sequence[Record], names: Sequence[str]) -> Iterator[Card]:
    """Return a card a record: the machine, the software, the file."""
    for record, name in zip(records, names, strict=True):
        machine, software, model = record.machine, record.software, record.model
        gpus = [card for card in machine.devices if card.name != "cpu"]
        facts = [
            ("processor", machine.cpu),
            ("threads it may use", f"{machine.n_processors} of {machine.n_processors_total} processors"),
            ("memory", size(machine.memory_bytes) if machine.memory_bytes else NOTHING),
            *((card.name, f"{card.description}, {size(card.memory_bytes)}") for card in gpus),
            *([("driver", machine.driver)] if machine.driver else []),
            ("system", machine.system),
            ("load before", NOTHING if machine.load_1m is None else f"{machine.load_1m:.2f}"),
            *(("memory speed", _memory_speed(record)) for _ in record.memory[:1]),
            ("gguf-engine", software.gguf_engine),
            ("llama.cpp", f"{software.llama_cpp} (llama-cpp-python {software.llama_cpp_python})"),
            ("its build", software.build_flags),
            ("Python", f"{software.python}, tokenizers {software.tokenizers}, numpy {software.numpy}"),
            ("model", f"{model.name}: {model.architecture}, {model.type}, {model.n_params:,} weights"),
            ("file", f"{size(model.bytes)}, sha256 {model.sha256}"),
            *([("commit", model.commit)] if model.commit else []),
            ("anchor drift", _drift(record)),
            ("run", f"{record.date}, {record.seconds:.0f} s"),
        ]
        yield Card(name if len(records) > 1 else "This machine", facts)


def _memory_speed(record: Record) -> str:
    parts = []
    for speed in record.memory:
        read, copy = (figures.spread(each) for each in (speed.read_bytes_per_s, speed.copy_bytes_per_s))
        threads = f"{speed.n_threads} thread{'s' * (speed.n_threads != 1)}"
        shown = [
            f"{what} {size(of.median)}/s" for what, of in (("read", read), ("copy", copy)) if of is not None
        ]
        parts.append(f"{threads}: {', '.join(shown)}")
    return "; ".join(parts)


def _drift(record: Record) -> str:
    drift = figures.drift(record.anchor)
    n = len(record.anchor.decode_tokens_per_s)
    return NOTHING if drift is None else f"{drift:.1%} over {n} times, {record.anchor.limit:.0%} allowed"
