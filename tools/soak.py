"""
Leave the real server running under mixed load with faults, and see whether it stays as it was.

    python tools/soak.py --minutes 30          # what `make soak` runs
    python tools/soak.py --minutes 2 --record

Clients chat, complete, stream, ask for several answers and for log-probabilities, and use every other
route; one request in twenty is a fault: a client that leaves, a body cut short or broken, a reader that
stops reading. The engine's process is killed with SIGKILL again and again in the first 60 % of the time;
what follows shows whether one engine process stays flat. After a warm-up, and at the end, the load stops
for a moment and what the processes hold is counted.

Flat means: over the whole measured time memory grows by at most 8 MiB by the median slope of all pairs of
samples (Theil-Sen), the server's and the last engine's; no descriptor more at the end; no thread more than
asyncio's pool has. The table goes to stderr, one line of JSON to stdout; the exit code is 1 if anything
was not as it should be: an unexpected status, an answer cut short, growth.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import signal
import statistics
import sys
import time
from collections import Counter
from collections.abc import Sequence
from itertools import combinations
from pathlib import Path
from random import Random
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / "benchmarks"), str(ROOT / "tools")]

from common import finish, say  # noqa: E402 - folders of programs are no packages
from serve_program import Held, Program, figures, held  # noqa: E402
from soak_clients import RECOVERY_S, Clients, read_health  # noqa: E402

TOLERANCE_BYTES = 8 * 2**20
N_POOL = min(32, (os.cpu_count() or 1) + 4)
"""Threads that asyncio starts when they are first needed, and keeps."""
KILLED_SHARE = 0.6
N_KILLS = 30
LEAST_KILL_S = 4.0
N_SAMPLES = 200
OPTIONS = (
    *("--model", "haiku", "--n-threads", "1", "--n-ctx", "512", "--n-cells", "2048"),
    *("--request-s", "2", "--slow-reader-s", "2", "--beat-s", "1", "--no-log-requests"),
)


def growth(samples: Sequence[tuple[float, float]]) -> float:
    """
    Return how much samples of (time, value) rise from the first to the last, by their median slope.

    The median of the slopes of all pairs (Theil-Sen) is not moved by a peak, nor by a step at one end.
    """
    # Pairs near each other say little, and a few hundred samples make many.
    took_s = samples[-1][0] - samples[0][0] if samples else 0.0
    far = [(a, b) for a, b in combinations(samples, 2) if b[0] - a[0] >= took_s / 4 > 0]
    if not far:
        return 0.0
    slope = statistics.median((b[1] - a[1]) / (b[0] - a[0]) for a, b in far)
    return slope * took_s


class Watch:
    """Samples of what the server and its engine hold."""

    def __init__(self, program: Program) -> None:
        self._program = program
        self.server: list[tuple[float, Held]] = []
        self.engine: list[tuple[float, Held]] = []  # of the process that runs now
        self._engine_pid: int | None = None

    async def watch(self, seconds: float) -> None:
        """Take samples for so long."""
        end = time.monotonic() + seconds
        while (now := time.monotonic()) < end and self._program.is_running:
            self.server.append((now, held(self._program.process.pid)))
            pid = self._program.engine_pid()
            if pid != self._engine_pid:
                self._engine_pid, self.engine = pid, []
            with contextlib.suppress(OSError):  # it has just been killed
                if pid is not None:
                    self.engine.append((now, held(pid)))
            await asyncio.sleep(min(seconds / N_SAMPLES, end - now))

    def growth_bytes(self) -> dict[str, float]:
        """Return the growth of both; the engine's first third is its own warm-up."""
        engine = self.engine[len(self.engine) // 3 :]
        return {
            name: growth([(at, each.rss_bytes) for at, each in samples])
            for name, samples in (("server", self.server), ("engine", engine))
        }


async def kill_again_and_again(program: Program, clients: Clients, seconds: float) -> None:
    """Kill the engine's process now and then."""
    every_s = max(LEAST_KILL_S, seconds / N_KILLS)
    for _ in range(int(seconds / every_s)):
        await asyncio.sleep(every_s)
        pid = program.engine_pid()
        if pid is not None:
            clients.note_kill()
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


async def quiet(program: Program) -> Held:
    """Wait until the engine answers and connections have ended; return what the server then holds."""
    for _ in range(int(RECOVERY_S / 0.1)):
        if await read_health(program.port) == 200:
            break
        await asyncio.sleep(0.1)
    seen = []
    for _ in range(15):
        await asyncio.sleep(0.1)
        seen.append(held(program.process.pid))
    # A connection that the system has not taken down yet is no leak: what is leaked is there each time.
    return min(seen, key=lambda each: (each.n_fds, each.n_threads))


async def soak(program: Program, minutes: float, n_clients: int, seed: int) -> dict[str, Any]:
    """Load a server for some minutes; return what was found."""
    seconds = 60 * minutes
    warm_s = max(3.0, seconds / 10)
    clients, watch = Clients(program.port, Random(seed)), Watch(program)
    await asyncio.gather(clients.run(n_clients, warm_s), kill_again_and_again(program, clients, warm_s))
    before = await quiet(program)
    await asyncio.gather(
        clients.run(n_clients, seconds),
        kill_again_and_again(program, clients, seconds * KILLED_SHARE),
        watch.watch(seconds),
    )
    after = await quiet(program)
    findings = list(clients.findings)
    grown = watch.growth_bytes()
    for name, n_bytes in grown.items():
        if n_bytes > TOLERANCE_BYTES:
            findings.append(f"the {name} grew by {n_bytes / 2**20:.1f} MiB; allowed: 8")
    if after.n_fds > before.n_fds:
        findings.append(f"{after.n_fds} descriptors at the end, {before.n_fds} after the warm-up")
    if after.n_threads > before.n_threads + N_POOL:
        findings.append(f"{after.n_threads} threads at the end, {before.n_threads} after the warm-up")
    return {
        "minutes": minutes,
        "clients": n_clients,
        "seed": seed,
        "kills": clients.n_kills,
        "by_kind": dict(sorted(clients.by_kind.items())),
        "by_status": dict(sorted(clients.by_status.items())),
        "n_samples": len(watch.server),
        "server_grown_mib": round(grown["server"] / 2**20, 2),
        "engine_grown_mib": round(grown["engine"] / 2**20, 2),
        "most_fds": max(each.n_fds for _, each in watch.server),
        "after_warm_up": figures(before),
        "at_the_end": figures(after),
        "findings": findings,
    }


def main() -> int:
    """Read the command line, soak, print the figures."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--record", action="store_true")
    given = parser.parse_args()
    with Program(*OPTIONS) as program:
        found = asyncio.run(soak(program, given.minutes, given.clients, given.seed))
        code = program.end()
    if code:
        found["findings"].append(f"the server ended with {code}: {''.join(program.log)[-500:]}")
    kinds = Counter(found["by_kind"])
    say(f"{kinds.total():,} requests, {found['kills']} kills; by status: {found['by_status']}")
    say(f"after the warm-up {found['after_warm_up']}, at the end {found['at_the_end']}")
    say(f"grown by {found['server_grown_mib']} MiB (server), {found['engine_grown_mib']} MiB (last engine)")
    for finding in found["findings"]:
        say(finding)
    finish("soak", found, given.record)
    return 1 if found["findings"] else 0


if __name__ == "__main__":
    sys.exit(main())
