"""
Requests/s, latency and API overhead of the server, against `python -m llama_cpp.server` on the same model.

What bounds it: the model. One request at a time leaves the processor waiting between small passes; many
together share each pass. The API overhead is a request's time in our server less the engine's: reading,
checking, the chat template, encoding, JSON. Both servers answer the same greedy chat requests on one
compute thread; they take turns within each round.

    python benchmarks/serve.py [--theirs-python PATH] [--seconds S] [--rounds N] [--record]

`--theirs-python` is an interpreter with `llama-cpp-python[server]`; without it only ours is measured. The
last part opens 1,000 streams at once, with a queue that holds them, and measures memory and errors; then
clients that leave in mid-stream. The table goes to stderr; the last line of stdout is one JSON object.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import re
import socket
import statistics
import subprocess
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from common import PROGRAM, finish, say

from gguf_engine.loader.resolve import resolve_model

CLIENTS = (1, 8, 32)
TOPICS = ("ice", "rain", "the sea", "old maps", "bread", "a clock", "snow geese", "rust")
PATH = "/v1/chat/completions"
START_S = 60.0
N_STREAMS = 1000
N_LEAVERS = 20


class Place(NamedTuple):
    """A server that runs, and where."""

    process: subprocess.Popen[bytes]
    port: int


def body(topic: str, **options: Any) -> bytes:
    """Return a chat request whose answer is the same everywhere: greedy, no penalty."""
    message = {"role": "user", "content": f"Write a haiku about {topic}"}
    sampling = {"temperature": 0, "repeat_penalty": 1.0, "max_tokens": 32}
    return json.dumps({"messages": [message], **sampling, **options}).encode()


def post(data: bytes) -> bytes:
    """Return a request's bytes."""
    head = f"POST {PATH} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    return f"{head}Content-Length: {len(data)}\r\n\r\n".encode() + data


@contextlib.contextmanager
def running(command: Sequence[str], port: int) -> Iterator[Place]:
    """Run a server until the block ends; wait until it accepts."""
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    end = time.monotonic() + START_S
    while True:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
            break
        if process.poll() is not None or time.monotonic() > end:
            raise SystemExit(f"it does not start: {' '.join(command)}")
        time.sleep(0.05)
    try:
        yield Place(process, port)
    finally:
        process.terminate()
        process.wait(START_S)


def free_port() -> int:
    """Return a port that nobody listens on."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])


def ours(model: Path, *options: str) -> contextlib.AbstractContextManager[Place]:
    """Run our server."""
    port = free_port()
    command = [PROGRAM, "serve", "--model", str(model), "--port", str(port)]
    return running([*command, "--n-threads", "1", "--no-log-requests", *options], port)


def theirs(python: str, model: Path) -> contextlib.AbstractContextManager[Place]:
    """Run llama-cpp-python's server."""
    port = free_port()
    command = [python, "-m", "llama_cpp.server", "--model", str(model), "--port", str(port)]
    return running([*command, "--n_ctx", "4096", "--n_threads", "1", "--n_threads_batch", "1"], port)


async def ask(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, data: bytes) -> dict[str, Any]:
    """Send one request over a kept connection and return the answer."""
    writer.write(post(data))
    head = await reader.readuntil(b"\r\n\r\n")
    length = re.search(rb"content-length: (\d+)", head, re.IGNORECASE)
    assert head.startswith(b"HTTP/1.1 200 "), head
    assert length is not None, head
    answer: dict[str, Any] = json.loads(await reader.readexactly(int(length[1])))
    return answer


async def load(port: int, n_clients: int, seconds: float) -> tuple[list[float], int]:
    """Let clients ask one request after another; return the latencies in seconds and the tokens made."""
    end = time.perf_counter() + seconds
    latencies: list[float] = []
    n_tokens = 0

    async def client(n: int) -> None:
        nonlocal n_tokens
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        while (start := time.perf_counter()) < end:
            answer = await ask(reader, writer, body(TOPICS[n % len(TOPICS)]))
            latencies.append(time.perf_counter() - start)
            n_tokens += answer["usage"]["completion_tokens"]
            n += 1
        writer.close()

    await asyncio.gather(*(client(n) for n in range(n_clients)))
    return latencies, n_tokens


async def get(port: int, path: str) -> str:
    """Return the body of a GET."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(f"GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode())
    text = (await reader.read()).decode()
    writer.close()
    return text.partition("\r\n\r\n")[2]


async def figure(port: int, name: str) -> float:
    """Return one of our server's metrics."""
    found = re.search(rf"^{name} (\S+)$", await get(port, "/metrics"), re.MULTILINE)
    assert found is not None, name
    return float(found[1])


async def overhead(port: int) -> tuple[float, float]:
    """Return the sum, in seconds, and the count of our server's API overhead so far."""
    name = "gguf_engine_http_overhead_seconds"
    return await figure(port, f"{name}_sum"), await figure(port, f"{name}_count")


def summary(latencies: list[float], n_tokens: int, seconds: float) -> dict[str, float]:
    """Return the figures of one server at one number of clients."""
    return {
        "requests_per_s": len(latencies) / seconds,
        "mean_ms": statistics.fmean(latencies) * 1e3,
        "p99_ms": statistics.quantiles(latencies, n=100, method="inclusive")[98] * 1e3,
        "tokens_per_request": n_tokens / len(latencies),
        "n": len(latencies),
    }


async def compare(places: dict[str, Place], seconds: float, rounds: int) -> dict[str, Any]:
    """Measure each server at each number of clients, in turns."""
    rows: dict[str, Any] = {}
    for n_clients in CLIENTS:
        latencies: dict[str, list[float]] = {name: [] for name in places}
        n_tokens = dict.fromkeys(places, 0)
        added_s = n_added = 0.0
        for round_ in range(rounds + 1):
            for name, place in places.items():
                before = await overhead(place.port) if name == "ours" else (0.0, 0.0)
                took, n = await load(place.port, n_clients, seconds if round_ else 1.0)
                after = await overhead(place.port) if name == "ours" else (0.0, 0.0)
                if round_:  # the first round warms up
                    latencies[name] += took
                    n_tokens[name] += n
                    added_s, n_added = added_s + after[0] - before[0], n_added + after[1] - before[1]
        row: dict[str, Any] = {
            name: summary(latencies[name], n_tokens[name], seconds * rounds) for name in places
        }
        row["overhead_mean_ms"] = added_s / n_added * 1e3
        if "theirs" in row:
            row["times"] = row["ours"]["requests_per_s"] / row["theirs"]["requests_per_s"]
        rows[str(n_clients)] = row
    return rows


def memory_mib(pid: int) -> dict[str, float]:
    """Return the resident memory of a process and of its children, in MiB."""
    found = {"server": _rss_mib(pid), "engine": 0.0}
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            if int(path.read_text().rpartition(")")[2].split()[1]) == pid:
                found["engine"] += _rss_mib(int(path.parent.name))
    return found


def _rss_mib(pid: int) -> float:
    status = Path(f"/proc/{pid}/status").read_text(encoding="utf-8")
    found = re.search(r"VmRSS:\s+(\d+) kB", status)
    return 0.0 if found is None else int(found[1]) / 1024


async def stream(port: int, n: int) -> bool:
    """Read one whole stream; tell whether it ended as it should."""
    try:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(post(body(TOPICS[n % len(TOPICS)], stream=True, ignore_eos=True)))
        text = await reader.readuntil(b"0\r\n\r\n")
        writer.close()
    except (OSError, asyncio.IncompleteReadError):
        return False
    return text.startswith(b"HTTP/1.1 200 ") and b"data: [DONE]" in text and b'"error"' not in text


async def many_streams(place: Place) -> dict[str, Any]:
    """Open all streams at once; return errors, time, and memory over idle."""
    await asyncio.gather(*(stream(place.port, n) for n in range(8)))
    idle = memory_mib(place.process.pid)
    peak = dict(idle)
    start = time.perf_counter()
    reading = asyncio.gather(*(stream(place.port, n) for n in range(N_STREAMS)))
    while not reading.done():
        now = memory_mib(place.process.pid)
        peak = {name: max(peak[name], now[name]) for name in peak}
        await asyncio.sleep(0.1)
    took_s = time.perf_counter() - start
    return {
        "n_streams": N_STREAMS,
        "n_errors": sum(not ended_well for ended_well in await reading),
        "took_s": took_s,
        "idle_mib": sum(idle.values()),
        "server_over_idle_mib": peak["server"] - idle["server"],
        "engine_over_idle_mib": peak["engine"] - idle["engine"],
        "over_idle_mib": sum(peak.values()) - sum(idle.values()),
    }


async def leavers(port: int) -> dict[str, Any]:
    """Leave streams in the middle; return the milliseconds until the engine's slot is free."""
    waits = []
    for n in range(N_LEAVERS):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        options = {"stream": True, "ignore_eos": True, "max_tokens": 3000}
        writer.write(post(body(TOPICS[n % len(TOPICS)], **options)))
        await reader.readuntil(b'"content":"')
        await reader.readuntil(b'"content":"')
        start = time.perf_counter()
        writer.transport.abort()
        while await figure(port, "gguf_engine_requests_running"):
            pass
        waits.append((time.perf_counter() - start) * 1e3)
    return {"median_ms": statistics.median(waits), "max_ms": max(waits), "n": len(waits)}


def main() -> None:
    """Measure, print the table, end with JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--theirs-python", help="interpreter with llama-cpp-python[server]")
    parser.add_argument("--seconds", type=float, default=5.0, help="of one measurement")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--record", action="store_true")
    args = parser.parse_args()
    model = resolve_model("haiku").weights
    results: dict[str, Any] = {}
    with contextlib.ExitStack() as stack:
        places = {"ours": stack.enter_context(ours(model))}
        if args.theirs_python:
            places["theirs"] = stack.enter_context(theirs(args.theirs_python, model))
        results["clients"] = asyncio.run(compare(places, args.seconds, args.rounds))
        results["leaving"] = asyncio.run(leavers(places["ours"].port))
    with ours(model, "--max-queue", str(N_STREAMS), "--max-connections", "2000") as place:
        results["streams"] = asyncio.run(many_streams(place))
    say(
        f"{'clients':>8}{'server':>8}{'req/s':>9}{'mean ms':>9}{'p99 ms':>9}{'overhead ms':>13}{'times':>7}"
    )
    for n_clients, row in results["clients"].items():
        for name in places:
            figures, own = row[name], name == "ours"
            cells = f"{figures['requests_per_s']:9.1f}{figures['mean_ms']:9.1f}{figures['p99_ms']:9.1f}"
            more = f"{row['overhead_mean_ms']:13.2f}{row.get('times', 0):7.1f}" if own else ""
            say(f"{n_clients:>8}{name:>8}{cells}{more}")
    streams, leaving = results["streams"], results["leaving"]
    say(
        f"{N_STREAMS} streams: {streams['n_errors']} errors, {streams['took_s']:.1f} s, "
        f"{streams['over_idle_mib']:.0f} MiB over idle"
    )
    say(f"leaving: slot free after {leaving['median_ms']:.0f} ms, at most {leaving['max_ms']:.0f} ms")
    finish(
        "serve", {"n_threads": 1, "seconds": args.seconds, "rounds": args.rounds, **results}, args.record
    )


if __name__ == "__main__":
    main()
