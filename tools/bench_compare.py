"""
Time the parts of benchmarks/test_hot.py and compare them with the last committed record.

    python tools/bench_compare.py                 # the table, and a sentence for each part that is slower
    python tools/bench_compare.py --record        # keep these figures: a line more in records/hot.jsonl
    python tools/bench_compare.py --limit 50      # percent from which a part counts as slower (25)

Each part is compared by its fastest round: whatever else the machine does only adds. The part `anchor`
does what no change here alters, and every ratio is divided by its own: another machine, or a slower day,
is not taken for slower code. The table goes to stderr; the last line of stdout is one JSON object. Ends
with 1 when a part is slower than the limit allows.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
RECORD = ROOT / "benchmarks" / "records" / "hot.jsonl"
ANCHOR = "anchor"
SUITE = (
    "benchmarks/test_hot.py", "-q", "--benchmark-enable", "--benchmark-quiet", "--benchmark-disable-gc",
    "--benchmark-min-rounds=20", "--benchmark-max-time=0.7",
)  # fmt: skip

Parts = Mapping[str, Mapping[str, float]]
"""Part -> its fastest round and its median, in microseconds, and the number of rounds."""


def run_suite() -> Parts:
    """Run the suite in a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "hot.json"
        command = [sys.executable, "-m", "pytest", *SUITE, f"--benchmark-json={output}"]
        done = subprocess.run(command, cwd=ROOT, stdout=sys.stderr, check=False)
        if done.returncode:
            raise SystemExit(f"the suite failed with exit code {done.returncode}: see above")
        return read_parts(json.loads(output.read_text(encoding="utf-8")))


def read_parts(report: Mapping[str, Any]) -> Parts:
    """Return what is kept of pytest-benchmark's report: no host, no path, no user."""
    return {
        each["name"].removeprefix("test_"): {
            "min_us": 1e6 * each["stats"]["min"],
            "median_us": 1e6 * each["stats"]["median"],
            "n": each["stats"]["rounds"],
        }
        for each in report["benchmarks"]
    }


def last_record(path: Path) -> dict[str, Any] | None:
    """Return the newest record of a file, None when there is none."""
    if not path.exists():
        return None
    record: dict[str, Any] = json.loads(path.read_text(encoding="utf-8").splitlines()[-1])
    return record


def ratios(new: Parts, old: Parts) -> dict[str, float]:
    """Return how many times as long each part takes that both have, the anchor's own ratio taken out."""
    anchor = new[ANCHOR]["min_us"] / old[ANCHOR]["min_us"]
    return {
        name: new[name]["min_us"] / old[name]["min_us"] / anchor
        for name in new
        if name in old and name != ANCHOR
    }


def slower(changes: Mapping[str, float], limit: float) -> list[str]:
    """Return a sentence for each part that takes more than `limit` percent longer."""
    return [
        f"{name} takes {100 * (ratio - 1):.0f} % longer than in the last record; {limit:g} % may be noise"
        for name, ratio in changes.items()
        if ratio > 1 + limit / 100
    ]


def table(new: Parts, old: Parts, changes: Mapping[str, float]) -> str:
    """Return the parts, one a line."""
    lines = [f"{'part':28}{'us, fastest':>12}{'median':>10}{'record':>10}{'times':>8}"]
    for name, part in new.items():
        before = f"{old[name]['min_us']:10.1f}" if name in old else f"{'new':>10}"
        change = f"{changes[name]:8.2f}" if name in changes else ""
        lines.append(f"{name:28}{part['min_us']:12.1f}{part['median_us']:10.1f}{before}{change}")
    lines += [f"{name:28} is gone" for name in old if name not in new]
    return "\n".join(lines)


def main() -> int:
    """Run, compare, record."""
    sys.path.insert(0, str(ROOT / "benchmarks"))
    from common import finish, machine, say

    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--record", action="store_true")
    parser.add_argument("--limit", type=float, default=25.0, metavar="PERCENT")
    args = parser.parse_args()
    before = last_record(RECORD)
    new = run_suite()
    old: Parts = before["results"]["parts"] if before else {}
    changes = ratios(new, old) if before else {}
    say(table(new, old, changes))
    found = slower(changes, args.limit)
    if before is None:
        say(f"there is no record yet: --record makes {RECORD.relative_to(ROOT)}")
    elif before["machine"]["cpu"] != machine()["cpu"]:
        say(f"the record is of another processor ({before['machine']['cpu']}): expect ratios to be rough")
    for sentence in found:
        say(sentence)
    if before and not found:
        say(f"no part is over {args.limit:g} % slower than in the record of {before['machine']['date']}")
    finish("hot", {"parts": new, "of_last_record": changes}, args.record)
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
