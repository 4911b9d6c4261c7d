"""Records → one table: medians, spread, ratios, answers, a verdict. Refuses what cannot be compared."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import fields
from itertools import chain
from typing import Any

from gguf_engine.bench import figures
from gguf_engine.bench.figures import Spread
from gguf_engine.bench.record import OURS, STAGES, Model, Record, RecordError, Trial, Workload
from gguf_engine.bench.report_answers import answer_rows
from gguf_engine.bench.report_rows import Row, rows_of
from gguf_engine.bench.report_words import verdict


def check_comparable(records: Sequence[Record], names: Sequence[str]) -> None:
    """
    Refuse records whose figures mean different things.

    Args:
        records: At least one.
        names: What errors call them.

    Raises:
        RecordError: Another model or another workload; says which fields differ.
    """
    first = records[0]
    for record, name in zip(records[1:], names[1:], strict=True):
        if record.model.sha256 != first.model.sha256:
            raise RecordError(
                f"{names[0]} and {name} measure different models: {_model(first.model)} and "
                f"{_model(record.model)}; measure the same file on both"
            )
        values = [
            (field.name, getattr(first.workload, field.name), getattr(record.workload, field.name))
            for field in fields(Workload)
        ]
        odd = [f"{what} {one!r} and {other!r}" for what, one, other in values if one != other]
        if odd:
            raise RecordError(
                f"{names[0]} and {name} measure different work: {'; '.join(odd)}; make both with the same "
                "options and the same version"
            )


def _model(model: Model) -> str:
    return f"{model.name} (sha256 {model.sha256[:12]})"


def summarize(records: Sequence[Record], names: Sequence[str]) -> dict[str, Any]:
    """
    Return everything that is printed of some records, as plain numbers and texts.

    Args:
        records: Comparable ones, at least one.
        names: What to call them.

    Returns:
        verdict; cases, each with its label, medians as [median, q1, q3] and ratios to the first case of
        ours that has the same depth, company and neighbour; answers; marks and notes by record.
    """
    rows = rows_of(records, names)
    several = len(records) > 1

    def said(name: str, sentence: str) -> str:
        return f"{name}: {sentence}" if several else sentence

    named = list(zip(records, names, strict=True))
    return {
        "verdict": _verdict(rows, named),
        "cases": [_case(row, _reference(row, rows)) for row in rows],
        "answers": [
            {"pair": row.pair, "greedy": row.greedy, "top_1": row.top_1, "mean_kl": row.kl}
            for row in answer_rows(records, names)
        ],
        "marks": [said(name, mark) for record, name in named for mark in record.marks],
        "notes": [said(name, note) for record, name in named for note in record.notes],
    }


def _verdict(rows: Sequence[Row], named: Sequence[tuple[Record, str]]) -> str:
    marked = [name for record, name in named if record.marks]
    doubt = ""
    if marked:
        which = " and ".join(marked) if len(named) > 1 else "this run"
        doubt = f" But {which} {'is' if len(marked) == 1 else 'are'} marked: the figures are doubtful."
    return verdict(rows) + doubt


def _reference(row: Row, rows: Sequence[Row]) -> Row | None:
    """Return what a row's ratios are to: the first of ours that did the same."""
    work = (row.case.depth, row.case.concurrency, row.case.neighbour)
    return next(
        (
            other
            for other in rows
            if other.case.engine == OURS
            and (other.case.depth, other.case.concurrency, other.case.neighbour) == work
        ),
        None,
    )


def _case(row: Row, reference: Row | None) -> dict[str, Any]:
    record, case = row.record, row.case
    gaps = figures.token_gaps_s(case)
    plain: dict[str, Callable[[Trial], float | None]] = {
        "first_token_s": figures.first_token_s,
        "boot_s": figures.boot_s,
        "import_s": lambda trial: trial.import_s,
        "load_s": lambda trial: trial.load_s,
        "encode_s": lambda trial: trial.encode_s,
        **{f"stage_{stage}_s": _stage(stage) for stage in STAGES},
        "rest_s": figures.rest_s,
        "total_s": lambda trial: trial.total_s,
        "forward_tokens_per_s": figures.forward_tokens_per_s,
        "peak_host_bytes": lambda trial: trial.peak_host_bytes,
        "peak_device_bytes": lambda trial: trial.peak_device_bytes,
        "prefill_flops_per_s": lambda trial: figures.prefill_flops_per_s(
            trial, record.model, record.workload.n_prompt
        ),
        "energy_j": lambda trial: trial.energy_j,
        "load_1m": lambda trial: trial.load_1m,
    }
    memory = row.memory
    return {
        "case": row.label if row.run else figures.name_of(case),
        "engine": case.engine,
        "version": case.version,
        "n_trials": len(case.trials),
        "decode_tokens_per_s": _three(row.decode),
        "decode_ratio": _ratio(row.decode, None if reference is None else reference.decode),
        "prefill_tokens_per_s": _three(row.prefill),
        "prefill_ratio": _ratio(row.prefill, None if reference is None else reference.prefill),
        "token_s": [figures.percentile(gaps, 0.5), figures.percentile(gaps, 0.99)],
        "decode_bytes_per_s": _three(row.achieved),
        "memory_copy_bytes_per_s": None if memory is None else statistics.median(memory.copy_bytes_per_s),
        **{name: _three(row.over(figure)) for name, figure in plain.items()},
    }


def _stage(name: str) -> Callable[[Trial], float | None]:
    return lambda trial: trial.stages.get(name)


def _three(spread: Spread | None) -> list[float] | None:
    return None if spread is None else [spread.median, spread.q1, spread.q3]


def _ratio(one: Spread | None, other: Spread | None) -> float | None:
    return None if one is None or other is None or not other.median else one.median / other.median


def label_files(paths: Sequence[str]) -> list[str]:
    """Return a short name for each file, all of them different."""
    parts = [path.replace("\\", "/").split("/") for path in paths]
    for n in range(1, max(map(len, parts)) + 1):
        names = ["/".join(part[-n:]).removesuffix(".json") for part in parts]
        if len(set(names)) == len(names):
            return names
    return [f"{path} ({i})" for i, path in enumerate(chain(paths), 1)]
