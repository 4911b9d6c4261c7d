"""
Throw requests at the real server, over real sockets: valid ones, nearly valid ones, and what is no HTTP.

    python tools/fuzz_server.py --count 100000                        # what `make fuzz` runs
    python tools/fuzz_server.py --count 100000 --schemathesis 2000    # some of them made by schemathesis
    python tools/fuzz_server.py --seed 1 --only 4711                  # one case again, shown

Every answer must be what the documentation says: no status 500, each 4xx a JSON error with a sentence,
no hang, no death of the server or of its engine. The table goes to stderr, one line of JSON to stdout;
the exit code is 1 if something was found. Schemathesis (pip install '.[fuzz]') generates from the server's
own OpenAPI document; without it, a small generator of ours does.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import sys
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / "benchmarks"), str(ROOT / "tools")]

from common import finish, say  # noqa: E402 - folders of programs are no packages
from fuzz_bodies import Case, make_case  # noqa: E402
from serve_program import Program, figures, held  # noqa: E402

N_AT_ONCE = 16
HANG_S = 60.0
MAX_ANSWER_BYTES = 2**27
OPTIONS = (
    "--model",
    "haiku",
    "--n-threads",
    "1",
    "--n-ctx",
    "64",
    "--request-s",
    "0.5",
    "--no-log-requests",
)
"""A small context, so that an answer without a limit ends soon."""
ALLOWED_5XX = frozenset((501, 503))
NO_ANSWER = "ended"
MAX_FINDINGS = 20
N_SAMPLES = 20  # of the server's memory


async def exchange(port: int, data: bytes) -> tuple[int | None, bytes, bytes]:
    """
    Send bytes, and return status, head and body of the first answer; None if the server hangs up without.

    Raises:
        asyncio.TimeoutError: No end of it.
    """
    reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=MAX_ANSWER_BYTES)
    try:
        writer.write(data)
        return await asyncio.wait_for(_answer(reader, is_head=data.startswith(b"HEAD ")), HANG_S)
    except (ConnectionError, asyncio.IncompleteReadError):
        return None, b"", b""
    finally:
        writer.close()


async def _answer(reader: asyncio.StreamReader, *, is_head: bool) -> tuple[int, bytes, bytes]:
    head = await reader.readuntil(b"\r\n\r\n")
    while head.startswith(b"HTTP/1.1 100 "):
        head = await reader.readuntil(b"\r\n\r\n")
    length = head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0]
    if is_head:
        body = b""
    elif length:
        body = await reader.readexactly(int(length))
    else:
        body = await reader.readuntil(b"\r\n0\r\n\r\n")
    return int(head[9:12]), head, body


def fault_of(case: Case, status: int | None, head: bytes, body: bytes) -> str | None:
    """Return what is wrong with an answer, or None."""
    if status is None:
        return None if case.kind == "http" else "no answer to a whole request"
    if status == 200 or (status < 500 and case.data.startswith(b"HEAD ")):
        return None
    if status < 400 or (status >= 500 and status not in ALLOWED_5XX):
        return f"status {status}"
    try:
        error = json.loads(body)["error"]
        is_told = len(error["message"].split()) >= 3 and bool(error["code"] and error["type"])
    except (ValueError, LookupError, TypeError, AttributeError):
        is_told = False
    return None if is_told and b"application/json" in head else f"status {status} without a sentence"


class Tally:
    """What was answered, and what should not have been."""

    def __init__(self) -> None:
        self.by_status: Counter[str] = Counter()
        self.by_kind: Counter[str] = Counter()
        self.findings: list[str] = []
        self.n_findings = 0

    def add(self, label: str, case: Case, status: int | None, fault: str | None) -> None:
        """Count one answer."""
        self.by_kind[case.kind] += 1
        self.by_status[NO_ANSWER if status is None else str(status)] += 1
        if fault is not None:
            self.find(f"{label}: {fault}: {case.data[:300]!r}")

    def find(self, finding: str) -> None:
        """Note something that is wrong."""
        self.n_findings += 1
        if self.n_findings <= MAX_FINDINGS:
            say(finding)
            self.findings.append(finding)


async def throw(port: int, cases: Iterator[tuple[str, Case]], tally: Tally) -> None:
    """Send cases, some at a time, until there are no more."""

    async def thrower() -> None:
        for label, case in cases:
            try:
                status, head, body = await exchange(port, case.data)
            except asyncio.TimeoutError:
                tally.add(label, case, None, f"no end after {HANG_S:g} s")
                continue
            tally.add(label, case, status, fault_of(case, status, head, body))

    await asyncio.gather(*(thrower() for _ in range(N_AT_ONCE)))


async def read_json(port: int, path: str) -> Any:
    """Return what a GET answers."""
    head = f"GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
    return json.loads((await exchange(port, head.encode()))[2])


async def n_crashes(port: int) -> int:
    """Return how often the engine has died."""
    head = b"GET /metrics HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
    text = (await exchange(port, head))[2].decode()
    return int(float(text.partition("\ngguf_engine_crashes_total ")[2].split()[0]))


def from_seed(document: dict[str, Any], seed: int, numbers: Iterable[int]) -> Iterator[tuple[str, Case]]:
    """Yield our own cases with their names."""
    for number in numbers:
        yield f"seed {seed} case {number}", make_case(document, seed, number)


def sampled(
    cases: Iterable[tuple[str, Case]], every: int, program: Program, rss_mib: list[float]
) -> Iterator[tuple[str, Case]]:
    """Yield the cases; before every so many of them, add what memory the server then has."""
    for number, case in enumerate(cases):
        if number % every == 0 and program.is_running:
            rss_mib.append(round(held(program.process.pid).rss_bytes / 2**20, 1))
        yield case


def fuzz(count: int, seed: int, n_schemathesis: int = 0) -> tuple[dict[str, Any], Tally]:
    """
    Start a server, throw `count` cases at it, end it; return the figures.

    Args:
        count: All cases.
        seed: Of ours.
        n_schemathesis: How many of them schemathesis makes.
    """
    tally = Tally()
    rss_mib: list[float] = []
    started = time.monotonic()
    with Program(*OPTIONS) as program:
        before = held(program.process.pid)
        document = asyncio.run(read_json(program.port, "/openapi.json"))
        made: list[tuple[str, Case]] = []
        if n_schemathesis:
            from fuzz_schemathesis import from_schemathesis

            made = from_schemathesis(document, n_schemathesis, seed)
        own = from_seed(document, seed, range(count - len(made)))
        cases = sampled(itertools.chain(made, own), max(1, count // N_SAMPLES), program, rss_mib)
        asyncio.run(throw(program.port, cases, tally))
        health = asyncio.run(read_json(program.port, "/health"))["status"] if program.is_running else "gone"
        crashes = asyncio.run(n_crashes(program.port)) if program.is_running else 0
        after = held(program.process.pid) if program.is_running else before
        code = program.end()
    if (health, crashes, code) != ("ok", 0, 0):
        tally.find(f"at the end: health {health}, {crashes} deaths of the engine, exit code {code}")
    found = {
        "count": sum(tally.by_kind.values()),
        "seed": seed,
        "by_status": dict(sorted(tally.by_status.items())),
        "by_kind": dict(sorted(tally.by_kind.items())),
        "findings": tally.n_findings,
        "deaths": crashes + (code != 0),
        "before": figures(before),
        "after": figures(after),
        "rss_mib": rss_mib,
        "seconds": round(time.monotonic() - started, 1),
    }
    return found, tally


def show_one(seed: int, number: int) -> None:
    """Make one case again, and print what becomes of it."""
    with Program(*OPTIONS) as program:
        case = make_case(asyncio.run(read_json(program.port, "/openapi.json")), seed, number)
        status, head, body = asyncio.run(exchange(program.port, case.data))
    print(case.kind, case.data[:2000], status, head, body[:2000], sep="\n")
    print(fault_of(case, status, head, body) or "nothing is wrong with this")


def main() -> int:
    """Read the command line, fuzz, print the figures."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--count", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--schemathesis", type=int, default=0, metavar="N", help="cases made by it")
    parser.add_argument("--only", type=int, metavar="N", help="send case N alone, and show the answer")
    parser.add_argument("--record", action="store_true")
    given = parser.parse_args()
    if given.only is not None:
        show_one(given.seed, given.only)
        return 0
    found, tally = fuzz(given.count, given.seed, given.schemathesis)
    for status, n in found["by_status"].items():
        say(f"{status:>6} {n:>8,}")
    finish("fuzz_server", {**found, "found": tally.findings}, given.record)
    return 1 if tally.n_findings else 0


if __name__ == "__main__":
    sys.exit(main())
