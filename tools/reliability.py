"""
Try every promise of the README as often as it says, and print what was found as one table.

    python tools/reliability.py                 # what `make reliability` runs; the better part of an hour
    python tools/reliability.py --fuzz 1000     # fewer random edits
    python tools/reliability.py --record        # append the record that the README's table is made from

The table goes to stderr, the record to stdout as the last line, JSON. The exit code is 1 when a promise
was broken.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "benchmarks"))

from common import finish, say  # noqa: E402 - the folder of the benchmarks is no package

TESTS = (
    "tests/e2e/test_corpus.py",
    "tests/e2e/test_download.py",
    "tests/e2e/test_interrupts.py",
    "tests/e2e/test_isolation.py",
    "tests/e2e/test_leaks.py",
    "tests/e2e/test_server_fuzz.py",
    "tests/e2e/test_soak.py",
    "tests/property/test_control_injection.py",
    "tests/unit/test_hostile_text.py",
    "tests/unit/test_hub_table.py",
    "tests/unit/test_state.py",
)
COVERED = ("gguf", "preflight", "hub")
COVERAGE_TESTS = (
    *("gguf", "preflight", "families", "known", "parts", "refusals", "tensor_check", "verdicts"),
    *("hub", "hub_faults", "hub_table", "lockfile", "cli_pull"),
)


def run(command: list[str], **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a step in the checkout; what it says goes to stderr."""
    say("$ " + " ".join(command))
    return subprocess.run(
        [sys.executable, *command],
        cwd=ROOT,
        env={**os.environ, **environment},
        stdout=subprocess.PIPE,
        text=True,
        check=False,
    )


def last_json(done: subprocess.CompletedProcess[str]) -> dict[str, Any]:
    """Return the object in the last line of a step's stdout."""
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def from_tests(folder: Path) -> list[dict[str, Any]]:
    """Run the tests thoroughly; return a row for each promise they report, and one if any failed."""
    log = folder / "promises.jsonl"
    done = run(["-m", "pytest", "-q", "--timeout", "7200", *TESTS], THOROUGH="1", PROMISES_LOG=str(log))
    say(done.stdout[-3000:])
    lines = log.read_text(encoding="utf-8").splitlines() if log.exists() else []
    rows = add_up(json.loads(line) for line in lines)
    if done.returncode:
        rows.append(row("The tests of these promises pass", 1, done.stdout.splitlines()[-1], held=False))
    return rows


def add_up(reports: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return one row for each promise: tries added, the last result, the worst time."""
    rows: dict[str, dict[str, Any]] = {}
    worst: dict[str, float] = {}
    for each in reports:
        name = each["promise"]
        tried = each["tried"] + rows.get(name, {"tried": 0})["tried"]
        if each["worst_s"] is not None:
            worst[name] = max(worst.get(name, 0.0), each["worst_s"])
        took = f"; at most {worst[name]:.2f} s" if name in worst else ""
        rows[name] = row(name, tried, each["result"] + took)
    return list(rows.values())


def row(promise: str, tried: int, result: str, *, held: bool = True) -> dict[str, Any]:
    """Return one line of the table."""
    return {"promise": promise, "tried": tried, "result": result, "held": held}


def from_fuzzer(count: int, figures: Path | None) -> dict[str, Any]:
    """Fuzz the loader, and llama.cpp with what the loader accepts; or take what a finished run printed."""
    if figures is None:
        done = run(["tools/fuzz_gguf.py", "--count", str(count), "--seed", "1", "--workers", "2"])
        found = last_json(done)
    else:
        found = json.loads(figures.read_text(encoding="utf-8").splitlines()[-1])
    broken = found["deaths"] + found["hangs"] + found["untyped_errors"]
    contained = found["deaths_contained"]
    result = (
        f"{found['deaths']} deaths, {found['hangs']} hangs; {found['refused']:,} refused, "
        f"{found['share_with_where']:.1%} naming where; {contained} of families without full checks "
        f"ended the process of their own they are loaded in; slowest answer {found['slowest_s']:.2f} s"
    )
    return row("No random edit of a model kills or hangs", found["files"], result, held=not broken)


def from_benchmark() -> dict[str, Any]:
    """Time the pre-flight check."""
    found = last_json(run(["benchmarks/preflight.py"]))["results"]
    times = "; ".join(f"{name}: {case['median']:.0f} ms" for name, case in found.items())
    return row("Pre-flight is cheap", len(found), times)


def from_coverage(folder: Path) -> dict[str, Any]:
    """Measure the branches of the loader that its tests take."""
    report = folder / "coverage.json"
    tests = [f"tests/unit/test_{name}.py" for name in COVERAGE_TESTS]
    options = ["--cov=gguf_engine.loader", "--cov-branch", f"--cov-report=json:{report}"]
    run(["-m", "pytest", "-q", *options, *tests, "tests/e2e/test_download.py"])
    files = json.loads(report.read_text(encoding="utf-8"))["files"]
    shares = {
        name: files[f"gguf_engine/loader/{name}.py"]["summary"]["percent_covered"] for name in COVERED
    }
    result = ", ".join(f"{name}.py {share:.0f} %" for name, share in shares.items())
    name = "Branch coverage of the loader"
    return row(name, len(shares), result, held=all(share == 100 for share in shares.values()))


def main() -> None:
    """Try everything, print the table, end with JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--fuzz", type=int, default=100_000, metavar="N", help="random edits to try")
    parser.add_argument(
        "--fuzz-figures",
        type=Path,
        metavar="FILE",
        help="what a run of tools/fuzz_gguf.py printed, instead",
    )
    parser.add_argument("--record", action="store_true")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        rows = [
            *from_tests(folder),
            from_fuzzer(args.fuzz, args.fuzz_figures),
            from_benchmark(),
            from_coverage(folder),
        ]
    for each in rows:
        verdict = "kept  " if each["held"] else "BROKEN"
        say(f"{verdict}  {each['promise']}: {each['tried']:,} tried; {each['result']}")
    finish("reliability", rows, args.record)
    sys.exit(not all(each["held"] for each in rows))


if __name__ == "__main__":
    main()
