"""
Fuzz the reader and the pre-flight check with coverage guidance (libFuzzer through atheris).

    pip install atheris
    python tools/fuzz_reader.py --seconds 60                     # figures as one line of JSON
    python tools/fuzz_reader.py --replay fuzz-findings/crash-... # one input again

Whatever the bytes, the check must return or raise a GGUFEngineError, soon. A finding is written to
--save by libFuzzer, as crash-*, timeout-* or oom-*.
"""

from __future__ import annotations

import argparse
import atexit
import contextlib
import json
import random
import shutil
import subprocess
import sys
import tempfile
import time
from functools import lru_cache
from importlib import import_module
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))

from gguf_edits import make_case
from gguf_mutations import Base
from gguf_raw import read_raw
from make_gguf import write_tiny_model

# So small that whole models, weights and all, are inputs of libFuzzer.
SMALL: dict[str, Any] = {
    "n_vocab": 340,
    "n_embd": 32,
    "n_layer": 1,
    "n_ctx": 8,
    "type": "Q4_0",
    "chat_template": None,
}
FAMILIES = {
    "phi3": "spm",
    "llama": "bpe",
    "gemma2": "spm",
    "gpt2": "bpe",
    "qwen3": "bpe",
    "stablelm": "spm",
}
N_SEEDS = 200
MAX_BYTES = 2**16


def instrument() -> Any:
    """Import the loader with coverage counters in it; return atheris."""
    try:
        atheris: Any = import_module("atheris")
    except ImportError:
        sys.exit("atheris is not installed; run `pip install atheris` (Linux, Python 3.11 to 3.13)")
    with atheris.instrument_imports(include=["gguf_engine.loader"]):
        import gguf_engine.loader.preflight  # noqa: F401 - what counts is that it is instrumented
    return atheris


def check_bytes(data: bytes) -> None:
    """Give bytes to the check as a file; anything but a GGUFEngineError passes through."""
    from gguf_engine import GGUFEngineError
    from gguf_engine.loader.preflight import preflight

    path = _place() / "model.gguf"
    path.write_bytes(data)
    with contextlib.suppress(GGUFEngineError):
        preflight(path)


@lru_cache(maxsize=1)
def _place() -> Path:
    """Return a folder for this process, in memory where there is one."""
    memory = Path("/dev/shm")  # noqa: S108 - a fresh folder in it, that nobody else knows
    folder = tempfile.mkdtemp(prefix="gguf-reader-", dir=memory if memory.is_dir() else None)
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return Path(folder)


def fuzz_forever(arguments: list[str], seed_folder: Path) -> None:
    """Hand over to libFuzzer, which ends the process; edits of whole models are among its mutations."""
    atheris = instrument()
    bases = write_bases(seed_folder)

    def mutate(data: bytes, max_size: int, seed: int) -> bytes:
        # Bytes alone seldom keep a header in order: now and then begin again from a model.
        if random.Random(seed).random() < 0.2:
            return make_case(bases, 0, seed)[0][:max_size]
        mutated: bytes = atheris.Mutate(data, max_size)
        return mutated

    atheris.Setup([sys.argv[0], *arguments], check_bytes, custom_mutator=mutate)
    atheris.Fuzz()


def write_bases(folder: Path) -> list[Base]:
    """Write the models that inputs begin from; return them in parts."""
    made = []
    for arch, vocab in FAMILIES.items():
        options = SMALL | {"arch": arch, "vocab": vocab}
        made.append(Base(arch, read_raw(write_tiny_model(folder / arch, **options)), options))
    return made


def write_seeds(folder: Path) -> None:
    """Write good and edited models."""
    bases = write_bases(folder)
    for number in range(N_SEEDS):
        (folder / f"edited-{number}").write_bytes(make_case(bases, 0, number)[0][:MAX_BYTES])


def run(seconds: int, save: Path, limit_s: int) -> dict[str, Any]:
    """Fuzz in a child process and return what libFuzzer reports."""
    save.mkdir(parents=True, exist_ok=True)
    before = set(save.iterdir())
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="gguf-reader-") as name:
        write_seeds(Path(name))
        command = [
            sys.executable, __file__, "--libfuzzer", f"-max_total_time={seconds}", f"-timeout={limit_s}",
            f"-max_len={MAX_BYTES}", "-rss_limit_mb=2048", "-print_final_stats=1",
            f"-artifact_prefix={save}/", name,
        ]  # fmt: skip
        result = subprocess.run(command, check=False, capture_output=True, text=True, timeout=seconds + 120)
    stats = dict(line[6:].split(": ") for line in result.stderr.splitlines() if line.startswith("stat::"))
    findings = sorted(str(path) for path in set(save.iterdir()) - before)
    if not stats:
        raise RuntimeError(f"libFuzzer said nothing about its work: {result.stderr[-2000:]}")
    covered = [line for line in result.stderr.splitlines() if " cov: " in line]
    return {
        "what": "fuzz the reader",
        "executions": int(stats["number_of_executed_units"]),
        "edges": int(covered[-1].split(" cov: ")[1].split()[0]) if covered else None,
        "findings": findings,
        "slowest_s": int(stats["slowest_unit_time_sec"]),
        "peak_rss_mb": int(stats["peak_rss_mb"]),
        "seconds": round(time.monotonic() - started, 1),
        "exit_code": result.returncode,
    }


def main() -> int:
    """Read the command line; fuzz for a while, or replay one input."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").strip().splitlines()[0])
    parser.add_argument("--seconds", type=int, default=60)
    parser.add_argument("--limit", type=int, default=2, metavar="S", help="seconds one input may take")
    parser.add_argument("--save", type=Path, default=Path("fuzz-findings"))
    parser.add_argument("--replay", type=Path, metavar="FILE", help="check one input and say what came out")
    parser.add_argument("--libfuzzer", action="store_true", help=argparse.SUPPRESS)
    given, rest = parser.parse_known_args()
    if given.libfuzzer:
        with tempfile.TemporaryDirectory() as name:
            fuzz_forever(rest, Path(name))
        return 0
    if rest:
        parser.error(f"unknown arguments: {' '.join(rest)}")
    if given.replay is not None:
        check_bytes(given.replay.read_bytes())
        print("returned, or raised an error of ours")
        return 0
    figures = run(given.seconds, given.save, given.limit)
    print(json.dumps(figures))
    return 1 if figures["findings"] or figures["exit_code"] else 0


if __name__ == "__main__":
    sys.exit(main())
