"""
Print the README's performance tables from the newest records of benchmarks/records.

    python tools/figures.py                    # print them
    python tools/figures.py --write README.md  # put them between the markers of a file

A test holds the README's equal to them: no figure there is typed by hand.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from markers import print_or_write

RECORDS = Path(__file__).resolve().parent.parent / "benchmarks" / "records"


def newest(benchmark: str) -> dict[str, Any]:
    """Return the last record of a benchmark."""
    lines = (RECORDS / f"{benchmark}.jsonl").read_text(encoding="utf-8").splitlines()
    record: dict[str, Any] = json.loads(lines[-1])
    return record


def make_tables() -> str:
    """Return all tables, each with the command that made its record."""
    return "\n".join([*_overhead(), *_batching(), *_isolation(), *_cancel(), *_sampler(), *_detokenizer()])


def _overhead() -> list[str]:
    record = newest("overhead")["results"]
    rows = [
        (
            model,
            n_tokens,
            f"{row['gguf_engine']['median']:,.0f}",
            f"{row['bare']['median']:,.0f}",
            f"{row['llama_cpp.Llama']['median']:,.0f}" if "of_llama_class" in row else "",
            f"{row['of_bare']:.2f}",
            f"{row['of_llama_class']:.2f}" if "of_llama_class" in row else "",
        )
        for model, lengths in record["models"].items()
        for n_tokens, row in lengths.items()
    ]
    heading = ("model", "tokens", "`LLM.stream`/s", "bare loop/s", "`Llama`/s", "of bare", "of `Llama`")
    caption = f"One stream, {_threads(record)}: tokens/s against a bare ctypes loop and `llama_cpp.Llama`"
    return _table("overhead", caption, heading, rows)


def _batching() -> list[str]:
    record = newest("batching")["results"]
    rows = [
        (
            width,
            f"{row['gguf_engine']['median']:,.0f}",
            f"{row['bare']['median']:,.0f}",
            f"{row['of_bare']:.2f}",
        )
        for width, row in record["widths"].items()
    ]
    caption = f"Streams of the haiku model, {_threads(record)}: total tokens/s against a bare ctypes loop"
    return _table("batching", caption, ("streams", "gguf_engine/s", "bare loop/s", "of bare"), rows)


def _isolation() -> list[str]:
    record = newest("isolation")["results"]
    rows = [
        (width, *(f"{row[kind]['median']:.0f}" for kind in ("thread", "process")), f"{row['cost_us']:.0f}")
        for width, row in record["widths"].items()
    ]
    caption = 'The engine in a process of its own, `isolation="process"`, haiku model: microseconds a token'
    return _table("isolation", caption, ("streams", "in a thread", "in a process", "cost"), rows)


def _cancel() -> list[str]:
    record = newest("cancel")["results"]
    rows = [
        (model, way.replace("_", " "), *(f"{row[name]:.1f}" for name in ("median_ms", "p99_ms", "max_ms")))
        for model, ways in record["models"].items()
        for way, row in ways.items()
    ]
    caption = (
        f"A cancel inside a prompt of {record['n_prompt']:,} tokens, until the slot is free, milliseconds"
    )
    return _table("cancel", caption, ("model", "from", "median", "p99", "most"), rows)


def _threads(record: dict[str, Any]) -> str:
    n_threads = record["n_threads"]
    return "one thread" if n_threads == 1 else f"{n_threads} threads"


def _sampler() -> list[str]:
    rows = [
        (
            f"{case['n_vocab']:,}",
            case["row"],
            *(
                f"{case['us_per_row'][name]:,.1f}"
                for name in ("ours", "llama.cpp, same order", "NumPy, argpartition")
            ),
            f"{case['same_order_speedup']:.1f}",
        )
        for case in newest("sampler")["results"]["cases"]
    ]
    heading = ("vocabulary", "row", "ours, us", "llama.cpp, us", "NumPy, us", "times llama.cpp")
    caption = "One row sampled from Python, temperature 1, top-p 0.95, penalties over 64 ids"
    return _table("sampler", caption, heading, rows)


def _detokenizer() -> list[str]:
    methods = newest("detokenizer")["results"]["us_per_token"]["32k pieces"]
    lengths = list(next(iter(methods.values())))
    rows = [
        (name, *(f"{of_length[length]:.2f}" for length in lengths)) for name, of_length in methods.items()
    ]
    heading = ("method", *(f"us at {int(length):,} tokens" for length in lengths))
    return _table("detokenizer", "Ids to text, microseconds a token", heading, rows)


def _table(
    benchmark: str, caption: str, heading: Sequence[str], rows: Iterable[Sequence[str]]
) -> list[str]:
    lines = [f"{caption} (`python benchmarks/{benchmark}.py`):", ""]
    lines += [_row(heading), _row(["---", *["---:"] * (len(heading) - 1)])]
    return [*lines, *map(_row, rows), ""]


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    print_or_write("figures", make_tables)
