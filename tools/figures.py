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
    parts = (
        *(_decode, _stages, _batching, _neighbour, _prefix, _session, _latency, _speculation),
        *(_serve, _batch, _startup, _isolation, _cancel, _sampler, _detokenizer),
    )
    return "\n".join(line for part in parts for line in part())


def by_model(benchmark: str) -> dict[str, dict[str, Any]]:
    """
    Return the newest results of a benchmark for each model, the smallest model first.

    A record may hold some parts of a benchmark only; each part is the newest there is.
    """
    lines = (RECORDS / f"{benchmark}.jsonl").read_text(encoding="utf-8").splitlines()
    found: dict[str, dict[str, Any]] = {}
    for results in (json.loads(line)["results"] for line in lines):
        if "model" in results:  # the oldest records name none
            found.setdefault(_model(results["model"]), {}).update(results)
    return dict(sorted(found.items(), key=lambda item: item[0].casefold()))


def _model(name: str) -> str:
    """Return what a table calls a model: "haiku", or the shape that stands in for a real one."""
    return "haiku" if name.startswith("haiku") else "Phi-3-mini" if name.startswith("phi3") else name


def _decode() -> list[str]:
    def rates(row: dict[str, Any], phase: str) -> list[str]:
        names = ("gguf_engine", "bare", "llama_cpp.Llama")
        return [f"{row[f'{phase}_{name}']['median']:,.{phase == 'decode':d}f}" for name in names]

    found = by_model("decode")
    decode = [
        (
            f"{model}, {_threads(row)}",
            *rates(row, "decode"),
            f"{row['decode_of_bare']:.2f}",
            f"{row['decode_of_llama_class']:.2f}",
            f"{row['decode_gb_per_s']:.1f} of {row['memory_read_gb_per_s']['median']:.1f}",
        )
        for model, row in found.items()
    ]
    prefill = [
        (
            f"{model}, {_threads(row)}",
            *rates(row, "prefill"),
            f"{row['prefill_of_bare']:.2f}",
            f"{row['prefill_of_llama_class']:.2f}",
            f"{row['prefill_of_one_by_one']:.1f}",
        )
        for model, row in found.items()
    ]
    deep = [
        (
            f"{model}, {_threads(row['at_depth'])}",
            f"{row['at_depth']['depth']:,}",
            *(
                f"{row['at_depth'][name]['median']:,.1f}"
                for name in ("gguf_engine", "bare", "llama_cpp.Llama")
            ),
            *(
                f"{row['at_depth']['gguf_engine']['median'] / row['at_depth'][name]['median']:.2f}"
                for name in ("bare", "llama_cpp.Llama")
            ),
        )
        for model, row in found.items()
        if "at_depth" in row
    ]
    facts = next(iter(found.values()))
    engines = ("model", "`LLM`/s", "bare loop/s", "`Llama`/s", "of bare", "of `Llama`")
    caption = "One stream: tokens/s against a bare ctypes loop and `llama_cpp.Llama`"
    more = f"A prompt of {facts['n_prefill']} tokens: tokens/s, and against the same fed one at a time"
    return [
        *_table("decode", caption, (*engines, "GB/s of what plain reads give"), decode),
        *_table(
            "decode",
            "One stream after a long prompt: tokens/s; the bare loop attends as llama.cpp chooses",
            (engines[0], "after", *engines[1:]),
            deep,
            "--depth N",
        ),
        *_table("decode", more, (*engines, "times one at a time"), prefill),
    ]


def _stages() -> list[str]:
    found = by_model("stages")
    names = list(next(iter(found.values()))["us_a_token"])
    rows = [
        (f"{model}, {_threads(row)}", *(f"{row['us_a_token'][name]:,.1f}" for name in names))
        for model, row in found.items()
    ]
    return _table(
        "decode", "One stream: microseconds a token, by stage", ("model", *names), rows, "--stages"
    )


def _neighbour() -> list[str]:
    rows = [
        (
            _model(model),
            name,
            *(f"{row[kind][engine]['median']:,.1f}" for kind in ("none", "pinned", "free")),
            *(f"{row[f'of_idle_{kind}'][engine]:.2f}" for kind in ("pinned", "free")),
        )
        for model, row in newest("neighbour")["results"]["models"].items()
        for engine, name in (("llama.cpp", "llama.cpp's own settings"), ("exact", "gguf_engine"))
    ]
    heading = ("model", "engine", "alone", "pinned", "free", "pinned, of alone", "free, of alone")
    caption = (
        "Beside a process that keeps one of two cores busy, pinned to it or free: tokens/s of one stream"
    )
    return _table("neighbour", caption, heading, rows)


def _prefix() -> list[str]:
    found = by_model("prefix")
    eight = [
        (
            model,
            *(f"{row['eight'][kind]['last_first_s']:.2f}" for kind in ("apart", "shared")),
            f"{row['eight']['last_first_s_ratio']:.1f}",
            *(f"{row['eight'][kind]['cells']:,.0f}" for kind in ("apart", "shared")),
        )
        for model, row in found.items()
        if "eight" in row
    ]
    later = [
        (
            model,
            f"{row['turn']['n_prompt']:,}",
            f"{row['turn']['cold_s']:.2f}",
            f"{row['turn']['second_turn_s'] * 1e3:.0f}",
            f"{row['turn']['second_turn_ratio']:.1f}",
            f"{row['restart']['n_prefix']:,}",
            f"{row['restart']['cold_s']:.2f}",
            f"{row['restart']['from_disk_s'] * 1e3:.0f}",
            f"{row['restart']['ratio']:.1f}",
        )
        for model, row in found.items()
        if "turn" in row and "restart" in row
    ]
    return [
        *_table(
            "prefix",
            "Eight requests at once with one system prompt of 512 tokens: the last one's first token",
            ("model", "apart, s", "shared, s", "times", "KV cells apart", "KV cells shared"),
            eight,
        ),
        *_table(
            "prefix",
            "The next turn of a long chat, and the same system prompt after a restart: first token",
            (
                *("model", "chat, tokens", "cold, s", "next turn, ms", "times"),
                *("prompt, tokens", "cold, s", "from disk, ms", "times"),
            ),
            later,
        ),
    ]


def _session() -> list[str]:
    rows = [
        (
            model,
            f"{row['n_prompt']:,.0f}",
            *(f"{row[name] * 1e3:,.1f}" for name in ("cold_s", "warm_s", "forked_s", "restarted_s")),
            *(f"{row[name]:.1f}" for name in ("cold_over_warm", "cold_over_restarted")),
        )
        for model, row in by_model("session").items()
    ]
    heading = (
        *("model", "tokens", "cold, ms", "next turn", "in a fork", "loaded from a file"),
        *("times, next turn", "times, from a file"),
    )
    return _table("session", "The second turn of a session: first token", heading, rows)


def _latency() -> list[str]:
    rows = [
        (
            model,
            str(row["preset"] or "default"),
            f"{row['n_prompts']}",
            f"{row['alone']['p50_ms']:.0f}",
            *(f"{row['beside'][name]:.0f}" for name in ("p50_ms", "p99_ms", "max_ms")),
            f"{row['ttft_s']:.1f}",
        )
        for model, record in by_model("latency").items()
        for row in record["rows"]
    ]
    heading = ("model", "preset", "prompts", "alone", "p50", "p99", "most", "prompt's first token, s")
    n_prompt = next(iter(by_model("latency").values()))["n_prompt"]
    caption = f"Time between a stream's pieces while prompts of {n_prompt:,} tokens come in, milliseconds"
    return _table("latency", caption, heading, rows)


def _speculation() -> list[str]:
    cases = {"copy": "a text again, one word changed", "nothing": "nothing to copy"}
    rows = [
        (
            model,
            cases[case],
            f"{row['none']['median']:,.1f}",
            f"{row['lookup']['median']:,.1f}",
            f"{row['lookup']['of_none']:.2f}",
            f"{row['lookup']['accepted_of_drafted']:.0%}",
        )
        for model, record in by_model("speculation").items()
        for case, row in record["cases"].items()
    ]
    heading = ("model", "answer", "tokens/s", 'with `draft="lookup"`', "times", "guesses right")
    return _table("speculation", "Guessing ahead; the text is the same", heading, rows)


def _serve() -> list[str]:
    def figure(row: dict[str, Any], server: str, name: str, digits: int) -> str:
        return f"{row[server][name]:,.{digits}f}" if server in row else ""  # not every peer is installed

    rows = [
        (
            n_clients,
            *(figure(row, server, "requests_per_s", 0) for server in ("ours", "theirs")),
            f"{row['times']:.1f}" if "times" in row else "",
            *(figure(row, server, "mean_ms", 1) for server in ("ours", "theirs")),
            *(figure(row, server, "p99_ms", 1) for server in ("ours", "theirs")),
            f"{row['overhead_mean_ms']:.2f}",
        )
        for n_clients, row in newest("serve")["results"]["clients"].items()
    ]
    heading = (
        *("clients", "requests/s", "theirs", "times", "mean, ms", "theirs"),
        *("p99, ms", "theirs", "our API's share, ms"),
    )
    caption = "Chat requests to the server, haiku model; theirs is `python -m llama_cpp.server`"
    return _table("serve", caption, heading, rows)


def _batch() -> list[str]:
    found = newest("batch")["results"]
    whole = found["whole"]
    stages = {
        "boot": whole["boot_s"],
        "encode, beside inference": whole["encode_s"],
        "inference": whole["inference_s"],
        "total": whole["process_s"],
        "`llama_cpp.Llama`, one at a time": found["theirs_total_s"],
    }
    rows = [(name, f"{seconds:,.2f}") for name, seconds in stages.items()]
    threads = _threads({"n_threads": found["threads"]})
    caption = (
        f"{found['prompts']:,} prompts from a CSV, haiku model, {threads} in {found['engines']} engines"
    )
    command = f"--threads {found['threads']} --engines {found['engines']}"
    return _table("batch", caption, ("stage", "seconds"), rows, command)


def _startup() -> list[str]:
    found = newest("startup")["results"]
    names = {
        "empty": "an empty Python script",
        "import": "`import gguf_engine`",
        "bare": "a bare llama.cpp load and first token",
        "run": "`gguf-engine run --model haiku`",
    }
    rows = [(text, f"{found[name]['first_byte_s']['median'] * 1e3:.0f}") for name, text in names.items()]
    return _table("startup", "From the start of a process to its first byte", ("process", "ms"), rows)


def _batching() -> list[str]:
    engines = ("gguf_engine", "bare", "llama_cpp.Llama", "xllamacpp")

    def rate(row: dict[str, Any], name: str, *, digits: int) -> str:
        return f"{row[name]['median']:,.{digits}f}" if name in row else ""  # not every peer is installed

    rows = [
        (
            f"{model}, {_threads(record)}",
            width,
            *(rate(row, name, digits=0 if model == "haiku" else 1) for name in engines),
            *(f"{row[f'of_{name}']:.2f}" if name in row else "" for name in ("bare", "xllamacpp")),
        )
        for model, record in by_model("batching").items()
        for width, row in record["widths"].items()
    ]
    names = ("gguf_engine", "bare loop", "`Llama`", "xllamacpp", "of bare", "of xllamacpp")
    caption = "Streams at once: tokens/s of all together; `Llama` answers one at a time"
    return _table("batching", caption, ("model", "streams", *names), rows)


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
    benchmark: str, caption: str, heading: Sequence[str], rows: Iterable[Sequence[str]], options: str = ""
) -> list[str]:
    command = f"python benchmarks/{benchmark}.py {options}".strip()
    lines = [f"{caption} (`{command}`):", ""]
    lines += [_row(heading), _row(["---", *["---:"] * (len(heading) - 1)])]
    return [*lines, *map(_row, rows), ""]


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    print_or_write("figures", make_tables, __doc__)
